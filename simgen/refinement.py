"""Refinement: raise the noise of finished samples a little, let it fall again, keep what improved.

One pass of the sampler leaves some molecules crowded: while the noise is high the prior presses
atoms together, and when it has faded the steps are too short for them to part. Another pass from a
low noise level, where the prior is weak, lets them. Others are torn apart, since the similarity of
an atom to the reference does not tell whether all atoms hang together; those begin at a higher
level, where the prior and cohesion bring the parts together. No sample is thrown away; those that
look like the reference already are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simgen.cohesion import n_fragments
from simgen.errors import ConfigError
from simgen.evolution import EnergyScore, EvolutionSettings, evolve, independent
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
    sigma, torn_sigma : float
        Each round begins at the highest noise level not above this one, angstrom; for molecules
        in several parts, not above the other.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    n_rounds: int = 6
    sigma: float = 0.15
    torn_sigma: float = 0.4

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
    energies, means, torn = _fitness(score, batch, levels[-1], surroundings)
    for round_ in range(1, settings.n_rounds + 1):
        unfinished = finite & (torn | (means > goal))
        for highest, chosen in (
            (settings.sigma, unfinished & ~torn),
            (settings.torn_sigma, unfinished & torn),
        ):
            tail = [sigma for sigma in levels if sigma <= highest]
            rows = torch.nonzero(chosen).squeeze(1)
            if len(tail) < 2 or not len(rows):
                continue
            part = evolve(
                score,
                batch[rows],
                tail,
                noise=Noise(noise.seed, noise.sample_idx[rows], noise.particle_idx[rows]),
                settings=evolution,
                heun_settings=heun_settings,
                first_step=round_ * len(levels),
                callback=callback,
            )
            new_energies, new_means, new_torn = _fitness(
                score, part.molecules, levels[-1], surroundings
            )
            # In one piece is better than in several; else the lower energy is better.
            better = torch.where(
                torn[rows] == new_torn, new_energies < energies[rows], torn[rows] & ~new_torn
            )
            improved = torch.nonzero(better & part.finite).squeeze(1)
            source = torch.arange(batch.n_molecules, device=rows.device)
            source[rows[improved]] = batch.n_molecules + improved
            batch = MoleculeBatch.cat([batch, part.molecules])[source]
            energies = energies.index_copy(0, rows[improved], new_energies[improved])
            means = means.index_copy(0, rows[improved], new_means[improved])
            torn = torn.index_copy(0, rows[improved], new_torn[improved])
    return Samples(batch, finite)


def _fitness(
    score: EnergyScore, batch: MoleculeBatch, sigma: float, surroundings: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Energy of each molecule, mean of its mobile atoms, and whether it is in several parts.

    All of shape (n_molecules,).
    """
    atoms = independent(score, batch, 1).atom_energies(batch, sigma).to(torch.float64)
    mobile = (~batch.fixed).to(torch.float64)
    # A molecule without mobile atoms has nothing to improve: its mean is not a number.
    means = batch.sum_per_molecule(atoms * mobile) / batch.sum_per_molecule(mobile)
    return batch.sum_per_molecule(atoms), means, n_fragments(batch, surroundings) > 1
