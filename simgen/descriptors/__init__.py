"""Descriptors: rotation-invariant vectors that describe the environment of each atom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from simgen.molecules import MoleculeBatch


class Descriptor(Protocol):
    """Describes the environment of each atom of a batch by a differentiable vector."""

    def __call__(self, batch: MoleculeBatch, pairs: Tensor | None = None) -> Tensor:
        """Evaluate the descriptor.

        Parameters
        ----------
        batch : MoleculeBatch
            Molecules.
        pairs : Tensor, shape (2, n_pairs), int64, optional
            :func:`simgen.graph.molecule_pairs` of the batch, if the caller has them already.

        Returns
        -------
        Tensor, shape (n_atoms, n_features)
            Invariant under rotations, translations and permutations of like atoms.
        """
        ...


@runtime_checkable
class Linearises(Protocol):
    """A descriptor that brings derivatives of its own."""

    def linearise(self, batch: MoleculeBatch) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return what the function :func:`linearise` does."""
        ...


@runtime_checkable
class LinearisesSome(Protocol):
    """A descriptor that can leave out atoms that nobody asks for."""

    @property
    def reach(self) -> float | None:
        """Atoms further away, angstrom, are no part of an environment; None if it cannot."""
        ...

    def linearise(
        self, batch: MoleculeBatch, wanted: Tensor | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return what the function :func:`linearise` does."""
        ...


def linearise(
    descriptor: Descriptor, batch: MoleculeBatch, pairs: Tensor, wanted: Tensor | None = None
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Evaluate a descriptor together with the transpose of its Jacobian.

    The score of a similarity kernel gets its derivatives here and nowhere else.

    Parameters
    ----------
    descriptor : Descriptor
        What to evaluate. If it has a method ``linearise``, that is used, else automatic
        differentiation.
    batch : MoleculeBatch
        Molecules.
    pairs : Tensor, shape (2, n_pairs), int64
        :func:`simgen.graph.molecule_pairs` of the batch.
    wanted : Tensor, shape (n_atoms,), bool, optional
        Atoms whose features are wanted. Others may be evaluated or not; their gradient is to be
        zero.

    Returns
    -------
    features : Tensor, shape (n_atoms, n_features)
        Detached from any graph.
    pullback : callable
        Takes a gradient with respect to the features, shape (n_atoms, n_features), to one with
        respect to the positions, shape (n_atoms, 3). To be called once.
    """
    if wanted is not None and isinstance(descriptor, LinearisesSome):
        return descriptor.linearise(batch, wanted)
    if isinstance(descriptor, Linearises):
        return descriptor.linearise(batch)
    positions = batch.positions.detach().requires_grad_(True)
    with torch.enable_grad():
        features = descriptor(batch.replace(positions=positions), pairs)

    def pullback(gradient: Tensor) -> Tensor:
        # Atoms without neighbours may not depend on their positions at all.
        return torch.autograd.grad(features, positions, gradient, materialize_grads=True)[0]

    return features.detach(), pullback


def differentiable(descriptor: Linearises, batch: MoleculeBatch) -> Tensor:
    """Features of a descriptor that brings its derivatives, for automatic differentiation.

    Returns
    -------
    Tensor, shape (n_atoms, n_features)
        Differentiable once with respect to the positions of the batch.
    """
    result: Tensor = _Linearised.apply(batch.positions, batch, descriptor)  # type: ignore[no-untyped-call]
    return result


class _Linearised(torch.autograd.Function):
    """A descriptor for automatic differentiation with respect to the positions."""

    @staticmethod
    def forward(
        ctx: Any, positions: Tensor, batch: MoleculeBatch, descriptor: Linearises
    ) -> Tensor:
        features, ctx.pullback = descriptor.linearise(batch)
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.pullback(gradient), None, None
