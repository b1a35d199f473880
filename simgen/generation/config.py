"""What determines the molecules of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from simgen.composition import Composition, Palette
from simgen.descriptors.settings import DescriptorSettings, NetworkInvariants
from simgen.errors import ConfigError
from simgen.filters import Filters
from simgen.host import Host
from simgen.priors import Gaussian, Prior, prior_from_dict, prior_to_dict
from simgen.refinement import RefinementSettings, RepairSettings
from simgen.scaffold import Scaffold
from simgen.schedules import N_STEPS

MAX_HEAVY_ATOMS = 200
"""More heavy atoms than this are taken for a slip of the keyboard."""


@dataclass(frozen=True, slots=True, eq=False)
class GenerationConfig:
    """Everything that determines the molecules of a run.

    Attributes
    ----------
    n_molecules : int
        Number of attempts.
    n_heavy_atoms : tuple of int
        Smallest and largest number of heavy atoms; each attempt draws its own. With a scaffold:
        of heavy atoms to add to it.
    seed : int
        Seed of all random numbers, in [0, 2^64).
    prior : Prior
        Where atoms are wanted.
    reference : str
        Name or file of the reference set.
    model : str
        Name or file of the force field.
    descriptor : DescriptorSettings
        What environments are compared by.
    composition : Composition
        What molecules may be made of.
    scaffold : Scaffold, optional
        Atoms that are there already.
    host : Host, optional
        Atoms of the surroundings.
    filters : Filters
        Substructures that are not wanted.
    n_steps : int
        Noise levels.
    n_particles : int
        Copies of each molecule in element evolution.
    n_refinements : int
        Rounds in which samples that do not look like the reference yet are sampled on.
    n_repairs : int
        Rounds in which atoms in surroundings that no known molecule shows are sampled again.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    n_molecules: int = 16
    n_heavy_atoms: tuple[int, int] = (12, 12)
    seed: int = 0
    prior: Prior = Gaussian()  # noqa: RUF009 -- frozen
    reference: str = "organic"
    model: str = "small"
    descriptor: DescriptorSettings = NetworkInvariants()  # noqa: RUF009 -- frozen
    composition: Composition = Composition()  # noqa: RUF009 -- frozen
    scaffold: Scaffold | None = None
    host: Host | None = None
    filters: Filters = Filters()  # noqa: RUF009 -- frozen
    n_steps: int = N_STEPS
    n_particles: int = 10
    n_refinements: int = RefinementSettings().n_rounds
    n_repairs: int = RepairSettings().n_rounds

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_heavy_atoms", tuple(self.n_heavy_atoms))
        for name, low, high in (
            ("n_molecules", 1, 2**32 - 1),
            ("n_steps", 4, 100_000),
            ("n_particles", 1, 2**24 - 1),
            ("n_refinements", 0, 1000),
            ("n_repairs", 0, 1000),
            ("seed", 0, 2**64 - 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(
                    f"expected {name} to be an integer from {low} to {high}, got {value}"
                )
        sizes = self.n_heavy_atoms
        least = 2 if self.scaffold is None else 1
        if len(sizes) != 2 or not least <= sizes[0] <= sizes[1] <= MAX_HEAVY_ATOMS:
            raise ConfigError(
                "expected n_heavy_atoms to be a number or an ascending pair of numbers from "
                f"{least} to {MAX_HEAVY_ATOMS}, got {sizes}"
            )
        for n_atoms in sizes:  # raises if the composition does not allow it
            self.palette.start(n_atoms)

    @property
    def palette(self) -> Palette:
        """What the atoms to be placed may become."""
        present = None if self.scaffold is None else self.scaffold.element_counts
        return self.composition.palette(present)

    @property
    def n_given(self) -> int:
        """Heavy atoms that are there already, those of the scaffold."""
        return 0 if self.scaffold is None else len(self.scaffold.heavy)

    @property
    def charge(self) -> int:
        """Total charge of every molecule."""
        if self.composition.charge is not None:
            return self.composition.charge
        return 0 if self.scaffold is None else self.scaffold.charge

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as what JSON can hold; :meth:`from_dict` undoes it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["n_heavy_atoms"] = list(self.n_heavy_atoms)
        values["prior"] = prior_to_dict(self.prior)
        for name in _PARTS:
            if values[name] is not None:
                values[name] = values[name].to_dict()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerationConfig:
        """Build a configuration from what :meth:`to_dict` returns; missing keys get defaults.

        Raises
        ------
        ConfigError
            If there is an unknown key, or a value is out of range.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(
                f"unknown key {unknown[0]!r}; expected one of {', '.join(sorted(known))}"
            )
        given = dict(values)
        for name, part in _PARTS.items():
            if given.get(name) is not None:
                given[name] = part.from_dict(given[name])
        if "prior" in given:
            given["prior"] = prior_from_dict(given["prior"])
        return cls(**given)

    def to_json(self) -> str:
        """Return the configuration as JSON text; :meth:`from_json` undoes it."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> GenerationConfig:
        """Build a configuration from JSON text.

        Examples
        --------
        >>> GenerationConfig.from_json('{"n_atoms": 3}')
        Traceback (most recent call last):
        ...
        simgen.errors.ConfigError: unknown key 'n_atoms'; expected one of composition, ...
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"expected a configuration as JSON: {error}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"expected a JSON object, got {type(values).__name__}")
        return cls.from_dict(values)


_PARTS: dict[
    str,
    type[Composition] | type[DescriptorSettings] | type[Scaffold] | type[Host] | type[Filters],
] = {
    "composition": Composition,
    "descriptor": DescriptorSettings,
    "scaffold": Scaffold,
    "host": Host,
    "filters": Filters,
}
"""Parts of a configuration that are described by dictionaries of their own."""
