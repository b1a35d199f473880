"""What foundation models add for pairs of atoms: scaled distances, and repulsion at short ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simgen.models.radial import polynomial_cutoff

BOHR, COULOMB = 0.529, 14.3996
"""Bohr radius in angstrom and e^2 / (4 pi epsilon_0) in eV angstrom, in the digits of mace-torch,
which are part of the definition of saved weights."""


class AgnesiTransform(nn.Module):
    """Distances as the radial basis of a chemical bond sees them: 1 at zero, falling to 0.

    With the mean of the covalent radii r_0 = (R_i + R_j) / 2 and x = r / r_0,

        y = 1 / (1 + a x^q / (1 + x^(q - p)))

    Parameters
    ----------
    n_elements : int

    References
    ----------
    W. C. Witt et al., J. Chem. Phys. 159, 164101 (2023), section on radial transformations.
    """

    def __init__(self, n_elements: int) -> None:
        super().__init__()
        self.radii: Tensor
        self.register_buffer("radii", torch.ones(n_elements, dtype=torch.float64))
        self.coefficients: Tensor  # a, q, p
        initial = torch.tensor([1.0805, 0.9183, 4.5791], dtype=torch.float64)
        self.register_buffer("coefficients", initial)

    def forward(self, distances: Tensor, elements: Tensor) -> Tensor:
        """Map distances (n_edges,) in angstrom; ``elements`` of both ends, (2, n_edges)."""
        a, q, p = self.coefficients
        x = 2 * distances / self.radii[elements].sum(0)
        scaled: Tensor = 1 / (1 + a * x**q / (1 + x ** (q - p)))
        return scaled


class PairRepulsion(nn.Module):
    """Screened repulsion of nuclei, smoothly cut off at the sum of the covalent radii.

    ==================================================  ==========================================
    Equation                                            Variable
    ==================================================  ==========================================
    l = a_0 / (Z_i^alpha + Z_j^alpha)                   ``length``
    phi = sum_k c_k exp(-b_k r / l)                     ``screening``
    V = (e^2 / 4 pi epsilon_0) Z_i Z_j phi / r          result, times the polynomial cutoff
    ==================================================  ==========================================

    Parameters
    ----------
    elements : tuple of int
    power : int
        Exponent of the cutoff.

    References
    ----------
    J. F. Ziegler, J. P. Biersack, U. Littmark, "The stopping and range of ions in solids", Pergamon
    1985, chapter 2 (the universal screening function).
    """

    _EXPONENTS = (3.2, 0.9423, 0.4028, 0.2016)

    def __init__(self, elements: tuple[int, ...], power: int) -> None:
        super().__init__()
        self.power = power
        self.numbers: Tensor
        numbers = torch.tensor(elements, dtype=torch.float64)
        self.register_buffer("numbers", numbers, persistent=False)
        self.radii: Tensor
        self.register_buffer("radii", torch.ones(len(elements), dtype=torch.float64))
        self.screening: Tensor  # c
        initial = torch.tensor([0.1818, 0.5099, 0.2802, 0.02817], dtype=torch.float64)
        self.register_buffer("screening", initial)
        self.lengths: Tensor  # a_0 in units of the Bohr radius, alpha
        self.register_buffer("lengths", torch.tensor([0.4543, 0.3], dtype=torch.float64))

    def forward(self, distances: Tensor, elements: Tensor) -> Tensor:
        """Energies in eV, (n_edges,); arguments as those of :class:`AgnesiTransform`."""
        first, second = self.numbers[elements]
        scale, alpha = self.lengths
        inverse = (first**alpha + second**alpha) / (scale * BOHR)
        exponents = self.screening.new_tensor(self._EXPONENTS)
        screening = torch.exp(-(distances * inverse)[:, None] * exponents) @ self.screening
        r_max = self.radii[elements].sum(0)
        envelope = polynomial_cutoff(distances, r_max, self.power)
        energies: Tensor = COULOMB * first * second / distances * screening * envelope
        return energies
