import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from simgen.errors import ConfigError, InputError
from simgen.molecules import MoleculeBatch
from simgen.noise import Noise, Stream
from simgen.priors import Gaussian
from simgen.sampling import GRID, HeunSettings, Progress, heun, start_molecules
from simgen.schedules import noise_levels

WIDTH = 0.7
"""Standard deviation of the exact Gaussian target, angstrom."""
DETERMINISTIC = HeunSettings(churn=1.0, min_noise=0.0)


def flow(batch: MoleculeBatch, sigma: float) -> Tensor:
    """Noise level times the exact score of N(0, WIDTH^2) blurred by the noise.

    With it dx/dsigma = -F is the probability flow of Karras et al. (2022), eq. 1, and positions
    grow as sqrt(WIDTH^2 + sigma^2).
    """
    return -sigma * batch.positions / (WIDTH**2 + sigma**2)


def still(batch: MoleculeBatch, sigma: float) -> Tensor:
    return torch.zeros_like(batch.positions)


def atoms(counts: list[int], sigma: float = 1.0, seed: int = 5) -> tuple[MoleculeBatch, Noise]:
    """Molecules whose coordinates are N(0, WIDTH^2 + sigma^2)."""
    noise = Noise(seed, torch.arange(len(counts)))
    idx = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    x = math.sqrt(WIDTH**2 + sigma**2) * noise.normal(Stream.START, 0, idx)
    return MoleculeBatch(x, torch.full_like(idx, 6), idx), noise


def test_second_order_convergence_to_the_exact_flow() -> None:
    batch, noise = atoms([8])
    # The flow is linear: far out the rounding of positions is too small to see.
    batch = batch.replace(positions=1e4 * batch.positions)
    exact = batch.positions * math.sqrt((WIDTH**2 + 0.01**2) / (WIDTH**2 + 1))
    errors = []
    for n_steps in (10, 20, 40, 80):
        sigmas = torch.linspace(1, 0.01, n_steps + 1).tolist()
        x = heun(flow, batch, sigmas, noise=noise, settings=DETERMINISTIC).molecules.positions
        errors.append(float((x - exact).abs().max()))
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([2.0] * 3, abs=0.15)


@pytest.mark.parametrize("churn", [1.0, 1.3])
def test_moments_of_the_exact_gaussian(churn: float) -> None:
    batch, noise = atoms([200] * 100)
    settings = HeunSettings(churn=churn, s_noise=1.0, min_noise=0.0)
    sigmas = torch.linspace(1, 0.01, 41).tolist()
    x = heun(flow, batch, sigmas, noise=noise, settings=settings).molecules.positions
    n = x.numel()
    expected = WIDTH**2 + 0.01**2
    assert abs(float(x.mean())) < 4 * math.sqrt(expected / n)
    assert float(x.var()) == pytest.approx(expected, rel=4 * math.sqrt(2 / n) + 2e-3)
    assert float((x**4).mean()) == pytest.approx(3 * expected**2, rel=0.05)


@pytest.mark.parametrize(
    ("sigma", "settings", "expected"),
    [
        (1.0, HeunSettings(), 0.5 * math.sqrt(1.3**2 - 1)),
        (1e-3, HeunSettings(), 0.01),
        (1e-3, HeunSettings(s_min=0.0, min_noise=0.0), 0.5 * math.sqrt(1.3**2 - 1) * 1e-3),
        (1.0, HeunSettings(churn=1.0), 0.01),
        (1.0, DETERMINISTIC, 0.0),
    ],
)
def test_noise_that_a_step_adds(sigma: float, settings: HeunSettings, expected: float) -> None:
    batch, noise = atoms([50])
    result = heun(still, batch, [sigma, sigma / 2], noise=noise, settings=settings)
    xi = noise.normal(Stream.CHURN, 0, batch.molecule_idx)
    added = result.molecules.positions - batch.positions
    torch.testing.assert_close(added, expected * xi, rtol=0, atol=GRID)
    assert result.finite.all()


def test_one_step_by_hand() -> None:
    seen = []

    def score(batch: MoleculeBatch, sigma: float) -> Tensor:
        seen.append(sigma)
        return torch.full_like(batch.positions, sigma)

    batch, noise = atoms([1])
    settings = HeunSettings(min_noise=0.0, s_noise=0.0)
    x = heun(score, batch, [0.5, 0.2], noise=noise, settings=settings).molecules.positions
    assert seen == pytest.approx([0.65, 0.2])
    step = (0.65 - 0.2) * (0.65 + 0.2) / 2
    torch.testing.assert_close(x, batch.positions + step, rtol=0, atol=GRID)


def test_fixed_atoms_are_bit_identical() -> None:
    batch, noise = atoms([6, 4])
    fixed = torch.tensor([True, False] * 5)
    batch = batch.replace(fixed=fixed)
    seen = []

    def score(batch: MoleculeBatch, sigma: float) -> Tensor:
        seen.append(batch.positions[fixed])
        return flow(batch, sigma)

    x = heun(score, batch, noise_levels(10).tolist(), noise=noise).molecules.positions
    assert torch.equal(x[fixed], batch.positions[fixed])
    assert all(torch.equal(positions, batch.positions[fixed]) for positions in seen)
    assert (x[~fixed] != batch.positions[~fixed]).all()


def test_held_atoms_stay_where_they_are() -> None:
    batch, noise = atoms([6, 4])
    held = torch.tensor([True, False] * 5)
    x = heun(flow, batch, [0.2, 0.1], noise=noise, held=held).molecules.positions
    assert torch.equal(x[held], batch.positions[held])
    assert (x[~held] != batch.positions[~held]).all()


def test_a_molecule_is_the_same_alone_and_in_a_batch() -> None:
    batch, noise = atoms([6, 4, 5])
    sigmas = noise_levels(10).tolist()
    together = heun(flow, batch, sigmas, noise=noise).molecules
    alone = heun(flow, batch[2], sigmas, noise=Noise(5, torch.tensor([2]))).molecules
    assert torch.equal(together[2].positions, alone.positions)


def test_a_run_can_be_cut_in_two() -> None:
    batch, noise = atoms([6, 4])
    sigmas = noise_levels(11).tolist()
    whole = heun(flow, batch, sigmas, noise=noise)
    first = heun(flow, batch, sigmas[:5], noise=noise)
    rest = heun(flow, first.molecules, sigmas[4:], noise=noise, first_step=4)
    assert torch.equal(whole.molecules.positions, rest.molecules.positions)


@pytest.mark.parametrize("call", [6, 7])
def test_a_broken_molecule_stops_and_the_others_go_on(call: int) -> None:
    batch, noise = atoms([3, 4, 2])
    sigmas = noise_levels(10).tolist()
    calls = 0

    def broken(batch: MoleculeBatch, sigma: float) -> Tensor:
        nonlocal calls
        assert torch.isfinite(batch.positions).all()
        score = flow(batch, sigma)
        if calls == call:
            score[4, 1] = torch.nan if call == 6 else torch.inf
        calls += 1
        return score

    seen: list[Tensor] = []
    result = heun(
        broken, batch, sigmas, noise=noise, callback=lambda p: seen.append(p.molecules.positions)
    )
    healthy = heun(flow, batch, sigmas, noise=noise)
    assert result.finite.tolist() == [True, False, True]
    other = batch.molecule_idx != 1
    assert torch.equal(result.molecules.positions[other], healthy.molecules.positions[other])
    # It stays where it was before the step that went wrong, the fourth.
    assert torch.equal(result.molecules.positions[~other], seen[2][~other])
    assert calls == 18


def test_molecules_that_are_not_finite_before_do_not_move() -> None:
    batch, noise = atoms([3, 4])
    finite = torch.tensor([False, True])
    result = heun(flow, batch, [1.0, 0.5], noise=noise, finite=finite)
    assert torch.equal(result.molecules[0].positions, batch[0].positions)
    assert torch.equal(result.finite, finite)


def test_callback_and_interruption() -> None:
    batch, noise = atoms([3])
    seen: list[Progress] = []

    def callback(progress: Progress) -> None:
        seen.append(progress)
        if progress.step == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heun(flow, batch, [0.5, 0.4, 0.3, 0.2], noise=noise, first_step=10, callback=callback)
    assert [(p.step, p.sigma) for p in seen] == [(11, 0.4), (12, 0.3)]
    assert not torch.equal(seen[0].molecules.positions, seen[1].molecules.positions)


def test_rounding_errors_do_not_grow() -> None:
    batch, noise = atoms([4])
    nudged = batch.replace(positions=batch.positions * (1 + 1e-15))
    assert not torch.equal(batch.positions, nudged.positions)
    seen = []

    def chaotic(batch: MoleculeBatch, sigma: float) -> Tensor:
        seen.append(batch.positions)
        return torch.sin(1e6 * batch.positions)

    for start in (batch, nudged):
        heun(chaotic, start, [1.0, 0.7, 0.4], noise=noise)
    for one, other in zip(seen[:4], seen[4:], strict=True):
        assert torch.equal(one, other)


def test_single_precision_stays() -> None:
    batch, noise = atoms([3])
    result = heun(flow, batch.to(dtype=torch.float32), [1.0, 0.5], noise=noise)
    assert result.molecules.positions.dtype == torch.float32


def test_start() -> None:
    noise = Noise(0, torch.tensor([4, 2]))
    counts = torch.tensor([3, 5])
    start = start_molecules(Gaussian(), [[6] * 3, [6, 7, 6, 6, 6]], noise)
    assert start.counts.tolist() == [3, 5]
    assert start.positions.dtype == torch.float32
    assert start.atomic_numbers.tolist() == [6, 6, 6, 6, 7, 6, 6, 6]
    assert not start.fixed.any()
    expected = 0.5 * Gaussian().sample(counts, noise)
    torch.testing.assert_close(start.positions, expected.float())


def test_start_about_fixed_atoms() -> None:
    noise = Noise(0, torch.tensor([4, 2]))
    frame = ([8, 1], [[0.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
    start = start_molecules(Gaussian(), [[6], [7, 6]], noise, frame=frame)
    assert start.atomic_numbers.tolist() == [8, 1, 6, 8, 1, 7, 6]
    assert start.fixed.tolist() == [True, True, False, True, True, False, False]
    assert start.positions[start.fixed].tolist() == frame[1] * 2
    alone = start_molecules(Gaussian(), [[6], [7, 6]], noise)
    assert torch.equal(start.positions[~start.fixed], alone.positions)


@pytest.mark.parametrize(
    "settings", [{"churn": 0.9}, {"churn": math.nan}, {"s_min": -1.0}, {"min_noise": math.inf}]
)
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        HeunSettings(**settings)


def test_noise_for_other_molecules_is_refused() -> None:
    batch, _ = atoms([3, 3])
    with pytest.raises(InputError, match="2 molecules"):
        heun(flow, batch, [1.0, 0.5], noise=Noise(0, torch.arange(3)))
