"""Points that attract atoms: the general way to give a shape."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor

from simgen.errors import InputError
from simgen.priors.base import AtomPrior, Covariance, Size, covariance_matrix, require_positive

SHAPE_STRENGTH = 1.0
"""Factor of a prior that gives a shape (Elijošius et al. 2025, macrocycles)."""
BETA = 8.0
"""Inverse softness of the choice between points, 1/angstrom^2 (Elijošius et al. 2025)."""
PUBLISHED_COVARIANCE = (1.0, 1.0, 2.0)
"""Diagonal of the covariance of each point, angstrom^2 (Elijošius et al. 2025, macrocycles)."""
ISOTROPIC_COVARIANCE = (1.0, 1.0, 1.0)
"""For shapes that may lie in any direction of space."""
MAX_POINTS = 1000
"""More points than this cost time and make no shape that atoms could tell from fewer."""

_SCALE_IN_SPACINGS = 3.0
"""Radius of the neighbourhoods that tell a curve from a surface, in spacings of the points."""
_MIN_POINTS_OF_SURFACE = 12
"""Fewer points than this tell nothing about a surface; they are taken for a curve."""


class PriorForm(StrEnum):
    """Which force a point cloud exerts."""

    EXACT = "exact"
    """The gradient of the cloud's energy."""
    PUBLISHED = "published"
    """That of the published program: the points weighted by distance, not by energy. It is not
    the gradient of any energy; for reproduction."""


@dataclass(frozen=True, slots=True, eq=False)
class Cloud(AtomPrior):
    """Base of the shapes that are made of points.

    The energy of an atom at x is U = -(1/beta) log sum_p exp(-beta/2 (x - x_p)^T P (x - x_p)) and
    the force is minus its exact gradient, unless the published form is asked for.

    Attributes
    ----------
    covariance : Tensor, shape (3, 3), float64, or 3 numbers (its diagonal)
        Inverse of P, the shape of each point, angstrom^2; not normalised.
    beta : float
        The larger, the more only the nearest point attracts.
    strength : float
        Factor on the prior's weight.
    form : PriorForm
        Exact gradient, or the published force.
    points : Tensor, shape (n_points, 3), float64
        Points of the shape, angstrom.
    size : Size
        How large the shape is.

    References
    ----------
    Elijošius et al. 2025, doi 10.1038/s41467-025-60963-3, point cloud priors.
    """

    covariance: Covariance = field(default=ISOTROPIC_COVARIANCE, kw_only=True)
    beta: float = field(default=BETA, kw_only=True)
    strength: float = field(default=SHAPE_STRENGTH, kw_only=True)
    form: PriorForm = field(default=PriorForm.EXACT, kw_only=True)
    points: Tensor = field(init=False, repr=False)
    size: Size | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)
        object.__setattr__(self, "covariance", covariance_matrix(self.covariance))
        points, size = self._geometry()
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "size", size)

    @abstractmethod
    def _geometry(self) -> tuple[Tensor, Size]:
        """Points of the shape, (n_points, 3), float64, and how large it is."""

    def _logits(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-beta/2 (x - x_p)^T P (x - x_p), shape (n_atoms, n_points), with points and P."""
        points = self.points.to(positions)
        precision = torch.linalg.inv(torch.as_tensor(self.covariance)).to(positions)
        # |x|^2 + |x_p|^2 - 2 x x_p: one matrix product, no (n_atoms, n_points, 3) tensor.
        squares = ((positions @ precision) * positions).sum(1, keepdim=True)
        squares = squares + ((points @ precision) * points).sum(1)
        squares = squares - 2.0 * (positions @ precision) @ points.T
        return -0.5 * self.beta * squares, points, precision

    def energies(self, positions: Tensor) -> Tensor:
        """Energy of an atom at each position: (n, 3) -> (n,)."""
        logits, _, _ = self._logits(positions)
        return -self.strength / self.beta * torch.logsumexp(logits, 1)

    def forces(self, positions: Tensor) -> Tensor:
        """What pulls an atom at each position: (n, 3) -> (n, 3)."""
        logits, points, precision = self._logits(positions)
        if self.form is PriorForm.PUBLISHED:
            logits = -self.beta * torch.cdist(positions, points)
        nearest = torch.softmax(logits, 1) @ points
        return self.strength * (nearest - positions) @ precision

    def place(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Place atoms about points drawn with equal chances (:meth:`AtomPrior.place`)."""
        chosen = (uniform * len(self.points)).to(torch.int64)
        root: Tensor = torch.linalg.cholesky(torch.as_tensor(self.covariance))
        return self.points.to(normal)[chosen] + normal @ root.T.to(normal)

    def outline(self) -> Tensor:
        """Points to draw the shape with, shape (n_points, 3)."""
        return self.points


@dataclass(frozen=True, slots=True, eq=False)
class PointCloud(Cloud):
    """A cloud of any points (:class:`Cloud`).

    Attributes
    ----------
    points : Tensor, shape (n_points, 3), float64
        Points of the shape, angstrom.
    size : Size, optional
        How large the shape is; by default what the points look like (:func:`estimate_size`).
    occupied : bool
        Whether each point wants an atom (:mod:`simgen.landmarks`), as those of one molecule do;
        otherwise atoms may be anywhere on the shape.

    Raises
    ------
    InputError
        If points or covariance are not what they should be.
    """

    points: Tensor
    covariance: Covariance = field(default=PUBLISHED_COVARIANCE, kw_only=True)
    size: Size | None = field(default=None, kw_only=True)
    occupied: bool = field(default=False, kw_only=True)

    def landmarks(self) -> Tensor:
        """Points that want an atom each, shape (n_landmarks, 3)."""
        return self.points if self.occupied else AtomPrior.landmarks(self)

    def _geometry(self) -> tuple[Tensor, Size]:
        points = check_points(self.points)
        return points, estimate_size(points) if self.size is None else self.size


def check_points(points: object) -> Tensor:
    """Return points as a float64 tensor.

    Raises
    ------
    InputError
        If they are not of shape (n, 3), n at least 1, and finite.
    """
    tensor = torch.as_tensor(points, dtype=torch.float64)
    if tensor.ndim != 2 or tensor.shape[1] != 3 or not len(tensor):
        raise InputError(f"expected points of shape (n, 3), got {tuple(tensor.shape)}")
    if not bool(torch.isfinite(tensor).all()):
        raise InputError("expected finite points, got some that are not")
    return tensor


def spread_evenly(points: Tensor, n_points: int) -> Tensor:
    """Choose some points so that they cover the others as evenly as possible.

    Each one chosen is the farthest from those before it (farthest-point sampling).

    Parameters
    ----------
    points : Tensor, shape (n, 3)
        Points to choose from.
    n_points : int
        How many to choose; all of them if there are no more.

    Returns
    -------
    Tensor, shape (min(n, n_points), 3)
        Those chosen.

    References
    ----------
    T. F. Gonzalez, Theor. Comput. Sci. 38, 293 (1985), doi 10.1016/0304-3975(85)90224-5.
    """
    if len(points) <= n_points:
        return points
    centred = points - points.mean(0)
    norms = centred.square().sum(1)
    chosen = [int(norms.argmax())]
    squares = torch.full_like(norms, math.inf)
    for _ in range(n_points - 1):
        last = chosen[-1]
        squares = torch.minimum(squares, norms + norms[last] - 2.0 * (centred @ centred[last]))
        chosen.append(int(squares.argmax()))
    return points[chosen]


def estimate_size(points: Tensor) -> Size:
    """Estimate how large a cloud of points is.

    The neighbourhoods of its points tell whether it is a curve, a surface or a solid: the widths of
    a segment, disc or ball along its principal axes are equal in 1, 2 or 3 directions, so that
    (sum of variances)^2 / (sum of squared variances) is that number. The length of a curve is that
    of the shortest tree that joins its points; area and volume are the sum over points of the
    region each has for itself, the neighbourhood's over the number of points in it.

    Parameters
    ----------
    points : Tensor, shape (n_points, 3)
        Points of the cloud, angstrom.

    Returns
    -------
    Size
        An estimate; areas and volumes to about 20 %.

    Examples
    --------
    >>> z = torch.linspace(0.0, 9.0, 31)
    >>> round(estimate_size(torch.stack([0 * z, 0 * z, z], dim=1)).length, 3)
    9.0
    """
    points = spread_evenly(torch.unique(points.to(torch.float64), dim=0), MAX_POINTS)
    n_points = len(points)
    distances = torch.cdist(points, points)
    if n_points < _MIN_POINTS_OF_SURFACE:
        return _length_of_tree(distances)
    radius = _SCALE_IN_SPACINGS * float(distances.topk(2, dim=1, largest=False).values[:, 1].mean())
    near = (distances < radius).to(torch.float64)
    counts = near.sum(1)
    means = near @ points / counts[:, None]
    products = (points[:, :, None] * points[:, None, :]).reshape(n_points, 9)
    moments = (near @ products).reshape(n_points, 3, 3) / counts[:, None, None]
    variances, axes = torch.linalg.eigh(moments - means[:, :, None] * means[:, None, :])
    dimensions = variances.sum(1).square() / variances.square().sum(1).clamp(min=1e-12)
    n_dimensions = round(float(dimensions.median()))
    if n_dimensions == 1:
        return _length_of_tree(distances)
    # At an edge a part of the neighbourhood is empty. Its centroid tells how much: to first order,
    # and exactly for a half.
    half_offset, unit = (
        (4 / (3 * math.pi), math.pi) if n_dimensions == 2 else (3 / 8, 4 * math.pi / 3)
    )
    offsets = ((means - points)[:, None, :] @ axes)[:, 0, :] / radius
    # The last axes are those within a surface; across it, bending moves the centroid.
    offsets = offsets[:, -n_dimensions:].norm(dim=1)
    filled = (1.0 - 0.5 * offsets / half_offset).clamp(min=0.0)
    measure = float((filled * unit * radius**n_dimensions / counts).sum())
    return Size(area=measure) if n_dimensions == 2 else Size(volume=measure)


def _length_of_tree(distances: Tensor) -> Size:
    return Size(length=float(minimum_spanning_tree(distances.numpy()).sum()))
