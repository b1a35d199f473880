"""Bare heavy atoms, which of them are neighbours, and the features that tell of their bonds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

Array = NDArray[np.float64]

MAX_RING = 7
"""Larger rings count as this."""


@dataclass(frozen=True, eq=False)
class Skeleton:
    """Heavy atoms and their neighbours; features are computed when they are asked for.

    Features that an atom or pair does not have are NaN.

    Attributes
    ----------
    atomic_numbers : list of int
        Elements.
    positions : ndarray, shape (n_atoms, 3)
        Coordinates in angstrom.
    pairs : list of (int, int)
        Neighbours, in ascending order.
    """

    atomic_numbers: list[int]
    positions: Array
    pairs: list[tuple[int, int]]

    @classmethod
    def build(
        cls, atomic_numbers: Sequence[int], positions: Array, pairs: Iterable[tuple[int, int]]
    ) -> Skeleton:
        """Make a skeleton of pairs in any order."""
        return cls([int(z) for z in atomic_numbers], positions, sorted(pairs))

    @cached_property
    def neighbours(self) -> list[list[int]]:
        """Of each atom, in ascending order."""
        found: list[list[int]] = [[] for _ in self.atomic_numbers]
        for i, j in self.pairs:
            found[i].append(j)
            found[j].append(i)
        return found

    @cached_property
    def ring_sizes(self) -> tuple[list[int], list[int]]:
        """Size of the smallest ring of each atom and pair, 0 outside rings, at most 7."""
        graph = Chem.RWMol()
        for z in self.atomic_numbers:
            graph.AddAtom(Chem.Atom(z))
        for i, j in self.pairs:
            graph.AddBond(i, j, Chem.BondType.SINGLE)
        Chem.GetSymmSSSR(graph)
        rings = graph.GetRingInfo()
        return (
            [min(rings.MinAtomRingSize(i), MAX_RING) for i in range(len(self.atomic_numbers))],
            [min(rings.MinBondRingSize(b), MAX_RING) for b in range(len(self.pairs))],
        )

    @cached_property
    def lengths(self) -> Array:
        """Distance of each pair, angstrom."""
        left, right = np.array(self.pairs, dtype=np.int64).reshape(-1, 2).T
        return _norm(self.positions[left] - self.positions[right])

    @cached_property
    def angles(self) -> Array:
        """Angle in degrees at each atom with two neighbours."""
        atoms, (u, v) = self._arms(2)
        cosine = (u * v).sum(-1) / np.maximum(_norm(u) * _norm(v), 1e-9)
        found = np.full(len(self.atomic_numbers), np.nan)
        found[atoms] = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
        return found

    @cached_property
    def heights(self) -> Array:
        """Distance in angstrom of each atom with three neighbours from their plane."""
        atoms, (u, v, w) = self._arms(3)
        normal = _cross(v - u, w - u)
        found = np.full(len(self.atomic_numbers), np.nan)
        found[atoms] = np.abs((u * normal).sum(-1)) / np.maximum(_norm(normal), 1e-9)
        return found

    @cached_property
    def twists(self) -> Array:
        """Angle in degrees, 0 to 90, between the planes at the ends of each pair.

        It is half the mean direction of the doubled dihedral angles, so that cis and trans agree
        and noise averages out.
        """
        quadruples = [
            (b, k, i, j, m)
            for b, (i, j) in enumerate(self.pairs)
            for k in self.neighbours[i]
            for m in self.neighbours[j]
            if k != j and m != i
        ]
        bond, k, i, j, m = np.array(quadruples, dtype=np.int64).reshape(-1, 5).T
        x = self.positions
        axis = x[j] - x[i]
        axis /= np.maximum(_norm(axis), 1e-9)[:, None]
        u, v = x[k] - x[i], x[m] - x[j]
        u = u - (u * axis).sum(-1, keepdims=True) * axis
        v = v - (v * axis).sum(-1, keepdims=True) * axis
        doubled = 2 * np.arctan2((_cross(u, v) * axis).sum(-1), (u * v).sum(-1))
        sine, cosine = (
            np.bincount(bond, part, minlength=len(self.pairs))
            for part in (np.sin(doubled), np.cos(doubled))
        )
        found = np.abs(np.degrees(np.arctan2(sine, cosine))) / 2
        found[np.bincount(bond, minlength=len(self.pairs)) == 0] = np.nan
        return found

    def _arms(self, n: int) -> tuple[list[int], Array]:
        """Atoms with n neighbours, and the vectors to them, shape (n, n_such_atoms, 3)."""
        atoms = [i for i, around in enumerate(self.neighbours) if len(around) == n]
        ends = np.array([self.neighbours[i] for i in atoms], dtype=np.int64).reshape(-1, n).T
        arms: Array = self.positions[ends] - self.positions[atoms]
        return atoms, arms


def _cross(u: Array, v: Array) -> Array:
    """Cross products of vectors, faster for few of them than that of NumPy."""
    return u[:, [1, 2, 0]] * v[:, [2, 0, 1]] - u[:, [2, 0, 1]] * v[:, [1, 2, 0]]


def _norm(vectors: Array) -> Array:
    lengths: Array = np.sqrt((vectors * vectors).sum(-1))
    return lengths
