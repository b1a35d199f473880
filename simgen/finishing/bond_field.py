"""The likeliest bonds by variable elimination, which is fast but does not cope with everything.

The variables are atoms. A value is a state together with the orders of the atom's bonds; what a
bond costs is infinite where its ends do not agree on its order. That leaves what concerns the
molecule as a whole. Totals (of charge, of hydrogens) are met by a price for each of their units: a
minimum of ``cost + price * total`` that has the total that is wanted costs least of all that have
it. There are totals that no price leads to, molecules whose minimum is not in one piece, and
crowds of atoms in which elimination would take too long: these stay undecided.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from simgen.finishing.bond_problem import BondProblem, Solution, States, possible_links
from simgen.finishing.elimination import Elimination
from simgen.finishing.skeleton import Array
from simgen.finishing.states import State

MAX_TABLE = 2**20
"""Most entries that a table may have at each noise level, 8 MiB of them."""
MAX_PRICES = 12
"""Most prices that are tried for a total."""
_FIRST_PRICE = 4.0

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
        np.array([orders for _, orders in found], dtype=np.int64).reshape(-1, len(allowed)),
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


@dataclass(frozen=True, slots=True, eq=False)
class _Minimum:
    """Cheapest values at some prices; their cost without these, infinite if they are impossible."""

    cost: float
    values: Integers  # (n_atoms,)
    totals: Integers  # (n_totals,)


@dataclass(frozen=True, slots=True, eq=False)
class _Field:
    """Costs of all values, and what is to be met by them."""

    elimination: Elimination
    atom_costs: list[Array]  # (n_levels, n_values) of each atom
    pair_costs: list[Array]  # (n_levels, n_values, n_values of the other) of each pair
    counts: list[Integers]  # (n_totals, n_values) of each atom
    wanted: Integers  # (n_totals,)

    def minimise(self, levels: Sequence[int], prices: Array) -> list[_Minimum]:
        """Minimum at each of some noise levels, at given prices, shape (n_totals,)."""
        priced = [
            costs[levels] + prices @ counts
            for costs, counts in zip(self.atom_costs, self.counts, strict=True)
        ]
        costs, values = self.elimination.minimise([*priced, *(t[levels] for t in self.pair_costs)])
        totals = np.sum([counts[:, v] for counts, v in zip(self.counts, values.T, strict=True)], 0)
        return [
            _Minimum(float(cost - prices @ total), of_level, total)
            for cost, of_level, total in zip(costs, values, totals.T, strict=True)
        ]

    def meet(self, level: int, prices: Array, n: int) -> _Minimum | None:
        """Minimum that meets the first n totals, at given prices of the others.

        None if no price was found that leads there.
        """
        if n == 0:
            return self.minimise([level], prices)[0]
        below: _Minimum | None = None
        above: _Minimum | None = None
        price, k = 0.0, n - 1
        for _ in range(MAX_PRICES):
            prices = np.concatenate([prices[:k], [price], prices[n:]])
            found = self.meet(level, prices, k)
            if found is None or np.isinf(found.cost) or found.totals[k] == self.wanted[k]:
                return found
            if below and above and found.totals[k] in (below.totals[k], above.totals[k]):
                return None  # the total wanted costs more than a mixture of these two
            if found.totals[k] < self.wanted[k]:
                below = found
            else:
                above = found
            if below and above:  # both are to cost the same
                excess = (below.cost - above.cost) + prices[n:] @ (below.totals - above.totals)[n:]
                price = float(excess / (above.totals[k] - below.totals[k]))
            else:
                price = 2 * price or math.copysign(_FIRST_PRICE, found.totals[k] - self.wanted[k])
        return None


def solve_by_elimination(problem: BondProblem) -> dict[int, Solution | None]:
    """Return the likeliest assignment, if there is one, at each noise level that is decided.

    Parameters
    ----------
    problem : BondProblem
        What there is to choose from.
    """
    if not all(problem.states):
        return dict.fromkeys(range(len(problem.levels)))
    allowed: list[list[tuple[int, ...]]] = [[] for _ in problem.states]
    places = []  # of each pair among those of its first and of its second atom
    for (i, j), orders in zip(problem.pairs, problem.orders, strict=True):
        places.append((len(allowed[i]), len(allowed[j])))
        allowed[i].append(orders)
        allowed[j].append(orders)
    of_atoms = [
        _values(states, tuple(orders))
        for states, orders in zip(problem.states, allowed, strict=True)
    ]
    elimination = Elimination(
        [len(values.states) for values in of_atoms],
        [*((i,) for i in range(len(of_atoms))), *problem.pairs],
    )
    if elimination.largest > MAX_TABLE:
        return {}
    totals = problem.wanted.totals
    field = _Field(
        elimination,
        [problem.state_costs.of(i, values.states) for i, values in enumerate(of_atoms)],
        [
            problem.link_costs.of(
                b,
                _choices(
                    (problem.states[i], problem.states[j]), (of_atoms[i], of_atoms[j]), places[b]
                ),
            )
            for b, (i, j) in enumerate(problem.pairs)
        ],
        [
            _counts(states, values, tuple(totals))
            for states, values in zip(problem.states, of_atoms, strict=True)
        ],
        np.array([*totals.values()]),
    )
    free = np.zeros(len(totals))
    decided: dict[int, Solution | None] = {}
    for level, cheapest in enumerate(field.minimise(range(len(problem.levels)), free)):
        is_met = np.isinf(cheapest.cost) or (cheapest.totals == field.wanted).all()
        found = cheapest if is_met else field.meet(level, free, len(free))
        if found is None:
            continue
        if np.isinf(found.cost):
            decided[level] = None
            continue
        chosen = list(zip(of_atoms, found.values.tolist(), strict=True))
        solution = Solution(
            found.cost,
            [
                states[values.states[v]]
                for states, (values, v) in zip(problem.states, chosen, strict=True)
            ],
            {
                (i, j): int(of_atoms[i].orders[found.values[i], place])
                for (i, j), (place, _) in zip(problem.pairs, places, strict=True)
            },
        )
        if solution.is_connected:
            decided[level] = solution
    return decided
