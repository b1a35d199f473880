"""Which descriptor, as what a configuration can hold, and the way from there to the descriptor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from simgen.descriptors import Descriptor
from simgen.descriptors.calibrated import Calibrated
from simgen.descriptors.force_field import MIN_DISTANCE, ForceFieldDescriptor
from simgen.descriptors.tensor_reduced import TensorReducedDescriptor
from simgen.errors import ConfigError
from simgen.models import ForceField, evaluator, load_model
from simgen.molecules import MoleculeBatch


class DescriptorSettings(ABC):
    """A choice of descriptor; equal ones describe atoms alike, given the same networks."""

    @abstractmethod
    def network(self, force_field: ForceField) -> ForceField | None:
        """Return the network whose features it takes, if any.

        Parameters
        ----------
        force_field : ForceField
            That of the run.

        Raises
        ------
        LoadError
            If it is another one, and there is no such file.
        """

    @abstractmethod
    def build(self, network: ForceField | None, reference: MoleculeBatch) -> Descriptor:
        """Make the descriptor.

        Parameters
        ----------
        network : ForceField or None
            What :meth:`network` returns.
        reference : MoleculeBatch
            Molecules that the similarity kernel will compare with.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as what JSON can hold; :meth:`from_dict` undoes it."""
        kind = next(kind for kind, known in KINDS.items() if type(self) is known)
        return {"kind": kind, **asdict(self)}  # type: ignore[call-overload]

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> DescriptorSettings:
        """Build settings from what :meth:`to_dict` returns; missing keys but "kind" get defaults.

        Raises
        ------
        ConfigError
            If there is no such kind, an unknown key, or a value is out of range.

        Examples
        --------
        >>> DescriptorSettings.from_dict({"kind": "tensor_reduced", "n_channels": 8}).n_channels
        8
        """
        given = dict(values)
        kind = given.pop("kind", None)
        if kind not in KINDS:
            raise ConfigError(f"expected a descriptor of kind {' or '.join(KINDS)}, got {kind!r}")
        try:
            return KINDS[kind](**given)
        except TypeError as error:
            raise ConfigError(f"expected other settings of a descriptor: {error}") from None


@dataclass(frozen=True, slots=True)
class NetworkInvariants(DescriptorSettings):
    """Invariant features of a network.

    Attributes
    ----------
    model : str or None
        Name or file of the network; None for the force field of the run.
    n_layers : int or None
        From how many of its layers; None for all, one after the other.
    trained : bool
        Whether it has its weights, or others drawn at random: what is the training worth?
    """

    model: str | None = None
    n_layers: int | None = 1
    trained: bool = True

    def __post_init__(self) -> None:
        if self.n_layers is not None and not (isinstance(self.n_layers, int) and self.n_layers > 0):
            raise ConfigError(f"expected n_layers >= 1 of a descriptor, got {self.n_layers}")

    def network(self, force_field: ForceField) -> ForceField:
        """Return the force field itself, another network like it, or one from a file."""
        like, network = force_field.embedding, force_field
        if self.model is not None:
            network = load_model(self.model, device=like.device).to(like.dtype)
        if not self.trained:
            network = ForceField(network.config).requires_grad_(False).to(like)
        n_layers = network.config.n_layers
        if self.n_layers is not None and self.n_layers > n_layers:
            raise ConfigError(
                f"expected n_layers <= {n_layers}, all there are, got {self.n_layers}"
            )
        return network

    def build(self, network: ForceField | None, reference: MoleculeBatch) -> Descriptor:
        """Describe by the network; calibrated unless it is what the kernel was made for."""
        assert network is not None
        if self == NetworkInvariants() and not network.config.beyond_mace:
            return ForceFieldDescriptor(network)
        invariants = evaluator(network, n_layers=self.n_layers, min_distance=MIN_DISTANCE)
        return Calibrated(invariants, reference)


@dataclass(frozen=True, slots=True)
class TensorReduced(DescriptorSettings):
    """Products of random combinations of the density of neighbours.

    Attributes
    ----------
    n_channels, l_max, correlation : int
    r_max : float
        In angstrom.
    n_radial : int
    shared : bool
    seed : int
        All as those of :class:`~simgen.descriptors.tensor_reduced.TensorReducedDescriptor`.
    """

    n_channels: int = 32
    l_max: int = 2
    correlation: int = 3
    r_max: float = 4.5
    n_radial: int = 8
    shared: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        TensorReducedDescriptor(**asdict(self))  # raises if a value is out of range

    def network(self, force_field: ForceField) -> None:
        """Return nothing: there are no weights."""

    def build(self, network: ForceField | None, reference: MoleculeBatch) -> Descriptor:
        """Describe by random products, calibrated."""
        return Calibrated(TensorReducedDescriptor(**asdict(self)), reference)


KINDS: dict[str, type[NetworkInvariants] | type[TensorReduced]] = {
    "network": NetworkInvariants,
    "tensor_reduced": TensorReduced,
}
"""Names of the settings in descriptions."""
