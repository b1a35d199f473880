from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from simgen.errors import InputError
from simgen.molecules import MoleculeBatch
from simgen.noise import Noise
from simgen.priors import (
    Circle,
    Gaussian,
    Line,
    PointCloud,
    Prior,
    PriorForm,
    atoms_for_length,
)
from simgen.schedules import prior_weight

SIGMA = 0.4
TILTED = torch.tensor([[2.0, 0.3, 0.1], [0.3, 1.0, -0.2], [0.1, -0.2, 1.5]], dtype=torch.float64)
POINTS = torch.tensor(
    [[0.0, 0.0, 0.0], [1.0, 2.0, 0.5], [-1.5, 0.3, 2.0], [3.0, -1.0, 0.0]], dtype=torch.float64
)
PRIORS: dict[str, Callable[[], Prior]] = {
    "gaussian": Gaussian,
    "tilted": lambda: Gaussian(TILTED),
    "cloud": lambda: PointCloud(POINTS, covariance=TILTED, beta=1.5),
    "line": lambda: Line(6.0),
    "circle": lambda: Circle(3.0),
}


@pytest.fixture
def batch() -> MoleculeBatch:
    rng = np.random.default_rng(0)
    return MoleculeBatch.from_arrays(
        [([6] * n, 2 * rng.normal(size=(n, 3))) for n in (3, 7)], dtype=torch.float64
    )


def weights(batch: MoleculeBatch) -> Tensor:
    return prior_weight(batch.counts, SIGMA)[batch.molecule_idx]


@pytest.mark.parametrize("name", PRIORS)
def test_score_is_the_gradient(name: str, batch: MoleculeBatch) -> None:
    prior = PRIORS[name]()
    positions = batch.positions.clone().requires_grad_()

    def log_prob(x: Tensor) -> Tensor:
        return prior.log_prob(batch.replace(positions=x), SIGMA)

    assert torch.autograd.gradcheck(log_prob, (positions,))
    (gradient,) = torch.autograd.grad(log_prob(positions).sum(), positions)
    torch.testing.assert_close(prior.score(batch, SIGMA), gradient, rtol=1e-10, atol=1e-12)


def test_gaussian_is_scaled_to_unit_determinant(batch: MoleculeBatch) -> None:
    x, w = batch.positions.numpy(), weights(batch).numpy()
    precision = np.linalg.inv(np.diag([1, 1, 2]) / 2 ** (1 / 3))
    expected = -0.7 * w[:, None] * (x @ precision)
    np.testing.assert_allclose(Gaussian().score(batch, SIGMA).numpy(), expected, rtol=1e-12)
    torch.testing.assert_close(
        Gaussian((3.0, 3.0, 6.0)).score(batch, SIGMA), Gaussian().score(batch, SIGMA)
    )


def test_cloud_against_a_loop(batch: MoleculeBatch) -> None:
    prior, beta = PointCloud(POINTS, covariance=TILTED, beta=1.5), 1.5
    precision = np.linalg.inv(TILTED.numpy())
    expected = np.zeros(batch.n_molecules)
    for x, molecule, w in zip(
        batch.positions.numpy(), batch.molecule_idx, weights(batch), strict=True
    ):
        total = sum(np.exp(-beta / 2 * (x - p) @ precision @ (x - p)) for p in POINTS.numpy())
        expected[molecule] += w * np.log(total) / beta
    np.testing.assert_allclose(prior.log_prob(batch, SIGMA).numpy(), expected, rtol=1e-10)


def test_published_force_against_a_loop(batch: MoleculeBatch) -> None:
    prior = PointCloud(POINTS, covariance=TILTED, beta=1.5, form=PriorForm.PUBLISHED)
    precision = np.linalg.inv(TILTED.numpy())
    expected = np.zeros((batch.n_atoms, 3))
    for i, x in enumerate(batch.positions.numpy()):
        w = np.array([np.exp(-1.5 * np.linalg.norm(x - p)) for p in POINTS.numpy()])
        for w_p, p in zip(w / w.sum(), POINTS.numpy(), strict=True):
            expected[i] -= w_p * precision @ (x - p)
    expected *= weights(batch).numpy()[:, None]
    np.testing.assert_allclose(prior.score(batch, SIGMA).numpy(), expected, rtol=1e-10)
    exact = PointCloud(POINTS, covariance=TILTED, beta=1.5).score(batch, SIGMA)
    assert (prior.score(batch, SIGMA) - exact).abs().max() > 0.01


def test_one_point_is_a_gaussian(batch: MoleculeBatch) -> None:
    unit = TILTED / torch.linalg.det(TILTED) ** (1 / 3)
    cloud = PointCloud(torch.zeros(1, 3), covariance=unit, strength=0.7)
    torch.testing.assert_close(cloud.score(batch, SIGMA), Gaussian(TILTED).score(batch, SIGMA))


@pytest.mark.parametrize("name", PRIORS)
def test_far_atoms_are_pulled_back_in_single_precision(name: str, batch: MoleculeBatch) -> None:
    x = 100 * batch.positions
    single = batch.replace(positions=x.float())
    score = PRIORS[name]().score(single, SIGMA)
    assert score.dtype == torch.float32
    assert ((score * single.positions).sum(1) < 0).all()
    expected = PRIORS[name]().score(batch.replace(positions=x), SIGMA)
    torch.testing.assert_close(score.double(), expected, rtol=0.02, atol=1e-3)


def test_gaussian_samples_have_its_covariance() -> None:
    prior = Gaussian(TILTED)
    x = prior.sample(torch.full((200,), 100), Noise(0, torch.arange(200)))
    assert x.dtype == torch.float64
    expected = TILTED / torch.linalg.det(TILTED) ** (1 / 3)
    torch.testing.assert_close(torch.cov(x.T), expected, rtol=0, atol=0.05)
    assert x.mean(0).abs().max() < 0.03
    half = prior.sample(torch.full((200,), 100), Noise(0, torch.arange(200)), spread=0.5)
    torch.testing.assert_close(half, 0.5 * x)


def test_cloud_samples_lie_about_all_of_its_points() -> None:
    counts = torch.full((40,), 100)
    prior = PointCloud(POINTS, covariance=TILTED)
    on_points = prior.sample(counts, Noise(0, torch.arange(40)), spread=0.0)
    hits = (torch.cdist(on_points, POINTS) < 1e-9).sum(0)
    assert int(hits.sum()) == 4000
    assert stats.chisquare(hits.numpy()).pvalue > 1e-3
    spread = prior.sample(counts, Noise(0, torch.arange(40))) - on_points
    torch.testing.assert_close(torch.cov(spread.T), TILTED, rtol=0, atol=0.15)


def test_samples_do_not_depend_on_the_batch() -> None:
    prior = Circle()
    together = prior.sample(torch.tensor([4, 6]), Noise(3, torch.tensor([0, 1])))
    alone = prior.sample(torch.tensor([6]), Noise(3, torch.tensor([1])))
    assert torch.equal(together[4:], alone)


def test_shapes() -> None:
    circle = Circle(radius=4.0)
    assert circle.points.shape == (100, 3)
    torch.testing.assert_close(
        circle.points.norm(dim=1), torch.full((100,), 4.0, dtype=torch.float64)
    )
    steps = (circle.points - circle.points.roll(1, 0)).norm(dim=1)
    torch.testing.assert_close(steps, steps[:1].expand(100))
    assert atoms_for_length(circle.length) == 38
    line = Line(6.0)
    assert line.points[:, 2].min() == -3.0
    assert line.points[:, 2].max() == 3.0
    assert not line.points[:, :2].any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Gaussian((1.0, 1.0, 0.0)), "covariance"),
        (lambda: Gaussian(torch.tensor([[1.0, 2, 0], [0, 1, 0], [0, 0, 1]])), "covariance"),
        (lambda: PointCloud(torch.zeros(0, 3)), "points"),
        (lambda: PointCloud(torch.zeros(3)), "points"),
        (lambda: PointCloud(torch.full((2, 3), torch.nan)), "finite"),
        (lambda: PointCloud(POINTS, beta=0.0), "beta"),
        (lambda: Line(0.0), "length"),
        (lambda: Circle(-1.0), "radius"),
        (lambda: Circle(float("nan")), "radius"),
    ],
)
def test_impossible_priors_are_refused(make: Callable[[], Prior], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()
