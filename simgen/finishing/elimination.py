"""Exact minimisation of sums of small tables by variable elimination.

    minimise    sum_f table_f(x_i, x_j, ...)    over discrete variables x

One variable after the other is minimised over, which leaves a table over those it shared a table
with [1]_. The cost grows exponentially with the treewidth of the graph of variables, which is
two to four for molecules.

References
----------
.. [1] U. Bertelè, F. Brioschi, Nonserial Dynamic Programming, Academic Press (1972).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Step:
    """The elimination of one variable.

    ``parts`` are the tables to be added, original ones first and then those of earlier steps, each
    with the index that gives it the axes of ``scope``: batch first, variables in ascending order.
    """

    variable: int
    scope: tuple[int, ...]
    parts: list[tuple[int, tuple[slice | None, ...]]]


class Elimination:
    """In which order to eliminate the variables of a sum of tables; it serves many such sums.

    The next variable is always the one whose elimination takes the smallest table.

    Parameters
    ----------
    sizes : sequence of int
        Number of values of each variable.
    scopes : sequence of tuple of int
        Variables of each table, in ascending order.

    Attributes
    ----------
    largest : int
        Entries of the largest table that is made.

    Examples
    --------
    >>> chain = Elimination([2, 2], [(0,), (0, 1)])
    >>> unary, pair = np.array([[0.0, 1.0]]), np.array([[[4.0, 3.0], [0.0, 5.0]]])
    >>> chain.minimise([unary, pair])
    (array([1.]), array([[1, 0]]))
    """

    def __init__(self, sizes: Sequence[int], scopes: Sequence[tuple[int, ...]]) -> None:
        self._steps: list[_Step] = []
        self.largest = 1
        tables = dict(enumerate(scopes))
        around: list[set[int]] = [{v} for v in range(len(sizes))]
        for scope in scopes:
            for v in scope:
                around[v].update(scope)
        size_of = {v: math.prod(sizes[w] for w in scope) for v, scope in enumerate(around)}
        while size_of:
            variable = min(size_of, key=size_of.__getitem__)
            self.largest = max(self.largest, size_of.pop(variable))
            rest = around[variable] - {variable}
            for v in rest:
                around[v] = (around[v] | rest) - {variable}
                size_of[v] = math.prod(sizes[w] for w in around[v])
            scope = tuple(sorted(around[variable]))
            parts = [k for k, table in tables.items() if variable in table]
            self._steps.append(
                _Step(variable, scope, [(k, _axes(tables.pop(k), scope)) for k in parts])
            )
            tables[len(scopes) + len(self._steps) - 1] = tuple(sorted(rest))
        self._left = list(tables)

    def minimise(self, tables: Sequence[Array]) -> tuple[Array, NDArray[np.int64]]:
        """Return the least sum and where it is.

        Parameters
        ----------
        tables : sequence of ndarray, shape (n_batch, size of first variable, ...)
            Costs, infinite where something is impossible.

        Returns
        -------
        costs : ndarray, shape (n_batch,)
            Infinite if nothing is possible.
        values : ndarray, shape (n_batch, n_variables)
            The first of several equally good values, from the variable eliminated last to the one
            eliminated first.
        """
        tables, sums = list(tables), []
        for step in self._steps:
            total = reduce(np.add, [tables[k][axes] for k, axes in step.parts])
            sums.append(total)
            tables.append(total.min(step.scope.index(step.variable) + 1))
        costs = reduce(np.add, [tables[k] for k in self._left])
        batch = np.arange(len(costs))
        values = np.zeros((len(costs), len(self._steps)), dtype=np.int64)
        for step, total in zip(reversed(self._steps), reversed(sums), strict=True):
            chosen = [slice(None) if v == step.variable else values[:, v] for v in step.scope]
            values[:, step.variable] = total[batch, *chosen].argmin(-1)
        return costs, values


def _axes(scope: tuple[int, ...], wider: tuple[int, ...]) -> tuple[slice | None, ...]:
    """Index that gives a batch of tables over some variables the axes of a wider scope."""
    return slice(None), *(slice(None) if v in scope else None for v in wider)
