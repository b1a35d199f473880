"""What keeps a molecule in one piece.

The similarity of an atom to the reference does not tell whether all atoms hang together, and a
prior that follows a long shape leaves gaps along it. Cohesion closes the gaps: each fragment is
drawn to the nearest atom of another one. Molecules that are whole do not feel it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from simgen.elements import COVALENT_RADII, SYMBOLS
from simgen.errors import ConfigError
from simgen.graph import components, edge_vectors, molecule_pairs
from simgen.molecules import MoleculeBatch

BOND_REACH = 1.2
"""Atoms within this multiple of the sum of their covalent radii hang together."""
LARGEST_RADIUS = max(COVALENT_RADII.values())
"""Covalent radius of elements without one in the table, angstrom."""
STRENGTH = 1.0
"""Score of a fragment's nearest atom, 1/angstrom; the similarity score is clipped at 1.7."""
FIRM_STRENGTH = 3.0
"""The same where fragments meet atoms that do not move: all of the way is the mobile ones'."""
ONSET = 0.5
"""Noise level in angstrom; far above it fragments come and go, too early to be joined."""


class Cohesion:
    """Log-density that falls with the gaps between the fragments of a molecule.

    log p = -strength exp(-(sigma / onset)^2) sum over fragments of the distance to the nearest atom
    of another fragment.

    Parameters
    ----------
    strength : float
        In 1/angstrom.
    onset : float
        Noise level below which it acts, angstrom.
    closed : sequence of int
        Places within each molecule of atoms that no other may bond to: they belong to their
        fragment, but no gap is measured to or from them.
    """

    def __init__(
        self, strength: float = STRENGTH, onset: float = ONSET, closed: Sequence[int] = ()
    ) -> None:
        if not (0.0 <= strength < math.inf and 0.0 < onset < math.inf):
            raise ConfigError(f"expected strength >= 0 and onset > 0, got {strength} and {onset}")
        self.strength = strength
        self.onset = onset
        self.closed = tuple(closed)

    def log_prob(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Log-density of each molecule, shape (n_molecules,)."""
        weight = self.strength * math.exp(-((sigma / self.onset) ** 2))
        pairs = molecule_pairs(batch)
        label, distances = _fragments(batch, pairs)
        own, other = label[pairs[1]], label[pairs[0]]
        apart = own != other
        if self.closed:
            shut = torch.isin(batch.local_idx, torch.tensor(self.closed, device=own.device))
            apart = apart & ~shut[pairs[0]] & ~shut[pairs[1]]
        # Each fragment is known by the first of its atoms.
        gaps = distances.new_full((batch.n_atoms,), math.inf)
        gaps = gaps.scatter_reduce(0, own[apart], distances[apart], "amin")
        return -weight * batch.sum_per_molecule(torch.where(torch.isfinite(gaps), gaps, 0.0))


def n_fragments(batch: MoleculeBatch) -> Tensor:
    """Number of pieces of each molecule, by distance: shape (n_molecules,), int64."""
    label, _ = _fragments(batch, molecule_pairs(batch))
    first = label == torch.arange(batch.n_atoms, device=label.device)
    return batch.sum_per_molecule(first.to(torch.int64))


def _fragments(batch: MoleculeBatch, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """First atom of the fragment of each atom, (n_atoms,), and distances of the pairs."""
    positions = batch.positions
    radius = _radii(positions.dtype, positions.device)[batch.atomic_numbers]
    # Coinciding atoms know no direction; this way their gradient is finite.
    distances = edge_vectors(positions, pairs).square().sum(1).clamp(min=1e-12).sqrt()
    bonded = distances.detach() < BOND_REACH * (radius[pairs[0]] + radius[pairs[1]])
    return components(batch.n_atoms, pairs[:, bonded]), distances


@cache
def _radii(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Covalent radius by atomic number, angstrom: made once, since scores are computed often."""
    radii = torch.full((len(SYMBOLS),), LARGEST_RADIUS, dtype=dtype)
    radii[list(COVALENT_RADII)] = torch.tensor(list(COVALENT_RADII.values()), dtype=dtype)
    return radii.to(device)
