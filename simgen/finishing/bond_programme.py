"""The likeliest bonds by integer linear programming, which copes with everything.

A variable for each state of an atom, each order of a bond together with the states of its ends, and
each pair that may stay unbonded; each is 0 or 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from simgen.finishing.bond_problem import BondProblem, Pair, Solution, possible_links
from simgen.finishing.connectivity import fragments
from simgen.finishing.skeleton import Array


class BondProgramme:
    """The integer linear programme of a problem: the same at all noise levels, but for the costs.

    Parameters
    ----------
    problem : BondProblem
        What there is to choose from.
    """

    def __init__(self, problem: BondProblem) -> None:
        self._problem = problem
        self._costs: list[Array] = []  # of each variable, at all levels
        self._rows: list[int] = []
        self._columns: list[int] = []
        self._values: list[float] = []
        self._lower: list[float] = []
        self._upper: list[float] = []
        self._states = [
            [self._variable(cost) for cost in problem.state_costs.of(i, np.arange(len(states))).T]
            for i, states in enumerate(problem.states)
        ]
        self._orders: dict[Pair, list[tuple[int, int]]] = {}
        self._absent: dict[Pair, int] = {}
        for variables in self._states:
            self._constrain([(v, 1.0) for v in variables], 1.0, 1.0)
        self._add_bonds()
        self._constrain_totals()

    def solve(self, level: int) -> Solution | None:
        """Return the likeliest assignment at a noise level, if there is one."""
        if not all(self._states):
            return None
        costs = np.array([cost[level] for cost in self._costs])
        while True:
            chosen = self._minimise(costs)
            if chosen is None:
                return None
            orders = {
                pair: next((order for v, order in variables if v in chosen), 0)
                for pair, variables in self._orders.items()
            }
            labels = fragments(len(self._states), {pair for pair, order in orders.items() if order})
            if labels.max() == 0:
                break
            # fragments must not stay apart: one of the optional bonds leaving this one has to be
            leaving = [
                v for (i, j), v in self._absent.items() if (labels[i] == 0) != (labels[j] == 0)
            ]
            self._constrain([(v, 1.0) for v in leaving], -np.inf, len(leaving) - 1.0)
        states = [
            next(state for state, v in zip(of_atom, variables, strict=True) if v in chosen)
            for of_atom, variables in zip(self._problem.states, self._states, strict=True)
        ]
        return Solution(float(costs[sorted(chosen)].sum()), states, orders)

    def _minimise(self, costs: Array) -> set[int] | None:
        """Variables that are 1 at the optimum, if there is one."""
        matrix = csr_array(
            (self._values, (self._rows, self._columns)), shape=(len(self._lower), len(costs))
        )
        for integral in (0, 1):  # the relaxation is nearly always integral, hence optimal
            result = milp(
                costs,
                integrality=np.full(len(costs), integral),
                bounds=Bounds(0, 1),
                constraints=LinearConstraint(matrix, self._lower, self._upper),
                options={"mip_rel_gap": 0.0, "presolve": bool(integral)},
            )
            if result.x is None:
                return None
            if np.abs(result.x - np.round(result.x)).max() < 1e-6:
                break
        return set(np.flatnonzero(result.x > 0.5).tolist())

    def _variable(self, cost: Array) -> int:
        self._costs.append(cost)
        return len(self._costs) - 1

    def _constrain(self, terms: Iterable[tuple[int, float]], lower: float, upper: float) -> None:
        for column, value in terms:
            self._rows.append(len(self._lower))
            self._columns.append(column)
            self._values.append(value)
        self._lower.append(lower)
        self._upper.append(upper)

    def _add_bonds(self) -> None:
        """Each pair has an order, or none, that suits the states of its ends."""
        problem = self._problem
        # at_end[i, state][order] collects the variables of all bonds of an atom.
        at_end: dict[tuple[int, int], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for b, (i, j) in enumerate(problem.pairs):
            links = possible_links(problem.states[i], problem.states[j])
            costs = problem.link_costs.of(b, np.arange(len(links) + 2)).T
            is_optional = 0 in problem.orders[b]
            variables: list[tuple[int, int]] = []
            ends: dict[tuple[int, int], list[int]] = defaultdict(list)
            for (s, t, order), cost in zip(links, costs[:-2], strict=True):
                if order in problem.orders[b]:
                    v = self._variable(cost)
                    variables.append((v, order))
                    for end in ((i, s), (j, t)):
                        ends[end].append(v)
                        at_end[end][order].append(v)
            if is_optional:
                self._absent[i, j] = absent = self._variable(costs[-1])
                everything = [(v, 1.0) for v, _ in variables]
                self._constrain([*everything, (absent, 1.0)], 1.0, 1.0)
            for k in (i, j):
                for s, x_s in enumerate(self._states[k]):
                    terms = [*((v, 1.0) for v in ends[k, s]), (x_s, -1.0)]
                    self._constrain(terms, -np.inf if is_optional else 0.0, 0.0)
            self._orders[i, j] = variables
        for i, states in enumerate(problem.states):
            for s, (state, x_s) in enumerate(zip(states, self._states[i], strict=True)):
                by_order = at_end[i, s]
                for order, n in ((2, state.n_double), (3, state.n_triple)):
                    if n > 0:  # otherwise there are no such bonds to begin with
                        terms = [*((v, 1.0) for v in by_order[order]), (x_s, -float(n))]
                        self._constrain(terms, 0.0, 0.0)
                if self._absent:
                    all_orders = [(v, 1.0) for group in by_order.values() for v in group]
                    self._constrain([*all_orders, (x_s, -float(state.degree))], 0.0, 0.0)

    def _constrain_totals(self) -> None:
        """The charge of the molecule, and its number of hydrogens if that is given."""
        for name, total in self._problem.wanted.totals.items():
            terms = [
                (x_s, float(getattr(state, name)))
                for states, variables in zip(self._problem.states, self._states, strict=True)
                for state, x_s in zip(states, variables, strict=True)
            ]
            self._constrain(terms, total, total)
