"""What keeps a molecule in one piece.

The similarity of an atom to the reference does not tell whether all atoms hang together, and a
prior that follows a long shape leaves gaps along it. Cohesion closes the gaps: each fragment is
drawn to the nearest atom of another one. Molecules that are whole do not feel it.

A molecule along a closed curve is to go all the way round, which an open chain does not, though it
is whole. Its double cover along the curve tells: two copies of the molecule, cut open at one place
and each joined to the other one there. Whoever goes round the molecule once comes out on the other
copy; hence the cover of a molecule that goes round is in one piece, and that of a chain in two,
wherever the cut is and whatever hangs on the ring. The gap between the two is the one between the
ends of the chain. So for closed curves all that is said of the molecule holds for its cover.

Bonds that close a turn make a ring of the graph that goes round the curve (an odd number of times,
to be exact), and so does at least one ring of every basis of the graph's cycles.

References
----------
A. Hatcher, Algebraic Topology, Cambridge University Press 2002, section 1.3: covers of a graph and
the cycles along which their sheets are exchanged.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

from simgen.elements import COVALENT_RADII, SYMBOLS
from simgen.errors import ConfigError
from simgen.graph import Layout, components, edge_vectors, molecule_pairs
from simgen.models.compiled import library_for
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
    of another fragment; with closed curves, over the fragments of the covers along all of them.
    Where an atom is along a curve is constant except for jumps; there, as where bonds form and
    break, log p jumps, and the score is the gradient everywhere else.

    Parameters
    ----------
    strength : float
        In 1/angstrom.
    onset : float
        Noise level below which it acts, angstrom.
    closed : sequence of int
        Places within each molecule of atoms that no other may bond to: they belong to their
        fragment, but no gap is measured to or from them.
    loops : sequence of Tensor, each of shape (n_points, 3)
        Closed curves that molecules are to go round (:meth:`simgen.priors.Prior.loops`), angstrom.
    """

    def __init__(
        self,
        strength: float = STRENGTH,
        onset: float = ONSET,
        closed: Sequence[int] = (),
        loops: Sequence[Tensor] = (),
    ) -> None:
        if not (0.0 <= strength < math.inf and 0.0 < onset < math.inf):
            raise ConfigError(f"expected strength >= 0 and onset > 0, got {strength} and {onset}")
        self.strength = strength
        self.onset = onset
        self.closed = tuple(closed)
        self.loops = tuple(loops)
        self._layout = Layout()

    def is_batch_invariant(self, batch: MoleculeBatch) -> bool:
        """Whether it is the same for a molecule, bit for bit, in any batch: with compiled loops."""
        return library_for(batch.positions) is not None and not self.loops

    def log_prob(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Log-density of each molecule, shape (n_molecules,)."""
        pairs = molecule_pairs(batch)
        distances, bonded = _bonds(batch, pairs)
        total = distances.new_zeros(batch.n_molecules)
        for senders, receivers in _covers(batch.positions, self.loops, pairs[0], pairs[1]):
            label = _fragments(batch, senders, receivers, bonded)
            apart = label[receivers] != label[senders]
            if self.closed:
                apart = apart & ~self._shut(batch)[pairs].any(0)
            # Each fragment is known by the first of its atoms.
            gaps = distances.new_full(label.shape, math.inf)
            apart_by = distances.expand_as(apart)[apart]
            gaps = gaps.scatter_reduce(0, label[receivers[apart]], apart_by, "amin")
            gaps = torch.where(torch.isfinite(gaps), gaps, 0.0)
            total = total + batch.sum_per_molecule(gaps.view(len(senders), -1).sum(0))
        return -self._weight(sigma) * total

    def score(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Gradient of the log-density, shape (n_atoms, 3), 1/angstrom."""
        chunks = self._layout.chunks(batch)
        parts = [self._score(chunk.of(batch), chunk.senders) for chunk in chunks]
        return self._weight(sigma) * torch.cat(parts)

    def _score(self, batch: MoleculeBatch, slots: Tensor) -> Tensor:
        """The score for a weight of 1; ``slots`` as ``senders`` of :class:`simgen.graph.Chunk`."""
        positions = batch.positions
        if not slots.numel():
            return torch.zeros_like(positions)
        code = library_for(positions)
        if code is not None and not self.loops:
            return self._compiled_score(batch, slots, code)
        score = torch.zeros_like(positions)
        vectors = positions[:, None] - positions[slots]
        distances = vectors.square().sum(2).clamp(min=SMALLEST_SQUARE).sqrt()
        radius = _radii(positions.dtype, positions.device)[batch.atomic_numbers]
        bonded = distances < BOND_REACH * (radius[slots] + radius[:, None])
        atoms = torch.arange(batch.n_atoms, device=slots.device)[:, None]
        for senders, receivers in _covers(positions, self.loops, slots, atoms):
            label = _spread_labels(senders, receivers, bonded)
            if int((label == receivers.flatten()).sum()) == batch.n_molecules:
                continue
            apart = label[senders] != label[receivers]
            if self.closed:
                shut = self._shut(batch)
                apart = apart & ~(shut[slots] | shut[atoms])
            apart_by = torch.where(apart, distances, math.inf)
            gaps = distances.new_full(label.shape, math.inf)
            gaps = gaps.scatter_reduce(0, label, apart_by.amin(2).flatten(), "amin")
            nearest = apart & (apart_by == gaps[label[receivers]])
            sheet, receiver, slot = torch.nonzero(nearest, as_tuple=True)
            # Equal gaps of a fragment share its pull.
            fragment = label.view(len(senders), -1)[sheet, receiver]
            shares = torch.bincount(fragment)[fragment]
            pull = vectors[receiver, slot] / (shares * distances[receiver, slot])[:, None]
            score.index_add_(0, slots[receiver, slot], pull)
            score.index_add_(0, receiver, pull, alpha=-1.0)
        return score

    def _compiled_score(self, batch: MoleculeBatch, slots: Tensor, code: ctypes.CDLL) -> Tensor:
        positions = batch.positions.detach().contiguous()
        radius = _radii(positions.dtype, positions.device)[batch.atomic_numbers]
        shut = self._shut(batch) if self.closed else None
        parent, shares = torch.empty(2, batch.n_atoms, dtype=torch.int64).unbind(0)
        gaps, score = torch.empty_like(radius), torch.empty_like(positions)
        code.cohesion(
            *(*slots.shape, positions.data_ptr(), slots.data_ptr(), radius.data_ptr()),
            *(None if shut is None else shut.data_ptr(), BOND_REACH, math.sqrt(SMALLEST_SQUARE)),
            *(parent.data_ptr(), shares.data_ptr(), gaps.data_ptr(), score.data_ptr()),
        )
        return score

    def _weight(self, sigma: float) -> float:
        return self.strength * math.exp(-((sigma / self.onset) ** 2))

    def _shut(self, batch: MoleculeBatch) -> Tensor:
        """Whether no gap is measured to or from an atom, shape (n_atoms,)."""
        closed = torch.tensor(self.closed, device=batch.positions.device)
        return torch.isin(batch.local_idx, closed)


def _spread_labels(senders: Tensor, receivers: Tensor, bonded: Tensor) -> Tensor:
    """First atom of the fragment of each atom, (n_sheets n_atoms,), like :func:`components`.

    For senders of shape (n_sheets, n_atoms, n_slots), receivers (n_sheets, n_atoms, 1), and bonded
    (n_atoms, n_slots).
    """
    label = receivers.flatten()
    # An atom without a bond in a slot sees itself there.
    seen = torch.where(bonded, senders, receivers)
    while True:
        spread = torch.minimum(label, label[seen].amin(2).flatten())
        spread = spread[spread]
        if torch.equal(spread, label):
            return label
        label = spread


def n_fragments(
    batch: MoleculeBatch, surroundings: Sequence[int] = (), loops: Sequence[Tensor] = ()
) -> Tensor:
    """Number of pieces of each molecule, by distance: shape (n_molecules,), int64.

    Parameters
    ----------
    batch : MoleculeBatch
        Molecules.
    surroundings : sequence of int
        Places within each molecule of atoms that are no part of it.
    loops : sequence of Tensor, each of shape (n_points, 3)
        Closed curves, angstrom: it is the pieces of the double cover along them that count, of the
        one that has most. A molecule in one piece that does not go round a curve has two.
    """
    places = torch.tensor([*surroundings], dtype=torch.int64, device=batch.positions.device)
    outside = torch.isin(batch.local_idx, places)
    pairs = molecule_pairs(batch)
    pairs = pairs[:, ~outside[pairs].any(0)]
    _, bonded = _bonds(batch, pairs)
    counts = []
    for senders, receivers in _covers(batch.positions, loops, pairs[0], pairs[1]):
        label = _fragments(batch, senders, receivers, bonded)
        first = (label == torch.arange(len(label), device=label.device)).view(len(senders), -1)
        counts.append(batch.sum_per_molecule((first & ~outside).sum(0)))
    return torch.stack(counts).amax(0)


def _covers(
    positions: Tensor, loops: Sequence[Tensor], senders: Tensor, receivers: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of atoms of the molecules, or of their double covers along each of the loops.

    Parameters
    ----------
    positions : Tensor, shape (n_atoms, 3)
        In angstrom.
    loops : sequence of Tensor, each of shape (n_points, 3)
        Closed curves.
    senders, receivers : Tensor
        Pairs of atoms, of shapes that can be broadcast.

    Yields
    ------
    (Tensor, Tensor)
        Senders and receivers, with the sheet of the receiver as another, first axis: of length 1
        without loops, else 2. Atom i is i on the first sheet, and n_atoms + i on the second.
    """
    if not loops:
        yield senders[None], receivers[None]
    n_atoms = len(positions)
    for loop in loops:
        # One atom is reached from another by the short way along the curve; it is on the other
        # sheet if that leads over where the curve begins.
        place = torch.cdist(
            positions.detach(), loop.to(positions), compute_mode="donot_use_mm_for_euclid_dist"
        ).argmin(1)
        cut = n_atoms * (2 * (place[senders] - place[receivers]).abs() > len(loop))
        yield (
            torch.stack([senders + cut, senders + n_atoms - cut]),
            torch.stack([receivers, receivers + n_atoms]),
        )


def _fragments(batch: MoleculeBatch, senders: Tensor, receivers: Tensor, bonded: Tensor) -> Tensor:
    """First atom of the fragment of each atom on each sheet, shape (n_sheets n_atoms,)."""
    pairs = torch.stack([senders[:, bonded], receivers[:, bonded]]).flatten(1)
    return components(len(senders) * batch.n_atoms, pairs)


def _bonds(batch: MoleculeBatch, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of pairs, and whether the two atoms hang together."""
    positions = batch.positions
    radius = _radii(positions.dtype, positions.device)[batch.atomic_numbers]
    # Coinciding atoms know no direction; this way their gradient is finite.
    distances = edge_vectors(positions, pairs).square().sum(1).clamp(min=SMALLEST_SQUARE).sqrt()
    return distances, distances.detach() < BOND_REACH * (radius[pairs[0]] + radius[pairs[1]])


@cache
def _radii(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Covalent radius by atomic number, angstrom: made once, since scores are computed often."""
    radii = torch.full((len(SYMBOLS),), LARGEST_RADIUS, dtype=dtype)
    radii[list(COVALENT_RADII)] = torch.tensor(list(COVALENT_RADII.values()), dtype=dtype)
    return radii.to(device)
