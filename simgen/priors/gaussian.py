"""The prior that only holds atoms together."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from simgen.molecules import MoleculeBatch
from simgen.priors.base import (
    START_SPREAD,
    AtomPrior,
    Covariance,
    covariance_matrix,
    require_positive,
)
from simgen.priors.bodies import unit_directions
from simgen.schedules import prior_strength

FREE_STRENGTH = 0.7
"""Factor of a prior that only holds the atoms together (Elijošius et al. 2025)."""
FREE_COVARIANCE = (0.25, 1.5, 2.7)
"""Diagonal of the default covariance, angstrom^2: as flat as the shipped reference molecules are on
average, and less long, since along a line there are few rings. The published one, (1, 1, 2), makes
compact molecules, few of them aromatic (docs/experiments.md)."""

GYRATION = ((0.220, 1.54), (1.285, 0.87), (4.958, 1.56))
"""Mean eigenvalues of the gyration tensors of real molecules of n heavy atoms, angstrom^2, as
a (n / 12)^b: a and b of each, fitted to the shipped reference set, 11 to 20 heavy atoms."""
COMPACT, LONG = 9, 16
"""Heavy atoms up to which the default covariance makes more rings than one as long as real
molecules, and from which on the latter does, and fewer that are fused (docs/experiments.md)."""
PRESSURE = 19.2
"""Weight times number of atoms, 1/angstrom^2, that is not exceeded. What presses on the middle of a
flat cloud of constant density is proportional to that; more of it fuses rings."""

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
    start : float
        Factor on the spread of the atoms where they start.

    Raises
    ------
    InputError
        If the covariance is not symmetric and positive definite, or ``start`` not positive.

    References
    ----------
    Elijošius et al. 2025, doi 10.1038/s41467-025-60963-3.
    """

    covariance: Covariance = FREE_COVARIANCE
    strength: float = FREE_STRENGTH
    start: float = 1.0
    _precision: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require_positive(start=self.start)
        matrix = covariance_matrix(self.covariance)
        determinant = torch.linalg.det(matrix)
        if abs(determinant - 1.0) > _UNIT_DETERMINANT:
            matrix = matrix / determinant ** (1 / 3)
        object.__setattr__(self, "covariance", matrix)
        object.__setattr__(self, "_precision", torch.linalg.inv(matrix))

    @classmethod
    def suited_to(cls, n_atoms: int) -> Gaussian:
        """The cloud for molecules of so many heavy atoms.

        Atoms start as far from each other as they are in real molecules. The larger a molecule is,
        the longer is the cloud, as real molecules are, and the weaker.

        Examples
        --------
        >>> torch.as_tensor(Gaussian.suited_to(20).covariance).diagonal()
        tensor([0.2196, 0.9109, 4.9996], dtype=torch.float64)
        """
        real = torch.tensor([a * (n_atoms / 12) ** b for a, b in GYRATION], dtype=torch.float64)
        extent = float(real.prod()) ** (1 / 6)
        share = min(max((n_atoms - COMPACT) / (LONG - COMPACT), 0.0), 1.0)
        compact = torch.tensor(FREE_COVARIANCE, dtype=torch.float64)
        covariance = compact ** (1 - share) * (real / extent**2) ** share
        pressure = n_atoms * float(prior_strength(torch.tensor(n_atoms)))
        return cls(
            torch.diag(covariance),
            strength=FREE_STRENGTH * min(1.0, PRESSURE / pressure),
            start=extent / START_SPREAD,
        )

    @property
    def size(self) -> None:
        """None: it suits any number of atoms."""
        return None

    def energies(self, positions: Tensor) -> Tensor:
        """Energy of an atom at each position: (n, 3) -> (n,)."""
        return -0.5 * (positions * self.forces(positions)).sum(1)

    def forces(self, positions: Tensor) -> Tensor:
        """Minus the gradient of the energy: (n, 3) -> (n, 3)."""
        rows = (-self.strength * self._precision).to(positions)
        # Written out: how a matrix product rounds depends on the number of positions.
        x, y, z = positions[:, :, None].unbind(1)
        forces: Tensor = x * rows[0] + y * rows[1] + z * rows[2]
        return forces

    def is_batch_invariant(self, batch: MoleculeBatch) -> bool:
        """It is: each atom is computed by itself."""
        return True

    def place(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Turn random numbers into positions (:meth:`AtomPrior.place`)."""
        root: Tensor = torch.linalg.cholesky(torch.as_tensor(self.covariance))
        positions: Tensor = self.start * normal @ root.T.to(normal)
        return positions

    def outline(self) -> Tensor:
        """Points one standard deviation from the origin, shape (n_points, 3)."""
        directions = unit_directions(_N_OUTLINE_POINTS)
        return self.place(directions[:, 0], directions)
