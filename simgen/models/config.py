"""The one configuration of the equivariant network."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from simgen.errors import ConfigError


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Everything that determines the network but its weights.

    The defaults are those of MACE with invariant messages.

    Attributes
    ----------
    elements : tuple of int
        Atomic numbers that the network knows, ascending.
    r_max : float
        Cutoff radius in angstrom.
    n_radial : int
        Number of Bessel functions.
    cutoff_power : int
        Exponent p of the polynomial cutoff.
    radial_widths : tuple of int
        Widths of the hidden layers of the radial networks.
    l_max : int
        Highest degree of the spherical harmonics of the edges, and of the atomic basis.
    hidden_l_max : int
        Highest degree of the atom features passed between layers; 0 means invariant features.
    n_channels : int
        Channels of each degree.
    correlation : int
        Highest degree of the polynomials of the product basis; body order minus one.
    n_layers : int
        Number of interaction layers.
    first_residual : bool
        Whether the first layer adds an element-dependent linear map of its input, as all the
        others do; if not, it applies one to its atomic basis.
    density_normalised : bool
        Whether messages are divided by one plus a learned density of neighbours instead of by
        ``avg_n_neighbours``.
    avg_n_neighbours : float
        Typical number of neighbours; messages are divided by it.
    readout_width : int
        Hidden width of the last layer's readout; 0 means that it is linear, like all the others.
    """

    elements: tuple[int, ...]
    r_max: float = 4.5
    n_radial: int = 8
    cutoff_power: int = 5
    radial_widths: tuple[int, ...] = (64, 64, 64)
    l_max: int = 3
    hidden_l_max: int = 0
    n_channels: int = 96
    correlation: int = 3
    n_layers: int = 2
    first_residual: bool = False
    density_normalised: bool = False
    avg_n_neighbours: float = 12.0
    readout_width: int = 16

    def __post_init__(self) -> None:
        for name in ("elements", "radial_widths"):
            object.__setattr__(self, name, tuple(int(value) for value in getattr(self, name)))
        elements = self.elements
        if not elements or list(elements) != sorted(set(elements)) or elements[0] < 1:
            raise ConfigError(f"expected elements as ascending atomic numbers, got {elements}")
        for name, low, high in (
            ("l_max", 0, 3),
            ("hidden_l_max", 0, self.l_max),
            ("correlation", 1, 3),
            ("readout_width", 0, 1_000_000),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"expected {low} <= {name} <= {high}, got {getattr(self, name)}")
        for name in ("n_radial", "cutoff_power", "n_channels", "n_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} >= 1, got {getattr(self, name)}")
        if min((*self.radial_widths, self.n_channels)) < 1:
            raise ConfigError(f"expected radial_widths >= 1, got {self.radial_widths}")
        for name in ("r_max", "avg_n_neighbours"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"expected a positive {name}, got {getattr(self, name)}")

    def to_json(self) -> str:
        """Return the configuration as a JSON object; :meth:`from_json` undoes it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> NetworkConfig:
        """Build the configuration from a JSON object; :meth:`to_json` undoes it."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"expected a JSON object, got {text[:40]!r}: {error}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"expected a JSON object, got {text[:40]!r}")
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkConfig:
        """Build the configuration from a mapping; unknown keys raise :class:`ConfigError`."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"unknown keys {unknown}; expected {sorted(known)}")
        if "elements" not in values:
            raise ConfigError("expected the key 'elements'")
        return cls(**values)
