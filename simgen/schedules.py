"""Everything that depends on the noise level, as pure functions of it.

References
----------
R. Elijošius et al., "Zero shot molecular generation via similarity kernels", Nat. Commun. 16
(2025), doi 10.1038/s41467-025-60963-3: the formulas, with the constants of its published program.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simgen.errors import InputError

N_STEPS = 50
"""Noise levels of a run."""
SIGMA_MAX = 1.0
"""Highest noise level, angstrom."""
SIGMA_MIDDLE = 0.05
"""Where the linear half of the levels ends, angstrom."""
LOG10_SIGMA_LOW = -1.31
"""Decimal logarithm of the level where the logarithmic half begins."""
LOG10_SIGMA_MIN = -3.0
"""Decimal logarithm of the lowest level."""

SHARPNESS_RANGE = 119.0
"""The sharpness of the kernel rises by this much, from 1, as the noise falls."""
SHARPNESS_SIGMA = 10.0
"""Noise level above which the sharpness is 1, angstrom."""

PRIOR_STRENGTH = 0.45
"""Numerator of the prior's weight; with the next three a fit to QM9's molecules."""
PRIOR_OFFSET = 0.3
PRIOR_SLOPE = 0.05
DIAMETER_PER_SQRT_ATOM = 1.5664519
"""Diameter of a molecule of N heavy atoms over sqrt(N), angstrom."""
PRIOR_DECAY = 20.0
"""The prior fades as tanh(20 sigma^2) when the noise falls."""

LANDMARK_STRENGTH = 3.0
"""Times as strong as a Gaussian of the given width; from 6 on the first steps would overshoot."""
LANDMARK_WIDTH = 0.3
"""How far from a landmark its atom may be, angstrom."""

LOG10_TEMPERATURE_RANGE = 7.0
LOG10_TEMPERATURE_MIN = -1.0
"""Element evolution cools from 10^6 to 10^-1."""


def noise_levels(n_steps: int = N_STEPS) -> Tensor:
    """Noise levels of a run, falling: half of them linear, then half logarithmic.

    Parameters
    ----------
    n_steps : int
        Number of levels, at least 4.

    Returns
    -------
    Tensor, shape (n_steps,), float64
        In angstrom, on the CPU.

    Raises
    ------
    InputError
        If there are fewer than 4 levels, so that one of the halves has no two ends.

    Examples
    --------
    >>> noise_levels(4).tolist()
    [1.0, 0.05, 0.04897788193684462, 0.001]
    """
    if n_steps < 4:
        raise InputError(f"expected at least 4 noise levels, got {n_steps}; 50 is usual")
    n_linear = n_steps // 2
    linear = torch.linspace(SIGMA_MAX, SIGMA_MIDDLE, n_linear, dtype=torch.float64)
    logarithmic = torch.logspace(
        LOG10_SIGMA_LOW, LOG10_SIGMA_MIN, n_steps - n_linear, dtype=torch.float64
    )
    return torch.cat([linear, logarithmic])


def kernel_sharpness(sigma: float) -> float:
    """Sharpness m of the similarity kernel at a noise level (angstrom).

    m = 119 (1 - (sigma / 10)^(1/4)) + 1 up to 10 angstrom, else 1.

    Examples
    --------
    >>> round(kernel_sharpness(1.0), 2), round(kernel_sharpness(1e-3), 2), kernel_sharpness(0.0)
    (53.08, 108.1, 120.0)
    """
    if sigma > SHARPNESS_SIGMA:
        return 1.0
    return SHARPNESS_RANGE * (1.0 - math.pow(sigma / SHARPNESS_SIGMA, 0.25)) + 1.0


def prior_weight(n_atoms: Tensor, sigma: float) -> Tensor:
    """Weight of the prior for molecules of ``n_atoms`` heavy atoms at a noise level (angstrom).

    lambda(N) tanh(20 sigma^2), with lambda(N) of :func:`prior_strength`.

    Parameters
    ----------
    n_atoms : Tensor, shape (n_molecules,)
        Heavy atoms of each molecule.

    Returns
    -------
    Tensor, shape (n_molecules,), float64
        The weight, in 1/angstrom^2 for priors of unit width.
    """
    return prior_strength(n_atoms) * math.tanh(PRIOR_DECAY * sigma**2)


def prior_strength(n_atoms: Tensor) -> Tensor:
    """Weight of the prior for molecules of ``n_atoms`` heavy atoms while the noise is high.

    lambda(N) = 0.45 / (0.3 + 0.05 D)^2 and D = 1.5664519 sqrt(N); in 1/angstrom^2.
    """
    diameter = DIAMETER_PER_SQRT_ATOM * torch.sqrt(n_atoms.to(torch.float64))
    return PRIOR_STRENGTH / (PRIOR_OFFSET + PRIOR_SLOPE * diameter) ** 2


def landmark_stiffness(sigma: float) -> float:
    """Stiffness of the pull of landmarks at a noise level (angstrom), 1/angstrom^2.

    k = 3 sigma / (sigma^2 + 0.3^2): the score of Gaussians of that width about the landmarks,
    blurred by the noise, per unit of the noise level; it fades with the noise, when bonds take
    their lengths.

    Examples
    --------
    >>> round(landmark_stiffness(1.0), 2), round(landmark_stiffness(0.3), 2)
    (2.75, 5.0)
    """
    return LANDMARK_STRENGTH * sigma / (sigma**2 + LANDMARK_WIDTH**2)


def temperature(sigma: float, sigma_max: float = SIGMA_MAX) -> float:
    """Temperature of element evolution at a noise level: log10 T = 7 sigma / sigma_max - 1.

    Examples
    --------
    >>> temperature(1.0), temperature(0.0)
    (1000000.0, 0.1)
    """
    return math.pow(10.0, LOG10_TEMPERATURE_RANGE * sigma / sigma_max + LOG10_TEMPERATURE_MIN)
