"""Element evolution: elements are chosen by mutation and selection while the atoms move.

References
----------
R. Elijošius et al., "Zero shot molecular generation via similarity kernels", Nat. Commun. 16
(2025), doi 10.1038/s41467-025-60963-3, evolution of elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from simgen.composition import Palette
from simgen.errors import ConfigError
from simgen.graph import Families
from simgen.molecules import MoleculeBatch
from simgen.noise import Noise, Stream, gumbel
from simgen.sampling import Callback, HeunSettings, Progress, Samples, heun
from simgen.schedules import temperature


class EnergyScore(Protocol):
    """A score that also says how well each atom fits."""

    def __call__(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Return the score of each atom, shape (n_atoms, 3), 1/angstrom."""
        ...

    def atom_energies(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        """Return the energy of each atom, shape (n_atoms,), low where it fits."""
        ...


@runtime_checkable
class KnowsFamilies(Protocol):
    """A score that knows better which of its parts depend on the batch."""

    def in_families(self, batch: MoleculeBatch, families: Families, still: Tensor) -> EnergyScore:
        """Return the same score, which is for a molecule the same, bit for bit, in any batch.

        That of atoms marked in ``still``, (n_atoms,), is not asked for.
        """
        ...


@dataclass(frozen=True, slots=True)
class EvolutionSettings:
    """Constants of element evolution (Elijošius et al. 2025).

    Attributes
    ----------
    n_particles : int
        Copies of each molecule, the original among them; 1 for no evolution.
    interval : int
        Steps between mutation and selection.
    mutated_fraction : float
        Fraction of the mobile atoms that mutate at most. Each copy draws how many do: to change
        them all, as published, is the less likely to improve a molecule the larger it is.
    hole_energy : float
        Molecules with a lower energy per atom are taken for holes of the model and not selected.
    palette : Palette
        Elements to choose from.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    n_particles: int = 10
    interval: int = 2
    mutated_fraction: float = 0.2
    hole_energy: float = -5.0
    palette: Palette = field(default_factory=Palette)

    def __post_init__(self) -> None:
        for name in ("n_particles", "interval"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} >= 1, got {getattr(self, name)}")
        if not 0.0 < self.mutated_fraction <= 1.0:
            raise ConfigError(f"expected 0 < mutated_fraction <= 1, got {self.mutated_fraction}")


FAMILY_ATOMS = 120
"""Atoms of all particles of a molecule that are worth their cost."""


def suited_particles(n_atoms: int) -> int:
    """Particles for molecules of which so many atoms evolve.

    Selection is by the energy of whole molecules. The more atoms they have, the less that says of
    a mutation, and the less is gained by more particles (docs/experiments.md).

    Examples
    --------
    >>> suited_particles(9), suited_particles(16), suited_particles(40), suited_particles(200)
    (10, 8, 3, 3)
    """
    return min(max(3, round(FAMILY_ATOMS / n_atoms)), 10)


def mutate(
    batch: MoleculeBatch,
    atom_energies: Tensor,
    *,
    inverse_temperature: float,
    palette: Palette,
    mutated_fraction: float | Tensor,
    noise: Noise,
    step: int,
    held: Tensor | None = None,
) -> MoleculeBatch:
    """Change the elements of some mobile atoms of every molecule.

    Parameters
    ----------
    batch : MoleculeBatch
        Molecules.
    atom_energies : Tensor, shape (n_atoms,)
        Atoms of high energy are changed first: k = ceil(fraction N_mobile) atoms are drawn
        without replacement with probability proportional to exp(b E_i).
    inverse_temperature : float
        The b.
    palette : Palette
        Elements they become, each with its weight, never the one they are. A molecule that would
        have too many or too few atoms of an element exchanges elements among its atoms instead.
    mutated_fraction : float or Tensor, shape (n_molecules,)
        Fraction of the mobile atoms to change, rounded up.
    noise : Noise
        Random numbers of the molecules.
    step : int
        Index of the step, for the random numbers.
    held : Tensor, shape (n_atoms,), bool, optional
        Mobile atoms that keep their elements all the same.

    Returns
    -------
    MoleculeBatch
        With other elements, and otherwise the same.
    """
    idx = batch.molecule_idx
    still = batch.fixed if held is None else batch.fixed | held
    n_mobile = batch.sum_per_molecule((~still).to(torch.float64))
    # The small number keeps 0.2 x 5 from being two atoms.
    n_mutated = torch.ceil(mutated_fraction * n_mobile - 1e-9)

    energies = torch.nan_to_num(atom_energies.to(torch.float64))
    keys = inverse_temperature * energies + gumbel(noise.uniform(Stream.MUTATED_ATOMS, step, idx))
    keys = torch.where(still, -math.inf, keys)
    by_key = torch.argsort(keys, descending=True, stable=True)
    order = by_key[torch.argsort(idx[by_key], stable=True)]
    rank = torch.empty_like(idx)
    rank[order] = batch.local_idx  # the order keeps the molecules where they are
    mutated = (rank < n_mutated[idx]) & ~still

    elements = torch.tensor(palette.elements, device=idx.device)
    weights = torch.tensor(palette.weights, dtype=torch.float64, device=idx.device)
    weights = weights * (batch.atomic_numbers[:, None] != elements)
    cumulative = torch.cumsum(weights, 1)
    uniform = noise.uniform(Stream.NEW_ELEMENTS, step, idx)[:, None]
    # Elements of weight zero are skipped, since their cumulative weight is the one before.
    chosen = (cumulative <= uniform * cumulative[:, -1:]).sum(1).clamp(max=len(elements) - 1)
    possible = cumulative[:, -1] > 0
    numbers = torch.where(mutated & possible, elements[chosen], batch.atomic_numbers)
    if palette.is_bounded:
        exchanging = ~_within_bounds(batch.replace(atomic_numbers=numbers), palette)
        exchanged = _exchange(batch, order, rank, torch.minimum(2.0 * n_mutated, n_mobile))
        numbers = torch.where(exchanging[idx], exchanged, numbers)
    return batch.replace(atomic_numbers=numbers)


def _within_bounds(batch: MoleculeBatch, palette: Palette) -> Tensor:
    """Whether each molecule has as many mobile atoms of each element as it may: (n_molecules,)."""
    idx = batch.molecule_idx
    elements = torch.tensor(palette.elements, device=idx.device)
    of_element = (batch.atomic_numbers[:, None] == elements) & ~batch.fixed[:, None]
    counts = batch.sum_per_molecule(of_element.to(torch.int64))
    low, high = (
        torch.tensor(limits, device=idx.device) for limits in (palette.at_least, palette.at_most)
    )
    return ((counts >= low) & (counts <= high)).all(1)


def _exchange(batch: MoleculeBatch, order: Tensor, rank: Tensor, n_exchanged: Tensor) -> Tensor:
    """Elements after the first atoms in the order of each molecule passed theirs on in a circle."""
    idx = batch.molecule_idx
    counts = batch.counts
    first_atom = (torch.cumsum(counts, 0) - counts)[idx]
    width = n_exchanged.to(torch.int64)[idx]
    donor = torch.where(rank < width, (rank + 1) % width.clamp(min=1), rank)
    return batch.atomic_numbers[order[first_atom + donor]]


def select(
    energies: Tensor,
    sound: Tensor,
    finite: Tensor,
    *,
    inverse_temperature: float,
    noise: Noise,
    step: int,
) -> Tensor:
    """Choose one particle of each molecule with probability proportional to exp(-b E).

    Parameters
    ----------
    energies : Tensor, shape (n_molecules, n_particles)
        The E.
    sound, finite : Tensor, shape (n_molecules, n_particles), bool
        The choice is among the sound particles; where there are none, among the finite ones;
        where there are none either, it is the first particle.
    inverse_temperature : float
        The b; infinity chooses the lowest energy.
    noise : Noise
        Random numbers of all particles, those of a molecule adjacent.
    step : int
        Index of the step, for the random numbers.

    Returns
    -------
    Tensor, shape (n_molecules,), int64
        The particle chosen for each molecule.
    """
    allowed = torch.where(sound.any(1, keepdim=True), sound, finite)
    keys = -energies.to(torch.float64)
    if math.isfinite(inverse_temperature):
        uniform = noise.uniform_per_molecule(Stream.SURVIVORS, step).view_as(keys)
        keys = inverse_temperature * keys + gumbel(uniform)
    keys = torch.where(allowed, keys, -math.inf)
    return torch.where(allowed.any(1), keys.argmax(1), 0)


def evolve(
    score: EnergyScore,
    batch: MoleculeBatch,
    sigmas: Sequence[float],
    *,
    noise: Noise,
    settings: EvolutionSettings | None = None,
    heun_settings: HeunSettings | None = None,
    first_step: int = 0,
    held: Tensor | None = None,
    callback: Callback | None = None,
) -> Samples:
    """Sample positions and elements together.

    The run is cut into blocks of ``interval`` steps. Each begins with the original and mutated
    copies of every molecule and ends with one survivor, the last with the one of lowest energy.
    Molecules and particles are one batch. With one particle this is :func:`sampling.heun`.

    On the CPU a molecule is bit for bit the same in any batch. On other devices that cannot be had;
    there it is the same, but for rare exceptions, if the positions are float64.

    Parameters
    ----------
    score : EnergyScore
        Score, and the energies to select by.
    batch : MoleculeBatch
        Molecules to start from. Fixed atoms neither move nor mutate.
    sigmas : sequence of float
        Falling noise levels, angstrom.
    noise : Noise
        Random numbers of the molecules.
    settings : EvolutionSettings, optional
        Constants of the evolution.
    heun_settings : HeunSettings, optional
        Constants of the sampler.
    first_step : int
        Index of the first step, for the random numbers, if these levels are part of a longer run.
    held : Tensor, shape (n_atoms,), bool, optional
        Atoms that neither move nor mutate this time.
    callback : callable, optional
        Called after each block with the survivors.

    Returns
    -------
    Samples
        Molecules, and which of them stayed finite: a molecule is lost only if all its particles
        are.
    """
    settings = settings or EvolutionSettings()
    n_particles = settings.n_particles
    evolving = n_particles > 1
    levels = [float(sigma) for sigma in sigmas]
    last_step = len(levels) - 1
    family = torch.arange(batch.n_molecules, device=batch.positions.device)

    # The layout of the particles, those of a molecule adjacent, stays the same to the end.
    particles = batch[family.repeat_interleave(n_particles)]
    noise = noise.particles(n_particles)
    finite = torch.ones_like(noise.sample_idx, dtype=torch.bool)
    counts, local_idx = particles.counts, particles.local_idx
    first_atom = torch.cumsum(counts, 0) - counts
    is_copy = particles.molecule_idx % n_particles > 0
    original_atoms = torch.nonzero(~is_copy).squeeze(1)
    if held is not None:
        first_of_family = torch.cumsum(batch.counts, 0) - batch.counts
        held = held[first_of_family[particles.molecule_idx // n_particles] + local_idx]
    still = particles.fixed if held is None else particles.fixed | held
    score = independent(score, particles, n_particles, still)
    if evolving:
        atom_energies = score.atom_energies(particles, levels[0])

    def originals() -> MoleculeBatch:
        return batch.replace(
            positions=particles.positions[original_atoms],
            atomic_numbers=particles.atomic_numbers[original_atoms],
        )

    for step in range(0, last_step, settings.interval):
        end = min(step + settings.interval, last_step)
        if evolving:
            share = noise.uniform_per_molecule(Stream.MUTATED_SHARE, first_step + step)
            mutants = mutate(
                particles,
                atom_energies,
                inverse_temperature=1.0 / temperature(levels[step], levels[0]),
                palette=settings.palette,
                mutated_fraction=settings.mutated_fraction * share,
                noise=noise,
                step=first_step + step,
                held=held,
            )
            numbers = torch.where(is_copy, mutants.atomic_numbers, particles.atomic_numbers)
            particles = particles.replace(atomic_numbers=numbers)
        particles, finite = heun(
            score,
            particles,
            levels[step : end + 1],
            noise=noise,
            settings=heun_settings,
            first_step=first_step + step,
            finite=finite,
            held=held,
        )
        if evolving:
            atom_energies = score.atom_energies(particles, levels[end])
            energies = particles.sum_per_molecule(atom_energies.to(torch.float64))
            finite = finite & torch.isfinite(energies)
            sound = finite & (energies >= settings.hole_energy * counts)
            chosen = select(
                energies.view(-1, n_particles),
                sound.view(-1, n_particles),
                finite.view(-1, n_particles),
                inverse_temperature=(
                    math.inf if end == last_step else 1.0 / temperature(levels[end], levels[0])
                ),
                noise=noise,
                step=first_step + end,
            )
            survivors = (family * n_particles + chosen).repeat_interleave(n_particles)
            source = first_atom[survivors][particles.molecule_idx] + local_idx
            particles = particles.replace(
                positions=particles.positions[source],
                atomic_numbers=particles.atomic_numbers[source],
            )
            atom_energies = atom_energies[source]
            finite = finite[survivors]
        if callback is not None:
            callback(Progress(end, levels[end], originals()))
    return Samples(originals(), finite[::n_particles])


def independent(
    score: EnergyScore, batch: MoleculeBatch, n_particles: int, still: Tensor | None = None
) -> EnergyScore:
    """Make the score of a molecule independent of the batch it is in, bit for bit, on the CPU.

    That of atoms marked in ``still``, (n_atoms,), by default the fixed ones, is not asked for.

    A family fits into a CPU's caches, so that it costs little to evaluate each of them apart from
    the others.
    """
    if batch.positions.device.type != "cpu":
        return score
    families = Families(batch, n_particles)
    if isinstance(score, KnowsFamilies):
        return score.in_families(batch, families, batch.fixed if still is None else still)
    return _FamilyScore(score, families)


class _FamilyScore:
    """Evaluates the particles of each molecule apart from those of the others."""

    def __init__(self, score: EnergyScore, families: Families) -> None:
        self._score = families.apart(score)
        self._atom_energies = families.apart(score.atom_energies)

    def __call__(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        return self._score(batch, sigma)

    def atom_energies(self, batch: MoleculeBatch, sigma: float) -> Tensor:
        return self._atom_energies(batch, sigma)
