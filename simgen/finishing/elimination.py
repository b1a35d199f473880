"""Exact minimisation of sums of small tables by variable elimination.

    minimise    sum_f table_f(x_i, x_j, ...)    over discrete variables x
    subject to  sum_i count_i(x_i) = whole

One variable after the other is minimised over, which leaves a table over those it shared a table
with [1]_. Tables have one more axis for what the variables eliminated so far count. The cost grows
exponentially with the treewidth of the graph of variables, which is two to four for molecules.

References
----------
.. [1] U. Bertelè, F. Brioschi, Nonserial Dynamic Programming, Academic Press (1972).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Step:
    """The elimination of one variable.

    Attributes
    ----------
    variable : int
        The variable.
    later : tuple of int
        Those it shares a table with that are eliminated later.
    scope : tuple of int
        All of these, in ascending order.
    parts : list
        Tables to be added, original ones first and then those of earlier steps, each with the index
        that gives it the axes of ``scope`` after that of the batch.
    earlier : list of int
        Steps whose tables these are.
    """

    variable: int
    later: tuple[int, ...]
    scope: tuple[int, ...]
    parts: list[tuple[int, tuple[slice | None, ...]]]
    earlier: list[int]


@dataclass(frozen=True, slots=True, eq=False)
class Totals:
    """What the values of all variables have to add up to, as a single number.

    Attributes
    ----------
    counts : list of ndarray, shape (size of variable,)
        What each value of each variable adds: nothing or more.
    whole : int
        What they are to add up to; negative if they cannot.
    """

    counts: list[Integers]
    whole: int

    @classmethod
    def of(cls, counts: Sequence[Integers], totals: Sequence[int]) -> Totals:
        """Make one number of several.

        Each is counted from its least or its largest possible total, whichever is nearer, so that
        no part has more than the whole and few have less. Together they are digits of a number.

        Parameters
        ----------
        counts : sequence of ndarray, shape (n_totals, size of variable)
            What each value of each variable adds to each total, of either sign.
        totals : sequence of int, shape (n_totals,)
            What they are to add up to.
        """
        least, most = (
            np.array([end(of_values, axis=1) for of_values in counts]) for end in (np.min, np.max)
        )
        below, above = np.array(totals) - least.sum(0), most.sum(0) - np.array(totals)
        up = below <= above
        digits = np.cumprod([1, *(most - least).sum(0)[:-1] + 1])
        if min(below.min(), above.min()) < 0:
            return cls([of_values[0] * 0 for of_values in counts], -1)
        return cls(
            [
                digits @ np.where(up[:, None], of_values - low[:, None], high[:, None] - of_values)
                for of_values, low, high in zip(counts, least, most, strict=True)
            ],
            int(digits @ np.where(up, below, above)),
        )


class Elimination:
    """In which order to eliminate the variables of a sum of tables; it serves many such sums.

    The next variable is always the one whose elimination takes the smallest table.

    Parameters
    ----------
    sizes : sequence of int
        Number of values of each variable.
    scopes : sequence of tuple of int
        Variables of each table, in ascending order; each variable is in one of them at least.

    Attributes
    ----------
    largest : int
        Entries of the largest table that is made, but for the axis of the total.

    Examples
    --------
    >>> chain = Elimination([2, 2], [(0,), (0, 1)])
    >>> tables = [np.array([[0.0, 1.0]]), np.array([[[4.0, 3.0], [0.0, 5.0]]])]
    >>> chain.minimise(tables)
    (array([1.]), array([[1, 0]]))
    >>> chain.minimise(tables, Totals.of([np.array([[0, 1]])] * 2, [2]))
    (array([6.]), array([[1, 1]]))
    """

    def __init__(self, sizes: Sequence[int], scopes: Sequence[tuple[int, ...]]) -> None:
        self._n_tables, self._steps, self.largest = len(scopes), list[_Step](), 1
        tables = list(scopes)
        around: list[set[int]] = [{v} for v in range(len(sizes))]
        tables_of: list[set[int]] = [set() for _ in sizes]
        for k, table in enumerate(tables):
            for v in table:
                around[v].update(table)
                tables_of[v].add(k)
        size_of = {v: math.prod(sizes[w] for w in scope) for v, scope in enumerate(around)}
        while size_of:
            variable = min(size_of, key=size_of.__getitem__)
            self.largest = max(self.largest, size_of.pop(variable))
            scope = tuple(sorted(around[variable]))
            later = tuple(v for v in scope if v != variable)
            parts = sorted(tables_of[variable])
            for v in later:
                around[v] = around[v].union(later) - {variable}
                size_of[v] = math.prod(sizes[w] for w in around[v])
                tables_of[v] = tables_of[v].difference(parts) | {len(tables)}
            self._steps.append(
                _Step(
                    variable,
                    later,
                    scope,
                    [(k, _axes(tables[k], scope)) for k in parts],
                    [k - self._n_tables for k in parts if k >= self._n_tables],
                )
            )
            tables.append(later)
        # The last one of each part of the graph that is not connected to others.
        self._last = [k for k, step in enumerate(self._steps) if not step.later]

    def minimise(
        self, tables: Sequence[Array], totals: Totals | None = None
    ) -> tuple[Array, Integers]:
        """Return the least sum and where it is.

        Parameters
        ----------
        tables : sequence of ndarray, shape (n_batch, size of first variable, ...)
            Costs, infinite where something is impossible.
        totals : Totals, optional
            What the values have to add up to.

        Returns
        -------
        costs : ndarray, shape (n_batch,)
            Infinite where nothing is possible.
        values : ndarray, shape (n_batch, n_variables)
            Of several equally good ones the first, variables in the reverse of the order of their
            elimination. Anything where nothing is possible.
        """
        batch = np.arange(len(tables[0]))
        values = np.zeros((len(batch), len(self._steps)), dtype=np.int64)
        whole = totals.whole if totals else 0
        if whole < 0:
            return np.full(len(batch), np.inf), values
        tables, sums = [table[..., None] for table in tables], []
        for step in self._steps:
            sums.append(_sums([tables[k][axes] for k, axes in step.parts], whole)[-1])
            axis = step.scope.index(step.variable) + 1
            counts = totals.counts[step.variable] if totals else None
            tables.append(_minimum(sums[-1], axis, counts, whole))

        def shares(of_steps: Sequence[int], total: Integers) -> dict[int, Integers]:
            """What the variables up to each of some steps count, given later ones."""
            if len(of_steps) < 2:
                return dict.fromkeys(of_steps, total)
            parts = [
                tables[self._n_tables + k][batch, *(values[:, v] for v in self._steps[k].later)]
                for k in of_steps
            ]
            return dict(zip(of_steps, _shares(parts, total), strict=True))

        ends = _sums([tables[self._n_tables + k] for k in self._last], whole)[-1]
        costs = _at(ends, np.full(len(batch), whole))
        share = shares(self._last, np.full(len(batch), whole)) if totals else {}
        for k, step in reversed(list(enumerate(self._steps))):
            chosen = [slice(None) if v == step.variable else values[:, v] for v in step.scope]
            options = sums[k][batch, *chosen]
            if totals is None:
                values[:, step.variable] = options[..., 0].argmin(1)
            else:
                rest = share[k][:, None] - totals.counts[step.variable]
                values[:, step.variable] = picked = _at(options, rest).argmin(1)
                # Nothing is negative unless nothing is possible.
                share |= shares(step.earlier, np.maximum(rest[batch, picked], 0))
        return costs, values


def _axes(scope: tuple[int, ...], wider: tuple[int, ...]) -> tuple[slice | None, ...]:
    """Index that gives a batch of tables over some variables the axes of a wider scope."""
    return slice(None), *(slice(None) if v in scope else None for v in wider)


def _sums(parts: Sequence[Array], whole: int) -> list[Array]:
    """Sum of the first part, of the first two parts, ..., for totals of the sum up to the whole."""
    return list(accumulate(parts, partial(_add, whole=whole)))


def _add(a: Array, b: Array, whole: int) -> Array:
    """Least sum of two tables for each total, which is the last axis."""
    if a.shape[-1] < b.shape[-1]:
        a, b = b, a
    if b.shape[-1] == 1:
        return a + b
    n_totals = min(a.shape[-1] + b.shape[-1] - 1, whole + 1)
    least = np.full((*np.broadcast_shapes(a.shape[:-1], b.shape[:-1]), n_totals), np.inf)
    for k in range(b.shape[-1]):
        part = least[..., k : k + a.shape[-1]]
        np.minimum(part, a[..., : part.shape[-1]] + b[..., k : k + 1], out=part)
    return least


def _minimum(table: Array, axis: int, counts: Integers | None, whole: int) -> Array:
    """Minimum over a variable, whose values count something."""
    if counts is None or not counts.any():
        least: Array = table.min(axis)
        return least
    n_totals = min(table.shape[-1] + int(counts.max()), whole + 1)
    least = np.full((*table.shape[:axis], *table.shape[axis + 1 : -1], n_totals), np.inf)
    for count in set(counts[counts <= whole].tolist()):
        part = least[..., count : count + table.shape[-1]]
        alike = np.compress(counts == count, table[..., : part.shape[-1]], axis)
        np.minimum(part, alike.min(axis), out=part)
    return least


def _at(table: Array, totals: Integers) -> Array:
    """Entries of a table at totals, which is its last axis; infinite where there are none."""
    is_there = (totals >= 0) & (totals < table.shape[-1])
    places = np.where(is_there, totals, 0)
    entries = table.reshape(-1, table.shape[-1])[np.arange(places.size), places.ravel()]
    return np.where(is_there, entries.reshape(places.shape), np.inf)


def _shares(parts: Sequence[Array], total: Integers) -> list[Integers]:
    """What each part, shape (n_batch, n_totals), counts where they sum to the least."""
    if not total.any():
        return [total] * len(parts)
    sums, found = _sums(parts, int(total.max())), []
    for part, before in zip(reversed(parts[1:]), reversed(sums[:-1]), strict=True):
        rest = total[:, None] - np.arange(part.shape[-1])
        table = np.broadcast_to(before[:, None], (*part.shape, before.shape[-1]))
        mine = (part + _at(table, rest)).argmin(1)
        found.append(mine)
        total = total - mine
    return [total, *reversed(found)]
