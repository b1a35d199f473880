"""The similarity kernel of given descriptors: log k_i = logsumexp_j(-p_i |a_i - b_j|^2 / 2).

Its exponents are a matrix product, and so is the gradient, unless compiled loops compute it, which
leave out what counts less than ``NEGLIGIBLE`` together.

References
----------
R. Elijošius et al., "Zero shot molecular generation via similarity kernels", Nat. Commun. 16
(2025), doi 10.1038/s41467-025-60963-3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from simgen.models.compiled import Matrices, library_for

MAX_KERNEL_ELEMENTS = 2**22
"""Elements of the kernel matrix that exist at once; bounds the memory of the kernel."""
NEGLIGIBLE = {torch.float32: 2.0**-20, torch.float64: 2.0**-44}
"""What references that are left out may count together, relative to the kernel."""
LOG2_E = math.log2(math.e)
MIN_EXPONENT = -100.0
"""Weights below 2^-100 of the largest are raised to it: they stay invisible in the sum, and
denormal numbers, which are slow on CPUs, stay away."""
NO_REFERENCE = -1e30
"""Stands for -|b_j|^2 / 2 where there is no reference."""


def extend(references: Tensor) -> Tensor:
    """Append -|b_j|^2 / 2 to references b_j, (n, n_features); what :func:`log_kernel` takes."""
    return torch.cat([references, -0.5 * references.square().sum(1, keepdim=True)], 1)


def log_kernel(
    features: Tensor, extended: Tensor, precision: Tensor, *, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Evaluate log k_i = logsumexp_j(-precision_i |a_i - b_j|^2 / 2) and its gradient.

    In blocks of atoms; there is never an (n, m, d) tensor, nor an (n, m) one. Both arguments should
    be centred on the same point near the references, so that little cancels in
    |a|^2 + |b|^2 - 2 a b.

    Parameters
    ----------
    features : Tensor, shape (n_atoms, n_features)
        The a_i.
    extended : Tensor, shape (n_references, n_features + 1)
        The b_j, with what :func:`extend` appends.
    precision : Tensor, shape (n_atoms,)
        Inverse square widths.
    with_gradient : bool
        Whether the gradient is wanted.

    Returns
    -------
    log_k : Tensor, shape (n_atoms,)
        Logarithm of the kernel.
    gradient : Tensor, shape (n_atoms, n_features), or None
        Its derivatives: precision_i (mean_ij - a_i), with the mean of the b_j weighted by their
        terms of the sum.
    """
    n_block = max(1, MAX_KERNEL_ELEMENTS // len(extended))
    blocks = zip(torch.split(features, n_block), torch.split(precision, n_block), strict=True)
    log_k, gradient = [], []
    for a, p in blocks:
        # Exponents to the base of 2, which is the faster power.
        binary = LOG2_E * p[:, None]
        exponents = torch.cat([binary * a, binary], dim=1) @ extended.T
        largest = exponents.amax(1, keepdim=True)
        weights = exponents.sub_(largest).clamp_(min=MIN_EXPONENT).exp2_()
        total = weights.sum(1, keepdim=True)
        log2_sum = (largest + total.log2()).squeeze(1)
        log_k.append(log2_sum / LOG2_E - 0.5 * p * a.square().sum(1))
        if with_gradient:
            mean = (weights @ extended)[:, :-1] / total
            gradient.append(p[:, None] * (mean - a))
    return torch.cat(log_k), torch.cat(gradient) if with_gradient else None


class References:
    """What atoms are compared with.

    Parameters
    ----------
    features : Tensor, shape (n_references, n_features)
        Their descriptors b_j. Like ones should be adjacent: what is far from an atom is left out in
        groups.
    """

    def __init__(self, features: Tensor) -> None:
        self._code = library_for(features)
        extended, n = extend(features), len(features)
        if self._code is None:
            self._extended = extended
            return
        # As the compiled loops want them: as columns, and as rows.
        panel = self._code.panel_width()
        n_columns, width = (-(-number // panel) * panel for number in features.shape)
        columns = features.new_zeros(features.shape[1] + 1, n_columns)
        columns[-1] = NO_REFERENCE
        columns[:, :n] = extended.T
        self._columns = Matrices(self._code, columns[None])
        self._rows = features.new_zeros(n_columns, width)
        self._rows[:n, : features.shape[1]] = features
        self._margin = math.log2(n / NEGLIGIBLE[features.dtype])
        self._n_workspace = self._code.kernel_workspace(features.shape[1], n_columns, width)

    @property
    def is_compiled(self) -> bool:
        """Whether compiled loops compute the kernel."""
        return self._code is not None

    def log_kernel(
        self, features: Tensor, precision: Tensor, *, with_gradient: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Do what the function :func:`log_kernel` does.

        With compiled loops, what it says of an atom is the same, bit for bit, whatever other atoms
        there are.
        """
        if self._code is None:
            return log_kernel(features, self._extended, precision, with_gradient=with_gradient)
        features, precision = features.contiguous(), precision.contiguous()
        log_k = torch.empty_like(precision)
        gradient = torch.empty_like(features) if with_gradient else None
        workspace = log_k.new_empty(self._n_workspace)
        self._code.log_kernel(
            *(*features.shape, *self._rows.shape, self._margin),
            *(features.data_ptr(), precision.data_ptr()),
            *(self._columns.panels.data_ptr(), self._rows.data_ptr(), workspace.data_ptr()),
            *(log_k.data_ptr(), None if gradient is None else gradient.data_ptr()),
        )
        return log_k, gradient

    def differentiable(self, features: Tensor, precision: Tensor) -> Tensor:
        """Return log_k, differentiable once with respect to the features: (n_atoms,)."""
        result: Tensor = _LogKernel.apply(features, precision, self)  # type: ignore[no-untyped-call]
        return result


class _LogKernel(torch.autograd.Function):
    """The kernel for automatic differentiation with respect to the features."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, precision: Tensor, references: References) -> Tensor:
        log_k, gradient = references.log_kernel(features, precision)
        ctx.save_for_backward(gradient)
        return log_k

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad_output[:, None] * gradient, None, None
