"""What every state of the atoms of a skeleton, and every order of its bonds, costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, product

import numpy as np
from numpy.typing import NDArray

from simgen.elements import COVALENT_RADII
from simgen.finishing.bond_statistics import AXES, BondStatistics
from simgen.finishing.skeleton import Array, Skeleton
from simgen.finishing.states import State, States, Wanted, possible_orders

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Solution:
    """An assignment: the state of each atom, and the order of each pair, 0 if it is not bonded."""

    cost: float
    states: list[State]
    orders: dict[Pair, int]

    @property
    def bonded(self) -> frozenset[Pair]:
        """Pairs that are bonded."""
        return frozenset(pair for pair, order in self.orders.items() if order > 0)


@lru_cache(maxsize=4096)
def possible_links(states: States, others: States) -> tuple[tuple[int, int, int], ...]:
    """Bonds between atoms with these states: index of the first, of the second one, order."""
    return tuple(
        (s, t, order)
        for (s, state), (t, other) in product(enumerate(states), enumerate(others))
        for order in possible_orders(state, other)
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """The choices of an atom or a pair.

    Attributes
    ----------
    costs : ndarray, shape (n_choices,)
        What they cost whatever the geometry.
    rows : dict of str to ndarray, shape (n_choices,)
        Rows of the features' cost tables that say what the geometry adds.
    """

    costs: Array
    rows: dict[str, NDArray[np.int64]]


@lru_cache(maxsize=4096)
def _state_block(states: States, ring: int | None, statistics: BondStatistics) -> _Block:
    """States of an atom in a ring of a size; None if rings are not known yet."""
    costs = [statistics.state_costs(s.z, s.degree, ring).get(s, 0.0) for s in states]
    conditions = [None if ring is None else (state, ring) for state in states]
    rows = {feature: statistics.rows(feature, conditions) for feature in ("angle", "height")}
    return _Block(np.array(costs), rows)


@lru_cache(maxsize=4096)
def _link_block(
    states: States, others: States, ring: int | None, statistics: BondStatistics
) -> _Block:
    """Possible links of a pair, and two more choices: impossible and not bonded."""
    keys = [
        (min(states[s], others[t]), max(states[s], others[t]), order)
        for s, t, order in possible_links(states, others)
    ]
    costs = [*(statistics.pair_cost(*key) for key in keys), np.inf, np.inf]
    twists = [None if ring is None else (*key, ring) for key in keys]
    rows = {
        "length": statistics.rows("length", [*keys, None, None]),
        "twist": statistics.rows("twist", [*twists, None, None]),
    }
    return _Block(np.array(costs), rows)


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """Costs of the choices that many atoms or pairs have, one after the other.

    Attributes
    ----------
    values : ndarray, shape (n_levels, n_choices)
        At each noise level.
    starts : list of int
        Where those of each atom or pair begin, and where the last ones end.
    """

    values: Array
    starts: list[int]

    def of(self, item: int, choices: NDArray[np.int64]) -> Array:
        """Costs of choices of an atom or a pair, shape (n_levels, *shape of choices)."""
        costs: Array = self.values[:, self.starts[item] + choices]
        return costs

    @classmethod
    def tabulate(
        cls,
        blocks: Sequence[_Block],
        features: Mapping[str, Array],
        levels: Sequence[float],
        statistics: BondStatistics,
    ) -> Costs:
        """Look all of them up; a feature that is NaN costs nothing."""
        sizes = [len(block.costs) for block in blocks]
        values = np.tile(np.concatenate([block.costs for block in blocks]), (len(levels), 1))
        for feature, of_items in features.items():
            rows = np.concatenate([block.rows[feature] for block in blocks])
            rows[np.repeat(np.isnan(of_items), sizes)] = 0
            bins = np.repeat(AXES[feature].bins(np.nan_to_num(of_items)), sizes)
            for of_level, noise in zip(values, levels, strict=True):
                of_level += statistics.cost_table(feature, noise)[rows, bins]
        return cls(values, [0, *np.cumsum(sizes).tolist()])


class BondProblem:
    """The choices that there are on a skeleton, of whose pairs some may stay unbonded.

    Where some may, angles and rings are not known yet, and only lengths speak.

    Parameters
    ----------
    skeleton : Skeleton
        Atoms and pairs.
    optional : set of (int, int)
        Pairs that may stay unbonded.
    wanted : Wanted
        What is asked of the assignment.
    levels : sequence of float
        Positional noise at which costs are wanted, angstrom per coordinate.
    statistics : BondStatistics
        Likelihoods.

    Attributes
    ----------
    states : list of States
        Those that each atom may be in.
    orders : list of tuple of int
        Those that each pair may have, 0 for staying unbonded.
    state_costs : Costs
        Of the states of each atom.
    link_costs : Costs
        Of the :func:`possible_links` of each pair. Two more choices follow: to be bonded in none of
        these ways, which is impossible, and to stay unbonded.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        optional: set[Pair],
        wanted: Wanted,
        levels: Sequence[float],
        statistics: BondStatistics,
    ) -> None:
        self.pairs, self.wanted, self.levels = skeleton.pairs, wanted, levels
        self.orders = [
            (wanted.known.orders[pair],)
            if pair in wanted.known.orders
            else ((0, 1, 2, 3) if pair in optional else (1, 2, 3))
            for pair in self.pairs
        ]
        n_optional = Counter(chain.from_iterable(optional))
        self.states = [
            wanted.states(i, z, max(len(around) - n_optional[i], 1), len(around))
            for i, (z, around) in enumerate(
                zip(skeleton.atomic_numbers, skeleton.neighbours, strict=True)
            )
        ]
        no_rings = [None] * len(self.states), [None] * len(self.pairs)
        atom_rings, pair_rings = no_rings if optional else skeleton.ring_sizes
        self.state_costs = Costs.tabulate(
            [
                _state_block(states, ring, statistics)
                for states, ring in zip(self.states, atom_rings, strict=True)
            ],
            {} if optional else {"angle": skeleton.angles, "height": skeleton.heights},
            levels,
            statistics,
        )
        lengths = skeleton.lengths
        self.link_costs = Costs.tabulate(
            [
                _link_block(self.states[i], self.states[j], ring, statistics)
                for (i, j), ring in zip(self.pairs, pair_rings, strict=True)
            ],
            {"length": lengths} if optional else {"length": lengths, "twist": skeleton.twists},
            levels,
            statistics,
        )
        gap = statistics.rows("gap", [()])[0]
        for b, (i, j) in enumerate(self.pairs):
            if (i, j) in optional:
                radii = sum(COVALENT_RADII[skeleton.atomic_numbers[end]] for end in (i, j))
                bin_ = AXES["gap"].bins(lengths[b] / radii)
                self.link_costs.values[:, self.link_costs.starts[b + 1] - 1] = [
                    statistics.gap_cost(radii) + statistics.cost_table("gap", noise)[gap, bin_]
                    for noise in levels
                ]
