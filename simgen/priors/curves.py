"""Curves: points at equal distances along a path."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from simgen.errors import InputError
from simgen.priors.base import Covariance, Size, require_positive
from simgen.priors.clouds import PUBLISHED_COVARIANCE, Cloud, check_points

POINT_SPACING = 0.25
"""Spacing of the points of a curve, angstrom: about that of a circle of the published radius."""
N_CIRCLE_POINTS = 100
"""Points of a circle (Elijošius et al. 2025)."""

_N_CHORDS = 2**14
"""Chords that measure the length of a curve: to a millionth."""
_CLOSED = 1e-6
"""A curve whose ends are nearer than this share of its length is closed."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve(Cloud):
    """Base of the curves (:class:`simgen.priors.Cloud`), which are paths over a parameter."""

    n_points: ClassVar[int | None] = None
    """Number of points, or None for the usual spacing."""

    @abstractmethod
    def trace(self, t: Tensor) -> Tensor:
        """Points of the curve, angstrom, at parameters from 0 to 1: (n,) -> (n, 3)."""

    def _geometry(self) -> tuple[Tensor, Size]:
        t = torch.linspace(0.0, 1.0, _N_CHORDS + 1, dtype=torch.float64)
        path = self.trace(t)
        travelled = (path[1:] - path[:-1]).norm(dim=1).cumsum(0)
        length = float(travelled[-1])
        is_closed = self._is_closed(length)
        # Not for a rounding error of the length a point more.
        n_steps = self.n_points or max(1, math.ceil(length / POINT_SPACING - _CLOSED))
        wanted = np.linspace(0.0, length, n_steps + 1)[: n_steps if is_closed else n_steps + 1]
        t_even = np.interp(wanted, np.concatenate([[0.0], travelled.numpy()]), t.numpy())
        return self.trace(torch.from_numpy(t_even)), Size(length=length)

    def _is_closed(self, length: float) -> bool:
        ends = self.trace(torch.tensor([0.0, 1.0], dtype=torch.float64))
        return float((ends[0] - ends[1]).norm()) < _CLOSED * length

    def loops(self) -> tuple[Tensor, ...]:
        """All of it if it is closed (:meth:`simgen.priors.Prior.loops`)."""
        assert self.size is not None
        return (self.points,) if self._is_closed(self.size.length) else ()


@dataclass(frozen=True, slots=True, eq=False)
class Line(Curve):
    """A straight line along z, centred on the origin (:class:`Curve`).

    Attributes
    ----------
    length : float
        In angstrom.

    Raises
    ------
    InputError
        If the length is not positive.
    """

    length: float = 10.0
    covariance: Covariance = field(default=PUBLISHED_COVARIANCE, kw_only=True)

    def trace(self, t: Tensor) -> Tensor:
        """Points of the curve (:meth:`Curve.trace`)."""
        require_positive(length=self.length)
        return torch.stack([0 * t, 0 * t, self.length * (t - 0.5)], dim=1)


@dataclass(frozen=True, slots=True, eq=False)
class Circle(Curve):
    """A circle in the xy plane about the origin, for macrocycles (:class:`Curve`).

    Attributes
    ----------
    radius : float
        In angstrom.

    Raises
    ------
    InputError
        If the radius is not positive.

    References
    ----------
    Elijošius et al. 2025, doi 10.1038/s41467-025-60963-3, macrocycles.
    """

    n_points: ClassVar[int | None] = N_CIRCLE_POINTS

    radius: float = 4.0
    covariance: Covariance = field(default=PUBLISHED_COVARIANCE, kw_only=True)

    def trace(self, t: Tensor) -> Tensor:
        """Points of the curve (:meth:`Curve.trace`)."""
        require_positive(radius=self.radius)
        angle = 2 * math.pi * t
        return self.radius * torch.stack([torch.cos(angle), torch.sin(angle), 0 * t], dim=1)


@dataclass(frozen=True, slots=True, eq=False)
class Helix(Curve):
    """A right-handed helix about z, centred on the origin (:class:`Curve`).

    Attributes
    ----------
    radius, pitch : float
        In angstrom; the pitch is the height of a turn.
    n_turns : float
        Number of turns.

    Raises
    ------
    InputError
        If a number is not positive.
    """

    radius: float = 2.5
    pitch: float = 5.5
    n_turns: float = 2.0

    def trace(self, t: Tensor) -> Tensor:
        """Points of the curve (:meth:`Curve.trace`)."""
        require_positive(radius=self.radius, pitch=self.pitch, number_of_turns=self.n_turns)
        angle = 2 * math.pi * self.n_turns * t
        z = self.pitch * self.n_turns * (t - 0.5)
        return torch.stack([self.radius * torch.cos(angle), self.radius * torch.sin(angle), z], 1)


@dataclass(frozen=True, slots=True, eq=False)
class Spline(Curve):
    """A smooth curve through points, in their order (:class:`Curve`).

    Cubic, over the length of the chords; with natural ends, or periodic if it is closed.

    Attributes
    ----------
    through : Tensor, shape (n, 3), float64
        Points to pass through, angstrom.
    closed : bool
        Whether it goes on from the last point to the first.

    Raises
    ------
    InputError
        If there are fewer than two points (closed: three), or two in a row are the same.
    """

    through: Tensor
    closed: bool = False

    def __post_init__(self) -> None:
        through = check_points(self.through)
        n_least = 3 if self.closed else 2
        if len(through) < n_least:
            raise InputError(
                f"expected at least {n_least} points for a {'closed ' if self.closed else ''}"
                f"curve, got {len(through)}"
            )
        if not bool((_knots(through, self.closed).diff() > 0).all()):
            raise InputError("expected a curve through different points, got one twice in a row")
        object.__setattr__(self, "through", through)
        Curve.__post_init__(self)

    def trace(self, t: Tensor) -> Tensor:
        """Points of the curve (:meth:`Curve.trace`)."""
        knots = _knots(self.through, self.closed)
        values = torch.cat([self.through, self.through[:1]]) if self.closed else self.through
        ends = "periodic" if self.closed else "natural"
        from scipy.interpolate import CubicSpline  # takes a tenth of a second

        spline = CubicSpline(knots.numpy(), values.numpy(), bc_type=ends)
        return torch.from_numpy(spline((t * knots[-1]).numpy()))


def _knots(through: Tensor, closed: bool) -> Tensor:
    """Length of the chords up to each point, and back to the first if it is closed."""
    values = torch.cat([through, through[:1]]) if closed else through
    chords = (values[1:] - values[:-1]).norm(dim=1)
    return torch.cat([chords.new_zeros(1), chords.cumsum(0)])


@dataclass(frozen=True, slots=True, eq=False)
class Heart(Curve):
    """The outline of a heart in the xy plane (:class:`Curve`).

    x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, scaled.

    Attributes
    ----------
    width : float
        In angstrom.

    Raises
    ------
    InputError
        If the width is not positive.
    """

    width: float = 10.0

    def trace(self, t: Tensor) -> Tensor:
        """Points of the curve (:meth:`Curve.trace`)."""
        require_positive(width=self.width)
        angle = 2 * math.pi * t
        y = 13 * torch.cos(angle)
        for n, factor in ((2, 5), (3, 2), (4, 1)):
            y = y - factor * torch.cos(n * angle)
        return self.width / 32 * torch.stack([16 * torch.sin(angle) ** 3, y, 0 * t], dim=1)


@dataclass(frozen=True, slots=True, eq=False)
class TrefoilKnot(Curve):
    """The trefoil knot about z (:class:`Curve`).

    (sin t + 2 sin 2t, cos t - 2 cos 2t, -1.5 sin 3t), scaled. The usual knot is flatter; this one
    keeps its strands 0.49 radii apart where they cross.

    Attributes
    ----------
    radius : float
        Farthest distance from the z axis, angstrom.

    Raises
    ------
    InputError
        If the radius is not positive.
    """

    radius: float = 7.2

    def trace(self, t: Tensor) -> Tensor:
        """Points of the curve (:meth:`Curve.trace`)."""
        require_positive(radius=self.radius)
        angle = 2 * math.pi * t
        x = torch.sin(angle) + 2 * torch.sin(2 * angle)
        y = torch.cos(angle) - 2 * torch.cos(2 * angle)
        return self.radius / 3 * torch.stack([x, y, -1.5 * torch.sin(3 * angle)], dim=1)
