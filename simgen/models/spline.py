"""Radial functions as splines: what a network says of a distance, without the network.

A radial network maps one number, the distance, to hundreds; but once its weights are fixed these
are combinations of a few dozen functions, each smooth. With F the functions at many distances,

=============================================  ==========================================
Equation                                       Variable
=============================================  ==========================================
F(r) = sum_q phi_q(r) W_q                      ``mixing`` W, (n_basis, n_functions)
phi_q(r) = sum_k c_kq B((r - r_min) / h - k)   ``coefficients`` c, (n_intervals + 7, n_basis)
B, uniform B-spline of degree 7                :func:`bspline_pieces`
=============================================  ==========================================

The rows of W are the right singular vectors of F that matter in the dtype, phi the coordinates
along them. Derivatives are those of the spline itself, so that energies and forces belong together.

References
----------
C. de Boor, "A practical guide to splines", Springer 2001, chapter X.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from simgen.errors import InputError

DEGREE = 7
TRUNCATION = {torch.float32: 3e-7, torch.float64: 1e-13}
"""Singular values below this multiple of the largest are left out."""
TOLERANCE = {torch.float32: 1e-8, torch.float64: 1e-13}
"""Largest error of the splines relative to the largest value of any function; so far below what the
dtype can hold, since that of derivatives is larger."""
FIRST_INTERVALS, MAX_INTERVALS = 64, 4096


@cache
def bspline_pieces(degree: int) -> NDArray[np.float64]:
    """Coefficients of the polynomials that a uniform B-spline consists of.

    Between two knots, with t in [0, 1] the place between them, ``degree + 1`` of its shifted copies
    are not zero.

    Returns
    -------
    array, shape (degree + 1, degree + 1)
        Row j has the coefficients of t^j, a column for each copy.

    References
    ----------
    de Boor 2001, chapter X, eq. 5, with uniform knots.
    """
    pieces = np.ones((1, 1))
    for p in range(1, degree + 1):
        lower, pieces = pieces, np.zeros((p + 1, p + 1))
        for j in range(p):
            # (p - 1 - j + t) / p times the copy before, (j + 1 - t) / p times the copy itself
            pieces[:-1, j + 1] += (p - 1 - j) / p * lower[:, j]
            pieces[1:, j + 1] += lower[:, j] / p
            pieces[:-1, j] += (j + 1) / p * lower[:, j]
            pieces[1:, j] -= lower[:, j] / p
    return pieces


class RadialTable:
    """Functions of a distance, tabulated.

    Parameters
    ----------
    functions : callable
        Maps distances in angstrom, shape (n,), float64, to values, shape (n, n_functions); smooth
        from ``r_min`` to ``r_max``.
    r_min, r_max : float
        Smallest distance that will be asked for, and the cutoff, at which the functions vanish;
        angstrom.
    dtype, device
        Of the table; ``mixing`` is float64.

    Raises
    ------
    InputError
        If the functions are not smooth.
    """

    def __init__(
        self,
        functions: Callable[[Tensor], Tensor],
        r_min: float,
        r_max: float,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.r_min, self.r_max = r_min, r_max
        n_intervals, error = FIRST_INTERVALS // 2, torch.inf
        while error > TOLERANCE[dtype] and n_intervals < MAX_INTERVALS:
            n_intervals *= 2
            # The knots, and three more places at each end, are as many as there are coefficients.
            knots = torch.arange(n_intervals + 1, dtype=torch.float64)
            ends = torch.tensor([0.5, 1.5, 2.5], dtype=torch.float64)
            places = torch.cat([knots, ends, n_intervals - ends]).sort().values
            step = (r_max - r_min) / n_intervals
            # The functions may not be able to take the limit that a distance of zero is.
            values = functions((r_min + places * step).clamp(min=1e-6))
            coefficients = torch.linalg.solve(_collocation(places, n_intervals), values)
            between = torch.cat([knots[:-1] + 0.25, knots[:-1] + 0.75])
            exact = functions(r_min + between * step)
            fitted = _collocation(between, n_intervals) @ coefficients
            largest = exact.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
            error = float((fitted - exact).abs().max() / largest)
        if error > 1000 * TOLERANCE[dtype]:
            raise InputError(
                f"expected smooth radial functions, got an error of {error:.1e} with "
                f"{n_intervals} intervals; train the network with smaller weights"
            )
        _, scale, right = torch.linalg.svd(values, full_matrices=False)
        right = right[: max(1, int((scale > TRUNCATION[dtype] * scale[0]).sum()))]
        self.n_intervals = n_intervals
        self.coefficients = (coefficients @ right.T).to(device, dtype).contiguous()
        self.mixing = right.to(device)
        pieces = torch.from_numpy(bspline_pieces(DEGREE))
        powers = torch.arange(1, DEGREE + 1, dtype=torch.float64)
        slopes = torch.zeros_like(pieces)
        slopes[:-1] = powers[:, None] * pieces[1:] / step
        # Columns: what each of the coefficients counts in the value, then in the derivative.
        self.pieces = torch.cat([pieces, slopes], 1).to(device, dtype)
        self._offsets = torch.arange(DEGREE + 1, device=device)

    @property
    def n_basis(self) -> int:
        """Number of basis functions phi."""
        return len(self.mixing)

    def basis(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the basis functions phi and their derivatives, 1/angstrom.

        Parameters
        ----------
        distances : Tensor, shape (n,)
            In angstrom; at the cutoff and beyond all values are zero.

        Returns
        -------
        values, derivatives : Tensor, shape (n, n_basis)
        """
        n = len(distances)
        place = (distances - self.r_min) * (self.n_intervals / (self.r_max - self.r_min))
        interval = place.to(torch.int64).clamp_(0, self.n_intervals - 1)
        t = place - interval
        inside = (distances < self.r_max).to(t.dtype)
        low = torch.stack([inside, inside * t], 1)
        square = (t * t)[:, None]
        low = torch.cat([low, low * square], 1)
        powers = torch.cat([low, low * (square * square)], 1)
        weights = powers @ self.pieces
        index = interval[:, None] + self._offsets
        both = F.embedding_bag(
            torch.cat([index, index]),
            self.coefficients,
            per_sample_weights=torch.cat(torch.split(weights, DEGREE + 1, 1)),
            mode="sum",
        )
        return both[:n], both[n:]


def _collocation(places: Tensor, n_intervals: int) -> Tensor:
    """Values of all B-splines at places counted in intervals, (n_places, n_intervals + degree)."""
    interval = places.to(torch.int64).clamp(max=n_intervals - 1)
    t = places - interval
    powers = t[:, None] ** torch.arange(DEGREE + 1)
    matrix = places.new_zeros(len(places), n_intervals + DEGREE)
    index = interval[:, None] + torch.arange(DEGREE + 1)
    return matrix.scatter_(1, index, powers @ torch.from_numpy(bspline_pieces(DEGREE)))
