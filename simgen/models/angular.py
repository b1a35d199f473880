"""Real spherical harmonics and the coefficients that couple them.

Components of degree l are ordered m = -l ... l around the y axis, so that degree 1 is (x, y, z) up
to a factor: the convention of e3nn (M. Geiger, T. Smidt, "e3nn: Euclidean neural networks",
arXiv:2207.09453) from version 0.5 on.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def spherical_harmonics(unit: Tensor, l_max: int) -> Tensor:
    """Real spherical harmonics up to degree 3 as polynomials of the components.

    They are in "component" normalisation: the squares of degree l add up to 2l+1 for a unit
    vector.

    Parameters
    ----------
    unit : Tensor, shape (n_edges, 3)
        Unit vectors.
    l_max : int
        Highest degree, 0 to 3.

    Returns
    -------
    Tensor, shape (n_edges, (l_max + 1)**2)
    """
    x, y, z = unit.unbind(1)
    values = [torch.ones_like(x)]
    if l_max >= 1:
        values += [math.sqrt(3) * component for component in (x, y, z)]
    if l_max >= 2:
        # The five of degree 2, to be multiplied by sqrt(5).
        round_y, xz, flat = x * x + z * z, math.sqrt(3) * x * z, math.sqrt(0.75) * (z * z - x * x)
        degree_2 = [
            xz,
            math.sqrt(3) * x * y,
            y * y - 0.5 * round_y,
            math.sqrt(3) * y * z,
            flat,
        ]
        values += [math.sqrt(5) * value for value in degree_2]
    if l_max >= 3:
        tilted = math.sqrt(3 / 8) * (4 * y * y - round_y)
        degree_3 = [
            math.sqrt(5 / 6) * (xz * z + flat * x),
            math.sqrt(5) * xz * y,
            tilted * x,
            0.5 * y * (2 * y * y - 3 * round_y),
            tilted * z,
            math.sqrt(5) * flat * y,
            math.sqrt(5 / 6) * (flat * z - xz * x),
        ]
        values += [math.sqrt(7) * value for value in degree_3]
    return torch.stack(values, dim=1)


@cache
def wigner_3j(l_1: int, l_2: int, l_3: int) -> NDArray[np.float64]:
    """Invariant coupling of three degrees in the real basis, squares adding up to one.

    Returns
    -------
    array, shape (2 l_1 + 1, 2 l_2 + 1, 2 l_3 + 1)

    References
    ----------
    D. A. Varshalovich, A. N. Moskalev, V. K. Khersonskii, "Quantum theory of angular momentum",
    World Scientific 1988, section 8.2.1, eq. 3.
    """
    coupling = np.zeros((2 * l_1 + 1, 2 * l_2 + 1, 2 * l_3 + 1))
    for m_1 in range(-l_1, l_1 + 1):
        for m_2 in range(-l_2, l_2 + 1):
            if abs(m_1 + m_2) <= l_3:
                value = _clebsch_gordan(l_1, m_1, l_2, m_2, l_3)
                coupling[l_1 + m_1, l_2 + m_2, l_3 + m_1 + m_2] = value
    real: NDArray[np.float64] = np.einsum(
        "abc,ai,bj,ck->ijk",
        coupling,
        _complex_from_real(l_1),
        _complex_from_real(l_2),
        _complex_from_real(l_3).conj(),
        optimize=True,
    ).real
    real /= np.linalg.norm(real)
    real.setflags(write=False)
    return real


def _clebsch_gordan(l_1: int, m_1: int, l_2: int, m_2: int, l_3: int) -> float:
    f = math.factorial
    m_3 = m_1 + m_2
    triangle = f(l_1 + l_2 - l_3) * f(l_1 - l_2 + l_3) * f(l_2 - l_1 + l_3) / f(l_1 + l_2 + l_3 + 1)
    states = f(l_1 + m_1) * f(l_1 - m_1) * f(l_2 + m_2) * f(l_2 - m_2) * f(l_3 + m_3) * f(l_3 - m_3)
    total = 0.0
    for k in range(l_1 + l_2 - l_3 + 1):
        terms = (
            k,
            l_1 + l_2 - l_3 - k,
            l_1 - m_1 - k,
            l_2 + m_2 - k,
            l_3 - l_2 + m_1 + k,
            l_3 - l_1 - m_2 + k,
        )
        if min(terms) >= 0:
            total += (-1) ** k / math.prod(map(f, terms))
    return math.sqrt((2 * l_3 + 1) * triangle * states) * total


def _complex_from_real(ell: int) -> NDArray[np.complex128]:
    """Unitary matrix, rows complex and columns real harmonics; the phase makes couplings real."""
    matrix = np.zeros((2 * ell + 1, 2 * ell + 1), dtype=np.complex128)
    matrix[ell, ell] = 1.0
    for m in range(1, ell + 1):
        sign = (-1) ** m
        matrix[ell - m, [ell + m, ell - m]] = np.array([1.0, -1.0j]) / math.sqrt(2)
        matrix[ell + m, [ell + m, ell - m]] = np.array([sign, 1.0j * sign]) / math.sqrt(2)
    return matrix * (-1.0j) ** ell
