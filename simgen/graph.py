"""Pairs and neighbours of the atoms of a batch, found on the device of the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from simgen.molecules import MoleculeBatch


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


def n_components(batch: MoleculeBatch, edges: Tensor) -> Tensor:
    """Number of connected components of each molecule, shape (n_molecules,), int64.

    Parameters
    ----------
    batch : MoleculeBatch
        Molecules; their positions do not matter.
    edges : Tensor, shape (2, n_edges)
        Which atoms hang together; each pair in both directions.
    """
    atoms = torch.arange(batch.n_atoms, device=edges.device)
    label = atoms
    while True:
        # The smallest label spreads to the neighbours, and then to whatever a label points at.
        spread = label.scatter_reduce(0, edges[1], label[edges[0]], "amin")
        spread = spread[spread]
        if torch.equal(spread, label):
            break
        label = spread
    return batch.sum_per_molecule((label == atoms).to(torch.int64))
