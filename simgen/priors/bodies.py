"""Surfaces and solids: points that cover them evenly."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from scipy.special import elliprg
from torch import Tensor

from simgen.errors import InputError
from simgen.priors.base import Size, require_positive
from simgen.priors.clouds import MAX_POINTS, Cloud, spread_evenly

POINT_SPACING = 0.5
"""Spacing of the points of surfaces and solids, angstrom, unless that makes too many points."""

_MIN_POINTS = 24
_N_CANDIDATES = 10
"""Candidates for each point: the more, the more evenly the points are spread."""


def n_body_points(size: Size) -> int:
    """Points for a surface or solid of a size."""
    n_points = round(size.area / POINT_SPACING**2 + size.volume / POINT_SPACING**3)
    return min(max(n_points, _MIN_POINTS), MAX_POINTS)


def _unit_cube(n_points: int) -> Tensor:
    """Points that fill the unit cube evenly (Sobol's sequence): (n_points, 3), float64."""
    sequence = torch.quasirandom.SobolEngine(3)  # type: ignore[no-untyped-call]
    return sequence.draw(n_points, dtype=torch.float64)


def _directions(u: Tensor) -> Tensor:
    """Map the unit square to the unit sphere, keeping ratios of areas: (n, 2) -> (n, 3)."""
    z, angle = 2 * u[:, 0] - 1, 2 * math.pi * u[:, 1]
    r = torch.sqrt(1 - z**2)
    return torch.stack([r * torch.cos(angle), r * torch.sin(angle), z], dim=1)


def unit_directions(n_points: int) -> Tensor:
    """Points of the unit sphere, shape (n_points, 3), float64."""
    return _directions(_unit_cube(n_points))


@dataclass(frozen=True, slots=True, eq=False)
class Body(Cloud):
    """Base of the surfaces and solids (:class:`simgen.priors.Cloud`)."""

    @abstractmethod
    def measure(self) -> Size:
        """Area or volume."""

    @abstractmethod
    def cover(self, u: Tensor) -> Tensor:
        """Map the unit cube to the body, angstrom: (n, 3) -> (n, 3)."""

    def _geometry(self) -> tuple[Tensor, Size]:
        size = self.measure()
        n_points = n_body_points(size)
        return spread_evenly(self.cover(_unit_cube(_N_CANDIDATES * n_points)), n_points), size


@dataclass(frozen=True, slots=True, eq=False)
class Sphere(Body):
    """A sphere about the origin (:class:`Body`).

    Attributes
    ----------
    radius : float
        In angstrom.
    solid : bool
        The ball, not the shell.

    Raises
    ------
    InputError
        If the radius is not positive.
    """

    radius: float = 3.0
    solid: bool = False

    def measure(self) -> Size:
        """Area or volume."""
        require_positive(radius=self.radius)
        if self.solid:
            return Size(volume=4 / 3 * math.pi * self.radius**3)
        return Size(area=4 * math.pi * self.radius**2)

    def cover(self, u: Tensor) -> Tensor:
        """Map the unit cube to the sphere (:meth:`Body.cover`)."""
        depth = u[:, 2:] ** (1 / 3) if self.solid else 1.0
        return self.radius * depth * _directions(u)


@dataclass(frozen=True, slots=True, eq=False)
class Ellipsoid(Body):
    """An ellipsoid about the origin (:class:`Body`).

    Attributes
    ----------
    semi_axes : tuple of 3 floats
        Along x, y and z, angstrom.
    solid : bool
        All of it, not only the shell.

    Raises
    ------
    InputError
        If the semi-axes are not three positive numbers.

    References
    ----------
    B. C. Carlson, NIST Digital Library of Mathematical Functions, 19.33.1: the area.
    """

    semi_axes: tuple[float, float, float] = (2.0, 3.0, 4.0)
    solid: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "semi_axes", tuple(self.semi_axes))
        if len(self.semi_axes) != 3:
            raise InputError(f"expected 3 semi-axes, got {len(self.semi_axes)}")
        Body.__post_init__(self)

    def measure(self) -> Size:
        """Area or volume."""
        a, b, c = self.semi_axes
        for length in (a, b, c):
            require_positive(semi_axis=length)
        if self.solid:
            return Size(volume=4 / 3 * math.pi * a * b * c)
        squares = (a * b) ** 2, (a * c) ** 2, (b * c) ** 2
        return Size(area=4 * math.pi * float(elliprg(*squares)))

    def cover(self, u: Tensor) -> Tensor:
        """Map the unit cube to the ellipsoid (:meth:`Body.cover`)."""
        depth = u[:, 2:] ** (1 / 3) if self.solid else 1.0
        return depth * _directions(u) * u.new_tensor(self.semi_axes)


@dataclass(frozen=True, slots=True, eq=False)
class Torus(Body):
    """A torus about z (:class:`Body`).

    Attributes
    ----------
    radius, tube_radius : float
        Of the circle at its core, and of the tube about that, angstrom.
    solid : bool
        What is inside the tube too.

    Raises
    ------
    InputError
        If a radius is not positive, or the tube is thicker than the circle.
    """

    radius: float = 4.0
    tube_radius: float = 1.5
    solid: bool = False

    def measure(self) -> Size:
        """Area or volume."""
        require_positive(radius=self.radius, tube_radius=self.tube_radius)
        if self.tube_radius > self.radius:
            raise InputError(
                f"expected a tube radius of at most {self.radius}, got {self.tube_radius}"
            )
        if self.solid:
            return Size(volume=2 * math.pi**2 * self.radius * self.tube_radius**2)
        return Size(area=4 * math.pi**2 * self.radius * self.tube_radius)

    def cover(self, u: Tensor) -> Tensor:
        """Map the unit cube to the torus (:meth:`Body.cover`)."""
        around, across = (2 * math.pi * u[:, :2]).unbind(1)
        r = self.tube_radius * (u[:, 2].sqrt() if self.solid else 1.0)
        distance = self.radius + r * torch.cos(across)
        return torch.stack(
            [distance * torch.cos(around), distance * torch.sin(around), r * torch.sin(across)], 1
        )


@dataclass(frozen=True, slots=True, eq=False)
class Tube(Body):
    """A cylinder about z, centred on the origin (:class:`Body`).

    Attributes
    ----------
    radius, length : float
        In angstrom.
    solid : bool
        What is inside too; otherwise it is a wall, open at both ends.

    Raises
    ------
    InputError
        If a number is not positive.
    """

    radius: float = 3.0
    length: float = 8.0
    solid: bool = False

    def measure(self) -> Size:
        """Area or volume."""
        require_positive(radius=self.radius, length=self.length)
        if self.solid:
            return Size(volume=math.pi * self.radius**2 * self.length)
        return Size(area=2 * math.pi * self.radius * self.length)

    def cover(self, u: Tensor) -> Tensor:
        """Map the unit cube to the cylinder (:meth:`Body.cover`)."""
        angle = 2 * math.pi * u[:, 0]
        r = self.radius * (u[:, 2].sqrt() if self.solid else torch.ones_like(angle))
        z = self.length * (u[:, 1] - 0.5)
        return torch.stack([r * torch.cos(angle), r * torch.sin(angle), z], dim=1)


@dataclass(frozen=True, slots=True, eq=False)
class Sheet(Body):
    """A rectangle in the xy plane, centred on the origin (:class:`Body`).

    Attributes
    ----------
    width, height : float
        Along x and y, angstrom.

    Raises
    ------
    InputError
        If a number is not positive.
    """

    width: float = 8.0
    height: float = 8.0

    def measure(self) -> Size:
        """Area."""
        require_positive(width=self.width, height=self.height)
        return Size(area=self.width * self.height)

    def cover(self, u: Tensor) -> Tensor:
        """Map the unit cube to the sheet (:meth:`Body.cover`)."""
        x, y = self.width * (u[:, 0] - 0.5), self.height * (u[:, 1] - 0.5)
        return torch.stack([x, y, 0 * x], dim=1)
