"""How well a force field reproduces GFN2-xTB on scaffolds it never saw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from simgen.data.build import SPLITS, Dataset
from simgen.data.recipe import KINDS, Kind
from simgen.elements import SYMBOLS
from simgen.finishing.relaxation import relax
from simgen.models import ForceField
from simgen.molecules import MoleculeBatch
from simgen.training import Errors, evaluate

F_MAX = 0.01
"""eV/A; relaxations are followed to here, so that what is left is the field's own error."""

NEAR_KINDS: tuple[Kind, ...] = (
    Kind.RELAXED,
    Kind.DISPLACED_TO_50,
    Kind.DISPLACED_TO_100,
)
"""Geometries displaced by up to 0.1 A."""


@dataclass(frozen=True, slots=True)
class FieldReport:
    """Errors on the test part of a dataset, and how relaxed geometries compare.

    Attributes
    ----------
    near, all : Errors
        Mean absolute errors for displacements up to 0.1 A, and over every kind of geometry.
    rmsd : dict
        Quantiles (``0.5``, ``0.9``) of the heavy-atom RMSD in angstrom between the field's minimum
        and that of GFN2-xTB, both reached from the same MMFF94 geometry.
    n_relaxed : int
        Molecules relaxed; those that did not converge count with the geometry they reached.
    n_unconverged : int
        How many did not.
    """

    near: Errors
    all: Errors
    rmsd: dict[str, float]
    n_relaxed: int
    n_unconverged: int

    def to_card(self) -> dict[str, object]:
        """Return the report with units in its keys, for the model card."""

        def card(errors: Errors) -> dict[str, object]:
            return {
                "energy_mae_meV_per_atom": round(1e3 * errors.energy, 2),
                "force_mae_meV_per_A": round(1e3 * errors.force, 1),
                "force_mae_by_kind_meV_per_A": {
                    k: round(1e3 * v, 1) for k, v in errors.force_by_kind.items()
                },
                "force_mae_by_element_meV_per_A": {
                    SYMBOLS[z]: round(1e3 * v, 1) for z, v in errors.force_by_element.items()
                },
            }

        return {
            "displacements_up_to_0.1_A": card(self.near),
            "all_geometries": card(self.all),
            "relaxed_rmsd_A": {k: round(v, 3) for k, v in self.rmsd.items()},
            "n_relaxed": self.n_relaxed,
            "n_unconverged": self.n_unconverged,
        }


def field_report(
    model: ForceField, dataset: Dataset, split: str = "test", *, max_steps: int = 400
) -> FieldReport:
    """Judge a force field on a part of the dataset that it was not trained on."""
    starts, minima = _relaxation_pairs(dataset, split)
    batch = MoleculeBatch.from_arrays(starts, dtype=torch.float64)
    precise = ForceField(model.config).to(torch.float64)
    precise.load_state_dict(model.state_dict())
    result = relax(precise.energy_and_forces, batch, f_max=F_MAX, max_steps=max_steps)
    rmsds = [
        heavy_atom_rmsd(z, x.numpy(), minimum)
        for (z, _), x, minimum in zip(
            starts, torch.split(result.batch.positions, batch.counts.tolist()), minima, strict=True
        )
    ]
    return FieldReport(
        near=evaluate(model, _of_kinds(dataset, NEAR_KINDS), split),
        all=evaluate(model, dataset, split),
        rmsd={str(q): float(np.quantile(rmsds, q)) for q in (0.5, 0.9)},
        n_relaxed=len(rmsds),
        n_unconverged=int((~result.converged).sum()),
    )


def heavy_atom_rmsd(
    numbers: NDArray[np.uint8], a: NDArray[np.float64], b: NDArray[np.float64]
) -> float:
    """RMSD in angstrom of the heavy atoms after the best rigid motion.

    W. Kabsch, Acta Cryst. A 32, 922 (1976).
    """
    heavy = np.asarray(numbers) > 1
    p, q = a[heavy] - a[heavy].mean(0), b[heavy] - b[heavy].mean(0)
    u, s, vt = np.linalg.svd(p.T @ q)
    s[-1] *= np.sign(np.linalg.det(u @ vt))
    squares = (p**2).sum() + (q**2).sum() - 2.0 * s.sum()
    return float(np.sqrt(max(squares, 0.0) / len(p)))


def _of_kinds(dataset: Dataset, kinds: tuple[Kind, ...]) -> Dataset:
    wanted = np.isin(dataset.kind, [KINDS.index(kind) for kind in kinds])
    atoms = np.repeat(wanted, dataset.counts)
    fields = {name: getattr(dataset, name) for name in Dataset.__slots__}
    per_geometry = ("counts", "energies", "kind", "split", "task")
    fields |= {name: fields[name][wanted] for name in per_geometry}
    fields |= {name: fields[name][atoms] for name in ("numbers", "positions", "forces")}
    return Dataset(**fields)


def _relaxation_pairs(
    dataset: Dataset, split: str
) -> tuple[list[tuple[NDArray[np.uint8], NDArray[np.float64]]], list[NDArray[np.float64]]]:
    """Start geometries (the first of each relaxation path) and the minima that they lead to."""
    first = dataset.first_atom
    mine = dataset.split == SPLITS.index(split)
    starts, minima = [], []
    for i in np.flatnonzero(mine & (dataset.kind == KINDS.index(Kind.RELAXED))):
        paths = np.flatnonzero(
            (dataset.task == dataset.task[i]) & (dataset.kind == KINDS.index(Kind.PATH))
        )
        if not len(paths):
            continue
        start = slice(first[paths[0]], first[paths[0]] + dataset.counts[paths[0]])
        end = slice(first[i], first[i] + dataset.counts[i])
        starts.append((dataset.numbers[start], dataset.positions[start]))
        minima.append(dataset.positions[end])
    return starts, minima
