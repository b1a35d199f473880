"""Pairs and neighbours of the atoms of a batch, found on the device of the batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from simgen.errors import InputError
from simgen.molecules import MoleculeBatch

MAX_PAIRS_CPU = 2**16
"""Pairs of atoms whose descriptors are computed at once; bounds the memory of the network. So few
that the data stay near a CPU, and enough for ten molecules of 40 atoms: fewer cost more calls."""
MAX_PAIRS_ACCELERATOR = 2**17
"""The same where many pairs at once are needed to keep the device busy."""
MAX_LAYOUTS = 64
"""Layouts of batches whose pairs are remembered."""
MAX_REMEMBERED_PAIRS = 2**22
"""Pairs that are remembered in all, of 24 bytes each; those of the last layout in any case."""


def molecule_pairs(batch: MoleculeBatch) -> Tensor:
    """All ordered pairs of different atoms of the same molecule.

    They do not depend on the positions: whoever evaluates the same molecules many times computes
    them once.

    Returns
    -------
    Tensor, shape (2, n_pairs), int64
        Sender (row 0) and receiver (row 1) of each pair, sorted by receiver, then by sender.
    """
    counts = batch.counts
    first_atom = torch.cumsum(counts, 0) - counts
    n_senders = counts[batch.molecule_idx]
    atoms = torch.arange(batch.n_atoms, device=counts.device)
    receiver = torch.repeat_interleave(atoms, n_senders)
    first_pair = torch.cumsum(n_senders, 0) - n_senders
    rank = torch.arange(len(receiver), device=counts.device) - first_pair[receiver]
    sender = first_atom[batch.molecule_idx][receiver] + rank
    different = sender != receiver
    return torch.stack([sender[different], receiver[different]])


def edge_vectors(positions: Tensor, pairs: Tensor) -> Tensor:
    """Vectors from sender to receiver, shape (n_pairs, 3), in the unit of ``positions``."""
    return positions[pairs[1]] - positions[pairs[0]]


def neighbour_list(positions: Tensor, pairs: Tensor, r_max: float) -> Tensor:
    """Select the pairs that are closer than ``r_max``.

    Parameters
    ----------
    positions : Tensor, shape (n_atoms, 3)
        Cartesian coordinates in angstrom.
    pairs : Tensor, shape (2, n_pairs), int64
        Candidates: sender and receiver.
    r_max : float
        Cutoff in angstrom; a pair exactly at the cutoff is not a neighbour.

    Returns
    -------
    Tensor, shape (2, n_edges), int64
        The neighbours, in the order of ``pairs``.
    """
    distances = torch.linalg.vector_norm(edge_vectors(positions.detach(), pairs), dim=1)
    return pairs[:, distances < r_max]


def components(n_atoms: int, edges: Tensor) -> Tensor:
    """Connected components: the first atom of the component of each atom, (n_atoms,), int64.

    Parameters
    ----------
    n_atoms : int
        Number of atoms.
    edges : Tensor, shape (2, n_edges)
        Which atoms hang together; each pair in both directions.
    """
    label = torch.arange(n_atoms, device=edges.device)
    while True:
        # The smallest label spreads to the neighbours, and then to whatever a label points at.
        spread = label.scatter_reduce(0, edges[1], label[edges[0]], "amin")
        spread = spread[spread]
        if torch.equal(spread, label):
            return label
        label = spread


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Successive molecules of a batch."""

    atoms: slice
    molecules: slice
    molecule_idx: Tensor
    n_molecules: int

    def of(self, batch: MoleculeBatch) -> MoleculeBatch:
        """Return these molecules of a batch of the layout."""
        if self.n_molecules == batch.n_molecules:
            return batch
        return MoleculeBatch(
            positions=batch.positions[self.atoms],
            atomic_numbers=batch.atomic_numbers[self.atoms],
            molecule_idx=self.molecule_idx,
            fixed=batch.fixed[self.atoms],
            n_molecules=self.n_molecules,
            theme=batch.theme[self.molecules],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Chunk(Part):
    """Successive molecules of a batch that are evaluated together."""

    pairs: Tensor
    """:func:`molecule_pairs` of these molecules."""
    senders: Tensor
    """All other atoms of the molecule of each atom, shape (n_atoms, n_slots), int64; slots that are
    left over have the atom itself."""


class Layout:
    """Chunks, with their pairs, of the layouts of batches seen lately.

    Samplers move atoms and change elements of batches whose ``molecule_idx`` stays the same tensor;
    as long as it does, the chunks are those of the first call.

    Parameters
    ----------
    max_pairs : int, optional
        Pairs of atoms of a chunk, by default what suits the device; a chunk has at least one
        molecule all the same.
    """

    def __init__(self, max_pairs: int | None = None) -> None:
        if max_pairs is not None and max_pairs < 1:
            raise InputError(f"expected max_pairs >= 1, got {max_pairs}")
        self.max_pairs = max_pairs
        # The tensors are kept with the chunks, so that none of their ids is used again.
        self._seen: dict[int, tuple[Tensor, tuple[Chunk, ...]]] = {}
        self._n_pairs = 0

    def chunks(self, batch: MoleculeBatch) -> tuple[Chunk, ...]:
        """Return the chunks of a batch, all its molecules in order."""
        key = id(batch.molecule_idx)
        if key not in self._seen:
            chunks = tuple(self._split(batch))
            self._n_pairs += _count_pairs(chunks)
            while self._seen and (
                len(self._seen) >= MAX_LAYOUTS or self._n_pairs > MAX_REMEMBERED_PAIRS
            ):
                _, oldest = self._seen.pop(next(iter(self._seen)))
                self._n_pairs -= _count_pairs(oldest)
            self._seen[key] = (batch.molecule_idx, chunks)
        return self._seen[key][1]

    def _split(self, batch: MoleculeBatch) -> list[Chunk]:
        on_cpu = batch.positions.device.type == "cpu"
        max_pairs = self.max_pairs or (MAX_PAIRS_CPU if on_cpu else MAX_PAIRS_ACCELERATOR)
        bounds = [(0, 0)]
        n_pairs = n_atoms = 0
        for molecule, count in enumerate(batch.counts.tolist()):
            pairs_here = count * (count - 1)
            if n_pairs and n_pairs + pairs_here > max_pairs:
                bounds.append((molecule, n_atoms))
                n_pairs = 0
            n_pairs += pairs_here
            n_atoms += count
        bounds.append((batch.n_molecules, n_atoms))
        chunks = []
        for (molecule, atom), (next_molecule, next_atom) in itertools.pairwise(bounds):
            atoms, molecules = slice(atom, next_atom), slice(molecule, next_molecule)
            molecule_idx = batch.molecule_idx[atoms] - molecule
            n_molecules = next_molecule - molecule
            pairs = molecule_pairs(Part(atoms, molecules, molecule_idx, n_molecules).of(batch))
            senders = _slots(pairs, next_atom - atom)
            chunks.append(Chunk(atoms, molecules, molecule_idx, n_molecules, pairs, senders))
        return chunks


def _count_pairs(chunks: tuple[Chunk, ...]) -> int:
    return sum(chunk.pairs.shape[1] for chunk in chunks)


def _slots(pairs: Tensor, n_atoms: int) -> Tensor:
    """Arrange the senders of pairs, which are sorted by receiver, in a row for each receiver."""
    n_senders = torch.bincount(pairs[1], minlength=n_atoms)
    first_pair = torch.cumsum(n_senders, 0) - n_senders
    width = int(n_senders.max()) if n_atoms else 0
    slots = torch.arange(n_atoms, device=pairs.device)[:, None].repeat(1, width)
    place = torch.arange(pairs.shape[1], device=pairs.device) - first_pair[pairs[1]]
    slots[pairs[1], place] = pairs[0]
    return slots


class Families:
    """The particles of each molecule, which are adjacent in a batch and as many for all.

    Parameters
    ----------
    batch : MoleculeBatch
        All particles.
    n_particles : int
        Particles of each molecule.
    """

    def __init__(self, batch: MoleculeBatch, n_particles: int) -> None:
        counts = batch.counts.tolist()[::n_particles]
        bounds = [0, *itertools.accumulate(count * n_particles for count in counts)]
        # One tensor for all families of a size: layouts are remembered by it.
        family = torch.arange(n_particles)
        layouts = {count: family.repeat_interleave(count) for count in set(counts)}
        self._parts = [
            Part(
                atoms=slice(*ends),
                molecules=slice(k * n_particles, (k + 1) * n_particles),
                molecule_idx=layouts[count],
                n_molecules=n_particles,
            )
            for k, (count, ends) in enumerate(zip(counts, itertools.pairwise(bounds), strict=True))
        ]

    def apart(
        self, evaluate: Callable[[MoleculeBatch, float], Tensor]
    ) -> Callable[[MoleculeBatch, float], Tensor]:
        """Let a function of batches of this layout be evaluated family by family."""
        return lambda batch, sigma: torch.cat(
            [evaluate(part.of(batch), sigma) for part in self._parts]
        )


@runtime_checkable
class HasBatchInvariance(Protocol):
    """Something that can say whether it is the same in any batch."""

    def is_batch_invariant(self, batch: MoleculeBatch) -> bool:
        """Whether what it says of a molecule is the same, bit for bit, in any batch like this."""
        ...


def is_batch_invariant(part: object, batch: MoleculeBatch) -> bool:
    """Whether what ``part`` says of a molecule is known to be the same, bit for bit, in any batch.

    How sums and matrix products round depends on their size, so that few things are.
    """
    return isinstance(part, HasBatchInvariance) and part.is_batch_invariant(batch)
