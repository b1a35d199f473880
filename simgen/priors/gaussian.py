"""The prior that only holds atoms together."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from simgen.priors.base import AtomPrior, Covariance, covariance_matrix
from simgen.priors.bodies import unit_directions

FREE_STRENGTH = 0.7
"""Factor of a prior that only holds the atoms together (Elijošius et al. 2025)."""
FREE_COVARIANCE = (0.25, 1.5, 2.7)
"""Diagonal of the default covariance, angstrom^2: as flat as the shipped reference molecules are on
average, and less long, since along a line there are few rings. The published one, (1, 1, 2), makes
compact molecules, few of them aromatic (docs/experiments.md)."""

_N_OUTLINE_POINTS = 400
_UNIT_DETERMINANT = 1e-12
"""A determinant this near to 1 is left alone, so that normalising twice changes nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Gaussian(AtomPrior):
    """An ellipsoidal cloud about the origin, of any size: U(x) = x^T P x / 2.

    Attributes
    ----------
    covariance : Tensor, shape (3, 3), float64, or 3 numbers (its diagonal)
        Inverse of P, the shape of the cloud. Only the shape counts: it is scaled to determinant 1.
    strength : float
        Factor on the prior's weight.

    Raises
    ------
    InputError
        If the covariance is not symmetric and positive definite.

    References
    ----------
    Elijošius et al. 2025, doi 10.1038/s41467-025-60963-3.
    """

    covariance: Covariance = FREE_COVARIANCE
    strength: float = FREE_STRENGTH
    _precision: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        matrix = covariance_matrix(self.covariance)
        determinant = torch.linalg.det(matrix)
        if abs(determinant - 1.0) > _UNIT_DETERMINANT:
            matrix = matrix / determinant ** (1 / 3)
        object.__setattr__(self, "covariance", matrix)
        object.__setattr__(self, "_precision", torch.linalg.inv(matrix))

    @property
    def size(self) -> None:
        """None: it suits any number of atoms."""
        return None

    def energies(self, positions: Tensor) -> Tensor:
        """Energy of an atom at each position: (n, 3) -> (n,)."""
        return -0.5 * (positions * self.forces(positions)).sum(1)

    def forces(self, positions: Tensor) -> Tensor:
        """Minus the gradient of the energy: (n, 3) -> (n, 3)."""
        forces: Tensor = -self.strength * positions @ self._precision.to(positions)
        return forces

    def place(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Turn random numbers into positions (:meth:`AtomPrior.place`)."""
        root: Tensor = torch.linalg.cholesky(torch.as_tensor(self.covariance))
        positions: Tensor = normal @ root.T.to(normal)
        return positions

    def outline(self) -> Tensor:
        """Points one standard deviation from the origin, shape (n_points, 3)."""
        directions = unit_directions(_N_OUTLINE_POINTS)
        return self.place(directions[:, 0], directions)
