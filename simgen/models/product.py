"""The product basis: symmetric equivariant polynomials of the atomic basis.

References
----------
I. Batatia, D. P. Kovács, G. N. C. Simm, C. Ortner, G. Csányi, "MACE: Higher order equivariant
message passing neural networks for fast and accurate force fields", NeurIPS 2022,
arXiv:2206.07697, eq. 10 and 11. R. Drautz, Phys. Rev. B 99, 014104 (2019).
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations_with_replacement

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from simgen.models.angular import wigner_3j
from simgen.models.constants import ConstantsModule

_RANK_TOLERANCE = 1e-8


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
def symmetric_basis(l_max: int, l_out: int, degree: int) -> tuple[NDArray[np.float64], int]:
    """Linearly independent equivariant polynomials of one degree.

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
    for l, parity, degrees, tensor in couplings(l_max, degree):
        if l == l_out and parity == (-1) ** l_out:
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
            if norm > _RANK_TOLERANCE:
                basis.append(rest / norm)
        overlaps = np.array([[(q * column).sum() for column in columns] for q in basis])
        result += [q * np.linalg.norm(row) for q, row in zip(basis, overlaps, strict=True)]
    n_monomials = len(monomials((l_max + 1) ** 2, degree))
    empty = np.zeros((0, 2 * l_out + 1, n_monomials))
    return (np.stack(result) if result else empty), sum(map(len, groups.values()))


class SymmetricProduct(ConstantsModule):
    """Element-dependent combinations of the symmetric polynomials, channel by channel."""

    def __init__(
        self,
        l_max: int,
        l_out_max: int,
        correlation: int,
        n_elements: int,
        n_channels: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.correlation = correlation
        dim = (l_max + 1) ** 2
        self.weights = nn.ParameterList()
        forms: list[list[NDArray[np.float64]]] = [[] for _ in range(correlation)]
        self.blocks: list[tuple[int, int]] = []  # number of polynomials, 2 l + 1
        for l_out in range(l_out_max + 1):
            weights = []
            for degree in range(1, correlation + 1):
                basis, n_couplings = symmetric_basis(l_max, l_out, degree)
                shape = (n_elements, len(basis), n_channels)
                weights.append(torch.randn(shape, generator=generator) / max(n_couplings, 1))
                for other in range(1, correlation + 1):
                    rows = len(basis) * (2 * l_out + 1)
                    n_monomials = len(monomials(dim, other))
                    block = (
                        basis.reshape(rows, -1)
                        if other == degree
                        else np.zeros((rows, n_monomials))
                    )
                    forms[other - 1].append(block)
            self.weights.append(torch.cat(weights, dim=1))
            self.blocks.append((self.weights[-1].shape[1], 2 * l_out + 1))
        # Monomials of degree n are products of one of degree n - 1 and one variable.
        for degree in range(1, correlation + 1):
            form = np.concatenate(forms[degree - 1])
            used = np.flatnonzero(np.abs(form).max(axis=0) > 1e-12)
            index = monomials(dim, degree)[used]
            self.register_buffer(
                f"index_{degree}", torch.from_numpy(index.T.copy()), persistent=False
            )
            self.register_buffer(
                f"form_{degree}", torch.from_numpy(form[:, used]), persistent=False
            )

    def forward(self, basis: Tensor, element_one_hot: Tensor) -> Tensor:
        """Map the atomic basis, shape (d, n_atoms, n_channels), to (d_out, n_atoms, n_channels)."""
        n_atoms, n_channels = basis.shape[1:]
        values: Tensor | None = None
        for degree in range(1, self.correlation + 1):
            index = self.get_buffer(f"index_{degree}")
            product = basis.index_select(0, index[0])
            for row in index[1:]:
                product = product * basis.index_select(0, row)
            form = self.get_buffer(f"form_{degree}")
            term = form @ product.reshape(len(product), -1)
            values = term if values is None else values + term
        assert values is not None
        out = []
        parts = values.split([n * m for n, m in self.blocks])
        for weight, part, (n, m) in zip(self.weights, parts, self.blocks, strict=True):
            w = (element_one_hot @ weight.flatten(1)).reshape(n_atoms, n, n_channels)
            part = part.reshape(n, m, n_atoms, n_channels)
            out.append((part * w.transpose(0, 1)[:, None]).sum(0))
        return torch.cat(out)
