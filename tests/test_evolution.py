import math
from collections import Counter
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from simgen.cohesion import Cohesion
from simgen.density import ReferenceEnvironments, Repulsion, SimilarityKernel, SimilarityScore
from simgen.descriptors.force_field import ForceFieldDescriptor
from simgen.errors import ConfigError
from simgen.evolution import EvolutionSettings, Palette, evolve, mutate, select
from simgen.graph import Families
from simgen.kernel import References
from simgen.models import ForceField, NetworkConfig
from simgen.models.compiled import library
from simgen.molecules import MoleculeBatch
from simgen.noise import Noise
from simgen.priors import Gaussian, PointCloud
from simgen.sampling import Progress, heun, start_molecules
from simgen.schedules import noise_levels, temperature

SIGMAS = noise_levels(12).tolist()


class Well:
    """Atoms are drawn to the origin; each element has an energy of its own."""

    def __init__(self, energies: dict[int, float] | None = None) -> None:
        self.energies = energies or {6: 1.0, 7: 0.0, 8: 2.0}
        self.sizes: list[int] = []

    def __call__(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        self.sizes.append(batch.n_molecules)
        return -batch.positions

    def atom_energies(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        table = torch.zeros(10, dtype=batch.positions.dtype)
        for z, energy in self.energies.items():
            table[z] = energy
        return table[batch.atomic_numbers]


def molecules(counts: list[int], seed: int = 0) -> tuple[MoleculeBatch, Noise]:
    rng = np.random.default_rng(seed)
    batch = MoleculeBatch.from_arrays(
        [([6] * n, rng.normal(size=(n, 3))) for n in counts], dtype=torch.float64
    )
    return batch, Noise(seed, torch.arange(len(counts)))


def mutated(batch: MoleculeBatch, noise: Noise, **changes: object) -> MoleculeBatch:
    options: dict[str, object] = {
        "inverse_temperature": 1.0,
        "palette": Palette(),
        "mutated_fraction": 0.2,
        "noise": noise,
        "step": 0,
    }
    energies = torch.zeros(batch.n_atoms, dtype=torch.float64)
    return mutate(batch, energies, **(options | changes))  # type: ignore[arg-type]


# --- mutation


def test_number_of_mutated_atoms() -> None:
    counts = [1, 4, 5, 6, 10, 11, 15, 25]
    batch, noise = molecules(counts)
    new = mutated(batch, noise)
    changed = batch.sum_per_molecule((new.atomic_numbers != 6).to(torch.int64))
    assert changed.tolist() == [1, 1, 1, 2, 2, 3, 3, 5]
    assert torch.equal(new.positions, batch.positions)
    assert set(new.atomic_numbers.tolist()) == {6, 7, 8}


def test_each_molecule_can_have_a_fraction_of_its_own() -> None:
    batch, noise = molecules([10, 10, 10, 3])
    fractions = torch.tensor([0.01, 0.2, 1.0, 0.4], dtype=torch.float64)
    new = mutated(batch, noise, mutated_fraction=fractions)
    changed = batch.sum_per_molecule((new.atomic_numbers != 6).to(torch.int64))
    assert changed.tolist() == [1, 2, 10, 2]


def test_copies_change_between_one_atom_and_the_fraction() -> None:
    """Seen by the energies, which are asked for after each block: two steps, then mutation."""
    seen: list[int] = []

    class Counting(Well):
        def __call__(self, batch: MoleculeBatch, sigma: float) -> Tensor:
            seen.extend(batch.sum_per_molecule((batch.atomic_numbers != 6).long()).tolist())
            return super().__call__(batch, sigma)

    batch, noise = molecules([20])
    settings = EvolutionSettings(n_particles=200, mutated_fraction=0.25)
    evolve(Counting({}), batch, [1.0, 0.5], noise=noise, settings=settings)
    counts = torch.bincount(torch.tensor(seen[:200]), minlength=6)
    assert counts[0] == 1  # the original
    assert counts[1:].sum() == 199 and len(counts) == 6
    assert (counts[1:] > 20).all()


def test_fixed_atoms_neither_mutate_nor_count() -> None:
    batch, noise = molecules([10, 3])
    fixed = torch.tensor([True] * 7 + [False] * 3 + [True] * 3)
    new = mutated(batch.replace(fixed=fixed), noise)
    changed = new.atomic_numbers != 6
    assert not (changed & fixed).any()
    assert batch.sum_per_molecule(changed.to(torch.int64)).tolist() == [1, 0]


def test_held_atoms_do_not_mutate_and_bounds_count_them() -> None:
    batch, noise = molecules([10])
    held = torch.tensor([True] * 7 + [False] * 3)
    for step in range(10):
        new = mutated(batch, noise, held=held, mutated_fraction=1.0, step=step)
        assert ((new.atomic_numbers != 6) == ~held).all()
    # One nitrogen is allowed, and it is among the atoms that are held.
    batch = batch.replace(atomic_numbers=torch.tensor([7] + [6] * 9))
    palette = Palette((6, 7), at_most=(10, 1))
    for step in range(10):
        new = mutated(batch, noise, held=held, palette=palette, mutated_fraction=1.0, step=step)
        assert torch.equal(new.atomic_numbers, batch.atomic_numbers)


def test_a_run_holds_atoms_of_every_particle() -> None:
    batch, noise = molecules([6, 4])
    held = torch.tensor([True, False] * 5)
    options = {"settings": EvolutionSettings(n_particles=3), "held": held}
    end = evolve(Well({6: 1.0}), batch, [0.3, 0.2, 0.1], noise=noise, **options).molecules
    assert torch.equal(end.positions[held], batch.positions[held])
    assert (end.atomic_numbers[held] == 6).all()
    assert (end.positions[~held] != batch.positions[~held]).any()
    assert (end.atomic_numbers[~held] != 6).any()


def test_atoms_mutate_without_replacement_with_boltzmann_weights() -> None:
    # Two of three atoms: the chance of a pair is the sum over both orders of drawing it.
    n, b = 20_000, 0.7
    energies = np.array([0.0, 1.0, 2.0])
    batch, noise = molecules([3] * n)
    new = mutate(
        batch,
        torch.as_tensor(energies).repeat(n),
        inverse_temperature=b,
        palette=Palette(),
        mutated_fraction=0.5,
        noise=noise,
        step=3,
    )
    kept = (new.atomic_numbers == 6).view(n, 3)
    assert (kept.sum(1) == 1).all()
    p = np.exp(b * energies) / np.exp(b * energies).sum()
    chance = np.zeros(3)
    for first, second, left in permutations(range(3)):
        chance[left] += p[first] * p[second] / (1 - p[first])
    assert stats.chisquare(kept.sum(0).numpy(), n * chance).pvalue > 1e-3


def test_new_elements_follow_their_weights() -> None:
    n = 20_000
    batch, noise = molecules([1] * n)
    palette = Palette((8, 6, 7, 9), (1.0, 5.0, 2.0, 3.0))
    new = mutated(batch, noise, palette=palette).atomic_numbers
    counts = [int((new == z).sum()) for z in (8, 7, 9)]
    assert sum(counts) == n
    assert stats.chisquare(counts, n * np.array([1, 2, 3]) / 6).pvalue > 1e-3


def test_palette_of_the_same_single_element() -> None:
    batch, noise = molecules([5])
    assert set(mutated(batch, noise, palette=Palette((6,))).atomic_numbers.tolist()) == {6}
    assert (mutated(batch, noise, palette=Palette((7,))).atomic_numbers == 7).sum() == 1


def counts_of(batch: MoleculeBatch, molecule: int, palette: Palette) -> list[int]:
    mine = (batch.molecule_idx == molecule) & ~batch.fixed
    return [int((batch.atomic_numbers[mine] == z).sum()) for z in palette.elements]


@pytest.mark.parametrize("fixed", [False, True])
def test_bounds_hold_in_every_mutation(fixed: bool) -> None:
    """Mobile atoms only: what is fixed has elements of its own."""
    palette = Palette((6, 7, 8), at_least=(0, 1, 0), at_most=(9, 2, 1))
    batch, noise = molecules([6] * 40)
    held = torch.zeros_like(batch.fixed)
    if fixed:
        held = batch.local_idx < 2
    numbers = torch.where(held, 8, torch.tensor([6, 6, 6, 6, 7, 6] * 40))
    batch = batch.replace(atomic_numbers=numbers, fixed=held)
    seen = set()
    for step in range(12):
        batch = mutated(batch, noise, palette=palette, mutated_fraction=0.4, step=step)
        assert (batch.atomic_numbers[held] == 8).all()
        for k in range(40):
            counts = counts_of(batch, k, palette)
            assert sum(counts) == (4 if fixed else 6)
            assert 1 <= counts[1] <= 2
            assert counts[2] <= 1
            seen.add(tuple(counts))
    # Within the bounds, numbers do change.
    n_mobile = 4 if fixed else 6
    assert seen == {(n_mobile - n - o, n, o) for n in (1, 2) for o in (0, 1)}


def test_exact_numbers_are_kept_by_exchanges() -> None:
    palette = Palette((6, 7, 8), at_least=(3, 2, 1), at_most=(3, 2, 1))
    batch, noise = molecules([6] * 30)
    start = torch.tensor(palette.start(6) * 30)
    batch = batch.replace(atomic_numbers=start)
    after = mutated(batch, noise, palette=palette, mutated_fraction=0.3)
    assert all(counts_of(after, k, palette) == [3, 2, 1] for k in range(30))
    changed = (after.atomic_numbers != start).view(30, 6).sum(1)
    # At most two atoms for each that was to mutate, here ceil(0.3 6) = 2.
    assert int(changed.max()) <= 4
    assert int((changed > 0).sum()) > 15


def test_evolution_ends_within_the_bounds() -> None:
    palette = Palette((6, 7), at_least=(2, 1), at_most=(2, 3))
    batch, noise = molecules([5] * 6)
    batch = batch.replace(atomic_numbers=torch.tensor(palette.start(5) * 6))
    settings = EvolutionSettings(n_particles=4, palette=palette)
    # Carbon would be better everywhere.
    well = Well({6: 0.0, 7: 5.0})
    after = evolve(well, batch, SIGMAS, noise=noise, settings=settings).molecules
    assert all(counts_of(after, k, palette) == [2, 3] for k in range(6))


def test_atoms_without_a_finite_energy_can_mutate() -> None:
    batch, noise = molecules([5])
    new = mutate(
        batch,
        torch.full((5,), torch.nan),
        inverse_temperature=1.0,
        palette=Palette(),
        mutated_fraction=1.0,
        noise=noise,
        step=0,
    )
    assert (new.atomic_numbers != 6).all()


def test_mutation_does_not_depend_on_the_batch() -> None:
    batch, noise = molecules([7, 5, 9])
    together = mutated(batch, noise)
    alone = mutated(batch[2], Noise(0, torch.tensor([2])))
    assert torch.equal(together[2].atomic_numbers, alone.atomic_numbers)


# --- selection


def test_survivors_follow_boltzmann() -> None:
    n, b = 20_000, 0.8
    energies = torch.tensor([0.5, 0.0, 2.0, -7.0], dtype=torch.float64).expand(n, 4)
    sound = torch.tensor([True, True, True, False]).expand(n, 4)
    noise = Noise(3, torch.arange(n)).particles(4)
    chosen = select(
        energies, sound, torch.ones_like(sound), inverse_temperature=b, noise=noise, step=2
    )
    weights = np.exp(-b * np.array([0.5, 0.0, 2.0]))
    counts = torch.bincount(chosen, minlength=4)
    assert counts[3] == 0
    expected = n * weights / weights.sum()
    assert stats.chisquare(counts[:3].numpy(), expected).pvalue > 1e-3


def test_whom_selection_falls_back_on() -> None:
    energies = torch.tensor([[1.0, 0.0], [1.0, 0.0], [torch.nan, 5.0], [torch.nan, torch.nan]])
    sound = torch.tensor([[True, False], [False, False], [False, False], [False, False]])
    finite = torch.tensor([[True, True], [True, True], [False, True], [False, False]])
    noise = Noise(0, torch.arange(4)).particles(2)
    for b in (10.0, math.inf):
        chosen = select(energies, sound, finite, inverse_temperature=b, noise=noise, step=0)
        assert chosen[[0, 2, 3]].tolist() == [0, 1, 0]
    assert chosen[1] == 1


# --- the whole


def test_one_particle_is_the_plain_sampler() -> None:
    batch, noise = molecules([3, 6])
    well = Well()
    settings = EvolutionSettings(n_particles=1)
    evolved = evolve(well, batch, SIGMAS, noise=noise, settings=settings)
    plain = heun(well, batch, SIGMAS, noise=noise)
    assert torch.equal(evolved.molecules.positions, plain.molecules.positions)
    assert torch.equal(evolved.molecules.atomic_numbers, batch.atomic_numbers)
    assert torch.equal(evolved.finite, plain.finite)


def test_good_elements_win() -> None:
    batch, noise = molecules([5, 8, 3])
    well = Well()
    result = evolve(well, batch, noise_levels(50).tolist(), noise=noise)
    assert set(well.sizes) == {10}
    assert result.molecules.n_molecules == 3
    assert result.molecules.molecule_idx is batch.molecule_idx
    assert (result.molecules.atomic_numbers == 7).double().mean() > 0.9
    assert result.finite.all()


def test_the_last_block_keeps_the_best() -> None:
    """With nothing but one block the molecule is the best of the original and its mutants."""
    batch, noise = molecules([1] * 20)
    settings = EvolutionSettings(palette=Palette((6, 7)))
    for energies, expected in (({6: 0.0, 7: 1e-6}, 6), ({6: 1e-6, 7: 0.0}, 7)):
        result = evolve(Well(energies), batch, SIGMAS[:3], noise=noise, settings=settings)
        assert set(result.molecules.atomic_numbers.tolist()) == {expected}


def test_survivors_keep_their_own_positions() -> None:
    """Whoever survives is one of the particles that were there, as it was."""
    populations: list[MoleculeBatch] = []

    class Recorder(Well):
        def atom_energies(self, batch: MoleculeBatch, sigma: float) -> Tensor:
            populations.extend(batch.split())
            return super().atom_energies(batch, sigma)

    batch, noise = molecules([5, 9])
    seen: list[Progress] = []
    evolve(Recorder(), batch, SIGMAS, noise=noise, callback=seen.append)
    survivors = [survivor for progress in seen for survivor in progress.molecules.split()]
    assert len(populations) == 10 * (len(survivors) + 2)
    for k, survivor in enumerate(survivors, start=2):
        assert any(
            torch.equal(particle.positions, survivor.positions)
            and torch.equal(particle.atomic_numbers, survivor.atomic_numbers)
            for particle in populations[10 * k : 10 * (k + 1)]
        )


def test_the_same_whatever_the_batch() -> None:
    batch, noise = molecules([5, 8, 3])
    together = evolve(Well(), batch, SIGMAS, noise=noise).molecules
    for k in range(3):
        alone = evolve(Well(), batch[k], SIGMAS, noise=Noise(0, torch.tensor([k]))).molecules
        assert torch.equal(alone.positions, together[k].positions)
        assert torch.equal(alone.atomic_numbers, together[k].atomic_numbers)


@pytest.fixture(params=["compiled", "torch", "accelerator"])
def similarity(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[SimilarityScore, torch.dtype]:
    """A real score: the rounding of matrix products depends on their size.

    With compiled loops most parts of it do not depend on the batch; a cloud's do all the same.
    """
    if request.param != "compiled":
        for module in ("models.frozen", "kernel", "density", "cohesion"):
            monkeypatch.setattr(f"simgen.{module}.library_for", lambda tensor: None)
    dtype = torch.float32
    if request.param == "accelerator":
        # Rounding does depend on the batch, but does not grow.
        monkeypatch.setattr("simgen.evolution.independent", lambda score, *_: score)
        dtype = torch.float64
    config = NetworkConfig(elements=(6, 7, 8), n_channels=16, l_max=2, correlation=2)
    descriptor = ForceFieldDescriptor(ForceField(config).requires_grad_(False).to(dtype))
    reference, _ = molecules([8] * 40, seed=1)
    reference = reference.to(dtype=dtype)
    environments = ReferenceEnvironments(descriptor(reference), reference.atomic_numbers)
    kernel = SimilarityKernel(descriptor, environments)
    compiled = request.param == "compiled" and library(dtype) is not None
    assert kernel.is_batch_invariant(reference) == compiled
    cloud = PointCloud(np.random.default_rng(0).normal(size=(40, 3)))
    return SimilarityScore(kernel, [Repulsion(), Gaussian(), cloud, Cohesion()]), dtype


def test_a_chaotic_score_gives_the_same_whatever_the_batch(
    similarity: tuple[SimilarityScore, torch.dtype],
) -> None:
    score, dtype = similarity
    counts = [7, 5, 9, 7]

    def run(chosen: list[int]) -> MoleculeBatch:
        noise = Noise(0, torch.tensor(chosen))
        start = start_molecules(Gaussian(), [[6] * counts[k] for k in chosen], noise, dtype=dtype)
        levels = noise_levels(24).tolist()
        return evolve(score, start, levels, noise=noise).molecules

    together = run([0, 1, 2, 3])
    for k in (1, 3):
        alone = run([k])
        assert torch.equal(alone.atomic_numbers, together[k].atomic_numbers)
        tolerance = 0.0 if dtype == torch.float32 else 1e-9
        torch.testing.assert_close(alone.positions, together[k].positions, rtol=0, atol=tolerance)


def test_what_depends_on_the_batch_is_evaluated_apart(
    similarity: tuple[SimilarityScore, torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said not to depend on it is evaluated once for all molecules."""
    score, dtype = similarity
    calls: Counter[type] = Counter()

    def count(kind: type) -> Callable[[object, MoleculeBatch, float], Tensor]:
        def score(self: object, batch: MoleculeBatch, sigma: float, **_: Tensor) -> Tensor:
            calls[kind] += 1
            return torch.zeros_like(batch.positions)

        return score

    for kind in map(type, (score.kernel, *score.terms)):
        monkeypatch.setattr(kind, "score", count(kind))
    batch, _ = molecules([3, 4])
    batch = batch.to(dtype=dtype)
    score.in_families(batch, Families(batch, 1), batch.fixed)(batch, 0.1)
    n = 1 if score.kernel.is_batch_invariant(batch) else 2
    assert calls == {SimilarityKernel: n, Repulsion: n, Cohesion: n, Gaussian: 1, PointCloud: 2}


def test_what_no_moving_atom_is_part_of_is_not_evaluated(
    similarity: tuple[SimilarityScore, torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score of atoms that move is the same, bit for bit; others are compared with nothing."""
    score, dtype = similarity
    batch, _ = molecules([30, 5, 40])
    batch = batch.replace(positions=5.0 * batch.positions).to(dtype=dtype)
    still = torch.arange(batch.n_atoms) % 10 > 0
    still[30:35] = True  # all of the second molecule
    rows: list[int] = []
    log_kernel = References.log_kernel

    def count(self: References, features: Tensor, *rest: Tensor, **options: bool) -> object:
        rows.append(len(features))
        return log_kernel(self, features, *rest, **options)

    monkeypatch.setattr(References, "log_kernel", count)
    environments = score.kernel.environments
    even = torch.arange(0, len(environments.features), 2)
    themed = SimilarityKernel(score.kernel.descriptor, environments, themes=[even, even + 1])
    batch = batch.replace(theme=torch.tensor([0, 1, 1]))
    x = batch.positions
    near = (torch.cdist(x, x) < 4.5) & (batch.molecule_idx[:, None] == batch.molecule_idx)
    n_wanted = int((near & ~still).any(1).sum())
    assert 10 < n_wanted < 60
    for kernel in (score.kernel, themed):
        for sigma in (0.5, 0.01):
            whole = kernel.score(batch, sigma)
            rows.clear()
            part = kernel.score(batch, sigma, still)
            assert torch.equal(part[~still], whole[~still])
            assert torch.isfinite(part).all()
            compiled = kernel.is_batch_invariant(batch)
            assert sum(rows) == (n_wanted if compiled else batch.n_atoms)
    families = Families(batch, 1)
    total = score.in_families(batch, families, torch.zeros_like(still))(batch, 0.1)
    some = score.in_families(batch, families, still)(batch, 0.1)
    assert torch.equal(some[~still], total[~still])


def test_fixed_atoms_stay() -> None:
    batch, noise = molecules([6, 4])
    batch = batch.replace(fixed=torch.tensor([True, False] * 5))
    result = evolve(Well(), batch, SIGMAS, noise=noise).molecules
    assert torch.equal(result.positions[batch.fixed], batch.positions[batch.fixed])
    assert set(result.atomic_numbers[batch.fixed].tolist()) == {6}
    assert set(result.atomic_numbers[~batch.fixed].tolist()) != {6}


def test_mutation_follows_the_temperature_of_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, object, object]] = []

    def recording(*args: object, **options: object) -> MoleculeBatch:
        seen.append(("mutate", options["step"], options["inverse_temperature"]))
        return mutate(*args, **options)  # type: ignore[arg-type]

    def choosing(*args: object, **options: object) -> Tensor:
        seen.append(("select", options["step"], options["inverse_temperature"]))
        return select(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("simgen.evolution.mutate", recording)
    monkeypatch.setattr("simgen.evolution.select", choosing)
    batch, noise = molecules([3])
    evolve(Well(), batch, SIGMAS[:6], noise=noise)
    b = [1 / temperature(sigma, SIGMAS[0]) for sigma in SIGMAS]
    expected = [
        ("mutate", 0, b[0]), ("select", 2, b[2]),
        ("mutate", 2, b[2]), ("select", 4, b[4]),
        ("mutate", 4, b[4]), ("select", 5, math.inf),
    ]  # fmt: skip
    assert [entry[:2] for entry in seen] == [entry[:2] for entry in expected]
    assert [entry[2] for entry in seen] == pytest.approx([entry[2] for entry in expected])


def test_a_broken_particle_dies_out_and_a_broken_molecule_is_reported() -> None:
    class Broken(Well):
        def __call__(self, batch: MoleculeBatch, sigma: float) -> Tensor:
            score = super().__call__(batch, sigma)
            # Oxygen cannot be evaluated, and nothing of the second molecule can.
            broken = (batch.atomic_numbers == 8) | (batch.counts[batch.molecule_idx] == 4)
            return torch.where(broken[:, None], torch.nan, score)

    batch, noise = molecules([5, 4, 6])
    result = evolve(Broken({8: -9.0}), batch, SIGMAS, noise=noise)
    assert result.finite.tolist() == [True, False, True]
    assert torch.isfinite(result.molecules.positions).all()
    assert torch.equal(result.molecules[1].positions, batch[1].positions)
    assert 8 not in result.molecules[[0, 2]].atomic_numbers


def test_holes_are_not_selected() -> None:
    batch, noise = molecules([4] * 10)
    sound = evolve(Well({7: -4.9}), batch, SIGMAS, noise=noise).molecules
    assert (sound.atomic_numbers == 7).any()
    # One nitrogen alone makes a hole of its molecule: -21 / 4 < -5.
    holes = evolve(Well({7: -21.0}), batch, SIGMAS, noise=noise).molecules
    assert not (holes.atomic_numbers == 7).any()


def test_callback_sees_the_survivors_of_each_block() -> None:
    batch, noise = molecules([3, 4])
    seen: list[Progress] = []
    result = evolve(Well(), batch, SIGMAS, noise=noise, callback=seen.append)
    assert [p.step for p in seen] == [2, 4, 6, 8, 10, 11]
    assert [p.sigma for p in seen] == [SIGMAS[p.step] for p in seen]
    assert all(p.molecules.n_molecules == 2 for p in seen)
    assert torch.equal(seen[-1].molecules.positions, result.molecules.positions)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Palette(()), "elements"),
        (lambda: Palette((6, 6)), "elements"),
        (lambda: Palette((6, 7), (1.0,)), "weights"),
        (lambda: Palette((6, 7), (1.0, 0.0)), "weights"),
        (lambda: Palette((6,), (math.inf,)), "weights"),
        (lambda: EvolutionSettings(n_particles=0), "n_particles"),
        (lambda: EvolutionSettings(interval=0), "interval"),
        (lambda: EvolutionSettings(mutated_fraction=0.0), "mutated_fraction"),
    ],
)
def test_impossible_settings_are_refused(make: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()  # type: ignore[operator]
