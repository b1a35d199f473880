"""What atoms may be: the states that their valences allow, and those that are known beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

VALENCES: Mapping[int, tuple[tuple[int, int], ...]] = {
    6: ((0, 4), (-1, 3)),
    7: ((0, 3), (1, 4), (-1, 2)),
    8: ((0, 2), (-1, 1)),
    9: ((0, 1),),
    15: ((0, 3), (0, 5)),
    16: ((0, 2), (0, 4), (0, 6)),
    17: ((0, 1),),
    35: ((0, 1),),
}
"""(formal charge, valence) that the atoms of each element may have: all of them closed shell."""


class State(NamedTuple):
    """What an atom is: the valences it satisfies and how."""

    z: int
    charge: int
    valence: int
    n_double: int
    n_triple: int
    degree: int

    @property
    def n_hydrogens(self) -> int:
        """What the heavy neighbours leave of the valence; negative if they take too much."""
        return self.valence - self.degree - self.n_double - 2 * self.n_triple

    @property
    def n_single(self) -> int:
        """Single bonds to heavy neighbours."""
        return self.degree - self.n_double - self.n_triple

    @property
    def is_possible(self) -> bool:
        """Whether the bonds fit; charged atoms and hypervalent sulfur carry no hydrogen."""
        bare = self.charge != 0 or (self.z == 16 and self.valence > 2)
        fits = 0 <= self.n_hydrogens <= (0 if bare else 4)
        return fits and self.n_double + self.n_triple <= self.degree


class States(tuple[State, ...]):
    """States that an atom may be in: what many caches go by, and so hashed only once."""

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return super().__hash__()


@lru_cache
def possible_states(z: int, degree: int) -> tuple[State, ...]:
    """States an element can be in at a number of heavy neighbours."""
    every = (
        State(z, charge, valence, n_double, n_triple, degree)
        for charge, valence in VALENCES[z]
        for n_double, n_triple in ((0, 0), (1, 0), (2, 0), (0, 1))
    )
    return tuple(state for state in every if state.is_possible)


@lru_cache(maxsize=4096)
def possible_orders(a: State, b: State) -> tuple[int, ...]:
    """Orders possible for a bond between two states."""
    n_double, n_triple = min(a.n_double, b.n_double), min(a.n_triple, b.n_triple)
    single = a.n_single and b.n_single
    possible = ((1, single), (2, n_double), (3, n_triple))
    return tuple(order for order, is_possible in possible if is_possible)


@dataclass(frozen=True, slots=True)
class KnownAtom:
    """An atom whose bonds to other known atoms are known.

    Attributes
    ----------
    charge : int
        Formal charge.
    n_hydrogens : int
        Hydrogens that it keeps.
    n_open : int
        Hydrogens that new bonds may take the place of.
    """

    charge: int
    n_hydrogens: int
    n_open: int


@dataclass(frozen=True, slots=True)
class KnownBonds:
    """What is known of the first atoms of a skeleton: nothing of it is changed by an assignment.

    Attributes
    ----------
    atoms : tuple of KnownAtom
        The first atoms, in order.
    orders : mapping of (int, int) to int
        Order of each bond among them, by the indices of its ends in ascending order.
    """

    atoms: tuple[KnownAtom, ...] = ()
    orders: Mapping[tuple[int, int], int] = field(default_factory=dict)

    def concerns(self, pair: tuple[int, int]) -> bool:
        """Whether both ends of a pair are known atoms."""
        return max(pair) < len(self.atoms)

    def filter(self, pairs: set[tuple[int, int]]) -> set[tuple[int, int]]:
        """Return the known bonds, and the pairs whose ends are free to be bonded."""
        free = {
            pair
            for pair in pairs
            if not self.concerns(pair)
            and all(end >= len(self.atoms) or self.atoms[end].n_open for end in pair)
        }
        return free | set(self.orders)

    def states(self, i: int, z: int, degree: int) -> tuple[State, ...]:
        """States that a known atom may be in at a number of heavy neighbours."""
        atom = self.atoms[i]
        orders = [order for pair, order in self.orders.items() if i in pair]
        n_new = degree - len(orders)
        valence = sum(orders) + atom.n_hydrogens + atom.n_open
        found = []
        # What new bonds take beyond the first electron pair of each: nothing, one or two of them.
        for n_double, n_triple in ((0, 0), (1, 0), (2, 0), (0, 1)):
            used = n_new + n_double + 2 * n_triple
            if n_double + n_triple <= n_new and used <= atom.n_open:
                more = orders.count(2) + n_double, orders.count(3) + n_triple
                found.append(State(z, atom.charge, valence, *more, degree))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an assignment must satisfy beside the valences.

    Attributes
    ----------
    charge : int
        Total charge.
    formal_charges : bool
        Whether atoms of unknown bonds may have charges.
    n_hydrogens : int or None
        Hydrogens of the molecule; None for any number of them.
    known : KnownBonds
        What is known of the first atoms.
    """

    charge: int = 0
    formal_charges: bool = True
    n_hydrogens: int | None = None
    known: KnownBonds = field(default_factory=KnownBonds)

    @property
    def totals(self) -> dict[str, int]:
        """What the attributes of all states have to sum to."""
        charge = {"charge": self.charge}
        return charge if self.n_hydrogens is None else charge | {"n_hydrogens": self.n_hydrogens}

    def states(self, i: int, z: int, least: int, most: int) -> States:
        """States that an atom may be in at least and at most so many heavy neighbours."""
        if i >= len(self.known.atoms):
            return _states_between(z, least, most, self.formal_charges)
        degrees = range(least, most + 1)
        return States(state for degree in degrees for state in self.known.states(i, z, degree))


@lru_cache
def _states_between(z: int, least: int, most: int, formal_charges: bool) -> States:
    return States(
        state
        for degree in range(least, most + 1)
        for state in possible_states(z, degree)
        if formal_charges or state.charge == 0
    )
