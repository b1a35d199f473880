"""The product basis: symmetric equivariant polynomials of the atomic basis.

References
----------
I. Batatia, D. P. Kovács, G. N. C. Simm, C. Ortner, G. Csányi, "MACE: Higher order equivariant
message passing neural networks for fast and accurate force fields", NeurIPS 2022,
arXiv:2206.07697, eq. 10 and 11. R. Drautz, Phys. Rev. B 99, 014104 (2019).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from simgen.models.angular import wigner_3j
from simgen.models.config import Irrep, natural_irreps

_TOLERANCE = 1e-8
"""Couplings are of order one; below this they are rounding errors."""


Coupling = tuple[int, int, tuple[int, ...], NDArray[np.float64]]


@lru_cache
def couplings(l_max: int, degree: int) -> tuple[Coupling, ...]:
    """All ways to couple ``degree`` copies of the harmonics 0 ... l_max, one after the other.

    Returns
    -------
    tuple of (l_out, parity, degrees, coefficients)
        ``coefficients`` has shape (2 l_out + 1, d, ..., d) with d = (l_max + 1)**2.
    """
    dim = (l_max + 1) ** 2
    blocks = []
    for l_in in range(l_max + 1):
        block = np.zeros((2 * l_in + 1, dim))
        block[:, l_in**2 : (l_in + 1) ** 2] = np.eye(2 * l_in + 1)
        blocks.append((l_in, (-1) ** l_in, (l_in,), block))
    if degree == 1:
        return tuple(blocks)
    result = []
    for l_left, parity, degrees, left in couplings(l_max, degree - 1):
        for l_in, parity_in, _, block in blocks:
            for l_out in range(abs(l_left - l_in), l_left + l_in + 1):
                w = math.sqrt(2 * l_out + 1) * wigner_3j(l_out, l_left, l_in)
                coefficients = np.einsum("ijk,j...,kb->i...b", w, left, block, optimize=True)
                result.append((l_out, parity * parity_in, (*degrees, l_in), coefficients))
    return tuple(result)


def monomials(dim: int, degree: int) -> NDArray[np.int64]:
    """Sorted index tuples of all monomials of a degree, shape (n_monomials, degree)."""
    return np.array(list(combinations_with_replacement(range(dim), degree)), dtype=np.int64)


def to_monomials(tensors: NDArray[np.float64], degree: int) -> NDArray[np.float64]:
    """Coefficients of the monomials of multilinear forms at equal arguments.

    ``tensors`` has shape (n, d, ..., d) with ``degree`` axes d; the result (n, n_monomials).
    """
    dim = tensors.shape[1]
    sorted_idx = np.sort(np.indices((dim,) * degree).reshape(degree, -1), axis=0)
    key = np.ravel_multi_index(tuple(sorted_idx), (dim,) * degree)
    wanted = np.ravel_multi_index(tuple(monomials(dim, degree).T), (dim,) * degree)
    place = np.searchsorted(wanted, key)
    flat = tensors.reshape(len(tensors), -1)
    return np.stack([np.bincount(place, row, len(wanted)) for row in flat])


@lru_cache
def symmetric_basis(
    l_max: int, l_out: int, degree: int, parity: int | None = None
) -> tuple[NDArray[np.float64], int]:
    """Linearly independent equivariant polynomials of one degree.

    The variables have the parity of the harmonics, and by default the polynomials have it, too.

    Of all couplings only the symmetric part counts when the same atomic basis is inserted
    everywhere, and few of these are independent: of 23 invariants of degree 3 up to l = 3, only 8.
    They are found by Gram-Schmidt orthogonalisation among couplings of the same degrees l, and
    each is scaled such that unit-normal weights have the same effect as unit-normal weights of
    all couplings.

    Returns
    -------
    coefficients : array, shape (n_polynomials, 2 l_out + 1, n_monomials)
    n_couplings : int
        How many couplings there were.
    """
    groups: dict[tuple[int, ...], list[NDArray[np.float64]]] = {}
    wanted = (-1) ** l_out if parity is None else parity
    for ell, found, degrees, tensor in couplings(l_max, degree):
        if ell == l_out and found == wanted:
            columns = groups.setdefault(tuple(sorted(degrees)), [])
            columns.append(to_monomials(tensor, degree))
    result: list[NDArray[np.float64]] = []
    for columns in groups.values():
        basis: list[NDArray[np.float64]] = []
        for column in columns:
            rest = column.copy()
            for q in basis:
                rest -= (q * rest).sum() * q
            norm = np.sqrt((rest * rest).sum())
            if norm > _TOLERANCE:
                basis.append(rest / norm)
        overlaps = np.array([[(q * column).sum() for column in columns] for q in basis])
        result += [q * np.linalg.norm(row) for q, row in zip(basis, overlaps, strict=True)]
    n_monomials = len(monomials((l_max + 1) ** 2, degree))
    empty = np.zeros((0, 2 * l_out + 1, n_monomials))
    return (np.stack(result) if result else empty), sum(map(len, groups.values()))


# Sums of products of two variables, by the variable that they are multiplied with.
_Terms = dict[int, list[tuple[int, int, float]]]


class SparsePolynomials:
    """Polynomials up to degree 3 of a few variables, each with few monomials.

    Variables are rows of a matrix with as many columns as there are atoms times channels. The
    constant 1 is one variable more, so that all monomials have three factors.

    Parameters
    ----------
    n_variables : int
    polynomials : list of dict
        Coefficient by the sorted variables of each monomial.
    """

    def __init__(self, n_variables: int, polynomials: list[dict[tuple[int, ...], float]]) -> None:
        self.values: list[_Terms] = []
        self.gradients: list[_Terms] = []
        for polynomial in polynomials:
            value: _Terms = {}
            gradient: _Terms = {}
            for variables, coefficient in polynomial.items():
                factors = [*variables, *[n_variables] * (3 - len(variables))]
                value.setdefault(factors[0], []).append((factors[1], factors[2], coefficient))
                for a in set(variables):
                    others = factors.copy()
                    others.remove(a)
                    term = (others[0], others[1], coefficient * factors.count(a))
                    gradient.setdefault(a, []).append(term)
            self.values.append(value)
            self.gradients.append(gradient)

    def __call__(self, x: Tensor) -> Tensor:
        """Map (n_variables, n_columns) to (n_polynomials, n_columns); differentiable twice."""
        result: Tensor = _Value.apply(x, self)  # type: ignore[no-untyped-call]
        return result

    def pullback(self, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient of sum_r weight_r P_r(x), shape (n_variables, n_columns), of each column."""
        result: Tensor = _Gradient.apply(x, weight, self)  # type: ignore[no-untyped-call]
        return result


_COLUMNS_AT_ONCE = 65536
"""On a CPU the rows of so many columns stay in the cache, and are worth more than one thread."""


def _column_slices(x: Tensor) -> Iterator[slice]:
    step = _COLUMNS_AT_ONCE if x.device.type == "cpu" else max(x.shape[1], 1)
    return (slice(start, start + step) for start in range(0, x.shape[1], step))


def _rows(x: Tensor, columns: slice, constant: float) -> list[Tensor]:
    rows = x[:, columns].unbind(0)
    return [*rows, torch.full_like(rows[0], constant)]


def _sum_of_products(
    x: list[Tensor], y: list[Tensor], terms: list[tuple[int, int, float]], out: Tensor
) -> float:
    """Add up products of rows, all divided by the coefficient of the first, which is returned."""
    (j, k, first), *others = terms
    torch.mul(x[j], y[k], out=out)
    for j, k, coefficient in others:
        out.addcmul_(x[j], y[k], value=coefficient / first)
    return first


class _Value(torch.autograd.Function):
    """All polynomials P_r(x). Saves x only: monomials are cheaper to compute than to keep."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, polynomials: SparsePolynomials) -> Tensor:
        ctx.save_for_backward(x)
        ctx.polynomials = polynomials
        out = x.new_zeros(len(polynomials.values), x.shape[1])
        for columns in _column_slices(x):
            rows = _rows(x, columns, 1.0)
            partial = torch.empty_like(rows[0])
            for result, terms in zip(out[:, columns].unbind(0), polynomials.values, strict=True):
                for a, products in terms.items():
                    factor = _sum_of_products(rows, rows, products, partial)
                    result.addcmul_(rows[a], partial, value=factor)
        return out

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return _Gradient.apply(x, weight, ctx.polynomials), None  # type: ignore[no-untyped-call]


class _Gradient(torch.autograd.Function):
    """Gradient of sum_r weight_r P_r(x) with respect to x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, polynomials: SparsePolynomials) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.polynomials = polynomials
        out = torch.zeros_like(x)
        for columns in _column_slices(x):
            rows = _rows(x, columns, 1.0)
            partial = torch.empty_like(rows[0])
            results = out[:, columns].unbind(0)
            weights = weight[:, columns].unbind(0)
            for w, terms in zip(weights, polynomials.gradients, strict=True):
                for a, products in terms.items():
                    factor = _sum_of_products(rows, rows, products, partial)
                    results[a].addcmul_(w, partial, value=factor)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        x_grad, weight_grad = torch.zeros_like(x), torch.zeros_like(weight)
        for columns in _column_slices(x):
            rows = _rows(x, columns, 1.0)
            steps = _rows(direction, columns, 0.0)
            partial = torch.empty_like(rows[0])
            x_grads = x_grad[:, columns].unbind(0)
            weights = weight[:, columns].unbind(0)
            weight_grads = weight_grad[:, columns].unbind(0)
            for w, w_grad, terms in zip(
                weights, weight_grads, ctx.polynomials.gradients, strict=True
            ):
                for a, products in terms.items():
                    factor = _sum_of_products(rows, rows, products, partial)
                    w_grad.addcmul_(steps[a], partial, value=factor)
                    _sum_of_products(steps, rows, products, partial)
                    for j, k, coefficient in products:
                        partial.addcmul_(rows[j], steps[k], value=coefficient / factor)
                    x_grads[a].addcmul_(w, partial, value=factor)
        return x_grad, weight_grad, None


def symmetric_polynomials(l_max: int, l_out_max: int, correlation: int) -> SparsePolynomials:
    """All of :func:`symmetric_basis`, by l, then by degree, with 2 l + 1 components each."""
    return polynomials_of(l_max, natural_irreps(l_out_max), correlation)


@lru_cache
def polynomials_of(l_max: int, irreps: tuple[Irrep, ...], correlation: int) -> SparsePolynomials:
    """All of :func:`symmetric_basis`, by irrep, then by degree, with 2 l + 1 components each."""
    dim = (l_max + 1) ** 2
    rows: list[dict[tuple[int, ...], float]] = []
    for l_out, parity in irreps:
        for degree in range(1, correlation + 1):
            basis, _ = symmetric_basis(l_max, l_out, degree, parity)
            variables = [tuple(row) for row in monomials(dim, degree).tolist()]
            for coefficients in basis.reshape(-1, len(variables)):
                used = np.flatnonzero(np.abs(coefficients) > _TOLERANCE)
                rows.append({variables[i]: float(coefficients[i]) for i in used})
    return SparsePolynomials(dim, rows)


def has_polynomials(l_max: int, irrep: Irrep, correlation: int) -> bool:
    """Whether any symmetric polynomial is of this degree and parity."""
    ell, parity = irrep
    return any(
        len(symmetric_basis(l_max, ell, degree, parity)[0]) for degree in range(1, correlation + 1)
    )


class SymmetricProduct(nn.Module):
    """Combinations of the symmetric polynomials, channel by channel.

    Parameters
    ----------
    l_max : int
        Highest degree of the atomic basis, which has the parity of the harmonics.
    irreps : tuple of (int, int)
        Degrees and parities of the results; there are polynomials of each.
    correlation : int
        Highest degree of the polynomials.
    n_weights : int
        Sets of weights: one for each element, or a single one.
    n_channels : int
    generator : torch.Generator
        Of the initial weights.
    """

    def __init__(
        self,
        l_max: int,
        irreps: tuple[Irrep, ...],
        correlation: int,
        n_weights: int,
        n_channels: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        degrees = range(1, correlation + 1)
        self.weights = nn.ParameterList()
        self.blocks: list[tuple[int, int]] = []  # number of polynomials, 2 l + 1
        for ell, parity in irreps:
            weights = []
            for degree in degrees:
                basis, n_couplings = symmetric_basis(l_max, ell, degree, parity)
                shape = (n_weights, len(basis), n_channels)
                weights.append(torch.randn(shape, generator=generator) / max(n_couplings, 1))
            self.weights.append(torch.cat(weights, dim=1))
            self.blocks.append((self.weights[-1].shape[1], 2 * ell + 1))
        self.polynomials = polynomials_of(l_max, irreps, correlation)

    def forward(self, basis: Tensor, element_one_hot: Tensor) -> list[Tensor]:
        """Map the atomic basis, shape (d, n_atoms, n_channels), to the irreps.

        Each of the results has shape (2 l + 1, n_atoms, n_channels).
        """
        _, n_atoms, n_channels = basis.shape
        values = self.polynomials(basis.flatten(1))
        out = []
        parts = torch.split(values, [n * m for n, m in self.blocks])
        for weight, part, (n, m) in zip(self.weights, parts, self.blocks, strict=True):
            if len(weight) > 1:
                w = (element_one_hot @ weight.flatten(1)).reshape(n_atoms, n, n_channels)
                w = w.transpose(0, 1)
            else:
                w = weight[0][:, None]
            part = part.reshape(n, m, n_atoms, n_channels)
            out.append((part * w[:, None]).sum(0))
        return out
