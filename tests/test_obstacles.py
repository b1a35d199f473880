"""Obstacles: exact values, and scores that are gradients."""

import pytest
import torch
from torch.autograd import gradcheck

from simgen import obstacles
from simgen.errors import InputError
from simgen.molecules import MoleculeBatch
from simgen.obstacles import SOFTEST_STEP, STEP_PER_SIGMA, Obstacles


def batch_of(positions: torch.Tensor, fixed: list[bool] | None = None) -> MoleculeBatch:
    n_atoms = len(positions)
    batch = MoleculeBatch.from_arrays([([6] * n_atoms, positions)], dtype=torch.float64)
    return batch if fixed is None else batch.replace(fixed=torch.tensor(fixed))


def random_obstacles(seed: int = 0) -> tuple[Obstacles, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    places = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    radii = 0.5 + torch.rand(6, generator=generator, dtype=torch.float64)
    return Obstacles(places, radii), torch.randn(5, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("sigma", [1.0, 0.01])
def test_an_atom_within_one_sphere(sigma: float) -> None:
    one = Obstacles(torch.zeros(1, 3, dtype=torch.float64), torch.tensor([2.0]))
    batch = batch_of(torch.tensor([[0.0, 0.0, 1.5], [0.0, 3.0, 0.0]], dtype=torch.float64))
    k = 1 / (STEP_PER_SIGMA * sigma + SOFTEST_STEP)
    assert one.log_prob(batch, sigma).tolist() == pytest.approx([-k / 2 * 0.5**2])
    expected = torch.tensor([[0.0, 0.0, k * 0.5], [0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(one.score(batch, sigma), expected)


def test_the_score_is_the_gradient() -> None:
    some, positions = random_obstacles()
    batch = batch_of(positions)
    leaf = positions.clone().requires_grad_()
    (expected,) = torch.autograd.grad(some.log_prob(batch.replace(positions=leaf), 0.3).sum(), leaf)
    torch.testing.assert_close(some.score(batch, 0.3), expected)
    assert expected.abs().max() > 1
    assert gradcheck(lambda x: some.log_prob(batch.replace(positions=x), 0.3), (leaf,))


def test_atoms_that_do_not_move_meet_nothing() -> None:
    some, positions = random_obstacles()
    fixed = [True, False, True, False, False]
    free = batch_of(positions[[1, 3, 4]])
    batch = batch_of(positions, fixed)
    assert some.log_prob(batch, 0.3).tolist() == pytest.approx(some.log_prob(free, 0.3).tolist())
    score = some.score(batch, 0.3)
    assert not score[torch.tensor(fixed)].any()
    torch.testing.assert_close(score[~torch.tensor(fixed)], some.score(free, 0.3))


def test_a_step_along_the_score_does_not_overshoot() -> None:
    """A step of 0.4 sigma leaves an atom within the sphere or on its surface."""
    one = Obstacles(torch.zeros(1, 3, dtype=torch.float64), torch.tensor([2.0]))
    batch = batch_of(torch.tensor([[0.3, 0.0, 0.0]], dtype=torch.float64))
    for sigma in (1.0, 0.1, 1e-3):
        moved = batch.positions + STEP_PER_SIGMA * sigma * one.score(batch, sigma)
        assert 0.3 < float(moved.norm()) <= 2.0


def test_the_middle_of_an_obstacle_is_finite() -> None:
    one = Obstacles(torch.zeros(1, 3, dtype=torch.float64), torch.tensor([2.0]))
    assert bool(torch.isfinite(one.score(batch_of(torch.zeros(1, 3)), 0.1)).all())


def test_blocks_and_joins_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    (first, positions), (second, _) = random_obstacles(1), random_obstacles(2)
    both = Obstacles.join([first, second])
    batch = batch_of(positions)
    score = first.score(batch, 0.2) + second.score(batch, 0.2)
    torch.testing.assert_close(both.score(batch, 0.2), score)
    monkeypatch.setattr(obstacles, "MAX_DISTANCES", 25)
    torch.testing.assert_close(both.score(batch, 0.2), score)
    total = first.log_prob(batch, 0.2) + second.log_prob(batch, 0.2)
    torch.testing.assert_close(both.log_prob(batch, 0.2), total)


def test_nothing_is_in_the_way_of_anything() -> None:
    none = Obstacles(torch.zeros(0, 3), torch.zeros(0))
    batch = batch_of(torch.ones(2, 3, dtype=torch.float64))
    assert none.log_prob(batch, 0.1).tolist() == [0.0]
    assert not none.score(batch, 0.1).any()


@pytest.mark.parametrize(
    ("positions", "radii"),
    [(torch.zeros(3), torch.zeros(1)), (torch.zeros(2, 3), torch.zeros(3)),
     (torch.zeros(2, 2), torch.zeros(2))],
)  # fmt: skip
def test_shapes_must_fit(positions: torch.Tensor, radii: torch.Tensor) -> None:
    with pytest.raises(InputError, match="as many radii"):
        Obstacles(positions, radii)
