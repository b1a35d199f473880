import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components
from scipy.spatial.transform import Rotation
from torch.autograd import gradcheck

from simgen.cohesion import BOND_REACH, ONSET, Cohesion, n_fragments
from simgen.density import score_of
from simgen.elements import COVALENT_RADII
from simgen.errors import ConfigError
from simgen.molecules import MoleculeBatch
from simgen.priors import Circle, Heart, Transformed


def batch_of(*molecules: tuple[list[int], list[list[float]]]) -> MoleculeBatch:
    return MoleculeBatch.from_arrays(list(molecules), dtype=torch.float64)


ETHANE = ([6, 6], [[0.0, 0.0, 0.0], [1.5, 0.0, 0.0]])
TWO_PAIRS = ([6, 6, 6, 8], [[0.0, 0, 0], [1.5, 0, 0], [4.5, 0, 0], [5.9, 0, 0]])


def test_whole_molecules_feel_nothing() -> None:
    batch = batch_of(ETHANE, ([7], [[3.0, 3.0, 3.0]]))
    assert Cohesion().log_prob(batch, 0.01).tolist() == [0.0, 0.0]
    assert not score_of(Cohesion())(batch, 0.01).any()


def test_two_fragments_are_drawn_together_by_their_nearest_atoms() -> None:
    batch = batch_of(ETHANE, TWO_PAIRS)
    # The gap of 3 A counts for both fragments.
    weight = 2.0 * math.exp(-((0.1 / ONSET) ** 2))
    assert Cohesion(2.0).log_prob(batch, 0.1).tolist() == pytest.approx([0.0, -2 * weight * 3.0])
    expected = torch.zeros(6, 3, dtype=torch.float64)
    expected[3, 0], expected[4, 0] = 2 * weight, -2 * weight
    torch.testing.assert_close(score_of(Cohesion(2.0))(batch, 0.1), expected)


def test_it_fades_while_the_noise_is_high() -> None:
    batch = batch_of(TWO_PAIRS)
    assert float(Cohesion().log_prob(batch, 5 * ONSET).abs()) < 1e-9


def test_coinciding_atoms_have_a_finite_score() -> None:
    batch = batch_of(([6, 6, 6], [[0.0, 0, 0], [0.0, 0, 0], [4.0, 0, 0]]))
    assert bool(torch.isfinite(score_of(Cohesion())(batch, 0.1)).all())


@given(st.lists(st.integers(1, 8), min_size=1, max_size=4), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_fragments_are_those_of_scipy(counts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    molecules, expected = [], []
    for n in counts:
        z, x = rng.choice([6, 7, 8, 16], n), 1.6 * rng.standard_normal((n, 3))
        radii = np.array([COVALENT_RADII[int(a)] for a in z])
        near = np.linalg.norm(x[:, None] - x[None], axis=-1) < BOND_REACH * (radii[:, None] + radii)
        expected.append(connected_components(coo_array(near), directed=False)[0])
        molecules.append((z.tolist(), x.tolist()))
    assert n_fragments(batch_of(*molecules)).tolist() == expected


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=15, deadline=None)
def test_the_score_is_the_gradient_and_molecules_do_not_feel_each_other(
    seed: int, along_a_loop: bool
) -> None:
    rng = np.random.default_rng(seed)
    cohesion = Cohesion(loops=Circle(3.0).loops() if along_a_loop else ())
    molecules = [([6] * n, 2.5 * rng.standard_normal((n, 3))) for n in (4, 6)]
    batch = batch_of(*molecules)

    def log_prob(positions: torch.Tensor) -> torch.Tensor:
        return cohesion.log_prob(batch.replace(positions=positions), 0.2)

    assert gradcheck(log_prob, (batch.positions.requires_grad_(True),))
    together = cohesion.score(batch, 0.2)
    alone = torch.cat([cohesion.score(batch_of(molecule), 0.2) for molecule in molecules])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    closed=st.sets(st.integers(0, 8), max_size=4),
    spread=st.sampled_from([1.0, 2.5, 5.0]),
    n_loops=st.integers(0, 2),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=40, deadline=None)
def test_the_score_is_that_of_automatic_differentiation(
    dtype: torch.dtype,
    tolerance: float,
    counts: list[int],
    closed: set[int],
    spread: float,
    n_loops: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    molecules = [(rng.choice([6, 8, 16], n), spread * rng.normal(size=(n, 3))) for n in counts]
    batch = MoleculeBatch.from_arrays(molecules, dtype=dtype)
    loops = [*Circle(spread).loops(), *Heart(5.0).loops()][:n_loops]
    cohesion = Cohesion(closed=tuple(closed), loops=loops)
    positions = batch.positions.clone().requires_grad_()
    total = cohesion.log_prob(batch.replace(positions=positions), 0.2).sum()
    (expected,) = torch.autograd.grad(total, positions, materialize_grads=True)
    found = cohesion.score(batch, 0.2)
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


def test_equal_gaps_share_the_pull() -> None:
    row = batch_of(([6, 6, 6], [[-4.0, 0, 0], [0.0, 0, 0], [4.0, 0, 0]]))
    positions = row.positions.clone().requires_grad_()
    Cohesion(1.0).log_prob(row.replace(positions=positions), 0.0).sum().backward()
    expected = torch.tensor([[1.5, 0, 0], [0, 0, 0], [-1.5, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(Cohesion(1.0).score(row, 0.0), expected)
    torch.testing.assert_close(positions.grad, expected)


def test_no_gap_is_measured_to_closed_atoms() -> None:
    # Without the nearest atom of the first pair the gap is that to the other one.
    batch = batch_of(TWO_PAIRS)
    assert Cohesion(1.0, closed=[1]).log_prob(batch, 0.0).tolist() == pytest.approx([-2 * 4.5])
    expected = torch.zeros(4, 3, dtype=torch.float64)
    expected[0, 0], expected[2, 0] = 2.0, -2.0
    torch.testing.assert_close(Cohesion(1.0, closed=[1]).score(batch, 0.0), expected)
    # A fragment all of whose atoms are closed is left alone.
    assert not Cohesion(1.0, closed=[0, 1]).score(batch, 0.0).any()
    # A closed atom is still what holds its fragment together.
    chain = batch_of(([6, 6, 6, 6], [[0.0, 0, 0], [1.5, 0, 0], [3.0, 0, 0], [6.0, 0, 0]]))
    assert Cohesion(1.0, closed=[1]).log_prob(chain, 0.0).tolist() == pytest.approx([-2 * 3.0])


# --- closed curves -----------------------------------------------------------------------------

LOOP = Circle(4.0).loops()
STARTS = [0.0, 7.0, 95.0, 170.0, 345.0]


def on_circle(degrees: list[float], radius: float = 4.0) -> np.ndarray:
    angle = np.radians(degrees)
    return radius * np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)


def ring(start: float = 0.0, n_missing: int = 0) -> tuple[list[int], np.ndarray]:
    """Atoms at 20 degrees from each other, which is a bond length; some of 18 may be missing."""
    degrees = [start + 20.0 * k for k in range(18 - n_missing)]
    return [6] * len(degrees), on_circle(degrees)


@pytest.mark.parametrize("start", STARTS)
def test_the_ends_of_a_chain_along_a_closed_curve_are_drawn_together(start: float) -> None:
    turn, shift = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix(), np.array([1.0, -2.0, 0.5])
    (_, whole), (_, chain) = ring(start), ring(start, n_missing=2)
    weight = 2.0 * math.exp(-((0.1 / ONSET) ** 2))
    # Two atoms are missing in the gap of 60 degrees, which counts for both copies of the chain.
    gap = 2 * 4.0 * math.sin(math.radians(30.0))
    pull = 2 * weight * (chain[-1] - chain[0]) / gap
    for rotation, translation in ((np.eye(3), np.zeros(3)), (turn, shift)):
        curve = Transformed(Circle(4.0), rotation=rotation, translation=translation)
        molecules = [whole @ rotation.T + translation, chain @ rotation.T + translation]
        batch = batch_of(*[([6] * len(x), x) for x in molecules])
        cohesion = Cohesion(2.0, loops=curve.loops())
        found = cohesion.log_prob(batch, 0.1).tolist()
        assert found == pytest.approx([0.0, -2 * weight * gap], abs=1e-9)
        expected = torch.zeros(18 + 16, 3, dtype=torch.float64)
        expected[18] = torch.from_numpy(rotation @ pull)
        expected[-1] = -expected[18]
        torch.testing.assert_close(cohesion.score(batch, 0.1), expected)
        assert n_fragments(batch, loops=curve.loops()).tolist() == [1, 2]
        # Without the curve both are whole.
        assert not Cohesion().score(batch, 0.1).any()
        assert n_fragments(batch).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("start", "side"), [(2.0, -4.0), (358.0, 4.0), (182.0, -4.0), (178.0, 4.0)]
)
def test_it_does_not_matter_what_hangs_on_a_ring(start: float, side: float) -> None:
    """Not even across the beginning of the curve from the only atom that it hangs on."""
    numbers, x = ring(start)
    hanging = on_circle([start + side], 5.5)
    assert (np.linalg.norm(x - hanging, axis=1) < 1.7).sum() == 1
    batch = batch_of(([*numbers, 7], np.concatenate([x, hanging])))
    assert Cohesion(loops=LOOP).log_prob(batch, 0.1).tolist() == [0.0]
    assert not Cohesion(loops=LOOP).score(batch, 0.1).any()
    assert n_fragments(batch, loops=LOOP).tolist() == [1]


def test_fragments_along_a_closed_curve_join_at_the_smaller_gap() -> None:
    degrees = [20.0 * k for k in range(18) if k not in (0, 8, 9)]
    batch = batch_of(([6] * 15, on_circle(degrees)))
    found = Cohesion(1.0, loops=LOOP).score(batch, 0.0).norm(dim=1)
    # Atoms 0 and 14 are beside the smaller gap, which two copies of each fragment count.
    expected = torch.zeros(15, dtype=torch.float64)
    expected[[0, 14]] = 4.0
    torch.testing.assert_close(found, expected)


def test_what_is_short_is_drawn_together_as_without_the_curve_on_each_sheet() -> None:
    batch = batch_of(ETHANE, TWO_PAIRS, ([7], [[3.0, 3.0, 3.0]]))
    for loops in (LOOP, LOOP * 2):
        expected = 2 * len(loops) * Cohesion().log_prob(batch, 0.1)
        torch.testing.assert_close(Cohesion(loops=loops).log_prob(batch, 0.1), expected)


@given(st.integers(12, 26), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_what_goes_round_is_what_has_a_cycle_that_does(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    degrees = np.arange(n) * 360.0 / n + rng.uniform(0, 360)
    x = on_circle(degrees) + rng.uniform(-0.5, 0.5, (n, 3))
    near = np.linalg.norm(x[:, None] - x[None], axis=-1) < BOND_REACH * 2 * COVALENT_RADII[6]
    angle = np.arctan2(x[:, 1], x[:, 0])
    short_way = (angle[None] - angle[:, None] + math.pi) % (2 * math.pi) - math.pi
    n_pieces, label = connected_components(near, directed=False)
    expected = 0
    for piece in range(n_pieces):
        order, previous = breadth_first_order(near, int(np.argmax(label == piece)), directed=False)
        walked = np.zeros(n)
        for atom in order[1:]:
            walked[atom] = walked[previous[atom]] + short_way[previous[atom], atom]
        # A bond closes a turn if it leads elsewhere than the way back through the tree.
        turns = (walked[:, None] + short_way - walked[None]) / (2 * math.pi)
        within = near & (label == piece)[:, None]
        expected += 1 if bool((np.round(turns[within]) % 2 == 1).any()) else 2
    assert n_fragments(batch_of(([6] * n, x)), loops=LOOP).tolist() == [expected]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="onset"):
        Cohesion(onset=0.0)


def test_surroundings_are_no_pieces() -> None:
    # A pair of bonded atoms, a third that touches only the surroundings, and those.
    x = [[0.0, 0, 0], [1.5, 0, 0], [6.0, 0, 0], [4.8, 0, 0], [2.8, 0, 0], [3.6, 0, 0]]
    batch = MoleculeBatch.from_arrays([([6] * 6, x), ([6] * 2, x[:2])], dtype=torch.float64)
    assert n_fragments(batch).tolist() == [1, 1]
    assert n_fragments(batch, range(3, 6)).tolist() == [2, 1]
    assert n_fragments(batch, [0, 1]).tolist() == [1, 0]
