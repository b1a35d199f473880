"""Refinement and repair: raise the noise of finished samples a little, let it fall again, and keep
what improved.

One pass of the sampler leaves some molecules crowded: while the noise is high the prior presses
atoms together, and when it has faded the steps are too short for them to part. Another pass from a
low noise level, where the prior is weak, lets them. Others are torn apart, since the similarity of
an atom to the reference does not tell whether all atoms hang together; those begin at a higher
level, where the prior and cohesion bring the parts together. No sample is thrown away; those that
look like the reference already are left alone.

Similarity is smooth, and chemistry is not: a nitrogen where a carbon should be looks almost right.
So after refinement comes repair. Somebody who knows chemistry judges the molecules, and only the
atoms that are at fault and those beside them move and mutate again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from simgen.cohesion import n_fragments
from simgen.errors import ConfigError
from simgen.evolution import EnergyScore, EvolutionSettings, evolve, independent
from simgen.molecules import MoleculeBatch
from simgen.noise import Noise, Stream
from simgen.sampling import Callback, HeunSettings, Samples
from simgen.schedules import SIGMA_MIDDLE


@dataclass(frozen=True, slots=True)
class Pace:
    """How thoroughly a round of refinement or repair samples: less so than the first pass, since
    what is not better is not accepted, and another round costs less than a thorough one.

    Attributes
    ----------
    stride : int
        Of the levels in the logarithmic half only one in so many is used: atoms hardly move there.
    n_particles : int
        Particles of each molecule at most, in place of those of the evolution.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    stride: int = 3
    n_particles: int = 3

    def __post_init__(self) -> None:
        for name in ("stride", "n_particles"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} >= 1, got {getattr(self, name)}")

    def levels(self, sigmas: Sequence[float], highest: float) -> list[float]:
        """Of falling noise levels, those of a round that begins not above the highest."""
        tail = [sigma for sigma in sigmas if sigma <= highest]
        linear = [sigma for sigma in tail if sigma >= SIGMA_MIDDLE]
        # Counted from the last one.
        logarithmic = tail[len(linear) :][::-1][:: self.stride][::-1]
        return linear + logarithmic

    def evolution(self, settings: EvolutionSettings | None) -> EvolutionSettings:
        """Constants of the evolution of a round."""
        settings = settings or EvolutionSettings()
        return replace(settings, n_particles=min(settings.n_particles, self.n_particles))


@dataclass(frozen=True, slots=True)
class RefinementSettings:
    """Constants of refinement.

    Attributes
    ----------
    n_rounds : int
        Rounds at most; 0 for no refinement.
    sigma, torn_sigma : float
        Each round begins at the highest noise level not above this one, angstrom; for molecules
        in several parts, not above the other.
    pace : Pace
        How thoroughly a round is sampled.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    n_rounds: int = 2
    sigma: float = 0.15
    torn_sigma: float = 0.4
    pace: Pace = Pace()

    def __post_init__(self) -> None:
        if self.n_rounds < 0:
            raise ConfigError(f"expected n_rounds >= 0, got {self.n_rounds}")
        for name in ("sigma", "torn_sigma"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"expected {name} > 0, got {getattr(self, name)}")


def refine(
    score: EnergyScore,
    samples: Samples,
    sigmas: Sequence[float],
    goal: float | Tensor,
    *,
    noise: Noise,
    settings: RefinementSettings | None = None,
    evolution: EvolutionSettings | None = None,
    heun_settings: HeunSettings | None = None,
    surroundings: Sequence[int] = (),
    loops: Sequence[Tensor] = (),
    callback: Callback | None = None,
) -> Samples:
    """Improve the samples that fit worse than ``goal``.

    Parameters
    ----------
    score : EnergyScore
        What they were sampled with.
    samples : Samples
        What the sampler returned.
    sigmas : sequence of float
        Falling noise levels of the run that made them, angstrom.
    goal : float or Tensor, shape (n_molecules,)
        Molecules whose mobile atoms have at most this mean energy are finished: fixed ones may be
        unlike the reference, and stay so.
    noise : Noise
        Random numbers of the molecules.
    settings, evolution, heun_settings : optional
        Constants.
    surroundings : sequence of int
        Places within each molecule of atoms that are no part of it: those of a host.
    loops : sequence of Tensor, each of shape (n_points, 3)
        Closed curves, angstrom: molecules that do not go round them count as torn.
    callback : callable, optional
        As that of :func:`simgen.evolution.evolve`, with the molecules of the round.

    Returns
    -------
    Samples
        In the same order. No molecule is torn that was whole, and none of the others' energies is
        higher than before.
    """
    settings = settings or RefinementSettings()
    levels = [float(sigma) for sigma in sigmas]
    batch, finite = samples.molecules, samples.finite
    if not batch.n_molecules:
        return samples
    energies, means, torn = _fitness(score, batch, levels[-1], surroundings, loops)
    for round_ in range(1, settings.n_rounds + 1):
        unfinished = finite & (torn | (means > goal))
        for highest, chosen in (
            (settings.sigma, unfinished & ~torn),
            (settings.torn_sigma, unfinished & torn),
        ):
            tail = settings.pace.levels(levels, highest)
            rows = torch.nonzero(chosen).squeeze(1)
            if len(tail) < 2 or not len(rows):
                continue
            part = evolve(
                score,
                batch[rows],
                tail,
                noise=noise[rows],
                settings=settings.pace.evolution(evolution),
                heun_settings=heun_settings,
                first_step=round_ * len(levels),
                callback=callback,
            )
            new_energies, new_means, new_torn = _fitness(
                score, part.molecules, levels[-1], surroundings, loops
            )
            # In one piece is better than in several; else the lower energy is better.
            better = torch.where(
                torn[rows] == new_torn, new_energies < energies[rows], torn[rows] & ~new_torn
            )
            better &= part.finite
            batch = _adopt(batch, part.molecules, rows, better)
            kept = rows[better]
            energies = energies.index_copy(0, kept, new_energies[better])
            means = means.index_copy(0, kept, new_means[better])
            torn = torn.index_copy(0, kept, new_torn[better])
    return Samples(batch, finite)


@dataclass(frozen=True, slots=True)
class RepairSettings:
    """Constants of repair.

    Attributes
    ----------
    n_rounds : int
        Rounds at most; 0 for no repair.
    sigmas : tuple of float
        Each round begins at the highest noise level not above one of these, in turn, angstrom: a
        lower one mends what is almost right, a higher one builds something else.
    scatter : float
        Standard deviation of the noise that what moves begins with, relative to the noise level.
    pace : Pace
        How thoroughly a round is sampled.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    n_rounds: int = 24
    sigmas: tuple[float, ...] = (0.3, 0.5)
    scatter: float = 0.5
    pace: Pace = Pace()

    def __post_init__(self) -> None:
        if self.n_rounds < 0:
            raise ConfigError(f"expected n_rounds >= 0, got {self.n_rounds}")
        if not self.sigmas or not all(0.0 < sigma < float("inf") for sigma in self.sigmas):
            raise ConfigError(f"expected sigmas > 0, got {self.sigmas}")
        if not 0.0 <= self.scatter < float("inf"):
            raise ConfigError(f"expected scatter >= 0, got {self.scatter}")


class Judge(Protocol):
    """Somebody who finds fault with molecules."""

    def __call__(self, batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
        """Return which atoms are at fault, and which are to move so that they no longer are.

        Both of shape (n_atoms,), bool, on the device of the batch. Each molecule is judged as if
        there were no other.
        """
        ...


def repair(
    score: EnergyScore,
    samples: Samples,
    sigmas: Sequence[float],
    judge: Judge,
    *,
    noise: Noise,
    settings: RepairSettings | None = None,
    first_step: int = 0,
    evolution: EvolutionSettings | None = None,
    heun_settings: HeunSettings | None = None,
    surroundings: Sequence[int] = (),
    loops: Sequence[Tensor] = (),
    callback: Callback | None = None,
) -> Samples:
    """Sample the atoms that are at fault again, with all others held where they are.

    Molecules that are torn still are sampled as a whole.

    Parameters
    ----------
    score, samples, sigmas, noise, evolution, heun_settings, surroundings, loops, callback
        As those of :func:`refine`.
    judge : Judge
        Who finds the faults. Fixed atoms do not move, whatever it says.
    settings : RepairSettings, optional
        Constants.
    first_step : int
        Index of the first step, for the random numbers: those before were used for other things.

    Returns
    -------
    Samples
        In the same order. No molecule has more atoms at fault than before, and none is torn that
        was whole.
    """
    settings = settings or RepairSettings()
    levels = [float(sigma) for sigma in sigmas]
    batch, finite = samples.molecules, samples.finite
    if not batch.n_molecules or not settings.n_rounds:
        return samples

    def assess(batch: MoleculeBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Energies, numbers of faults, and what is to move."""
        energies, _, torn = _fitness(score, batch, levels[-1], surroundings, loops)
        faulty, loose = judge(batch)
        # Nothing is worse than to be torn, and all atoms are needed to mend that.
        n_faults = batch.sum_per_molecule(faulty.to(torch.int64)) + torn * (batch.counts + 1)
        return energies, n_faults, loose | torn[batch.molecule_idx]

    energies, n_faults, loose = assess(batch)
    for round_ in range(settings.n_rounds):
        highest = settings.sigmas[round_ % len(settings.sigmas)]
        tail = settings.pace.levels(levels, highest)
        n_loose = batch.sum_per_molecule((loose & ~batch.fixed).to(torch.int64))
        rows = torch.nonzero(finite & (n_faults > 0) & (n_loose > 0)).squeeze(1)
        if len(tail) < 2 or not len(rows):
            continue
        some = batch[rows]
        held = ~loose[torch.isin(batch.molecule_idx, rows)]
        own = noise[rows]
        step = first_step + round_ * len(levels)
        shift = own.normal(Stream.START, step, some.molecule_idx).to(some.positions)
        shift = (settings.scatter * tail[0]) * shift
        still = (held | some.fixed)[:, None]
        some = some.replace(positions=torch.where(still, some.positions, some.positions + shift))
        part = evolve(
            score,
            some,
            tail,
            noise=own,
            settings=settings.pace.evolution(evolution),
            heun_settings=heun_settings,
            first_step=step,
            held=held,
            callback=callback,
        )
        new = part.molecules
        new_energies, new_faults, new_loose = assess(new)
        # Fewer faults are better; where there are as many, the lower energy is.
        better = (new_faults < n_faults[rows]) | (
            (new_faults == n_faults[rows]) & (new_energies < energies[rows])
        )
        better &= part.finite
        loose[torch.isin(batch.molecule_idx, rows[better])] = new_loose[better[new.molecule_idx]]
        batch = _adopt(batch, new, rows, better)
        kept = rows[better]
        energies = energies.index_copy(0, kept, new_energies[better])
        n_faults = n_faults.index_copy(0, kept, new_faults[better])
    return Samples(batch, finite)


def _adopt(batch: MoleculeBatch, new: MoleculeBatch, rows: Tensor, better: Tensor) -> MoleculeBatch:
    """Take over the better ones of new molecules, which are to be those in some rows of a batch."""
    atoms = torch.isin(batch.molecule_idx, rows[better])
    chosen = better[new.molecule_idx]
    positions, numbers = batch.positions.clone(), batch.atomic_numbers.clone()
    positions[atoms] = new.positions[chosen]
    numbers[atoms] = new.atomic_numbers[chosen]
    return batch.replace(positions=positions, atomic_numbers=numbers)


def _fitness(
    score: EnergyScore,
    batch: MoleculeBatch,
    sigma: float,
    surroundings: Sequence[int],
    loops: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Energy of each molecule, mean of its mobile atoms, and whether it is torn.

    All of shape (n_molecules,).
    """
    atoms = independent(score, batch, 1).atom_energies(batch, sigma).to(torch.float64)
    mobile = (~batch.fixed).to(torch.float64)
    # A molecule without mobile atoms has nothing to improve: its mean is not a number.
    means = batch.sum_per_molecule(atoms * mobile) / batch.sum_per_molecule(mobile)
    return batch.sum_per_molecule(atoms), means, n_fragments(batch, surroundings, loops) > 1
