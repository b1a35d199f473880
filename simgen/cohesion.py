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
from simgen.graph import Layout, components, edge_vectors, molecule_pairs
from simgen.molecules import MoleculeBatch

BOND_REACH = 1.2
"""Atoms within this multiple of the sum of their covalent radii hang together."""
LARGEST_RADIUS = max(COVALENT_RADII.values())
"""Covalent radius of elements without one in the table, angstrom."""
STRENGTH = 3.0
"""Score of a fragment's nearest atom, 1/angstrom. More than the 1.7 at which the similarity score
is clipped: an atom two bond lengths from a fragment looks better the farther it is."""
ONSET = 0.5
"""Noise level in angstrom; far above it fragments come and go, too early to be joined."""
SMALLEST_SQUARE = 1e-12
"""angstrom^2; two atoms closer than its root coincide."""


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
        self._layout = Layout()

    def log_prob(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Log-density of each molecule, shape (n_molecules,)."""
        pairs = molecule_pairs(batch)
        label, distances = _fragments(batch, pairs)
        own, other = label[pairs[1]], label[pairs[0]]
        apart = own != other
        if self.closed:
            shut = self._shut(batch)
            apart = apart & ~shut[pairs[0]] & ~shut[pairs[1]]
        # Each fragment is known by the first of its atoms.
        gaps = distances.new_full((batch.n_atoms,), math.inf)
        gaps = gaps.scatter_reduce(0, own[apart], distances[apart], "amin")
        gaps = torch.where(torch.isfinite(gaps), gaps, 0.0)
        return -self._weight(sigma) * batch.sum_per_molecule(gaps)

    def score(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Gradient of the log-density, shape (n_atoms, 3), 1/angstrom."""
        chunks = self._layout.chunks(batch)
        parts = [self._score(chunk.of(batch), chunk.senders) for chunk in chunks]
        return self._weight(sigma) * torch.cat(parts)

    def _score(self, batch: MoleculeBatch, senders: Tensor) -> Tensor:
        """The score for a weight of 1; ``senders`` as :class:`simgen.graph.Chunk` has them."""
        positions = batch.positions
        vectors = positions[:, None] - positions[senders]
        distances = vectors.square().sum(2).clamp(min=SMALLEST_SQUARE).sqrt()
        radius = _radii(positions.dtype, positions.device)[batch.atomic_numbers]
        bonded = distances < BOND_REACH * (radius[senders] + radius[:, None])
        label = _spread_labels(senders, bonded)
        score = torch.zeros_like(positions)
        atoms = torch.arange(batch.n_atoms, device=label.device)
        if int((label == atoms).sum()) == batch.n_molecules:
            return score
        apart = label[senders] != label[:, None]
        if self.closed:
            shut = self._shut(batch)
            apart = apart & ~shut[senders] & ~shut[:, None]
        apart_by = torch.where(apart, distances, math.inf)
        gaps = distances.new_full((batch.n_atoms,), math.inf)
        gaps = gaps.scatter_reduce(0, label, apart_by.amin(1), "amin")
        receiver, slot = torch.nonzero(apart & (apart_by == gaps[label][:, None]), as_tuple=True)
        sender, fragment = senders[receiver, slot], label[receiver]
        # Equal gaps of a fragment share its pull.
        share = 1.0 / (distances[receiver, slot] * torch.bincount(fragment)[fragment])
        pull = share[:, None] * vectors[receiver, slot]
        return score.index_add_(0, sender, pull).index_add_(0, receiver, pull, alpha=-1.0)

    def _weight(self, sigma: float) -> float:
        return self.strength * math.exp(-((sigma / self.onset) ** 2))

    def _shut(self, batch: MoleculeBatch) -> Tensor:
        """Whether no gap is measured to or from an atom, shape (n_atoms,)."""
        closed = torch.tensor(self.closed, device=batch.positions.device)
        return torch.isin(batch.local_idx, closed)


def _spread_labels(senders: Tensor, bonded: Tensor) -> Tensor:
    """First atom of the fragment of each atom, like :func:`components`; both (n_atoms, n_slots)."""
    label = torch.arange(len(senders), device=senders.device)
    if not senders.numel():
        return label
    # An atom without a bond in a slot sees itself there.
    seen = torch.where(bonded, senders, label[:, None])
    while True:
        spread = torch.minimum(label, label[seen].amin(1))
        spread = spread[spread]
        if torch.equal(spread, label):
            return label
        label = spread


def n_fragments(batch: MoleculeBatch, surroundings: Sequence[int] = ()) -> Tensor:
    """Number of pieces of each molecule, by distance: shape (n_molecules,), int64.

    Parameters
    ----------
    batch : MoleculeBatch
        Molecules.
    surroundings : sequence of int
        Places within each molecule of atoms that are no part of it.
    """
    places = torch.tensor([*surroundings], dtype=torch.int64, device=batch.positions.device)
    outside = torch.isin(batch.local_idx, places)
    pairs = molecule_pairs(batch)
    label, _ = _fragments(batch, pairs[:, ~outside[pairs].any(0)])
    first = (label == torch.arange(batch.n_atoms, device=label.device)) & ~outside
    return batch.sum_per_molecule(first.to(torch.int64))


def _fragments(batch: MoleculeBatch, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """First atom of the fragment of each atom, (n_atoms,), and distances of the pairs."""
    positions = batch.positions
    radius = _radii(positions.dtype, positions.device)[batch.atomic_numbers]
    # Coinciding atoms know no direction; this way their gradient is finite.
    distances = edge_vectors(positions, pairs).square().sum(1).clamp(min=SMALLEST_SQUARE).sqrt()
    bonded = distances.detach() < BOND_REACH * (radius[pairs[0]] + radius[pairs[1]])
    return components(batch.n_atoms, pairs[:, bonded]), distances


@cache
def _radii(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Covalent radius by atomic number, angstrom: made once, since scores are computed often."""
    radii = torch.full((len(SYMBOLS),), LARGEST_RADIUS, dtype=dtype)
    radii[list(COVALENT_RADII)] = torch.tensor(list(COVALENT_RADII.values()), dtype=dtype)
    return radii.to(device)
