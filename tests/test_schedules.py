import math

import numpy as np
import pytest
import torch

from simgen.errors import InputError
from simgen.schedules import kernel_sharpness, noise_levels, prior_weight, temperature


@pytest.mark.parametrize("n_steps", [4, 7, 50])
def test_noise_levels(n_steps: int) -> None:
    n_linear = n_steps // 2
    expected = np.concatenate(
        [np.linspace(1, 0.05, n_linear), np.logspace(-1.31, -3, n_steps - n_linear)]
    )
    levels = noise_levels(n_steps)
    np.testing.assert_allclose(levels.numpy(), expected, rtol=1e-12)
    assert (levels.diff() < 0).all()


def test_too_few_noise_levels() -> None:
    with pytest.raises(InputError, match="at least 4"):
        noise_levels(3)


@pytest.mark.parametrize(
    ("sigma", "sharpness"),
    [(20.0, 1.0), (10.0, 1.0), (1.0, 53.08), (0.5, 63.73), (0.05, 88.36), (1e-3, 108.10),
     (0.0, 120.0)],
)  # fmt: skip
def test_sharpness_of_the_kernel(sigma: float, sharpness: float) -> None:
    assert kernel_sharpness(sigma) == pytest.approx(sharpness, abs=5e-3)


def test_prior_weight() -> None:
    counts = torch.tensor([9, 16])
    for sigma in (1.0, 0.1, 1e-3):
        expected = [
            0.45 / (0.3 + 0.05 * 1.5664519 * math.sqrt(n)) ** 2 * math.tanh(20 * sigma**2)
            for n in (9, 16)
        ]
        np.testing.assert_allclose(prior_weight(counts, sigma).numpy(), expected, rtol=1e-12)


def test_temperature() -> None:
    assert temperature(1.0) == pytest.approx(1e6)
    assert temperature(0.0) == pytest.approx(0.1)
    assert temperature(1.0, 2.0) == pytest.approx(10**2.5)
