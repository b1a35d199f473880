"""The likeliest bonds by variable elimination, which is fast unless atoms are crowded.

The variables are atoms. A value is a state together with the orders of the atom's bonds; what a
bond costs is infinite where its ends do not agree on its order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from heapq import heappop, heappush
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from simgen.finishing.bond_problem import BondProblem, Solution, possible_links
from simgen.finishing.connectivity import fragments
from simgen.finishing.elimination import Elimination, Totals
from simgen.finishing.skeleton import Array
from simgen.finishing.states import State, States

MAX_ENTRIES = 2**23
"""Most entries that a table may have at each noise level, 64 MiB of them."""
MAX_ADDITIONS = 2**27
"""Most additions that may go into a table at each noise level."""
MAX_TRIED = 1000
"""Most bonds that are tried at a noise level to bring fragments together."""
MAX_TRIED_ENTRIES = 2**25
"""Most entries that the largest tables of all these trials may have together."""

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class _Values:
    """What an atom may be.

    Attributes
    ----------
    states : ndarray, shape (n_values,)
        Index of the state.
    orders : ndarray, shape (n_values, n_pairs_of_the_atom)
        Orders of its pairs, 0 for those that stay unbonded.
    """

    states: Integers
    orders: Integers


@lru_cache(maxsize=4096)
def _values(states: States, allowed: tuple[tuple[int, ...], ...]) -> _Values:
    """Values of an atom with these states, the orders of whose pairs are among those allowed."""
    found = [
        (s, orders)
        for s, state in enumerate(states)
        for orders in _distributions(state, len(allowed))
        if all(order in options for order, options in zip(orders, allowed, strict=True))
    ]
    return _Values(
        np.array([s for s, _ in found], dtype=np.int64),
        np.array([orders for _, orders in found], dtype=np.int64).reshape(len(found), len(allowed)),
    )


def _distributions(state: State, n_pairs: int) -> Iterator[list[int]]:
    """All ways to distribute the bonds of a state over the pairs of its atom."""
    for bonded in combinations(range(n_pairs), state.degree):
        for double in combinations(bonded, state.n_double):
            for triple in combinations(sorted({*bonded} - {*double}), state.n_triple):
                yield [(k in bonded) + (k in double) + 2 * (k in triple) for k in range(n_pairs)]


@lru_cache(maxsize=1024)
def _choices(
    states: tuple[States, States], values: tuple[_Values, _Values], places: tuple[int, int]
) -> Integers:
    """Which choice of a pair the values of its two atoms make, shape (n_values, n_values).

    ``places`` are those of the pair among the pairs of each atom.
    """
    links = possible_links(*states)
    choice_of = np.full((*map(len, states), 4), len(links))
    choice_of[..., 0] = len(links) + 1
    for choice, link in enumerate(links):
        choice_of[link] = choice
    orders, others = (v.orders[:, place] for v, place in zip(values, places, strict=True))
    choices = choice_of[values[0].states[:, None], values[1].states, orders[:, None]]
    return np.where(orders[:, None] == others, choices, len(links))


@lru_cache(maxsize=4096)
def _counts(states: States, values: _Values, names: tuple[str, ...]) -> Integers:
    """What each value adds to totals of these names, shape (n_totals, n_values)."""
    of_states = [[getattr(state, name) for state in states] for name in names]
    return np.array(of_states, dtype=np.int64)[:, values.states]


class Undecided(Exception):  # noqa: N818 - it is no error
    """The minimum is not found in this way."""


class BondField:
    """The atoms of a problem, which depend on each other through its pairs.

    Parameters
    ----------
    problem : BondProblem
        What there is to choose from.

    Raises
    ------
    Undecided
        If it would take too long.
    """

    def __init__(self, problem: BondProblem) -> None:
        self._pairs, self._states = problem.pairs, problem.states
        allowed: list[list[tuple[int, ...]]] = [[] for _ in self._states]
        self._places = []  # of each pair among those of its first and of its second atom
        for (i, j), orders in zip(self._pairs, problem.orders, strict=True):
            self._places.append((len(allowed[i]), len(allowed[j])))
            allowed[i].append(orders)
            allowed[j].append(orders)
        self._values = [
            _values(states, tuple(orders))
            for states, orders in zip(self._states, allowed, strict=True)
        ]
        self._elimination = Elimination(
            [len(values.states) for values in self._values],
            [*((i,) for i in range(len(self._values))), *self._pairs],
        )
        self._check_size(1)
        names = tuple(problem.wanted.totals)
        self._counts = [
            _counts(states, values, names)
            for states, values in zip(self._states, self._values, strict=True)
        ]
        self._wanted = np.array([*problem.wanted.totals.values()])
        self._atom_costs = [
            problem.state_costs.of(i, values.states) for i, values in enumerate(self._values)
        ]
        self._pair_costs = [
            problem.link_costs.of(
                b,
                _choices(
                    (self._states[i], self._states[j]), (self._values[i], self._values[j]), places
                ),
            )
            for b, ((i, j), places) in enumerate(zip(self._pairs, self._places, strict=True))
        ]

    @cached_property
    def _totals(self) -> Totals:
        return Totals.of(self._counts, self._wanted.tolist())

    def solve(self) -> list[Solution | None]:
        """Return the likeliest assignment, if there is one, at each noise level.

        Raises
        ------
        Undecided
            If it would take too long.
        """
        if not all(len(values.states) for values in self._values):
            return [None] * len(self._atom_costs[0])
        costs, values = self._minimise(self._atom_costs, self._pair_costs)
        return [
            self._in_one_piece(level, cost, of_level)
            for level, (cost, of_level) in enumerate(zip(costs.tolist(), values, strict=True))
        ]

    def _in_one_piece(self, level: int, cost: float, values: Integers) -> Solution | None:
        """Likeliest connected assignment at a level, given the likeliest one of all.

        Fragments must not stay apart: one of the pairs that lead out of each has to be bonded. That
        is the first of these, or not this one but the second, and so on; what may be cheapest of
        all that is left open is looked at next.
        """
        waiting: list[tuple[float, int, Integers, dict[int, bool]]] = [(cost, 0, values, {})]
        n_tried = 0
        while waiting:
            cost, _, values, is_bonded = heappop(waiting)
            if np.isinf(cost):
                break
            solution = self._solution(cost, values)
            labels = fragments(len(self._states), set(solution.bonded))
            if labels.max() == 0:
                return solution
            for b in self._fewest_leaving(labels, is_bonded):
                n_tried += 1
                n_entries = n_tried * self._elimination.largest
                if n_tried > MAX_TRIED or n_entries > MAX_TRIED_ENTRIES:
                    raise Undecided
                tried = is_bonded | {b: True}
                (cost,), (values,) = self._minimise(*self._costs_where(level, tried))
                heappush(waiting, (float(cost), n_tried, values, tried))
                is_bonded = is_bonded | {b: False}
        return None

    def _minimise(self, atom_costs: list[Array], pair_costs: list[Array]) -> tuple[Array, Integers]:
        """Least costs, shape (n_levels,), and the values of all atoms there."""
        tables = [*atom_costs, *pair_costs]
        costs, values = self._elimination.minimise(tables)
        counted = [of_atom[:, v] for of_atom, v in zip(self._counts, values.T, strict=True)]
        excess = np.sum(counted, 0) - self._wanted[:, None]
        wrong = np.isfinite(costs) & excess.any(0)
        if wrong.any():
            self._check_size(self._totals.whole + 1)
            costs[wrong], values[wrong] = self._elimination.minimise(
                [table[wrong] for table in tables], self._totals
            )
        return costs, values

    def _check_size(self, n_totals: int) -> None:
        n_entries = self._elimination.largest * n_totals
        if n_entries > MAX_ENTRIES or n_entries * n_totals > MAX_ADDITIONS:
            raise Undecided

    def _solution(self, cost: float, values: Integers) -> Solution:
        chosen = list(zip(self._values, values.tolist(), strict=True))
        return Solution(
            cost,
            [
                states[of_atom.states[v]]
                for states, (of_atom, v) in zip(self._states, chosen, strict=True)
            ],
            {
                pair: int(chosen[pair[0]][0].orders[values[pair[0]], place])
                for pair, (place, _) in zip(self._pairs, self._places, strict=True)
            },
        )

    def _fewest_leaving(self, labels: Integers, is_bonded: dict[int, bool]) -> list[int]:
        """Pairs that may be bonded out of the fragment that fewest lead out of."""
        leaving: list[list[int]] = [[] for _ in range(labels.max() + 1)]
        for b, (i, j) in enumerate(self._pairs):
            if labels[i] != labels[j] and b not in is_bonded:
                leaving[labels[i]].append(b)
                leaving[labels[j]].append(b)
        return min(leaving, key=len)

    def _costs_where(
        self, level: int, is_bonded: dict[int, bool]
    ) -> tuple[list[Array], list[Array]]:
        """Costs of the values of atoms and pairs, some of which are bonded and some not."""
        atom_costs, pair_costs = (
            [costs[level : level + 1] for costs in of_all]
            for of_all in (self._atom_costs, self._pair_costs)
        )
        for b, bonded in is_bonded.items():
            i, place = self._pairs[b][0], self._places[b][0]
            fits = (self._values[i].orders[:, place] > 0) == bonded
            atom_costs[i] = np.where(fits, atom_costs[i], np.inf)
        return atom_costs, pair_costs
