"""Neighbourhoods as dense, padded arrays, so that messages are batched matrix products.

Neighbours come in both directions, and whatever depends on the distance alone is evaluated once
per undirected edge. Each gather knows its inverse, so that its gradient is a gather, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class _Gather(torch.autograd.Function):
    """``x[index]``; ``inverse`` lists the places where each row of x went."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(index, inverse)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        index, inverse = ctx.saved_tensors
        return _Collect.apply(grad, index, inverse), None, None  # type: ignore[no-untyped-call]


class _Collect(torch.autograd.Function):
    """Adjoint of :class:`_Gather`: each row of x adds up the places where it went."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(index, inverse)
        rows = y.index_select(0, inverse.reshape(-1))
        return rows.reshape(*inverse.shape, *y.shape[1:]).sum(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        index, inverse = ctx.saved_tensors
        return _Gather.apply(grad, index, inverse), None, None  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True, eq=False)
class Neighbourhoods:
    """Undirected edges i < j and their places in rows of neighbours, one row per atom.

    A row is padded with empty slots to the length of the longest. What is gathered into empty
    slots is arbitrary; it must be multiplied by ``mask``, or by something that was.

    Attributes
    ----------
    edges : Tensor, shape (2, n_edges), int64
        Undirected edges: first and second atom.
    edge_of_slot, sender_of_slot : Tensor, shape (n_atoms * width,), int64
    slots_of_edge : Tensor, shape (n_edges, 2), int64
        Slot in the row of the second atom, and in that of the first.
    slots_of_sender : Tensor, shape (n_atoms, width), int64
    sign : Tensor, shape (n_atoms * width, 1), floating point
        1 where the receiver is the second atom of the edge, -1 where it is the first, 0 in empty
        slots.
    width : int
        Number of slots of a row.
    """

    edges: Tensor
    edge_of_slot: Tensor
    slots_of_edge: Tensor
    sender_of_slot: Tensor
    slots_of_sender: Tensor
    sign: Tensor
    width: int

    @classmethod
    def build(cls, edges: Tensor, n_atoms: int, dtype: torch.dtype) -> Neighbourhoods:
        """Arrange undirected edges, shape (2, n_edges), each given once."""
        n_edges = edges.shape[1]
        device = edges.device
        sender = torch.cat([edges[0], edges[1]])
        receiver = torch.cat([edges[1], edges[0]])
        degree = torch.bincount(receiver, minlength=n_atoms)
        width = int(degree.max()) if n_edges else 0
        order = torch.argsort(receiver, stable=True)
        rank = torch.empty_like(receiver)
        start = torch.cumsum(degree, 0) - degree
        rank[order] = torch.arange(2 * n_edges, device=device) - start[receiver[order]]
        slot = receiver * width + rank
        directed = torch.arange(2 * n_edges, device=device)
        edge_of_slot = torch.zeros(n_atoms * width, dtype=torch.int64, device=device)
        edge_of_slot[slot] = directed % max(n_edges, 1)
        sender_of_slot = torch.zeros_like(edge_of_slot)
        sender_of_slot[slot] = sender
        slots_of_sender = torch.arange(n_atoms * width, device=device)
        slots_of_sender[slot] = slot.roll(n_edges)
        sign = torch.zeros(n_atoms * width, 1, dtype=dtype, device=device)
        sign[slot[:n_edges]] = 1.0
        sign[slot[n_edges:]] = -1.0
        return cls(
            edges=edges,
            edge_of_slot=edge_of_slot,
            slots_of_edge=torch.stack([slot[:n_edges], slot[n_edges:]], dim=1),
            sender_of_slot=sender_of_slot,
            slots_of_sender=slots_of_sender.reshape(n_atoms, width),
            sign=sign,
            width=width,
        )

    def from_edges(self, values: Tensor) -> Tensor:
        """Copy values of the edges, (n_edges, ...), to the slots, (n_atoms * width, ...)."""
        result: Tensor = _Gather.apply(values, self.edge_of_slot, self.slots_of_edge)  # type: ignore[no-untyped-call]
        return result

    def from_senders(self, values: Tensor) -> Tensor:
        """Copy values of the atoms, (n_atoms, ...), to the slots where they are neighbours."""
        result: Tensor = _Gather.apply(values, self.sender_of_slot, self.slots_of_sender)  # type: ignore[no-untyped-call]
        return result
