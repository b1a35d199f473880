"""Refinement: raise the noise of finished samples a little, let it fall again, keep what improved.

One pass of the sampler leaves some molecules crowded: while the noise is high the prior presses
atoms together, and when it has faded the steps are too short for them to part. Another pass from a
low noise level, where the prior is weak, lets them. No sample is thrown away; those that look like
the reference already are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from simgen.errors import ConfigError
from simgen.evolution import EnergyScore, EvolutionSettings, evolve, molecule_energies
from simgen.molecules import MoleculeBatch
from simgen.noise import Noise
from simgen.sampling import Callback, HeunSettings, Samples


@dataclass(frozen=True, slots=True)
class RefinementSettings:
    """Constants of refinement.

    Attributes
    ----------
    n_rounds : int
        Rounds at most; 0 for no refinement.
    sigma : float
        Each round begins at the highest noise level not above this one, angstrom.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    n_rounds: int = 6
    sigma: float = 0.15

    def __post_init__(self) -> None:
        if self.n_rounds < 0:
            raise ConfigError(f"expected n_rounds >= 0, got {self.n_rounds}")
        if not 0.0 < self.sigma < float("inf"):
            raise ConfigError(f"expected sigma > 0, got {self.sigma}")


def refine(
    score: EnergyScore,
    samples: Samples,
    sigmas: Sequence[float],
    goal: float,
    *,
    noise: Noise,
    settings: RefinementSettings | None = None,
    evolution: EvolutionSettings | None = None,
    heun_settings: HeunSettings | None = None,
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
    goal : float
        Molecules whose mean energy per atom is at most this are finished.
    noise : Noise
        Random numbers of the molecules.
    settings, evolution, heun_settings : optional
        Constants.
    callback : callable, optional
        As that of :func:`simgen.evolution.evolve`, with the molecules of the round.

    Returns
    -------
    Samples
        In the same order. No molecule's energy is higher than before.
    """
    settings = settings or RefinementSettings()
    levels = [float(sigma) for sigma in sigmas]
    tail = [sigma for sigma in levels if sigma <= settings.sigma]
    if len(tail) < 2 or not samples.molecules.n_molecules:
        return samples
    # The energy of a molecule that ceased to be finite is infinite: anything is better.
    batch, finite = samples.molecules, samples.finite.clone()
    energies = molecule_energies(score, batch, levels[-1])
    energies = torch.where(finite & energies.isfinite(), energies, torch.inf)
    for round_ in range(1, settings.n_rounds + 1):
        unfinished = torch.nonzero(finite & (energies > goal * batch.counts)).squeeze(1)
        if not len(unfinished):
            break
        part_noise = Noise(noise.seed, noise.sample_idx[unfinished], noise.particle_idx[unfinished])
        part = evolve(
            score,
            batch[unfinished],
            tail,
            noise=part_noise,
            settings=evolution,
            heun_settings=heun_settings,
            first_step=round_ * len(levels),
            callback=callback,
        )
        new_energies = molecule_energies(score, part.molecules, levels[-1])
        better = part.finite & (new_energies < energies[unfinished])
        chosen = torch.arange(batch.n_molecules, device=finite.device)
        improved = torch.nonzero(better).squeeze(1)
        chosen[unfinished[improved]] = batch.n_molecules + improved
        batch = MoleculeBatch.cat([batch, part.molecules])[chosen]
        energies = energies.index_copy(0, unfinished[improved], new_energies[improved])
    return Samples(batch, finite)
