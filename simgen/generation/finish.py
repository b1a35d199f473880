"""Finishing: from the heavy atoms that the sampler leaves to molecules with a report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem
from torch import Tensor

from simgen.finishing.bonds import BondAssignment, assign_bonds
from simgen.finishing.classical import has_tight_contacts, minimise_classically
from simgen.finishing.hydrogens import add_hydrogens
from simgen.finishing.relaxation import relax
from simgen.generation.config import GenerationConfig
from simgen.generation.result import Attempt, attempt_name, attempt_of_mol
from simgen.generation.timing import timed
from simgen.host import CLASH
from simgen.known import KnownChemistry
from simgen.molecules import MoleculeBatch
from simgen.validation import (
    EV_TO_KCAL,
    Report,
    Status,
    check_contacts,
    check_graph_kept,
    molecule_key,
    validate,
)

_F_MAX = 0.03
"""Largest force left by relaxations, eV/angstrom."""
_RELAXATION_STEPS = 500
"""Most steps of a relaxation."""
_CLASSICAL = "relaxed classically: the force field has a hole here"
"""Detail of molecules that could not be relaxed in the force field."""

Elements = tuple[int, ...]
"""Atomic numbers of heavy atoms, ascending."""


@dataclass(frozen=True, slots=True, eq=False)
class Skeleton:
    """Heavy atoms as the sampler leaves them, those of a scaffold first."""

    index: int
    atomic_numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    finite: bool
    similarity: float | None


@dataclass(frozen=True, slots=True, eq=False)
class _Relaxed:
    """A molecule after relaxation; ``energy`` is what that released, kcal/mol.

    None for one that only a classical field has relaxed.
    """

    mol: Chem.Mol
    energy: float | None
    finite: bool
    converged: bool


class Finisher:
    """Turns heavy atoms into finished molecules, many at a time.

    Parameters
    ----------
    config : GenerationConfig
        What molecules are to be like.
    energy_and_forces : callable
        Force field.
    reference : sequence of Chem.Mol
        Reference molecules whose bonds are known: reports say which attempts are among them.
    chemistry : KnownChemistry
        Surroundings and ring systems that molecules may have.
    dtype, device
        Of the positions that the force field gets.
    timings : dict of str to float
        Seconds of each stage, to be added to.
    """

    def __init__(
        self,
        config: GenerationConfig,
        energy_and_forces: Callable[[MoleculeBatch], tuple[Tensor, Tensor]],
        reference: Sequence[Chem.Mol],
        chemistry: KnownChemistry,
        *,
        dtype: torch.dtype,
        device: torch.device,
        timings: dict[str, float],
    ) -> None:
        self.config = config
        self.scaffold = config.scaffold
        self.energy_and_forces = (
            energy_and_forces if config.host is None else config.host.walled(energy_and_forces)
        )
        self.reference = reference
        self.chemistry = chemistry
        self.dtype = dtype
        self.device = device
        self.timings = timings
        self._keys: dict[Elements, frozenset[str]] = {}

    @cached_property
    def _reference_of(self) -> dict[Elements, list[Chem.Mol]]:
        """Reference molecules by their heavy atoms."""
        groups: dict[Elements, list[Chem.Mol]] = defaultdict(list)
        for mol in self.reference:
            groups[_heavy_elements(mol)].append(mol)
        return groups

    def known(self, mol: Chem.Mol) -> frozenset[str] | None:
        """Keys of what this molecule may be among the reference; None without a reference.

        Those of all reference molecules would take longer than to make a molecule.
        """
        if not self.reference:
            return None
        elements = _heavy_elements(mol)
        if elements not in self._keys:
            alike = self._reference_of.get(elements, [])
            self._keys[elements] = frozenset(map(molecule_key, alike))
        return self._keys[elements]

    def finish(self, skeletons: Sequence[Skeleton]) -> list[Attempt]:
        """Bonds, hydrogens, relaxation and checks."""
        with timed(self.timings, "bonds and hydrogens"):
            assignments = [
                self.assign_bonds(skeleton.atomic_numbers, skeleton.positions)
                if skeleton.finite
                else BondAssignment(Status.NONFINITE, None, ())
                for skeleton in skeletons
            ]
            mols = {
                place: self._complete(assignment.mol)
                for place, assignment in enumerate(assignments)
                if assignment.mol is not None
            }
            for mol in mols.values():
                if has_tight_contacts(mol):
                    self._minimise_classically(mol)
        with timed(self.timings, "relaxation"):
            relaxed = dict(zip(mols, self._relax(list(mols.values())), strict=True))
            # A field can have holes where atoms are too close, the protons of hydrogen bonds above
            # all. What fell into one begins again from where a classical field, which has none,
            # puts it; without charges it makes no hydrogen bonds.
            spoiled = [place for place, result in relaxed.items() if not _is_sound(result)]
            for place in spoiled:
                self._minimise_classically(mols[place], electrostatics=False)
            again = self._relax([mols[place] for place in spoiled])
            for place, result in zip(spoiled, again, strict=True):
                # Some holes are not to be avoided. A classical geometry is better than none.
                classical = _Relaxed(mols[place], energy=None, finite=True, converged=True)
                best = next((r for r in (result, classical) if _is_sound(r)), relaxed[place])
                relaxed[place] = best
        with timed(self.timings, "validation"):
            return [
                self._judge(skeleton, assignment, relaxed.get(place))
                for place, (skeleton, assignment) in enumerate(
                    zip(skeletons, assignments, strict=True)
                )
            ]

    def assign_bonds(
        self, atomic_numbers: NDArray[np.int64], positions: NDArray[np.float64]
    ) -> BondAssignment:
        """Bonds of heavy atoms, those of a scaffold first."""
        composition = self.config.composition
        return assign_bonds(
            atomic_numbers,
            positions,
            charge=self.config.charge,
            formal_charges=composition.formal_charges,
            n_hydrogens=composition.n_hydrogens,
            known=None if self.scaffold is None else self.scaffold.known_bonds,
        )

    def _complete(self, mol: Chem.Mol) -> Chem.Mol:
        """Add hydrogens, and what of the scaffold is not in the skeleton."""
        if self.scaffold is None:
            return add_hydrogens(mol)
        whole = self.scaffold.graft(mol)
        return add_hydrogens(whole, fixed=self.scaffold.fixed_atoms(whole))

    def _fixed(self, mol: Chem.Mol) -> list[int]:
        return [] if self.scaffold is None else self.scaffold.fixed_atoms(mol)

    def _minimise_classically(self, mol: Chem.Mol, *, electrostatics: bool = True) -> None:
        minimise_classically(
            mol, hydrogens_only=False, fixed=self._fixed(mol), electrostatics=electrostatics
        )

    def _relax(self, mols: Sequence[Chem.Mol]) -> list[_Relaxed]:
        """Relax all molecules together in the force field.

        All atoms of them: hydrogens alone would give way to what the skeleton does not like by
        leaving their atoms.
        """
        batch = MoleculeBatch.from_arrays(
            [
                ([a.GetAtomicNum() for a in mol.GetAtoms()], mol.GetConformer().GetPositions())
                for mol in mols
            ],
            dtype=self.dtype,
            device=self.device,
        )
        masks = [np.isin(np.arange(mol.GetNumAtoms()), self._fixed(mol)) for mol in mols]
        fixed = torch.zeros_like(batch.fixed)
        if masks:
            fixed = torch.tensor(np.concatenate(masks), device=self.device)
        result = relax(
            self.energy_and_forces,
            batch.replace(fixed=fixed),
            f_max=_F_MAX,
            max_steps=_RELAXATION_STEPS,
        )
        energies = ((result.initial_energies - result.energies) * EV_TO_KCAL).tolist()
        results = []
        for mol, mask, part, *outcome in zip(
            mols,
            masks,
            result.batch.to("cpu", torch.float64).split(),
            energies,
            result.finite.tolist(),
            result.converged.tolist(),
            strict=True,
        ):
            complete = Chem.Mol(mol)
            # What is fixed keeps every bit of its coordinates, whatever the field's precision.
            before = mol.GetConformer().GetPositions()
            after = np.where(mask[:, None], before, part.positions.numpy())
            complete.GetConformer().SetPositions(after)
            results.append(_Relaxed(complete, *outcome))
        return results

    def _judge(
        self, skeleton: Skeleton, assignment: BondAssignment, relaxed: _Relaxed | None
    ) -> Attempt:
        """Write the report of an attempt."""
        name = attempt_name(skeleton.index)
        n_dropped = len(skeleton.atomic_numbers) - len(assignment.kept) if skeleton.finite else None
        if relaxed is None:
            report = Report(
                name, assignment.status, n_dropped=n_dropped, similarity=skeleton.similarity
            )
            return Attempt(skeleton.index, report, skeleton.atomic_numbers, skeleton.positions)
        mol = relaxed.mol
        if self.scaffold is not None:
            mol = self.scaffold.in_original_order(mol)
        report = validate(
            mol,
            name=name,
            charge=self.config.charge,
            relaxation_energy=relaxed.energy if relaxed.finite else None,
            n_dropped=n_dropped,
            similarity=skeleton.similarity,
            known=self.known(mol),
        )
        if report.sanitised:
            graph = Chem.RemoveHs(mol)
            report = replace(report, n_unknown=len(self.chemistry.unknown_atoms(graph)))
        if not relaxed.finite:
            report = replace(report, status=Status.NONFINITE, detail="relaxation")
        elif report.status is Status.OK and not relaxed.converged:
            detail = f"forces above {_F_MAX} eV/A after {_RELAXATION_STEPS} steps"
            report = replace(report, status=Status.UNCONVERGED, detail=detail)
        elif report.status is Status.OK:
            if relaxed.energy is None:
                report = replace(report, detail=_CLASSICAL)
            report = self._judge_wishes(mol, report, skeleton, n_dropped or 0)
        return attempt_of_mol(skeleton.index, report, mol)

    def _judge_wishes(
        self, mol: Chem.Mol, report: Report, skeleton: Skeleton, n_dropped: int
    ) -> Report:
        """See whether a sound molecule is one that was asked for."""
        config = self.config
        n_placed = len(skeleton.atomic_numbers) - config.n_given
        if n_placed - n_dropped < config.n_heavy_atoms[0]:
            detail = f"{n_dropped} of {n_placed} heavy atoms lay apart"
            return replace(report, status=Status.INCOMPLETE, detail=detail)
        if config.host is not None:
            closest = config.host.closest_contact(mol)
            if closest < CLASH:
                detail = f"{closest:.2f} of the sum of the van der Waals radii from the host"
                return replace(report, status=Status.HOST_CLASH, detail=detail)
        if not config.filters.is_empty:
            alerts = config.filters.alerts(Chem.RemoveHs(mol))
            report = replace(report, alerts="; ".join(alerts))
            if alerts and config.filters.reject:
                return replace(report, status=Status.REJECTED, detail=alerts[0])
        return report


def _heavy_elements(mol: Chem.Mol) -> Elements:
    return tuple(sorted(a.GetAtomicNum() for a in mol.GetAtoms() if a.GetAtomicNum() > 1))


def _is_sound(relaxed: _Relaxed) -> bool:
    """Whether a relaxation left the bonds of the molecule, and no atoms on top of each other."""
    checks = (check_graph_kept, check_contacts)
    return relaxed.finite and all(check(relaxed.mol).passed for check in checks)
