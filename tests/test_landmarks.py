"""Places that want an atom each."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from simgen.landmarks import Landmarks
from simgen.molecules import MoleculeBatch
from simgen.sampling import HeunSettings
from simgen.schedules import landmark_stiffness, noise_levels


def batch_of(*positions: np.ndarray) -> MoleculeBatch:
    return MoleculeBatch.from_arrays([([6] * len(x), x) for x in positions], dtype=torch.float64)


def least_sum(positions: np.ndarray, points: np.ndarray) -> float:
    """By trying all ways to pair them; nothing where atoms are too few."""
    return min(
        (
            float(((positions[list(chosen)] - points) ** 2).sum())
            for chosen in itertools.permutations(range(len(positions)), len(points))
        ),
        default=0.0,
    )


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    n_landmarks=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_pairs_are_those_of_the_least_sum(counts: list[int], n_landmarks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n_landmarks, 3))
    positions = [rng.normal(size=(n, 3)) for n in counts]
    found = Landmarks(torch.from_numpy(points)).log_prob(batch_of(*positions), 0.3)
    expected = [-landmark_stiffness(0.3) / 2 * least_sum(x, points) for x in positions]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("n_landmarks", [2, 4, 7])
def test_the_score_is_the_gradient_and_molecules_do_not_feel_each_other(n_landmarks: int) -> None:
    rng = np.random.default_rng(1)
    landmarks = Landmarks(torch.from_numpy(rng.normal(size=(n_landmarks, 3))))
    first, second = rng.normal(size=(4, 3)), rng.normal(size=(3, 3))
    batch = batch_of(first, second)
    positions = batch.positions.clone().requires_grad_()
    assert gradcheck(lambda x: landmarks.log_prob(batch.replace(positions=x), 0.2), (positions,))
    total = landmarks.log_prob(batch.replace(positions=positions), 0.2).sum()
    (gradient,) = torch.autograd.grad(total, positions)
    score = landmarks.score(batch, 0.2)
    torch.testing.assert_close(score, gradient)
    alone = [landmarks.score(batch_of(x), 0.2) for x in (first, second)]
    assert torch.equal(score, torch.cat(alone))
    # Atoms without a landmark feel nothing, nor do molecules that cannot fill all.
    n_drawn = [int(drawn.sum()) for drawn in score.any(1).split([4, 3])]
    assert n_drawn == [n_landmarks if n >= n_landmarks else 0 for n in (4, 3)]


def test_no_step_of_the_sampler_overshoots() -> None:
    churn = HeunSettings().churn
    for sigma, following in itertools.pairwise(noise_levels().tolist()):
        assert 0.0 < (churn * sigma - following) * landmark_stiffness(churn * sigma) < 1.0
