import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.spatial.transform import Rotation
from torch import Tensor

from simgen.errors import ConfigError, InputError
from simgen.molecules import MoleculeBatch
from simgen.noise import Noise
from simgen.priors import (
    Alternatives,
    AtomPrior,
    Circle,
    Ellipsoid,
    Gaussian,
    Heart,
    Helix,
    Line,
    PointCloud,
    Prior,
    PriorForm,
    Sheet,
    Size,
    Sphere,
    Spline,
    Torus,
    Transformed,
    TrefoilKnot,
    Tube,
    Union,
    estimate_size,
    prior_from_dict,
    prior_to_dict,
    spread_evenly,
    suggest_atoms,
)
from simgen.priors.base import START_SPREAD
from simgen.priors.clouds import BETA
from simgen.reference import load_reference
from simgen.schedules import prior_strength, prior_weight

SIGMA = 0.4
TILTED = torch.tensor([[2.0, 0.3, 0.1], [0.3, 1.0, -0.2], [0.1, -0.2, 1.5]], dtype=torch.float64)
POINTS = torch.tensor(
    [[0.0, 0.0, 0.0], [1.0, 2.0, 0.5], [-1.5, 0.3, 2.0], [3.0, -1.0, 0.0]], dtype=torch.float64
)
TURN = torch.from_numpy(Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix())
SHIFT = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
PRIORS: dict[str, Callable[[], AtomPrior]] = {
    "gaussian": Gaussian,
    "tilted": lambda: Gaussian(TILTED),
    "cloud": lambda: PointCloud(POINTS, covariance=TILTED, beta=1.5),
    "molecule": lambda: PointCloud(POINTS, occupied=True),
    "line": lambda: Line(6.0),
    "circle": lambda: Circle(3.0),
    "helix": lambda: Helix(2.0, 5.0, 1.5),
    "spline": lambda: Spline(POINTS),
    "closed spline": lambda: Spline(POINTS, closed=True, beta=2.0),
    "heart": lambda: Heart(9.0),
    "trefoil": TrefoilKnot,
    "sphere": lambda: Sphere(2.0, covariance=TILTED),
    "ball": lambda: Sphere(2.0, solid=True),
    "ellipsoid": lambda: Ellipsoid((1.0, 2.0, 3.0)),
    "solid ellipsoid": lambda: Ellipsoid((1.0, 2.0, 3.0), solid=True, strength=0.4),
    "torus": lambda: Torus(3.0, 1.0),
    "solid torus": lambda: Torus(3.0, 1.0, solid=True),
    "tube": lambda: Tube(1.5, 4.0),
    "rod": lambda: Tube(1.5, 4.0, solid=True),
    "sheet": lambda: Sheet(4.0, 3.0),
    "transformed": lambda: Transformed(PointCloud(POINTS), 1.7, TURN, SHIFT),
    "union": lambda: Union((Line(4.0), Transformed(Gaussian(), translation=SHIFT)), beta=2.0),
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
    published = Gaussian((1.0, 1.0, 2.0))
    np.testing.assert_allclose(published.score(batch, SIGMA).numpy(), expected, rtol=1e-12)
    torch.testing.assert_close(
        Gaussian((3.0, 3.0, 6.0)).score(batch, SIGMA), published.score(batch, SIGMA)
    )


def test_the_default_is_as_flat_as_the_reference() -> None:
    eigenvalues = np.array([w for _, w in gyration_of_reference()])
    mean = eigenvalues.mean(0)
    found = torch.as_tensor(Gaussian().covariance).diagonal().numpy()
    assert found[0] == pytest.approx((mean / np.prod(mean) ** (1 / 3))[0], rel=0.25)
    assert found[0] < found[1] < found[2]


@pytest.mark.parametrize("n_atoms", [16, 18, 20])
def test_what_suits_large_molecules_is_shaped_like_them(n_atoms: int) -> None:
    mean = np.mean([w for n, w in gyration_of_reference() if abs(n - n_atoms) <= 1], axis=0)
    prior = Gaussian.suited_to(n_atoms)
    found = torch.as_tensor(prior.covariance).diagonal().numpy()
    np.testing.assert_allclose(found, mean / np.prod(mean) ** (1 / 3), rtol=0.25)
    # That is also where atoms start.
    noise = Noise(0, torch.arange(500))
    start = prior.sample(torch.full((500,), n_atoms), noise, spread=START_SPREAD)
    np.testing.assert_allclose(start.var(0).numpy(), mean, rtol=0.25)


def test_small_molecules_have_the_default_and_large_ones_no_more_pressure() -> None:
    sizes = torch.tensor([5, 9, 12, 16, 30, 200])
    suited = [Gaussian.suited_to(int(n)) for n in sizes]
    for prior in suited[:2]:
        torch.testing.assert_close(prior.covariance, Gaussian().covariance)
    pressure = sizes * prior_strength(sizes) * torch.tensor([p.strength for p in suited])
    assert (pressure[1:] >= pressure[:-1] - 1e-12).all()
    torch.testing.assert_close(pressure[4:], pressure[3:4].expand(2), rtol=0.01, atol=0.0)


def gyration_of_reference() -> list[tuple[int, np.ndarray]]:
    """Heavy atoms of each reference molecule, and the eigenvalues of its gyration tensor."""
    found = []
    for molecule in load_reference("organic").molecules:
        x = molecule.positions[molecule.kept]
        x = x - x.mean(0)
        found.append((len(x), np.linalg.eigvalsh(x.T @ x / len(x))))
    return found


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


# --- curves ------------------------------------------------------------------------------------


def test_published_curves() -> None:
    circle = Circle(radius=4.0)
    assert circle.points.shape == (100, 3)
    torch.testing.assert_close(
        circle.points.norm(dim=1), torch.full((100,), 4.0, dtype=torch.float64)
    )
    steps = (circle.points - circle.points.roll(1, 0)).norm(dim=1)
    torch.testing.assert_close(steps, steps[:1].expand(100))
    assert suggest_atoms(circle) == 38
    line = Line(6.0)
    assert len(line.points) == 25
    assert line.points[:, 2].min() == -3.0
    assert line.points[:, 2].max() == 3.0
    assert not line.points[:, :2].any()


def speed(path: Callable[[float], np.ndarray], t: float, h: float = 1e-5) -> float:
    return float(np.linalg.norm(path(t + h) - path(t - h)) / (2 * h))


def heart(t: float) -> np.ndarray:
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.array([16 * np.sin(t) ** 3, y, 0.0]) * 9.0 / 32


def trefoil(t: float) -> np.ndarray:
    x, y = np.sin(t) + 2 * np.sin(2 * t), np.cos(t) - 2 * np.cos(2 * t)
    return np.array([x, y, -1.5 * np.sin(3 * t)]) * 6.0 / 3


@pytest.mark.parametrize(
    ("curve", "length"),
    [
        (Line(6.0), 6.0),
        (Circle(3.0), 6 * math.pi),
        (Helix(2.0, 5.0, 1.5), 1.5 * math.hypot(4 * math.pi, 5.0)),
        (Spline([[0.0, 0, 0], [1, 2, 2], [3, 6, 6]]), 9.0),
        (Heart(9.0), integrate.quad(lambda t: speed(heart, t), 0, 2 * math.pi, limit=200)[0]),
        (TrefoilKnot(6.0), integrate.quad(lambda t: speed(trefoil, t), 0, 2 * math.pi)[0]),
    ],
)
def test_curves_are_as_long_as_they_should_be(curve: AtomPrior, length: float) -> None:
    assert curve.size.length == pytest.approx(length, rel=1e-6)
    points = curve.outline()
    steps = (points[1:] - points[:-1]).norm(dim=1)
    # Chords of an even walk along the curve; they are shorter where it bends.
    assert steps.max() < 0.2501 or len(points) == 100
    assert steps.median() == pytest.approx(float(steps.max()), rel=0.02)


def test_points_of_curves_lie_on_them() -> None:
    x, y, z = Helix(2.0, 5.0, 1.5).points.T.numpy()
    np.testing.assert_allclose(np.hypot(x, y), 2.0, rtol=1e-12)
    angle = 2 * math.pi * (z / 5.0 + 0.75)
    np.testing.assert_allclose(x, 2.0 * np.cos(angle), atol=1e-9)
    np.testing.assert_allclose(y, 2.0 * np.sin(angle), atol=1e-9)
    t = np.linspace(0, 2 * math.pi, 20_001)
    for curve, path in ((Heart(9.0), heart), (TrefoilKnot(6.0), trefoil)):
        dense = torch.from_numpy(np.stack([path(u) for u in t]))
        assert torch.cdist(curve.points, dense).min(1).values.max() < 2e-3
    # The strands of the knot pass each other at the distance of atoms that are not bonded.
    knot = TrefoilKnot(7.2).points
    n = len(knot)
    apart = (torch.arange(n)[:, None] - torch.arange(n)[None]).abs()
    far = torch.minimum(apart, n - apart) > 20
    assert torch.cdist(knot, knot)[far].min() > 3.4


def test_a_spline_passes_through_its_points() -> None:
    for closed in (False, True):
        gaps = torch.cdist(POINTS, Spline(POINTS, closed=closed).points).min(1).values
        assert gaps.max() < 0.126  # half the spacing
    open_ends = Spline(POINTS).points[[0, -1]]
    torch.testing.assert_close(open_ends, POINTS[[0, -1]])
    angles = 2 * math.pi * torch.arange(24, dtype=torch.float64) / 24
    corners = torch.stack([3 * torch.cos(angles), 3 * torch.sin(angles), 0 * angles], dim=1)
    circle = Spline(corners, closed=True)
    assert circle.size.length == pytest.approx(6 * math.pi, rel=1e-4)
    torch.testing.assert_close(
        circle.points.norm(dim=1),
        torch.full((len(circle.points),), 3.0).double(),
        atol=1e-3,
        rtol=0,
    )


def test_closed_curves_are_loops() -> None:
    """All else, such as a curve with ends, is not."""
    loops = {name: make().loops() for name, make in PRIORS.items()}
    assert {name for name in loops if loops[name]} == {
        "circle",
        "closed spline",
        "heart",
        "trefoil",
    }
    for name in ("circle", "closed spline", "heart", "trefoil"):
        (points,) = loops[name]
        steps = (points - points.roll(1, 0)).norm(dim=1)
        assert steps.max() < 0.2501
        assert steps.sum() == pytest.approx(PRIORS[name]().size.length, rel=0.01)


def test_loops_move_with_their_shape_and_are_those_of_all_parts_of_a_union() -> None:
    circle = Circle(3.0)
    (loop,) = Transformed(circle, 1.7, TURN, SHIFT).loops()
    torch.testing.assert_close((loop - SHIFT) @ TURN / 1.7, circle.points)
    parts = (Line(4.0), circle, Transformed(Heart(), translation=SHIFT))
    both = Union(parts).loops()
    assert len(both) == 2
    assert torch.equal(both[0], circle.points)
    torch.testing.assert_close(both[1], Heart().points + SHIFT)
    # Molecules that start in one part do not go round the others.
    assert Alternatives(parts).loops() == ()


def test_landmarks_move_with_their_shape_and_are_those_of_all_parts_of_a_union() -> None:
    assert {name for name, make in PRIORS.items() if len(make().landmarks())} == {"molecule"}
    molecule = PointCloud(POINTS, occupied=True)
    assert torch.equal(molecule.landmarks(), POINTS)
    moved = Transformed(molecule, 1.7, TURN, SHIFT)
    torch.testing.assert_close((moved.landmarks() - SHIFT) @ TURN / 1.7, POINTS)
    parts = (molecule, Line(4.0), moved)
    assert torch.equal(Union(parts).landmarks(), torch.cat([POINTS, moved.landmarks()]))
    # Which ones a molecule is to fill depends on the part where it starts.
    assert not len(Alternatives(parts).landmarks())


def test_one_atom_starts_at_each_landmark() -> None:
    molecule = PointCloud(POINTS, occupied=True)
    both = Union((molecule, Transformed(molecule, translation=10 * SHIFT)))
    for prior in (molecule, both):
        landmarks = prior.landmarks()
        counts = torch.full((20,), len(landmarks))
        start = prior.sample(counts, Noise(0, torch.arange(20)), spread=0.0)
        for positions in start.split(counts.tolist()):
            assert ((torch.cdist(positions, landmarks) < 1e-9).sum(0) == 1).all()
    # Of more landmarks than atoms none gets two.
    start = both.sample(torch.tensor([5]), Noise(0, torch.arange(1)), spread=0.0)
    assert (torch.cdist(start, both.landmarks()) < 1e-9).sum(0).max() == 1


# --- surfaces and solids -----------------------------------------------------------------------


def ellipsoid_area(a: float, b: float, c: float) -> float:
    def element(v: float, u: float) -> float:
        x, y, z = np.sin(u) * np.cos(v) / a, np.sin(u) * np.sin(v) / b, np.cos(u) / c
        return float(a * b * c * np.sin(u) * np.sqrt(x**2 + y**2 + z**2))

    return float(integrate.dblquad(element, 0, math.pi, 0, 2 * math.pi)[0])


@pytest.mark.parametrize(
    ("body", "size"),
    [
        (Sphere(2.0), Size(area=16 * math.pi)),
        (Sphere(2.0, solid=True), Size(volume=32 / 3 * math.pi)),
        (Ellipsoid((1.0, 2.0, 3.0)), Size(area=ellipsoid_area(1.0, 2.0, 3.0))),
        (Ellipsoid((1.0, 2.0, 3.0), solid=True), Size(volume=8 * math.pi)),
        (Torus(3.0, 1.0), Size(area=12 * math.pi**2)),
        (Torus(3.0, 1.0, solid=True), Size(volume=6 * math.pi**2)),
        (Tube(1.5, 4.0), Size(area=12 * math.pi)),
        (Tube(1.5, 4.0, solid=True), Size(volume=9 * math.pi)),
        (Sheet(4.0, 3.0), Size(area=12.0)),
    ],
)
def test_surfaces_and_solids_are_as_large_as_they_should_be(body: AtomPrior, size: Size) -> None:
    for name in ("length", "area", "volume"):
        assert getattr(body.size, name) == pytest.approx(getattr(size, name), rel=1e-6)


@pytest.mark.parametrize("solid", [False, True])
def test_points_of_surfaces_and_solids_lie_on_them(solid: bool) -> None:
    """Each has a function that is 1 on the surface and less inside."""
    x, y, z = Ellipsoid((1.0, 2.0, 3.0), solid=solid).points.T
    ellipsoid = x**2 + (y / 2) ** 2 + (z / 3) ** 2
    x, y, z = Sphere(2.5, solid=solid).points.T
    sphere = (x**2 + y**2 + z**2) / 2.5**2
    x, y, z = Torus(3.0, 1.2, solid=solid).points.T
    torus = ((torch.hypot(x, y) - 3.0) ** 2 + z**2) / 1.2**2
    x, y, z = Tube(1.5, 4.0, solid=solid).points.T
    tube = (x**2 + y**2) / 1.5**2
    assert z.abs().max() <= 2.0
    for level in (ellipsoid, sphere, torus, tube):
        assert level.max() <= 1 + 1e-9
        assert level.min() < 0.3 if solid else level.min() > 1 - 1e-9
    x, y, z = Sheet(4.0, 3.0).points.T
    assert (x.abs().max() <= 2.0, y.abs().max() <= 1.5, not z.any()) == (True, True, True)


@pytest.mark.parametrize(
    "body", [Ellipsoid((1.0, 2.0, 6.0)), Torus(3.0, 1.0), Sphere(2.0, solid=True)]
)
def test_points_cover_surfaces_and_solids_evenly(body: AtomPrior) -> None:
    points = body.outline()
    gaps = torch.cdist(points, points).topk(2, largest=False).values[:, 1]
    assert gaps.min() > 0.5 * gaps.mean()
    assert gaps.max() < 1.6 * gaps.mean()


def test_spread_evenly_chooses_the_farthest() -> None:
    line = torch.stack([torch.arange(11.0), torch.zeros(11), torch.zeros(11)], dim=1)
    assert sorted(spread_evenly(line, 3)[:, 0].tolist()) == [0.0, 5.0, 10.0]
    assert spread_evenly(line, 11) is line


# --- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prior",
    [
        Line(7.0), Circle(3.0), Helix(), TrefoilKnot(), Heart(), Sphere(3.0), Torus(), Tube(),
        Sheet(), Sphere(3.0, solid=True), Torus(solid=True), Tube(solid=True), Ellipsoid(),
    ],
    ids=lambda prior: type(prior).__name__,
)  # fmt: skip
def test_the_size_of_a_cloud_is_estimated_from_its_points(prior: AtomPrior) -> None:
    rng = np.random.default_rng(1)
    turned = prior.outline()[rng.permutation(len(prior.outline()))] @ TURN.T + SHIFT
    found, size = PointCloud(turned).size, prior.size
    for name in ("length", "area", "volume"):
        tolerance = 0.03 if name == "length" else 0.22
        assert getattr(found, name) == pytest.approx(getattr(size, name), rel=tolerance)


def test_a_few_points_are_a_curve() -> None:
    assert estimate_size(POINTS[:1]) == Size()
    assert estimate_size(POINTS[:2]).length == pytest.approx(math.sqrt(5.25))


def test_suggested_atoms() -> None:
    assert Size(length=10.0).suggest_atoms() == 15
    assert Size(area=100.0).suggest_atoms() == 39
    assert Size(volume=100.0).suggest_atoms() == 17
    assert (Size(length=10.0) + Size(volume=100.0)).suggest_atoms() == 32
    assert Size(volume=100.0).suggest_atoms(density=0.1) == 10
    assert Size().suggest_atoms() == 2
    assert suggest_atoms(Transformed(Sphere(2.0), 2.0)) == suggest_atoms(Sphere(4.0))
    with pytest.raises(InputError, match="together"):
        Size(length=1.0, area=1.0).suggest_atoms(density=1.0)
    with pytest.raises(InputError, match="positive density"):
        Size(length=1.0).suggest_atoms(density=-1.0)
    with pytest.raises(InputError, match="area"):
        Size(area=-1.0)
    with pytest.raises(InputError, match="suits any number"):
        suggest_atoms(Union((Gaussian(), Line())))


# --- composition -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRIORS)
def test_rigid_motions_commute(name: str) -> None:
    """A moved prior pulls moved atoms as the prior pulls the atoms, and so it places them."""
    prior, rotation, translation = PRIORS[name](), TURN, SHIFT
    moved = Transformed(prior, rotation=rotation, translation=translation)
    torch.testing.assert_close(
        moved.energies(POINTS @ rotation.T + translation), prior.energies(POINTS)
    )
    torch.testing.assert_close(
        moved.forces(POINTS @ rotation.T + translation), prior.forces(POINTS) @ rotation.T
    )
    uniform = torch.tensor([0.1, 0.4, 0.6, 0.99], dtype=torch.float64)
    torch.testing.assert_close(
        moved.place(uniform, POINTS), prior.place(uniform, POINTS) @ rotation.T + translation
    )
    torch.testing.assert_close(moved.outline(), prior.outline() @ rotation.T + translation)
    assert moved.size == prior.size


def test_scaling_keeps_the_pull_and_the_width() -> None:
    one = PointCloud(torch.zeros(1, 3), covariance=TILTED)
    scaled = Transformed(one, 3.0)
    torch.testing.assert_close(scaled.forces(POINTS), one.forces(POINTS))
    torch.testing.assert_close(scaled.energies(POINTS), one.energies(POINTS))
    uniform = torch.full((4,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(scaled.place(uniform, POINTS), one.place(uniform, POINTS))
    torch.testing.assert_close(
        Transformed(Gaussian(), 3.0).forces(POINTS), Gaussian().forces(POINTS)
    )
    # Points twice as far apart, whose choice is half as sharp in terms of distance.
    twice = PointCloud(2 * POINTS, beta=BETA / 4)
    scaled = Transformed(PointCloud(POINTS), 2.0)
    torch.testing.assert_close(scaled.energies(POINTS + 1.0), twice.energies(POINTS + 1.0))
    torch.testing.assert_close(scaled.forces(POINTS + 1.0), twice.forces(POINTS + 1.0))
    assert scaled.size.length == pytest.approx(2 * PointCloud(POINTS).size.length)


def test_the_union_of_clouds_is_the_cloud_of_all_points() -> None:
    parts = PointCloud(POINTS[:1]), PointCloud(POINTS[1:])
    union, whole = Union(parts), PointCloud(POINTS)
    x = POINTS + torch.tensor([0.3, -0.2, 0.9])
    torch.testing.assert_close(union.energies(x), whole.energies(x))
    torch.testing.assert_close(union.forces(x), whole.forces(x))


def test_atoms_start_in_the_parts_of_a_union_in_proportion_to_their_sizes() -> None:
    far = Transformed(Line(9.0), translation=torch.tensor([50.0, 0, 0]))
    counts = torch.full((40,), 100)
    x = Union((Line(3.0), far)).sample(counts, Noise(0, torch.arange(40)), spread=0.0)
    share = float((x[:, 0] > 25).double().mean())
    assert share == pytest.approx(0.75, abs=0.03)
    z = x[x[:, 0] > 25][:, 2]
    assert z.mean() == pytest.approx(0.0, abs=0.2)
    assert stats.kstest(z, stats.uniform(-4.5, 9.0).cdf).statistic < 0.04
    free = Union((Gaussian(), Transformed(Gaussian(), translation=torch.tensor([50.0, 0, 0]))))
    x = free.sample(counts, Noise(0, torch.arange(40)))
    assert float((x[:, 0] > 25).double().mean()) == pytest.approx(0.5, abs=0.03)


def test_sizes_of_unions_add_up() -> None:
    union = Union((Line(4.0), Sphere(2.0), Sphere(1.0, solid=True)))
    assert union.size == Line(4.0).size + Sphere(2.0).size + Sphere(1.0, solid=True).size
    assert len(union.outline()) == sum(len(part.outline()) for part in union.parts)


# --- descriptions ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRIORS)
def test_a_description_makes_an_equal_prior(name: str) -> None:
    prior = PRIORS[name]()
    description = json.loads(json.dumps(prior_to_dict(prior)))
    again = prior_from_dict(description)
    assert type(again) is type(prior)
    assert torch.equal(again.energies(POINTS), prior.energies(POINTS))
    assert torch.equal(again.outline(), prior.outline())
    assert again.size == prior.size
    assert prior_to_dict(again) == description


def test_descriptions_that_describe_nothing() -> None:
    for values, message in (
        ({"kind": "cube"}, "expected a prior of kind gaussian, line"),
        ({"kind": "spline", "through": [[0.0, 0.0, 0.0]]}, "at least 2 points"),
        ({"kind": "circle", "radius": "wide"}, "cannot make a circle"),
        ({"kind": "circle", "form": "soft"}, "cannot make a circle"),
        ({"kind": "union", "parts": [{"kind": "cube"}]}, "expected a prior of kind"),
        ({"kind": "union", "parts": 3}, "cannot make a union"),
        ({"kind": "transformed", "prior": 3}, "cannot make a transformed"),
        ({"kind": "transformed"}, "cannot make a transformed"),
    ):
        with pytest.raises(ConfigError, match=message):
            prior_from_dict(values)


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
        (lambda: Helix(pitch=0.0), "pitch"),
        (lambda: Spline(POINTS[:1]), "at least 2 points for a curve, got 1"),
        (lambda: Spline(POINTS[:2], closed=True), "at least 3 points for a closed curve"),
        (lambda: Spline(POINTS[[0, 1, 1]]), "one twice in a row"),
        (lambda: Sphere(0.0), "radius"),
        (lambda: Ellipsoid((1.0, 2.0)), "3 semi-axes"),
        (lambda: Ellipsoid((1.0, 2.0, 0.0)), "semi axis"),
        (lambda: Torus(1.0, 2.0), "tube radius of at most 1.0"),
        (lambda: Tube(1.0, -1.0), "length"),
        (lambda: Sheet(0.0), "width"),
        (lambda: Transformed(Line(), 0.0), "scale"),
        (lambda: Transformed(Line(), rotation=2 * TURN), "orthogonal"),
        (lambda: Transformed(Line(), translation=POINTS), "translation"),
        (lambda: Union(()), "at least one part"),
        (lambda: Union((Line(),), beta=0.0), "beta"),
    ],
)
def test_impossible_priors_are_refused(make: Callable[[], Prior], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()
