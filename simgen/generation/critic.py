"""What no chemist would believe, or want: the judge of :func:`simgen.refinement.repair`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simgen.generation.finish import Finisher
from simgen.known import CommonFeatures
from simgen.molecules import MoleculeBatch

HeavyAtoms = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Elements, shape (n_atoms,), and positions, shape (n_atoms, 3), angstrom, of a molecule."""


class Critic:
    """Finds atoms in surroundings, or in ring systems, that no known molecule shows.

    Atoms in what is not common, and of substructures that are to be rejected, are at fault as well.
    What is at fault is to move, with all atoms bonded to it. Where no bonds can
    be assigned, and where atoms lie apart, all of these are at fault. Given atoms are what they
    are: they count only where something new is bonded to them.

    Parameters
    ----------
    finisher : Finisher
        What will make the molecules: it assigns the bonds, and knows what is known.
    heavy_atoms : callable
        Takes a batch apart; what it leaves out of a molecule are its last atoms.
    common : CommonFeatures, optional
        What is common; by default everything.
    """

    def __init__(
        self,
        finisher: Finisher,
        heavy_atoms: Callable[[MoleculeBatch], Sequence[HeavyAtoms]],
        common: CommonFeatures | None = None,
    ) -> None:
        self._finisher = finisher
        self._heavy_atoms = heavy_atoms
        self._common = common or CommonFeatures()

    def __call__(self, batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
        """Judge every molecule (:class:`simgen.refinement.Judge`)."""
        counts = batch.counts.tolist()
        fixed = np.split(batch.fixed.cpu().numpy(), np.cumsum(counts)[:-1])
        faulty, loose = [], []
        for given, (numbers, positions) in zip(fixed, self._heavy_atoms(batch), strict=True):
            at_fault, near = self._judge(numbers, positions, given[: len(numbers)])
            outside = np.zeros(len(given) - len(numbers), dtype=bool)
            faulty.append(np.concatenate([at_fault, outside]))
            loose.append(np.concatenate([near, outside]))
        device = batch.positions.device
        return (
            torch.tensor(np.concatenate(faulty), device=device),
            torch.tensor(np.concatenate(loose), device=device),
        )

    def _judge(
        self,
        numbers: NDArray[np.int64],
        positions: NDArray[np.float64],
        given: NDArray[np.bool_],
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        assignment = self._finisher.assign_bonds(numbers, positions)
        faulty = np.ones(len(numbers), dtype=bool)
        if assignment.mol is None:
            return faulty, faulty
        place = np.array(assignment.kept)
        faulty[place] = False
        found = self._finisher.chemistry.unknown_atoms(assignment.mol)
        found |= self._common.rare_atoms(assignment.mol, set(np.flatnonzero(given[place])))
        if self._finisher.config.filters.reject:
            found |= self._finisher.config.filters.atoms(assignment.mol)
        faulty[place[sorted(found)]] = True
        bonds = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in assignment.mol.GetBonds()]
        ends = place[np.array(bonds, dtype=np.int64).reshape(-1, 2)]
        ends = np.concatenate([ends, ends[:, ::-1]])
        beside_new = np.zeros(len(numbers), dtype=bool)
        beside_new[ends[~given[ends[:, 1]], 0]] = True
        faulty &= ~given | beside_new
        loose = faulty.copy()
        loose[ends[faulty[ends[:, 1]], 0]] = True
        return faulty, loose
