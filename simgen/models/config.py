"""The one configuration of the equivariant network."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from simgen.errors import ConfigError

Irrep = tuple[int, int]
"""Degree and parity, +1 or -1, of features. The harmonics of an edge have parity (-1)^l."""

CHOICES: dict[str, tuple[str, ...]] = {
    "radial_basis": ("bessel", "chebyshev"),
    "distance_transform": ("none", "agnesi"),
    "nonlinearity": ("none", "gate"),
    "readouts": ("all", "last"),
}
"""Values of the fields that are names."""

OF_MACE: dict[str, object] = {
    "radial_basis": "bessel",
    "radial_by_element": False,
    "parity": False,
    "product_by_element": True,
    "product_mixed": True,
    "nonlinearity": "none",
    "residual_by_element": True,
    "readouts": "all",
}
"""What a network needs to be a MACE, of whatever size; the defaults have it."""


def natural_irreps(l_max: int) -> tuple[Irrep, ...]:
    """Degrees 0 ... l_max with the parity of the harmonics."""
    return tuple((ell, (-1) ** ell) for ell in range(l_max + 1))


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Everything that determines the network but its weights: a point of the design space.

    The defaults are those of MACE with invariant messages; :mod:`simgen.models.presets` has the
    networks of the literature.

    Attributes
    ----------
    elements : tuple of int
        Atomic numbers that the network knows, ascending.
    r_max : float
        Cutoff radius in angstrom.
    radial_basis : {"bessel", "chebyshev"}
        Functions of the distance that the radial networks see.
    n_radial : int
        Number of these functions.
    distance_transform : {"none", "agnesi"}
        What the distance is replaced by before these functions see it, if by anything:
        :class:`~simgen.models.pair_terms.AgnesiTransform`.
    cutoff_power : int
        Exponent p of the polynomial cutoff.
    radial_widths : tuple of int
        Widths of the hidden layers of the radial networks; without any, radial functions are
        linear combinations of the basis.
    radial_by_element : bool
        Whether the radial networks have weights of their own for each pair of elements.
    l_max : int
        Highest degree of the spherical harmonics of the edges, and of the atomic basis.
    hidden_l_max : int
        Highest degree of the messages, and so of the atom features passed between layers; 0 means
        invariant features.
    parity : bool
        Whether features come in both parities, with pseudoscalars and the like; if not, only in
        that of the harmonics.
    n_channels : int
        Channels of each degree.
    correlation : int
        Highest degree of the polynomials of the product basis; body order minus one.
    product_by_element : bool
        Whether the product basis has weights of its own for each element. Without them and with
        correlation 1 there is nothing left of it: the atomic basis is the message.
    product_mixed : bool
        Whether a linear map mixes the channels of the product basis. Where nothing but a linear
        readout follows, it adds nothing to the energies, and training makes all features alike.
    nonlinearity : {"none", "gate"}
        What ends a layer: nothing, or an activation of the scalars and gates for the rest.
    n_layers : int
        Number of interaction layers.
    first_residual : bool
        Whether the first layer adds an element-dependent linear map of its input, as all the
        others do; if not, it applies one to its atomic basis.
    residual_by_element : bool
        Whether this map differs from element to element.
    density_normalised : bool
        Whether messages are divided by one plus a learned density of neighbours instead of by
        ``avg_n_neighbours``.
    avg_n_neighbours : float
        Typical number of neighbours; messages are divided by it, or by its root if there are gates.
    readouts : {"all", "last"}
        Which layers contribute to the energy.
    readout_width : int
        Hidden width of the last layer's readout; 0 means that it is linear, like all the others.
    pair_repulsion : bool
        Whether atoms closer than their covalent radii repel each other in any case:
        :class:`~simgen.models.pair_terms.PairRepulsion`.
    """

    elements: tuple[int, ...]
    r_max: float = 4.5
    radial_basis: str = "bessel"
    n_radial: int = 8
    distance_transform: str = "none"
    cutoff_power: int = 5
    radial_widths: tuple[int, ...] = (64, 64, 64)
    radial_by_element: bool = False
    l_max: int = 3
    hidden_l_max: int = 0
    parity: bool = False
    n_channels: int = 96
    correlation: int = 3
    product_by_element: bool = True
    product_mixed: bool = True
    nonlinearity: str = "none"
    n_layers: int = 2
    first_residual: bool = False
    residual_by_element: bool = True
    density_normalised: bool = False
    avg_n_neighbours: float = 12.0
    readouts: str = "all"
    readout_width: int = 16
    pair_repulsion: bool = False

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
        for name, allowed in CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise ConfigError(f"expected {name} to be one of {', '.join(allowed)}, got {value}")
        if self.parity and self.correlation == 1 and self.product_by_element:
            raise ConfigError(
                "expected correlation 2 or 3, or product_by_element false, with parity: of degree "
                "1 the product basis has only the parity of the harmonics"
            )
        for name in ("r_max", "avg_n_neighbours"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"expected a positive {name}, got {getattr(self, name)}")

    @property
    def beyond_mace(self) -> tuple[str, ...]:
        """Fields by which the network is no MACE, if any."""
        return tuple(name for name, value in OF_MACE.items() if getattr(self, name) != value)

    @property
    def is_tabulated(self) -> bool:
        """Whether all that distances enter are functions of them alone, the same for all elements.

        These, and MACE with them, are what :class:`~simgen.models.FrozenForceField` can evaluate.
        """
        return not (self.beyond_mace or self.pair_repulsion or self.distance_transform != "none")

    @property
    def has_product(self) -> bool:
        """Whether there is a product basis."""
        return self.correlation > 1 or self.product_by_element

    @property
    def n_radial_inputs(self) -> int:
        """Inputs of the radial networks: the radial basis, for each pair of elements if wanted."""
        n_elements = len(self.elements) if self.radial_by_element else 1
        return self.n_radial * (n_elements * (n_elements + 1) // 2)

    @property
    def feature_irreps(self) -> tuple[Irrep, ...]:
        """Features that layers may pass on: those with the harmonics' parity come first."""
        natural = natural_irreps(self.hidden_l_max)
        return natural + tuple((ell, -p) for ell, p in natural) if self.parity else natural

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
