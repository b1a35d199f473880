"""What can be computed, as plain data in and out: nothing here knows of ZnDraw or of processes.

A task is a frozen dataclass with a method ``run``. It is pickled, sent to a worker process and run
there with that process's :class:`Machine`, which holds the force field and takes progress.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ase
import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from simgen import io
from simgen.errors import InputError, LoadError
from simgen.finishing.hydrogens import add_hydrogens
from simgen.validation import Report, Status

if TYPE_CHECKING:
    from simgen import Generator
    from simgen.priors import AtomPrior
    from simgen.sampling import Progress
    from simgen.scaffold import Scaffold

FRAME_INTERVAL = 0.4
"""Seconds between frames of a trajectory at least: a room shows them without being flooded."""
_F_MAX = 0.03
"""Largest force left by a relaxation, eV/angstrom."""
_RELAXATION_STEPS = 500
"""Most steps of a relaxation."""

Tell = Callable[[float, str], None]
"""Takes progress, from 0 to 1, and words for it; raises to end the task."""
Show = Callable[[list[ase.Atoms]], None]
"""Takes frames to be shown while a task goes on."""


@dataclass(frozen=True)
class Machine:
    """What a worker process offers to its tasks.

    Attributes
    ----------
    generator : Generator
        The force field, loaded once.
    tell, show : callable
        Where progress and frames go; either may raise to end the task.
    """

    generator: Generator
    tell: Tell
    show: Show


class Task(Protocol):
    """Something to compute."""

    def run(self, machine: Machine) -> object:
        """Compute it; raises a SimgenError for what the user can mend."""
        ...


@dataclass(frozen=True)
class Shape:
    """Where atoms are wanted.

    Attributes
    ----------
    name : str
        A ready shape or a file; empty for a curve, or for no shape at all.
    points : tuple of (float, float, float)
        Control points of a curve, angstrom; a single one is a place to be near.
    closed : bool
        Whether the curve goes back to its first point.
    strength : float
        Factor on the usual strength.
    """

    name: str = ""
    points: tuple[tuple[float, float, float], ...] = ()
    closed: bool = False
    strength: float = 1.0

    @property
    def is_free(self) -> bool:
        """Whether any number of atoms suits it, as it has no size."""
        return not self.name and len(self.points) < 2

    def prior(self, n_atoms: int | None = None) -> AtomPrior:
        """Return it as a prior; one of no size suits this number of heavy atoms, if it is given.

        Raises
        ------
        SimgenError
            If the shape cannot be made.
        """
        import torch

        from simgen.priors import Gaussian, Spline, Transformed
        from simgen.shapes import load_shape

        prior: AtomPrior
        if self.name:
            prior = load_shape(self.name)
        elif len(self.points) > 1:
            prior = Spline(torch.tensor(self.points, dtype=torch.float64), closed=self.closed)
        else:
            prior = Gaussian() if n_atoms is None else Gaussian.suited_to(n_atoms)
            if self.points:
                centre = torch.tensor(self.points[0], dtype=torch.float64)
                prior = Transformed(prior, translation=centre)
        strengthened: AtomPrior = _strengthened(prior, self.strength)
        return strengthened


def _strengthened(prior: Any, factor: float) -> Any:
    """Return a prior whose strength, or that of its parts, is larger by a factor."""
    from simgen.priors import Transformed, Union

    if isinstance(prior, Transformed):
        return replace(prior, prior=_strengthened(prior.prior, factor))
    if isinstance(prior, Union):
        return replace(prior, parts=tuple(_strengthened(part, factor) for part in prior.parts))
    return replace(prior, strength=factor * prior.strength)


@dataclass(frozen=True)
class Outline:
    """Points to draw a shape with; returns an array of shape (n_points, 3), angstrom."""

    shape: Shape

    def run(self, machine: Machine) -> NDArray[np.float64]:
        """Compute the points."""
        points: NDArray[np.float64] = self.shape.prior().outline().numpy()
        return points


@dataclass(frozen=True)
class Made:
    """One attempt at a molecule.

    Attributes
    ----------
    report : Report
        Status and what the checks found.
    atoms : ase.Atoms
        Geometry: of the finished molecule, or of the heavy atoms if finishing failed.
    mol : Chem.Mol or None
        The molecule, if finishing got that far.
    """

    report: Report
    atoms: ase.Atoms
    mol: Chem.Mol | None


@dataclass(frozen=True)
class Generate:
    """Make molecules; returns all attempts, best first (:func:`rank`).

    Attributes
    ----------
    shape : Shape or None
        Where atoms are wanted; None for what suits the scaffold, or no shape without one.
    n_heavy_atoms : int, (int, int) or None
        (New) heavy atoms; None for what suits the shape, or the gap between fragments.
    max_heavy_atoms : int
        Most (new) heavy atoms.
    density : float or None
        Heavy atoms for each angstrom of a curve, if their number is None; None for the usual one.
    elements : tuple of str
        Heavy elements that may occur.
    n_molecules, n_steps : int
        Attempts, and noise levels.
    seed : int or None
        None to draw one.
    scaffold : Chem.Mol or None
        Atoms that stay where they are: a molecule to grow, or fragments to link.
    grow_at : tuple of int or None
        Atoms of the scaffold to grow at.
    reference : Chem.Mol or None
        Molecule to make analogues of, instead of using the shipped reference set.
    folder : Path
        Where the run is written, with everything needed to repeat it.
    """

    folder: Path
    shape: Shape | None = None
    n_heavy_atoms: int | tuple[int, int] | None = 9
    max_heavy_atoms: int = 200
    density: float | None = None
    elements: tuple[str, ...] = ("C", "N", "O")
    n_molecules: int = 4
    n_steps: int = 50
    seed: int | None = None
    scaffold: Chem.Mol | None = None
    grow_at: tuple[int, ...] | None = None
    reference: Chem.Mol | None = None

    def run(self, machine: Machine) -> list[Made]:
        """Make the molecules."""
        from simgen.scaffold import Scaffold

        scaffold = None
        if self.scaffold is not None:
            scaffold = Scaffold.from_mol(self.scaffold, self.grow_at, name="molecule")
        n_atoms = self.n_heavy_atoms if isinstance(self.n_heavy_atoms, int) else None
        prior = None if self.shape is None else self.shape.prior(n_atoms)
        reference = "organic"
        if self.reference is not None:
            reference = str(self.folder / "reference.sdf")
            io.write_sdf(reference, [self.reference])
        stream = _Stream(machine.show)
        result = machine.generator.generate(
            self.n_molecules,
            self._size(prior, scaffold),
            prior=prior,
            reference=reference,
            elements=self.elements,
            scaffold=scaffold,
            n_steps=self.n_steps,
            seed=self.seed,
            out=self.folder / "run",
            observer=stream.observe,
            callback=lambda n_done, n_total: machine.tell(n_done / n_total, "making molecules"),
        )
        made = [
            Made(a.report, ase.Atoms(a.atomic_numbers, a.positions), a.mol) for a in result.attempts
        ]
        return sorted(made, key=rank, reverse=True)

    def _size(self, prior: AtomPrior | None, scaffold: Scaffold | None) -> tuple[int, int]:
        if isinstance(self.n_heavy_atoms, int):
            sizes = (self.n_heavy_atoms, self.n_heavy_atoms)
        elif self.n_heavy_atoms is not None:
            sizes = self.n_heavy_atoms
        elif prior is not None and prior.size is not None:
            n_atoms = prior.size.suggest_atoms(self.density)
            sizes = (n_atoms, n_atoms)
        elif scaffold is not None:
            sizes = scaffold.linker_sizes()
        else:
            raise InputError("expected a number of atoms, as there is no shape to take it from")
        if max(sizes) > self.max_heavy_atoms:
            raise InputError(
                f"expected at most {self.max_heavy_atoms} atoms on this server, and this shape "
                f"suits {max(sizes)}; draw it smaller, or set the number of atoms"
            )
        return sizes


def rank(made: Made) -> tuple[bool, tuple[float, float]]:
    """Sort key: valid molecules have the highest ones, of these the most believable."""
    return made.report.status is Status.OK, made.report.believability


class _Stream:
    """Shows the first molecule of a batch on its way, at most every :data:`FRAME_INTERVAL`."""

    def __init__(self, show: Show) -> None:
        self.show = show
        self.last = -np.inf

    def observe(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self.last < FRAME_INTERVAL or not len(progress.molecules):
            return
        self.last = now
        first = progress.molecules[0]
        numbers, x = first.atomic_numbers.cpu().numpy(), first.positions.detach().cpu().numpy()
        if np.isfinite(x).all():
            self.show([ase.Atoms(numbers, x.astype(float))])


@dataclass(frozen=True)
class Relax:
    """Move atoms downhill in the force field; returns the :class:`Relaxed` geometry.

    Attributes
    ----------
    numbers : tuple of int
        Elements, hydrogens included.
    positions : ndarray, shape (n_atoms, 3)
        Where they are, angstrom.
    moving : tuple of int
        Indices of the atoms that move; empty for all.
    """

    numbers: tuple[int, ...]
    positions: NDArray[np.float64] = field(repr=False)
    moving: tuple[int, ...] = ()

    def run(self, machine: Machine) -> Relaxed:
        """Relax them."""
        import torch

        from simgen import MoleculeBatch
        from simgen.elements import SYMBOLS
        from simgen.finishing.relaxation import relax

        field = machine.generator.model
        if lacking := sorted(set(self.numbers) - set(field.elements)):
            names = ", ".join(SYMBOLS[z] for z in lacking)
            raise InputError(f"the force field does not know {names}; remove these atoms")
        batch = MoleculeBatch.from_arrays(
            [(self.numbers, self.positions)], device=machine.generator.device
        )
        if self.moving:
            fixed = torch.ones_like(batch.fixed)
            fixed[list(self.moving)] = False
            batch = batch.replace(fixed=fixed)
        n_done = 0

        def energy_and_forces(batch: MoleculeBatch) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal n_done
            n_done += 1
            machine.tell(n_done / (n_done + 40), f"relaxing, step {n_done}")
            return field.energy_and_forces(batch)

        result = relax(energy_and_forces, batch, f_max=_F_MAX, max_steps=_RELAXATION_STEPS)
        return Relaxed(
            result.batch.positions.cpu().double().numpy(),
            float(result.initial_energies - result.energies),
            bool(result.finite),
            bool(result.converged),
        )


@dataclass(frozen=True)
class Relaxed:
    """Outcome of a relaxation.

    Attributes
    ----------
    positions : ndarray, shape (n_atoms, 3)
        In angstrom.
    released : float
        Energy released, eV.
    finite, converged : bool
        Whether energies stayed finite, and whether forces vanished.
    """

    positions: NDArray[np.float64]
    released: float
    finite: bool
    converged: bool


@dataclass(frozen=True)
class Hydrogenate:
    """Add the hydrogens that a molecule lacks; returns it."""

    mol: Chem.Mol

    def run(self, machine: Machine) -> Chem.Mol:
        """Add them."""
        return add_hydrogens(self.mol)


@dataclass(frozen=True)
class Load:
    """Read molecules; returns them by name, and why others were left out.

    They come with hydrogens and a conformer.

    Attributes
    ----------
    text : str
        A SMILES string on each line, or the content of a file.
    suffix : str
        What kind of file it is: ``.smi``, ``.sdf`` or ``.xyz``.
    limit : int
        Most molecules that are read.
    max_atoms : int
        Most heavy atoms of a molecule.
    """

    text: str
    suffix: str = ".smi"
    limit: int = 100
    max_atoms: int = 200

    def run(self, machine: Machine) -> tuple[list[tuple[str, Chem.Mol]], list[str]]:
        """Read them."""
        return self.read(machine.tell)

    def read(self, tell: Tell) -> tuple[list[tuple[str, Chem.Mol]], list[str]]:
        """Read them; it takes no force field."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"molecule{self.suffix}"
            path.write_text(self.text, encoding="utf-8")
            try:
                records = io.read_molecules(path)
            except LoadError as error:
                raise LoadError(str(error).replace(str(path), "what was given")) from None
        mols: list[tuple[str, Chem.Mol]] = []
        left_out = []
        for done, record in enumerate(records[: self.limit]):
            tell(done / len(records), f"reading {record.name}")
            mol, reason = self._complete(record)
            if mol is None:
                left_out.append(f"{record.name}: {reason}")
            else:
                mols.append((record.name, mol))
        if len(records) > self.limit:
            left_out.append(f"{len(records) - self.limit} more: at most {self.limit} are read")
        return mols, left_out

    def _complete(self, record: io.Record) -> tuple[Chem.Mol | None, str]:
        """Return the molecule of a record with hydrogens and a conformer, or why there is none."""
        if record.error is not None:
            return None, record.error
        mol = record.mol if record.mol is not None else io.perceive_bonds(*record.geometry)
        if mol is None:
            return None, "no bonds fit its distances"
        if mol.GetNumHeavyAtoms() > self.max_atoms:
            return None, f"more than {self.max_atoms} heavy atoms"
        if record.positions is not None:
            return add_hydrogens(mol), ""
        return io.embed(mol), "no conformer found"
