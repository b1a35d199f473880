"""Refinement and repair only ever improve, leave good molecules alone, and mend bad ones."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from simgen.cohesion import n_fragments
from simgen.errors import ConfigError
from simgen.evolution import EvolutionSettings, Palette
from simgen.molecules import MoleculeBatch
from simgen.noise import Noise
from simgen.priors import Circle
from simgen.refinement import Pace, RefinementSettings, RepairSettings, refine, repair
from simgen.sampling import Samples
from simgen.schedules import SIGMA_MIDDLE, noise_levels

LEVELS = noise_levels(20).tolist()
EVOLUTION = EvolutionSettings(n_particles=3, palette=Palette((6, 7)))


class Ring:
    """Atoms are wanted at 1 A from the origin; the closer, the lower their energy."""

    def __call__(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        r = batch.positions.norm(dim=1, keepdim=True).clamp(min=1e-3)
        return -4.0 * (r - 1.0) * batch.positions / r

    def atom_energies(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        return 20.0 * (batch.positions.norm(dim=1) - 1.0).square()


def molecules(n_molecules: int, n_atoms: int = 6, spread: float = 2.0) -> Samples:
    generator = torch.Generator().manual_seed(0)
    batch = MoleculeBatch.from_arrays(
        [
            ([6] * n_atoms, spread * torch.randn(n_atoms, 3, generator=generator))
            for _ in range(n_molecules)
        ]
    )
    return Samples(batch, torch.ones(n_molecules, dtype=torch.bool))


def energies(samples: Samples) -> Tensor:
    batch = samples.molecules
    return batch.sum_per_molecule(Ring().atom_energies(batch, LEVELS[-1]).double())


def noise(*samples: int) -> Noise:
    return Noise(3, torch.tensor(samples))


def run(
    samples: Samples, goal: float, rng: Noise, loops: Sequence[Tensor] = (), **options: object
) -> Samples:
    return refine(
        Ring(),
        samples,
        LEVELS,
        goal,
        noise=rng,
        settings=RefinementSettings(**options),
        evolution=EVOLUTION,
        loops=loops,
    )


def test_energies_fall_and_never_rise() -> None:
    start = molecules(5, spread=0.6)
    before = energies(start)
    previous = before
    for n_rounds in (1, 2, 4):
        refined = run(start, -1.0, noise(*range(5)), n_rounds=n_rounds, sigma=0.5)
        after = energies(refined)
        assert (after <= previous).all()
        previous = after
    assert (previous < 0.5 * before).all()


def test_finished_molecules_stay_bit_for_bit() -> None:
    start = molecules(3, n_atoms=2, spread=0.1)
    refined = run(start, 1e6, noise(0, 1, 2))
    assert torch.equal(refined.molecules.positions, start.molecules.positions)
    assert torch.equal(refined.molecules.atomic_numbers, start.molecules.atomic_numbers)


def test_fixed_atoms_that_fit_badly_are_nothing_to_improve() -> None:
    positions = torch.tensor([[0.0, 1.0, 0.0], [1.4, 0.0, 0.0], [2.5, 0.0, 0.0]])
    fixed = torch.tensor([False, False, True])
    batch = MoleculeBatch.from_arrays([([6] * 3, positions)])
    start = Samples(batch.replace(fixed=fixed), torch.tensor([True]))
    assert float(energies(start)) > 3 * 5.0
    refined = run(start, 5.0, noise(0), n_rounds=2, sigma=0.5)
    assert torch.equal(refined.molecules.positions, positions)
    refined = run(start, 0.1, noise(0), n_rounds=6, sigma=0.5)
    assert energies(refined) < energies(start)


def test_no_rounds_change_nothing() -> None:
    start = molecules(2)
    refined = run(start, -1.0, noise(0, 1), n_rounds=0)
    assert torch.equal(refined.molecules.positions, start.molecules.positions)


def test_a_torn_molecule_is_mended_even_at_a_higher_energy() -> None:
    """Two groups of good atoms, too far from each other to hang together."""
    torn = torch.tensor([[-1.0, 0, 0], [-1.0, 0.1, 0], [1.0, 0, 0], [1.0, 0.1, 0]])
    start = Samples(MoleculeBatch.from_arrays([([6] * 4, torn)]), torch.tensor([True]))
    refined = run(start, 1e6, noise(7), n_rounds=20, torn_sigma=1.0)
    positions = refined.molecules.positions
    reach = 1.2 * 2 * 0.76
    distances = torch.cdist(positions, positions)
    graph = (distances < reach).numpy()
    assert connected_components(graph)[0] == 1
    before = energies(start)
    assert energies(refined) > before


def test_a_chain_along_a_closed_curve_counts_as_torn() -> None:
    loops = Circle(1.0).loops()
    angle = 0.4 * torch.pi * torch.arange(4)
    chain = torch.stack([angle.cos(), angle.sin(), 0 * angle], dim=1)
    start = Samples(MoleculeBatch.from_arrays([([6] * 4, chain)]), torch.tensor([True]))
    assert n_fragments(start.molecules).tolist() == [1]
    unchanged = run(start, 1e6, noise(7), n_rounds=20, torn_sigma=1.0)
    assert torch.equal(unchanged.molecules.positions, chain)
    refined = run(start, 1e6, noise(7), loops=loops, n_rounds=20, torn_sigma=1.0)
    assert n_fragments(refined.molecules, loops=loops).tolist() == [1]


def test_the_batch_does_not_matter() -> None:
    start = molecules(4, spread=0.8)
    together = run(start, 0.01, noise(0, 1, 2, 3), n_rounds=3, sigma=0.5)
    for k in (0, 3):
        alone = run(
            Samples(start.molecules[k], torch.tensor([True])), 0.01, noise(k), n_rounds=3, sigma=0.5
        )
        assert torch.equal(alone.molecules.positions, together.molecules[k].positions)


def test_molecules_that_are_lost_stay_lost() -> None:
    start = molecules(2)
    start.molecules.positions[0] = torch.nan
    lost = Samples(start.molecules, torch.tensor([False, True]))
    refined = run(lost, -1.0, noise(0, 1), n_rounds=1)
    assert refined.finite.tolist() == [False, True]
    assert refined.molecules[1].positions.isfinite().all()


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_rounds"):
        RefinementSettings(n_rounds=-1)
    with pytest.raises(ConfigError, match="torn_sigma"):
        RefinementSettings(torn_sigma=0.0)


# --- repair ------------------------------------------------------------------------------------


def blame_nitrogen(batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
    """A judge: nitrogen is wrong, and nothing but the nitrogens may move."""
    faulty = batch.atomic_numbers == 7
    return faulty, faulty.clone()


def mixed(n_molecules: int) -> Samples:
    start = molecules(n_molecules, spread=0.4)  # in one piece
    numbers = torch.tensor([7, 6, 6, 7, 6, 6]).repeat(n_molecules)
    return Samples(start.molecules.replace(atomic_numbers=numbers), start.finite)


def run_repair(samples: Samples, rng: Noise, **options: object) -> Samples:
    return repair(
        Ring(),
        samples,
        LEVELS,
        blame_nitrogen,
        noise=rng,
        settings=RepairSettings(**options),
        evolution=EVOLUTION,
    )


def n_nitrogens(samples: Samples) -> Tensor:
    batch = samples.molecules
    return batch.sum_per_molecule((batch.atomic_numbers == 7).long())


def test_faults_never_become_more_and_end() -> None:
    previous = mixed(5)
    for n_rounds in (1, 2, 8):
        repaired = run_repair(mixed(5), noise(*range(5)), n_rounds=n_rounds)
        assert (n_nitrogens(repaired) <= n_nitrogens(previous)).all()
        previous = repaired
    assert (n_nitrogens(previous) == 0).all()


def test_only_what_is_at_fault_moves_and_mutates() -> None:
    start = mixed(3)
    repaired = run_repair(start, noise(0, 1, 2), n_rounds=1)
    changed = (repaired.molecules.positions != start.molecules.positions).any(1)
    assert changed.any()
    good = start.molecules.atomic_numbers == 6
    assert not changed[good].any()
    assert (repaired.molecules.atomic_numbers[good] == 6).all()


def test_fixed_atoms_at_fault_stay() -> None:
    start = mixed(1)
    fixed = torch.tensor([True, False, False, False, False, False])
    start = Samples(start.molecules.replace(fixed=fixed), start.finite)
    repaired = run_repair(start, noise(0), n_rounds=8)
    assert n_nitrogens(repaired).tolist() == [1]
    assert torch.equal(repaired.molecules.positions[0], start.molecules.positions[0])


def test_faultless_molecules_stay_bit_for_bit() -> None:
    start = molecules(3, spread=0.4)
    repaired = run_repair(start, noise(0, 1, 2))
    assert torch.equal(repaired.molecules.positions, start.molecules.positions)


def test_the_batch_does_not_matter_to_repair() -> None:
    start = mixed(4)
    together = run_repair(start, noise(0, 1, 2, 3), n_rounds=3)
    for k in (0, 3):
        one = Samples(start.molecules[k], torch.tensor([True]))
        alone = run_repair(one, noise(k), n_rounds=3)
        assert torch.equal(alone.molecules.positions, together.molecules[k].positions)
        assert torch.equal(alone.molecules.atomic_numbers, together.molecules[k].atomic_numbers)


def test_repair_does_not_tear() -> None:
    """Where the only way to fewer faults is to tear, the fault stays."""
    line = torch.tensor([[0.0, 0, 0], [1.4, 0, 0], [2.8, 0, 0]])
    start = Samples(MoleculeBatch.from_arrays([([6, 7, 6], line)]), torch.tensor([True]))

    class Outwards(Ring):
        def __call__(self, batch: MoleculeBatch, sigma: float) -> Tensor:
            return torch.tensor([0.0, 20.0, 0.0]).expand_as(batch.positions)

    repaired = repair(
        Outwards(),
        start,
        LEVELS,
        blame_nitrogen,
        noise=noise(0),
        settings=RepairSettings(4, (1.0,)),
        evolution=EVOLUTION,
    )
    assert torch.equal(repaired.molecules.positions, line)


def test_bad_repair_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_rounds"):
        RepairSettings(n_rounds=-1)
    with pytest.raises(ConfigError, match="sigmas"):
        RepairSettings(sigmas=(0.3, 0.0))
    with pytest.raises(ConfigError, match="sigmas"):
        RepairSettings(sigmas=())
    with pytest.raises(ConfigError, match="scatter"):
        RepairSettings(scatter=-1.0)
    with pytest.raises(ConfigError, match="stride"):
        Pace(stride=0)
    with pytest.raises(ConfigError, match="n_particles"):
        Pace(n_particles=0)


def test_a_round_has_every_linear_level_some_of_the_others_and_the_last() -> None:
    sigmas = [0.2, 0.1, SIGMA_MIDDLE, 0.04, 0.03, 0.02, 0.01]
    assert Pace(stride=1).levels(sigmas, 0.15) == sigmas[1:]
    assert Pace(stride=2).levels(sigmas, 0.15) == [0.1, SIGMA_MIDDLE, 0.03, 0.01]
    assert Pace(stride=3).levels(sigmas, 0.035) == [0.01]
    assert Pace().levels(sigmas, 0.005) == []


def test_a_round_has_no_more_particles_than_the_evolution() -> None:
    assert Pace(n_particles=3).evolution(EvolutionSettings(n_particles=10)).n_particles == 3
    assert Pace(n_particles=3).evolution(EvolutionSettings(n_particles=2)).n_particles == 2
    assert Pace(n_particles=3).evolution(None).n_particles == 3


def test_repair_mends_what_is_torn_though_nobody_finds_fault() -> None:
    torn = torch.tensor([[-1.0, 0, 0], [-1.0, 0.1, 0], [1.0, 0, 0], [1.0, 0.1, 0]])
    start = Samples(MoleculeBatch.from_arrays([([6] * 4, torn)]), torch.tensor([True]))
    assert n_fragments(start.molecules).tolist() == [2]
    repaired = run_repair(start, noise(7), n_rounds=20, sigmas=(1.0,))
    assert n_fragments(repaired.molecules).tolist() == [1]
