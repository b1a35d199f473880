"""Functions of the length of an edge."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simgen.models.constants import ConstantsModule

SILU_NORM = 1.6791767923989418
"""Factor that gives silu unit second moment under a standard normal argument, as e3nn has it (a
Monte Carlo estimate with a fixed seed; the number is part of the definition of saved weights)."""

TANH_NORM = 1.5925374197228315
"""The same factor of tanh."""


def polynomial_cutoff(distances: Tensor, r_max: float | Tensor, power: int) -> Tensor:
    """Smooth step from 1 at distance 0 to 0 at ``r_max``, two continuous derivatives.

    References
    ----------
    J. Gasteiger, J. Groß, S. Günnemann, "Directional message passing for molecular graphs", ICLR
    2020, arXiv:2003.03123, eq. 8.
    """
    u = distances / r_max
    p = float(power)
    polynomial = (p + 1) * (p + 2) / 2 - u * (p * (p + 2) - u * (p * (p + 1) / 2))
    return (1 - u.pow(power) * polynomial) * (distances < r_max)


class RadialBasis(ConstantsModule):
    """Bessel functions, or Chebyshev polynomials of the first kind, times the polynomial cutoff.

    Parameters
    ----------
    r_max : float
        Cutoff in angstrom.
    n_radial : int
        Number of functions.
    power : int
        Exponent of the cutoff.
    kind : {"bessel", "chebyshev"}
        Chebyshev polynomials are of degree 0 to ``n_radial - 1`` in 1 - 2 r / r_max.

    References
    ----------
    Bessel functions: J. Gasteiger et al., arXiv:2003.03123, eq. 7. Chebyshev polynomials, there of
    a scaled distance: R. Drautz, Phys. Rev. B 99, 014104 (2019), section II.
    """

    def __init__(self, r_max: float, n_radial: int, power: int, kind: str = "bessel") -> None:
        super().__init__()
        self.r_max, self.power, self.kind = r_max, power, kind
        frequencies = torch.arange(1, n_radial + 1, dtype=torch.float64) * (math.pi / r_max)
        self.frequencies: Tensor
        self.register_constant("frequencies", frequencies)

    def forward(self, distances: Tensor, scaled: Tensor | None = None) -> Tensor:
        """Map distances (n_edges,) in angstrom to (n_edges, n_radial).

        With ``scaled``, functions are of these instead; the cutoff is that of the distances.
        """
        envelope = polynomial_cutoff(distances, self.r_max, self.power)
        if scaled is None:
            scaled = distances
        if self.kind == "chebyshev":
            x = 1 - (2 / self.r_max) * scaled
            values = [torch.ones_like(x), x]
            while len(values) < len(self.frequencies):
                values.append(2 * x * values[-1] - values[-2])
            return torch.stack(values[: len(self.frequencies)], 1) * envelope[:, None]
        envelope = envelope * (math.sqrt(2 / self.r_max) / scaled)
        return torch.sin(scaled[:, None] * self.frequencies) * envelope[:, None]


class RadialNetwork(nn.Module):
    """Perceptron without biases, with normalised weights and activations (as e3nn has it)."""

    def __init__(self, widths: tuple[int, ...], generator: torch.Generator) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            torch.randn(n_in, n_out, generator=generator) for n_in, n_out in pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n_edges, widths[0]) to (n_edges, widths[-1])."""
        gain = 1.0
        for i, weight in enumerate(self.weights):
            if i > 0:
                x, gain = F.silu(x), SILU_NORM
            x = x @ (weight * (gain / math.sqrt(len(weight))))
        return x
