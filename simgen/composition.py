"""What a molecule may be made of: elements, how many of each, hydrogens and charge."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simgen.elements import SYMBOLS, atomic_number
from simgen.errors import ConfigError

_ANY = 10**6
"""As many atoms of an element as one likes."""

_SYMBOL_AND_COUNT = re.compile(r"([A-Z][a-z]?)(\d*)")


@dataclass(frozen=True, slots=True)
class Palette:
    """Elements that mobile atoms can become, and how many of them.

    Attributes
    ----------
    elements : tuple of int
        Atomic numbers, all different.
    weights : tuple of float
        How often each is chosen, relative to the others; equal by default.
    at_least, at_most : tuple of int
        Mobile atoms of each element that a molecule has; any number by default.

    Raises
    ------
    ConfigError
        If there are no elements, or if weights or numbers do not fit.
    """

    elements: tuple[int, ...] = (6, 7, 8)
    weights: tuple[float, ...] = ()
    at_least: tuple[int, ...] = ()
    at_most: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.elements)
        if not n or len(set(self.elements)) < n:
            raise ConfigError(f"expected different elements, at least one, got {self.elements}")
        for name, default in (("weights", 1.0), ("at_least", 0), ("at_most", _ANY)):
            if not getattr(self, name):
                object.__setattr__(self, name, (default,) * n)
        positive = all(0.0 < weight < math.inf for weight in self.weights)
        if len(self.weights) != n or not positive:
            raise ConfigError(
                f"expected {n} positive weights, one for each element, got {self.weights}"
            )
        if not len(self.at_least) == len(self.at_most) == n:
            raise ConfigError(
                f"expected {n} numbers of atoms, one for each element, "
                f"got {self.at_least} and {self.at_most}"
            )

    @property
    def is_bounded(self) -> bool:
        """Whether not any number of every element will do."""
        return any(self.at_least) or any(high < _ANY for high in self.at_most)

    def start(self, n_atoms: int) -> list[int]:
        """Elements of ``n_atoms`` atoms to start from: as much carbon as there may be.

        Raises
        ------
        ConfigError
            If the numbers of atoms do not allow ``n_atoms``.
        """
        counts = list(self.at_least)
        lacking = n_atoms - sum(counts)
        carbon_first = sorted(range(len(counts)), key=lambda k: (self.elements[k] != 6, k))
        for k in carbon_first:
            added = max(0, min(lacking, self.at_most[k] - counts[k]))
            counts[k] += added
            lacking -= added
        if lacking or any(n > most for n, most in zip(counts, self.at_most, strict=True)):
            raise ConfigError(
                f"no {n_atoms} heavy atoms have the wanted elements: expected from "
                f"{sum(self.at_least)} to {min(sum(self.at_most), _ANY)} atoms to place; change "
                "the number of heavy atoms, the formula or the limits"
            )
        return [z for z, n in zip(self.elements, counts, strict=True) for _ in range(n)]


@dataclass(frozen=True, slots=True)
class Composition:
    """What a molecule may be made of, a scaffold that it grows from included.

    Attributes
    ----------
    elements : tuple of str
        Symbols of the heavy elements that atoms may become.
    weights : mapping of str to float
        How often each is tried, relative to the others; 1 where not given.
    at_least, at_most : mapping of str to int
        Atoms of an element that every molecule has.
    n_hydrogens : int, optional
        Hydrogen atoms that every molecule has; by default as many as the valences want.
    charge : int, optional
        Total charge; by default that of the scaffold, and none without one.
    formal_charges : bool
        Whether atoms may have charges that cancel, as in a nitro group.

    Raises
    ------
    ConfigError
        If a weight is of an element not among ``elements``, or numbers do not fit together.
    InputError
        If there is no such element.

    Examples
    --------
    >>> Composition(at_most={"N": 1}).palette().at_most[1]
    1
    """

    elements: tuple[str, ...] = ("C", "N", "O")
    weights: Mapping[str, float] = field(default_factory=dict)
    at_least: Mapping[str, int] = field(default_factory=dict)
    at_most: Mapping[str, int] = field(default_factory=dict)
    n_hydrogens: int | None = None
    charge: int | None = None
    formal_charges: bool = True

    def __post_init__(self) -> None:
        numbers = [atomic_number(symbol) for symbol in self.elements]
        object.__setattr__(self, "elements", tuple(SYMBOLS[z] for z in numbers))
        if not numbers or len(set(numbers)) < len(numbers):
            raise ConfigError(f"expected elements to be different ones, got {self.elements}")
        if 1 in numbers:
            raise ConfigError("expected heavy elements only; hydrogens are added at the end")
        for name in ("weights", "at_least", "at_most"):
            given = {SYMBOLS[atomic_number(s)]: n for s, n in getattr(self, name).items()}
            if name == "weights" and (foreign := sorted(set(given) - set(self.elements))):
                raise ConfigError(
                    f"expected weights of {', '.join(self.elements)} only, got {foreign[0]}"
                )
            object.__setattr__(self, name, given)
        for symbol, least in self.at_least.items():
            if not 0 <= least <= self.at_most.get(symbol, _ANY):
                raise ConfigError(
                    f"expected 0 <= at_least <= at_most for {symbol}, got {least} and "
                    f"{self.at_most.get(symbol, 'no limit')}"
                )
        if any(most < 0 for most in self.at_most.values()):
            raise ConfigError(f"expected at_most >= 0, got {dict(self.at_most)}")
        if self.n_hydrogens is not None and self.n_hydrogens < 0:
            raise ConfigError(f"expected n_hydrogens >= 0, got {self.n_hydrogens}")

    @classmethod
    def from_formula(cls, formula: str, **others: Any) -> Composition:
        """Exactly the atoms of a sum formula, hydrogens included if it has any.

        Raises
        ------
        ConfigError
            If the text is not a sum formula.

        Examples
        --------
        >>> Composition.from_formula("C6H6O").n_hydrogens
        6
        """
        parts = _SYMBOL_AND_COUNT.findall(formula)
        if not parts or "".join(symbol + count for symbol, count in parts) != formula:
            raise ConfigError(f"expected a sum formula such as C6H6O, got {formula!r}")
        counts: Counter[str] = Counter()
        for symbol, count in parts:
            counts[SYMBOLS[atomic_number(symbol)]] += int(count or 1)
        n_hydrogens = counts.pop("H", None)
        if not counts.total():
            raise ConfigError(f"expected a sum formula with heavy atoms, got {formula!r}")
        exact = {symbol: n for symbol, n in counts.items() if n}
        return cls(tuple(exact), at_least=exact, at_most=exact, n_hydrogens=n_hydrogens, **others)

    @property
    def n_heavy_atoms(self) -> int | None:
        """Heavy atoms of a molecule of an exact formula; None if it is not exact."""
        exact = all(
            symbol in self.at_least and self.at_least[symbol] == self.at_most.get(symbol)
            for symbol in self.elements
        )
        return sum(self.at_least.values()) if exact else None

    @property
    def atomic_numbers(self) -> tuple[int, ...]:
        """Atomic numbers of the elements."""
        return tuple(atomic_number(symbol) for symbol in self.elements)

    def palette(self, present: Mapping[str, int] | None = None) -> Palette:
        """Return what the atoms to be placed may become.

        Parameters
        ----------
        present : mapping of str to int, optional
            Heavy atoms of each element that are there already.

        Raises
        ------
        ConfigError
            If there are more of an element than the limits allow, or too few of one that atoms
            cannot become.
        """
        present = present or {}
        for symbol, n in present.items():
            if n > self.at_most.get(symbol, _ANY):
                raise ConfigError(
                    f"the scaffold has {n} atoms of {symbol}, and at most "
                    f"{self.at_most[symbol]} are wanted; change the scaffold or the limit"
                )
        for symbol, n in self.at_least.items():
            if symbol not in self.elements and n > present.get(symbol, 0):
                raise ConfigError(
                    f"at least {n} atoms of {symbol} are wanted, which is not among the elements "
                    f"{', '.join(self.elements)}; add it"
                )
        there = [present.get(symbol, 0) for symbol in self.elements]
        least = [self.at_least.get(symbol, 0) for symbol in self.elements]
        most = [self.at_most.get(symbol, _ANY) for symbol in self.elements]
        return Palette(
            self.atomic_numbers,
            tuple(float(self.weights.get(symbol, 1.0)) for symbol in self.elements),
            tuple(max(0, low - n) for low, n in zip(least, there, strict=True)),
            tuple(high if high == _ANY else high - n for high, n in zip(most, there, strict=True)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the composition as what JSON can hold; :meth:`from_dict` undoes it."""
        return {
            "elements": list(self.elements),
            "weights": dict(self.weights),
            "at_least": dict(self.at_least),
            "at_most": dict(self.at_most),
            "n_hydrogens": self.n_hydrogens,
            "charge": self.charge,
            "formal_charges": self.formal_charges,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Composition:
        """Build a composition from what :meth:`to_dict` returns."""
        given = dict(values)
        given["elements"] = tuple(given.get("elements", cls().elements))
        try:
            return cls(**given)
        except TypeError as error:
            raise ConfigError(f"cannot make a composition: {error}") from None
