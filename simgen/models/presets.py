"""The networks of the literature as points of one design space.

Each preset is a function that takes the elements, and whatever shall differ from the publication
as fields of :class:`~simgen.models.NetworkConfig`. The number of channels is no part of what makes
a network one of them, and by default small enough for a CPU.

- ``ace``: one layer; many-body terms from the product basis, which the energy is linear in; radial
  functions linear in their basis, and of their own for each pair of elements.
- ``botnet``: layers of two-body messages without any nonlinearity but that of the last readout.
- ``nequip``: layers of two-body messages in both parities, gates between them, a single readout.
- ``mace``: two layers of many-body messages from the product basis.

References
----------
I. Batatia et al., "The design space of E(3)-equivariant atom-centered interatomic potentials",
arXiv:2205.06643, which shows that they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from simgen.models.config import NetworkConfig


def ace(elements: Sequence[int], **changes: Any) -> NetworkConfig:
    """Return the atomic cluster expansion, linear in its basis functions.

    References
    ----------
    R. Drautz, Phys. Rev. B 99, 014104 (2019); D. P. Kovács et al., J. Chem. Theory Comput. 17, 7696
    (2021).
    """
    preset: dict[str, Any] = {
        "n_layers": 1,
        "correlation": 3,
        "l_max": 3,
        "hidden_l_max": 0,
        "n_channels": 64,
        "radial_basis": "chebyshev",
        "radial_widths": (),
        "radial_by_element": True,
        "product_mixed": False,
        "readout_width": 0,
    }
    return NetworkConfig(tuple(elements), **preset | changes)


def botnet(elements: Sequence[int], **changes: Any) -> NetworkConfig:
    """Return BOTNet: body order grows by one with each layer, up to the last readout.

    References
    ----------
    Batatia et al., arXiv:2205.06643, section on BOTNet.
    """
    preset: dict[str, Any] = {
        "n_layers": 5,
        "correlation": 1,
        "product_by_element": False,
        "l_max": 3,
        "hidden_l_max": 3,
        "n_channels": 64,
        "nonlinearity": "none",
        "readouts": "all",
        "readout_width": 16,
    }
    return NetworkConfig(tuple(elements), **preset | changes)


def nequip(elements: Sequence[int], **changes: Any) -> NetworkConfig:
    """Return NequIP.

    Its first layer has no residual, so that an isolated atom has exactly its own energy.

    References
    ----------
    S. Batzner et al., Nat. Commun. 13, 2453 (2022), arXiv:2101.03164, section "Network
    architecture".
    """
    preset: dict[str, Any] = {
        "n_layers": 5,
        "correlation": 1,
        "product_by_element": False,
        "l_max": 3,
        "hidden_l_max": 3,
        "parity": True,
        "n_channels": 64,
        "nonlinearity": "gate",
        "cutoff_power": 6,
        "radial_widths": (64, 64),
        "readouts": "last",
        "readout_width": 0,
    }
    return NetworkConfig(tuple(elements), **preset | changes)


def mace(elements: Sequence[int], **changes: Any) -> NetworkConfig:
    """Return MACE.

    References
    ----------
    I. Batatia et al., NeurIPS 2022, arXiv:2206.07697.
    """
    preset: dict[str, Any] = {
        "n_layers": 2,
        "correlation": 3,
        "l_max": 3,
        "hidden_l_max": 2,
        "n_channels": 64,
        "r_max": 5.0,
        "readout_width": 16,
    }
    return NetworkConfig(tuple(elements), **preset | changes)


PRESETS: dict[str, Callable[..., NetworkConfig]] = {
    function.__name__: function for function in (ace, botnet, nequip, mace)
}
"""All of them by name."""
