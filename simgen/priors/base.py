"""What every prior has: a log-density with its score, starting positions, a size, an outline."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from simgen.errors import InputError
from simgen.molecules import MoleculeBatch
from simgen.noise import Noise, Stream
from simgen.schedules import prior_weight

ATOMS_PER_ANGSTROM = 1.5
"""Heavy atoms for each angstrom of a curve (Elijošius et al. 2025, macrocycles)."""
ATOMS_PER_SQUARE_ANGSTROM = 0.39
"""Heavy atoms for each square angstrom of a surface: what planar molecules of the shipped
reference set have (:func:`simgen.benchmarks.shapes.measure_densities`). Graphene has 0.38."""
ATOMS_PER_CUBIC_ANGSTROM = 0.17
"""Heavy atoms for each cubic angstrom of a solid: what compact molecules of the shipped reference
set have. Diamond has 0.18."""
START_SPREAD = 0.5
"""Factor on the prior's spread where atoms start (Elijošius et al. 2025)."""
MIN_ATOMS = 2
"""No molecule has fewer heavy atoms than this."""

Covariance = Tensor | tuple[float, ...]
"""A covariance, angstrom^2: a matrix or its diagonal."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large a shape is; unions of different kinds of shapes have several of the three.

    Attributes
    ----------
    length, area, volume : float
        In angstrom, angstrom^2 and angstrom^3: of the region where the centres of atoms are wanted.

    Raises
    ------
    InputError
        If a number is negative or not finite.
    """

    length: float = 0.0
    area: float = 0.0
    volume: float = 0.0

    def __post_init__(self) -> None:
        for name in ("length", "area", "volume"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise InputError(f"expected a {name} >= 0, got {getattr(self, name)}")

    def __add__(self, other: Size) -> Size:
        return Size(self.length + other.length, self.area + other.area, self.volume + other.volume)

    def scaled(self, factor: float) -> Size:
        """Return the size of a shape that is larger by a factor."""
        return Size(self.length * factor, self.area * factor**2, self.volume * factor**3)

    @property
    def n_atoms(self) -> float:
        """Heavy atoms that suit the shape at the usual densities, with their fraction."""
        return (
            ATOMS_PER_ANGSTROM * self.length
            + ATOMS_PER_SQUARE_ANGSTROM * self.area
            + ATOMS_PER_CUBIC_ANGSTROM * self.volume
        )

    def suggest_atoms(self, density: float | None = None) -> int:
        """Return a number of heavy atoms that suits the shape.

        Parameters
        ----------
        density : float, optional
            Heavy atoms for each angstrom, angstrom^2 or angstrom^3; by default the usual ones.

        Raises
        ------
        InputError
            If the density is not positive, or the shape is made of curves, surfaces and solids
            together, to which one density cannot apply.

        Examples
        --------
        >>> Size(length=8 * math.pi).suggest_atoms()  # a circle of radius 4
        38
        >>> Size(length=8 * math.pi).suggest_atoms(density=1.0)
        25
        """
        if density is None:
            return max(MIN_ATOMS, round(self.n_atoms))
        if not 0.0 < density < math.inf:
            raise InputError(f"expected a positive density, got {density}")
        measures = [m for m in (self.length, self.area, self.volume) if m > 0.0]
        if len(measures) > 1:
            raise InputError(
                "expected no density for a shape of curves, surfaces and solids together, "
                f"got {density}; give the number of heavy atoms"
            )
        return max(MIN_ATOMS, round(density * sum(measures)))


class Prior(Protocol):
    """A log-density with an exact score and with starting positions."""

    @property
    def size(self) -> Size | None:
        """How large the shape is; None for a prior that suits any number of atoms."""
        ...

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

    def outline(self) -> Tensor:
        """Points to draw the shape with, shape (n_points, 3), float64, angstrom."""
        ...

    def loops(self) -> tuple[Tensor, ...]:
        """Closed curves that a molecule is to go round (:mod:`simgen.cohesion`).

        Returns
        -------
        tuple of Tensor, each of shape (n_points, 3), float64
            Points at equal distances along each, in their order, angstrom.
        """
        ...

    def landmarks(self) -> Tensor:
        """Points that want an atom each (:mod:`simgen.landmarks`), shape (n_landmarks, 3)."""
        ...


def suggest_atoms(prior: Prior, density: float | None = None) -> int:
    """Return the number of heavy atoms that suits a shape (:meth:`Size.suggest_atoms`).

    Raises
    ------
    InputError
        If it suits any number, or the density does not apply.
    """
    if prior.size is None:
        raise InputError(
            "expected a shape that has a size, to take the number of heavy atoms from, got one "
            "that suits any number; give the number"
        )
    return prior.size.suggest_atoms(density)


class AtomPrior(ABC):
    """A prior under which atoms do not depend on each other: E = sum_i U(x_i).

    The log-density of a molecule is minus the energy of its atoms, times the weight of the prior at
    the noise level (:func:`simgen.schedules.prior_weight`).
    """

    __slots__ = ()

    @property
    @abstractmethod
    def size(self) -> Size | None:
        """How large the shape is; None for a prior that suits any number of atoms."""

    @abstractmethod
    def energies(self, positions: Tensor) -> Tensor:
        """Energy U of an atom at each position, angstrom^2: (n, 3) -> (n,)."""

    @abstractmethod
    def forces(self, positions: Tensor) -> Tensor:
        """Minus the gradient of the energy, angstrom: (n, 3) -> (n, 3)."""

    @abstractmethod
    def place(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Turn random numbers into positions.

        Parameters
        ----------
        uniform : Tensor, shape (n,), float64
            In (0, 1): where on the shape.
        normal : Tensor, shape (n, 3), float64
            Displacements from there, in units of the shape's softness.

        Returns
        -------
        Tensor, shape (n, 3), float64
            Positions in angstrom.
        """

    @abstractmethod
    def outline(self) -> Tensor:
        """Points to draw the shape with, shape (n_points, 3), float64, angstrom."""

    def loops(self) -> tuple[Tensor, ...]:
        """Closed curves that a molecule is to go round (:meth:`Prior.loops`); by default none."""
        return ()

    def landmarks(self) -> Tensor:
        """Points that want an atom each (:meth:`Prior.landmarks`); by default none."""
        return torch.zeros((0, 3), dtype=torch.float64)

    def log_prob(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Log-density of each molecule, up to a constant: shape (n_molecules,)."""
        energies = self.energies(batch.positions)
        return -batch.sum_per_molecule(_atom_weights(batch, sigma) * energies)

    def score(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """What pulls each atom, shape (n_atoms, 3), 1/angstrom."""
        return _atom_weights(batch, sigma)[:, None] * self.forces(batch.positions)

    def sample(self, counts: Tensor, noise: Noise, *, spread: float = 1.0) -> Tensor:
        """Draw positions (:meth:`Prior.sample`); spread evenly over a shape with landmarks."""
        molecules = torch.arange(len(counts), device=counts.device)
        molecule_idx = torch.repeat_interleave(molecules, counts)
        if len(self.landmarks()):
            # At equal distances along it: as many atoms as landmarks get one each.
            first = torch.cumsum(counts, 0) - counts
            place = torch.arange(len(molecule_idx), device=counts.device) - first[molecule_idx]
            offset = noise.uniform_per_molecule(Stream.START_POINT, 0)
            uniform = (place + offset[molecule_idx]) / counts[molecule_idx]
        else:
            uniform = noise.uniform(Stream.START_POINT, 0, molecule_idx)
        return self.place(uniform, spread * noise.normal(Stream.START, 0, molecule_idx))


def _atom_weights(batch: MoleculeBatch, sigma: float) -> Tensor:
    # Of the atoms that it moves: those of a scaffold are where they are.
    n_mobile = batch.sum_per_molecule((~batch.fixed).to(torch.int64))
    weights = prior_weight(n_mobile, sigma)
    per_atom: Tensor = weights[batch.molecule_idx].to(batch.positions.dtype)
    return per_atom


def require_positive(**values: float) -> None:
    """Raise an InputError that names the first value that is not a positive number."""
    for name, value in values.items():
        if not 0.0 < value < math.inf:
            raise InputError(f"expected a positive {name.replace('_', ' ')}, got {value}")


def covariance_matrix(covariance: Covariance) -> Tensor:
    """Return a covariance, given as diagonal or matrix, as a float64 matrix.

    Raises
    ------
    InputError
        If it is not symmetric and positive definite.
    """
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
