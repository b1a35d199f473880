"""Variable elimination finds what trying everything finds."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simgen.finishing.elimination import Elimination, Totals


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    density=st.floats(0.0, 1.0),
    impossible=st.floats(0.0, 0.4),
    n_totals=st.integers(0, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_minimum_is_that_of_everything(
    sizes: list[int], density: float, impossible: float, n_totals: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    n = len(sizes)
    several = [*combinations(range(n), 2), *combinations(range(n), 3)]
    scopes = [*((i,) for i in range(n)), *(s for s in several if rng.random() < density)]
    n_batch = 3
    tables = []
    for scope in scopes:
        table = rng.standard_normal((n_batch, *(sizes[v] for v in scope)))
        tables.append(np.where(rng.random(table.shape) < impossible, np.inf, table))
    counts = [rng.integers(-2, 3, (n_totals, size)) for size in sizes]
    wanted = rng.integers(-2, 3, n_totals)

    def cost(row: int, values: tuple[int, ...]) -> float:
        return sum(t[row, *(values[v] for v in s)] for t, s in zip(tables, scopes, strict=True))

    def total(values: tuple[int, ...]) -> np.ndarray:
        return sum(c[:, v] for c, v in zip(counts, values, strict=True))

    totals = Totals.of(counts, wanted.tolist()) if n_totals else None
    costs, values = Elimination(sizes, scopes).minimise(tables, totals)
    allowed = [v for v in product(*map(range, sizes)) if np.array_equal(total(v), wanted)]
    for row in range(n_batch):
        assert costs[row] == pytest.approx(min((cost(row, v) for v in allowed), default=np.inf))
        if np.isfinite(costs[row]):
            chosen = tuple(values[row].tolist())
            assert cost(row, chosen) == pytest.approx(costs[row])
            assert np.array_equal(total(chosen), wanted)


def test_the_largest_table_of_a_ring_has_three_variables() -> None:
    n = 12
    ring = Elimination([4] * n, [*((i, i + 1) for i in range(n - 1)), (0, n - 1)])
    assert ring.largest == 4**3


def test_of_equally_good_values_it_is_always_the_same_ones() -> None:
    flat = [np.zeros((1, 3)), np.zeros((1, 3)), np.zeros((1, 3, 3))]
    plan = Elimination([3, 3], [(0,), (1,), (0, 1)])
    assert plan.minimise(flat)[1].tolist() == [[0, 0]]


@pytest.mark.parametrize("total", [-1, 7])
def test_totals_out_of_reach_cost_infinitely_much(total: int) -> None:
    counts = [np.array([[0, 1, 2]])] * 3
    plan = Elimination([3] * 3, [(0,), (1,), (2,), (0, 1, 2)])
    tables = [*[np.zeros((2, 3))] * 3, np.zeros((2, 3, 3, 3))]
    costs, _ = plan.minimise(tables, Totals.of(counts, [total]))
    assert np.isinf(costs).all()
