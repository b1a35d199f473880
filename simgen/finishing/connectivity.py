"""Who is bonded to whom, by distance."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simgen.elements import COVALENT_RADII

BOND_FACTOR = 1.25
"""Two atoms count as bonded below this multiple of the sum of their covalent radii.

Used wherever a finished geometry, hydrogens included, is compared with a bond graph.
"""


def relative_distances(atomic_numbers: ArrayLike, positions: ArrayLike) -> NDArray[np.float64]:
    """Distances in units of the sum of the two covalent radii.

    Parameters
    ----------
    atomic_numbers : array_like, shape (n_atoms,)
        Elements; each must be in :data:`simgen.elements.COVALENT_RADII`.
    positions : array_like, shape (n_atoms, 3)
        Coordinates in angstrom.

    Returns
    -------
    ndarray, shape (n_atoms, n_atoms)
        Dimensionless; infinite on the diagonal.
    """
    x = np.asarray(positions, dtype=float)
    radii = np.array([COVALENT_RADII[int(z)] for z in np.asarray(atomic_numbers)])
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    scaled: NDArray[np.float64] = distances / (radii[:, None] + radii[None])
    return scaled


def bonded_pairs(
    atomic_numbers: ArrayLike, positions: ArrayLike, factor: float = BOND_FACTOR
) -> set[tuple[int, int]]:
    """Pairs ``(i, j)``, i < j, closer than ``factor`` times the sum of their covalent radii."""
    return pairs_within(relative_distances(atomic_numbers, positions), factor)


def pairs_within(relative: NDArray[np.float64], factor: float) -> set[tuple[int, int]]:
    """Pairs ``(i, j)``, i < j, whose :func:`relative_distances` are less than a factor."""
    first, second = np.nonzero(np.triu(relative < factor))
    return set(zip(first.tolist(), second.tolist(), strict=True))


def fragments(n_atoms: int, pairs: set[tuple[int, int]]) -> NDArray[np.int64]:
    """Index of the connected component of each atom, shape (n_atoms,)."""
    neighbours: list[list[int]] = [[] for _ in range(n_atoms)]
    for i, j in pairs:
        neighbours[i].append(j)
        neighbours[j].append(i)
    labels = np.full(n_atoms, -1, dtype=np.int64)
    n_found = 0
    for i in range(n_atoms):
        if labels[i] < 0:
            reached, new = {i}, {i}
            while new:
                new = {k for j in new for k in neighbours[j]} - reached
                reached |= new
            labels[list(reached)] = n_found
            n_found += 1
    return labels
