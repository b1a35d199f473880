"""Neighbourhoods as dense, padded arrays, so that messages are batched matrix products.

Neighbours come in both directions, and whatever depends on the distance alone is evaluated once
per undirected edge. Each gather knows its inverse, so that its gradient is a gather, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Blocks = tuple[tuple[int, int], ...]


class _Gather(torch.autograd.Function):
    """``x[index]``; ``inverse`` lists the places where each row of x went.

    ``blocks`` are pairs of a number of rows of x and of places for each of them, for consecutive
    rows of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor, blocks: Blocks) -> Tensor:
        ctx.save_for_backward(index, inverse)
        ctx.blocks = blocks
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        index, inverse = ctx.saved_tensors
        result = _Collect.apply(grad, index, inverse, ctx.blocks)  # type: ignore[no-untyped-call]
        return result, None, None, None


class _Collect(torch.autograd.Function):
    """Adjoint of :class:`_Gather`: each row of x adds up the places where it went."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, index: Tensor, inverse: Tensor, blocks: Blocks) -> Tensor:
        ctx.save_for_backward(index, inverse)
        ctx.blocks = blocks
        return torch.cat([rows.sum(1) for rows in _split(y.index_select(0, inverse), blocks)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        index, inverse = ctx.saved_tensors
        result = _Gather.apply(grad, index, inverse, ctx.blocks)  # type: ignore[no-untyped-call]
        return result, None, None, None


def _split(values: Tensor, blocks: Blocks) -> list[Tensor]:
    parts = torch.split(values, [n_rows * width for n_rows, width in blocks])
    return [
        part.reshape(n_rows, width, *values.shape[1:])
        for part, (n_rows, width) in zip(parts, blocks, strict=True)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class Neighbourhoods:
    """Undirected edges and their places, called slots, in the neighbourhoods of the atoms.

    Consecutive atoms form a block, in which each has as many slots as the one with the most
    neighbours. What is gathered into slots that stay empty is arbitrary; it must be multiplied by
    ``sign``, or by something that was.

    Attributes
    ----------
    blocks : tuple of (int, int)
        Number of atoms, and of slots of each of them, in every block.
    edge_of_slot, sender_of_slot : Tensor, shape (n_slots,), int64
    slots_of_edge : Tensor, shape (2 * n_edges,), int64
        Slot at the second atom, then that at the first, for each edge.
    slots_of_sender : Tensor, shape (n_slots,), int64
        The slot where the receiver is the neighbour of the sender; an empty slot is its own.
    sign : Tensor, shape (n_slots, 1), floating point
        1 where the receiver is the second atom of the edge, -1 where it is the first, 0 in empty
        slots.
    """

    blocks: Blocks
    edge_of_slot: Tensor
    slots_of_edge: Tensor
    sender_of_slot: Tensor
    slots_of_sender: Tensor
    sign: Tensor

    @classmethod
    def build(cls, edges: Tensor, blocks: Blocks, dtype: torch.dtype) -> Neighbourhoods:
        """Arrange undirected edges, shape (2, n_edges), each given once."""
        device, n_edges = edges.device, edges.shape[1]
        n_slots = sum(n_atoms * width for n_atoms, width in blocks)
        n_atoms, widths = torch.tensor(blocks, device=device).unbind(1)
        width = torch.repeat_interleave(widths, n_atoms)
        sender = torch.cat([edges[0], edges[1]])
        receiver = torch.cat([edges[1], edges[0]])
        order = torch.argsort(receiver, stable=True)
        degree = torch.bincount(receiver, minlength=len(width))
        first_edge, first_slot = torch.cumsum(degree, 0) - degree, torch.cumsum(width, 0) - width
        directed = torch.arange(2 * n_edges, device=device)
        slot = torch.empty_like(receiver)
        slot[order] = directed + (first_slot - first_edge)[receiver[order]]
        edge_of_slot = torch.zeros(n_slots, dtype=torch.int64, device=device)
        edge_of_slot[slot] = directed % max(n_edges, 1)
        sender_of_slot = torch.zeros_like(edge_of_slot)
        sender_of_slot[slot] = sender
        slots_of_sender = torch.arange(n_slots, device=device)
        slots_of_sender[slot] = slot.roll(n_edges)
        sign = torch.zeros(n_slots, 1, dtype=dtype, device=device)
        sign[slot] = (1.0 - 2.0 * (directed >= n_edges)).to(dtype)[:, None]
        return cls(
            blocks=blocks,
            edge_of_slot=edge_of_slot,
            slots_of_edge=slot.reshape(2, n_edges).T.reshape(-1),
            sender_of_slot=sender_of_slot,
            slots_of_sender=slots_of_sender,
            sign=sign,
        )

    def from_edges(self, values: Tensor) -> Tensor:
        """Copy values of the edges, (n_edges, ...), to the slots, (n_slots, ...)."""
        result: Tensor = _Gather.apply(  # type: ignore[no-untyped-call]
            values, self.edge_of_slot, self.slots_of_edge, ((len(values), 2),)
        )
        return result

    def from_senders(self, values: Tensor) -> Tensor:
        """Copy values of the atoms, (n_atoms, ...), to the slots where they are neighbours."""
        result: Tensor = _Gather.apply(  # type: ignore[no-untyped-call]
            values, self.sender_of_slot, self.slots_of_sender, self.blocks
        )
        return result

    def split(self, values: Tensor) -> list[Tensor]:
        """Split values of the slots, (n_slots, ...), into blocks of (n_atoms, width, ...)."""
        return _split(values, self.blocks)
