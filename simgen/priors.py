"""Priors: where the atoms of a molecule are wanted.

A prior is a log-density that holds the atoms together, or in a shape, while the noise is high,
and fades as it falls (:func:`simgen.schedules.prior_weight`). It also says where atoms start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

from simgen.errors import InputError
from simgen.molecules import MoleculeBatch
from simgen.noise import Noise, Stream
from simgen.schedules import prior_weight

FREE_STRENGTH = 0.7
"""Factor of a prior that only holds the atoms together (Elijošius et al. 2025)."""
SHAPE_STRENGTH = 1.0
"""Factor of a prior that gives a shape (Elijošius et al. 2025, macrocycles)."""
COVARIANCE = (1.0, 1.0, 2.0)
"""Diagonal of the default covariance, angstrom^2 (Elijošius et al. 2025)."""
BETA = 8.0
"""Inverse softness of the choice between the points of a cloud (Elijošius et al. 2025)."""
N_CIRCLE_POINTS = 100
"""Points of a circle (Elijošius et al. 2025)."""
POINT_SPACING = 0.25
"""Spacing of the points of a line, angstrom: about that of a circle of the published radius."""
ATOMS_PER_ANGSTROM = 1.5
"""Heavy atoms for each angstrom of a curve (Elijošius et al. 2025)."""


class Prior(Protocol):
    """A log-density with an exact score and with starting positions."""

    def log_prob(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Log-density of each molecule, up to a constant: shape (n_molecules,)."""
        ...

    def score(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """What pulls each atom, shape (n_atoms, 3), 1/angstrom."""
        ...

    def sample(self, counts: Tensor, noise: Noise, *, spread: float = 1.0) -> Tensor:
        """Draw positions.

        Parameters
        ----------
        counts : Tensor, shape (n_molecules,), int64
            Atoms of each molecule.
        noise : Noise
            Its random numbers.
        spread : float
            Factor on the displacement from the shape.

        Returns
        -------
        Tensor, shape (n_atoms, 3), float64
            Positions in angstrom.
        """
        ...


class PriorForm(StrEnum):
    """Which force a point cloud exerts."""

    EXACT = "exact"
    """The gradient of the cloud's energy."""
    PUBLISHED = "published"
    """That of the published program: the points weighted by distance, not by energy. It is not
    the gradient of any energy; for reproduction."""


def _matrix(covariance: Tensor | tuple[float, ...]) -> Tensor:
    """Return a covariance, given as diagonal or matrix, as a float64 matrix."""
    matrix = torch.as_tensor(covariance, dtype=torch.float64)
    if matrix.shape == (3,):
        matrix = torch.diag(matrix)
    symmetric = matrix.shape == (3, 3) and torch.allclose(matrix, matrix.T)
    if not symmetric or not bool((torch.linalg.eigvalsh(matrix) > 0).all()):
        raise InputError(
            "expected a covariance of 3 positive numbers or a positive definite 3 x 3 matrix, "
            f"got {matrix.tolist()}"
        )
    return matrix


def _atom_weights(batch: MoleculeBatch, sigma: float, strength: float) -> Tensor:
    weights = strength * prior_weight(batch.counts, sigma)
    per_atom: Tensor = weights[batch.molecule_idx].to(batch.positions.dtype)
    return per_atom


def _molecule_idx(counts: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


def _displacements(covariance: Tensor, molecule_idx: Tensor, noise: Noise) -> Tensor:
    root: Tensor = torch.linalg.cholesky(covariance).to(molecule_idx.device)
    return noise.normal(Stream.START, 0, molecule_idx) @ root.T


@dataclass(frozen=True, slots=True, eq=False)
class Gaussian:
    """An ellipsoidal cloud about the origin, of any size.

    Attributes
    ----------
    covariance : Tensor, shape (3, 3), float64, or 3 numbers (its diagonal)
        Shape of the cloud. Only the shape counts: it is scaled to determinant 1.
    strength : float
        Factor on the prior's weight.

    Raises
    ------
    InputError
        If the covariance is not symmetric and positive definite.
    """

    covariance: Tensor | tuple[float, ...] = COVARIANCE
    strength: float = FREE_STRENGTH

    def __post_init__(self) -> None:
        matrix = _matrix(self.covariance)
        object.__setattr__(self, "covariance", matrix / torch.linalg.det(matrix) ** (1 / 3))

    def _pull(self, positions: Tensor) -> Tensor:
        precision = torch.linalg.inv(torch.as_tensor(self.covariance)).to(positions)
        pull: Tensor = -positions @ precision
        return pull

    def log_prob(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Log-density of each molecule, up to a constant: shape (n_molecules,)."""
        half_squares = -0.5 * (batch.positions * self._pull(batch.positions)).sum(1)
        return -batch.sum_per_molecule(_atom_weights(batch, sigma, self.strength) * half_squares)

    def score(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Gradient of the log-density, shape (n_atoms, 3), 1/angstrom."""
        return _atom_weights(batch, sigma, self.strength)[:, None] * self._pull(batch.positions)

    def sample(self, counts: Tensor, noise: Noise, *, spread: float = 1.0) -> Tensor:
        """Draw positions (:meth:`Prior.sample`)."""
        displacements = _displacements(
            torch.as_tensor(self.covariance), _molecule_idx(counts), noise
        )
        return spread * displacements


@dataclass(frozen=True, slots=True, eq=False)
class PointCloud:
    """Points that attract the atoms: the general way to give a shape.

    The energy of an atom at x is U = -(1/beta) log sum_p exp(-beta/2 (x - x_p)^T P (x - x_p)) and
    the score is minus its exact gradient, unless the published form is asked for.

    Attributes
    ----------
    points : Tensor, shape (n_points, 3), float64
        Points of the shape, angstrom.
    covariance : Tensor, shape (3, 3), float64, or 3 numbers (its diagonal)
        Inverse of P, the shape of each point, angstrom^2; not normalised.
    beta : float
        The larger, the more only the nearest point attracts.
    strength : float
        Factor on the prior's weight.
    form : PriorForm
        Exact gradient, or the published force.

    Raises
    ------
    InputError
        If points or covariance are not what they should be.

    References
    ----------
    Elijošius et al. 2025, doi 10.1038/s41467-025-60963-3, point cloud priors.
    """

    points: Tensor
    covariance: Tensor | tuple[float, ...] = COVARIANCE
    beta: float = BETA
    strength: float = SHAPE_STRENGTH
    form: PriorForm = PriorForm.EXACT

    def __post_init__(self) -> None:
        points = torch.as_tensor(self.points, dtype=torch.float64)
        if points.ndim != 2 or points.shape[1] != 3 or not len(points):
            raise InputError(f"expected points of shape (n, 3), got {tuple(points.shape)}")
        if not bool(torch.isfinite(points).all()):
            raise InputError("expected finite points, got some that are not")
        if self.beta <= 0:
            raise InputError(f"expected a positive beta, got {self.beta}")
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "covariance", _matrix(self.covariance))

    def _logits(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-beta/2 (x - x_p)^T P (x - x_p), shape (n_atoms, n_points), with points and P."""
        points = self.points.to(positions)
        precision = torch.linalg.inv(torch.as_tensor(self.covariance)).to(positions)
        # |x|^2 + |x_p|^2 - 2 x x_p: one matrix product, no (n_atoms, n_points, 3) tensor.
        squares = ((positions @ precision) * positions).sum(1, keepdim=True)
        squares = squares + ((points @ precision) * points).sum(1)
        squares = squares - 2.0 * (positions @ precision) @ points.T
        return -0.5 * self.beta * squares, points, precision

    def log_prob(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Log-density of each molecule, up to a constant: shape (n_molecules,)."""
        logits, _, _ = self._logits(batch.positions)
        log_probs = torch.logsumexp(logits, 1) / self.beta
        return batch.sum_per_molecule(_atom_weights(batch, sigma, self.strength) * log_probs)

    def score(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """What pulls each atom, shape (n_atoms, 3), 1/angstrom."""
        logits, points, precision = self._logits(batch.positions)
        if self.form is PriorForm.PUBLISHED:
            logits = -self.beta * torch.cdist(batch.positions, points)
        nearest = torch.softmax(logits, 1) @ points
        pull = (nearest - batch.positions) @ precision
        return _atom_weights(batch, sigma, self.strength)[:, None] * pull

    def sample(self, counts: Tensor, noise: Noise, *, spread: float = 1.0) -> Tensor:
        """Draw positions about points drawn with equal chances (:meth:`Prior.sample`)."""
        molecule_idx = _molecule_idx(counts)
        uniform = noise.uniform(Stream.START_POINT, 0, molecule_idx)
        chosen = (uniform * len(self.points)).to(torch.int64)
        displacements = _displacements(torch.as_tensor(self.covariance), molecule_idx, noise)
        return self.points.to(uniform.device)[chosen] + spread * displacements


class Line(PointCloud):
    """A straight line along z, centred on the origin.

    Parameters
    ----------
    length : float
        In angstrom.
    form : PriorForm
        Exact gradient, or the published force.

    Raises
    ------
    InputError
        If the length is not positive.
    """

    __slots__ = ("length",)

    length: float

    def __init__(self, length: float = 10.0, *, form: PriorForm = PriorForm.EXACT) -> None:
        if not 0 < length < math.inf:
            raise InputError(f"expected a positive length in angstrom, got {length}")
        z = torch.linspace(
            -length / 2, length / 2, math.ceil(length / POINT_SPACING) + 1, dtype=torch.float64
        )
        object.__setattr__(self, "length", length)
        super().__init__(torch.stack([0 * z, 0 * z, z], dim=1), form=form)


class Circle(PointCloud):
    """A circle in the xy plane about the origin, for macrocycles.

    Parameters
    ----------
    radius : float
        In angstrom.
    form : PriorForm
        Exact gradient, or the published force.

    Raises
    ------
    InputError
        If the radius is not positive.
    """

    __slots__ = ("length",)

    length: float

    def __init__(self, radius: float = 4.0, *, form: PriorForm = PriorForm.EXACT) -> None:
        if not 0 < radius < math.inf:
            raise InputError(f"expected a positive radius in angstrom, got {radius}")
        angles = torch.arange(N_CIRCLE_POINTS, dtype=torch.float64) * (
            2 * math.pi / N_CIRCLE_POINTS
        )
        circle = torch.stack([torch.cos(angles), torch.sin(angles), 0 * angles], dim=1)
        object.__setattr__(self, "length", 2 * math.pi * radius)
        super().__init__(radius * circle, form=form)


def atoms_for_length(length: float) -> int:
    """Heavy atoms that suit a curve of this length (angstrom).

    Examples
    --------
    >>> atoms_for_length(Circle(radius=4.0).length)
    38
    """
    return max(1, round(ATOMS_PER_ANGSTROM * length))
