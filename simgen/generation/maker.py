"""What makes the attempts of a run, from random numbers to finished molecules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simgen.cohesion import Cohesion
from simgen.density import LogDensity, Repulsion, SimilarityKernel, SimilarityScore
from simgen.devices import one_thread
from simgen.evolution import EvolutionSettings, evolve
from simgen.generation.config import MAX_HEAVY_ATOMS, GenerationConfig
from simgen.generation.critic import Critic, HeavyAtoms
from simgen.generation.finish import Finisher, Skeleton
from simgen.generation.journal import write_trajectories
from simgen.generation.result import Attempt
from simgen.generation.timing import timed
from simgen.known import LARGEST_RING, CommonFeatures, collect, load_known
from simgen.landmarks import Landmarks
from simgen.models import Evaluator, ForceField, evaluator
from simgen.molecules import MoleculeBatch
from simgen.noise import Noise, Stream
from simgen.reference import ReferenceSet, list_references, theme_size, themes
from simgen.refinement import RefinementSettings, RepairSettings, refine, repair
from simgen.sampling import Callback, Progress, Samples, start_molecules
from simgen.schedules import noise_levels

_GOAL = 0.75
"""Quantile of the energies of real atoms at which a molecule's mean energy counts as good."""

_ANGSTROM_PER_ATOM = 1.5
"""Length that an atom adds to a chain, at most."""

_SAMPLING_SHARE = 0.5
"""Share of the time of a chunk that the first pass of sampling takes, for the progress report."""


class Maker:
    """Makes attempts, a chunk at a time; there is one in each process that works on a run.

    Parameters
    ----------
    model : ForceField
        Describes environments and relaxes molecules.
    config : GenerationConfig
        What to make.
    reference : ReferenceSet
        What is known.
    chosen : ReferenceSet
        The part of it that atoms are to look like.
    trajectories : Path, optional
        Folder that the paths of all attempts are written to.
    observer : callable, optional
        Shown the molecules while they are sampled.
    """

    def __init__(
        self,
        model: ForceField,
        config: GenerationConfig,
        reference: ReferenceSet,
        chosen: ReferenceSet,
        *,
        trajectories: Path | None = None,
        observer: Callback | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.device = model.embedding.device
        self.dtype = model.embedding.dtype
        self.trajectories = trajectories
        self.observer = observer
        self.frame = frame_atoms(config)
        self.timings: dict[str, float] = {}
        with_bonds = [m.mol for m in reference.molecules if m.mol is not None]
        # How matrix products round depends on the number of threads.
        with timed(self.timings, "reference"), one_thread():
            network = config.descriptor.network(model)
            compared = chosen.heavy_atoms(dtype=self.dtype, device=self.device)
            descriptor = config.descriptor.build(network, compared)
            environments = chosen.environments(descriptor, dtype=self.dtype, device=self.device)
            # What grows from given atoms is to suit them, and not a theme.
            given = config.scaffold is not None or config.host is not None
            size = len(chosen) if given else theme_size(config.n_heavy_atoms[1])
            parts = themes(chosen, environments, size)
            kernel = SimilarityKernel(descriptor, environments, themes=parts)
            self.levels = noise_levels(config.n_steps).tolist()
            chemistry = load_known()
            if reference.name not in list_references():  # shipped ones are parts of what is known
                chemistry |= collect(with_bonds)
        self._goal_of_theme: dict[int, Tensor] = {}
        self.score = SimilarityScore(kernel, self._terms())
        self.finisher = Finisher(
            config,
            self._energy_and_forces,
            with_bonds,
            chemistry,
            dtype=self.dtype,
            device=self.device,
            timings=self.timings,
        )
        self.critic = Critic(self.finisher, self._own_atoms, self._common_features(chosen))

    @property
    def surroundings(self) -> range:
        """Places of the atoms of a host in each molecule of a batch."""
        return range(self.config.n_given, len(self.frame[0]))

    @property
    def loops(self) -> list[Tensor]:
        """Closed curves of the prior that the atoms suffice to go round."""
        n_atoms = self.config.n_given + self.config.n_heavy_atoms[0]
        return [
            loop
            for loop in self.config.prior.loops()
            if float((loop - loop.roll(1, 0)).norm(dim=1).sum()) <= _ANGSTROM_PER_ATOM * n_atoms
        ]

    @cached_property
    def _field(self) -> Evaluator:
        return evaluator(self.model)

    def _energy_and_forces(self, batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
        """The force field, which is only made ready once molecules relax."""
        return self._field.energy_and_forces(batch)

    def _goals(self, theme: Tensor) -> Tensor:
        """Mean energy at which a molecule of each of these themes counts as good."""
        kernel = self.score.kernel
        for number in set(theme.tolist()) - self._goal_of_theme.keys():
            energies = kernel.reference_energies(self.levels[-1], number if kernel.themes else None)
            self._goal_of_theme[number] = energies.quantile(_GOAL)
        return torch.stack([self._goal_of_theme[number] for number in theme.tolist()])

    def _terms(self) -> list[LogDensity]:
        """What draws and pushes atoms beside the similarity to the reference."""
        scaffold, host = self.config.scaffold, self.config.host
        closed = () if scaffold is None else scaffold.closed
        cohesion = Cohesion(closed=(*closed, *self.surroundings), loops=self.loops)
        terms: list[LogDensity] = [Repulsion(), cohesion, self.config.prior]
        landmarks = self.config.prior.landmarks()
        if len(landmarks):
            terms.append(Landmarks(landmarks))
        if scaffold is not None:
            terms.append(scaffold.obstacles())
        if host is not None:
            terms.append(host.obstacles())
        return terms

    def make(
        self, chunk: list[int], sizes: NDArray[np.int64], callback: Callable[[float], None]
    ) -> list[Attempt]:
        """Carry out the attempts of a chunk together.

        On a CPU by one thread, however many there are: how matrix products round depends on it.

        Parameters
        ----------
        chunk : list of int
            Which attempts of the run.
        sizes : array, shape (n_attempts,)
            Heavy atoms to place in each of them.
        callback : callable
            Told which part of the work is done, from 0 on.
        """
        with one_thread():
            return self._make(chunk, sizes, callback)

    def _make(
        self, chunk: list[int], sizes: NDArray[np.int64], callback: Callable[[float], None]
    ) -> list[Attempt]:
        frames: list[Progress] = []
        callback(0.0)

        def on_progress(progress: Progress) -> None:
            callback(_SAMPLING_SHARE * progress.step / (len(self.levels) - 1))
            if self.trajectories is not None:
                frames.append(progress)
            if self.observer is not None:
                self.observer(progress)

        noise = Noise(self.config.seed, torch.tensor(chunk, device=self.device))
        drawn = noise.uniform_per_molecule(Stream.THEME, 0) * max(1, len(self.score.kernel.themes))
        theme = drawn.to(torch.int64)
        with timed(self.timings, "sampling"):
            palette = self.config.palette
            start = start_molecules(
                self.config.prior,
                [palette.start(int(size)) for size in sizes],
                noise,
                frame=self.frame,
                dtype=self.dtype,
            ).replace(theme=theme)
            settings = EvolutionSettings(n_particles=self.config.n_particles, palette=palette)
            samples = evolve(
                self.score, start, self.levels, noise=noise, settings=settings, callback=on_progress
            )
        with timed(self.timings, "reference"):
            goals = self._goals(theme)
        with timed(self.timings, "refinement"):
            samples = refine(
                self.score,
                samples,
                self.levels,
                goals,
                noise=noise,
                settings=RefinementSettings(n_rounds=self.config.n_refinements),
                evolution=settings,
                surroundings=self.surroundings,
                loops=self.loops,
                callback=self.observer,
            )
        with timed(self.timings, "repair"):
            samples = repair(
                self.score,
                samples,
                self.levels,
                self.critic,
                noise=noise,
                settings=RepairSettings(n_rounds=self.config.n_repairs),
                first_step=(self.config.n_refinements + 1) * len(self.levels),
                evolution=settings,
                surroundings=self.surroundings,
                loops=self.loops,
                callback=self.observer,
            )
            skeletons = self._skeletons(chunk, samples, self.levels[-1])
        if self.trajectories is not None:
            write_trajectories(self.trajectories, chunk, frames)
        return self.finisher.finish(skeletons)

    def _skeletons(self, chunk: list[int], samples: Samples, sigma: float) -> list[Skeleton]:
        """Take the samples of a chunk apart."""
        batch = samples.molecules
        # How well the new atoms fit: those of a scaffold are what they are.
        placed = (~batch.fixed).to(self.dtype)
        log_k = -self.score.atom_energies(batch, sigma) * placed
        mean = batch.sum_per_molecule(log_k) / batch.sum_per_molecule(placed)
        return [
            Skeleton(index, numbers, positions, finite, similarity if finite else None)
            for index, (numbers, positions), finite, similarity in zip(
                chunk,
                self._own_atoms(batch),
                samples.finite.tolist(),
                mean.tolist(),
                strict=True,
            )
        ]

    def _common_features(self, chosen: ReferenceSet) -> CommonFeatures:
        """What is common among the reference molecules, and what may be made all the same."""
        mols = [m.mol for m in chosen.molecules if m.mol is not None]
        if len(mols) < len(chosen):
            return CommonFeatures()
        common = CommonFeatures.of(mols)
        if self.loops:  # rings are as large as the curves
            return replace(common, ring_sizes=None)
        if self.config.scaffold is not None and common.ring_sizes is not None:
            large = range(LARGEST_RING + 1, MAX_HEAVY_ATOMS)  # a linker may close any
            return replace(common, ring_sizes=common.ring_sizes.union(large))
        return common

    def _own_atoms(self, batch: MoleculeBatch) -> list[HeavyAtoms]:
        """Elements and positions of the heavy atoms of each molecule, those of a host left out."""
        scaffold = self.config.scaffold
        atoms = []
        for part in batch.to("cpu", torch.float64).split():
            kept = np.ones(part.n_atoms, dtype=bool)
            kept[list(self.surroundings)] = False
            positions = part.positions.numpy()[kept]
            if scaffold is not None:
                positions[: self.config.n_given] = scaffold.positions
            atoms.append((part.atomic_numbers.numpy()[kept], positions))
        return atoms


def frame_atoms(config: GenerationConfig) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Elements and positions of the fixed atoms: those of a scaffold, then those of a host."""
    numbers, positions = [np.zeros(0, dtype=np.int64)], [np.zeros((0, 3))]
    if config.scaffold is not None:
        numbers.append(config.scaffold.atomic_numbers)
        positions.append(config.scaffold.positions)
    if config.host is not None and config.host.partners:
        near = config.host.near(config.prior.outline().numpy())
        numbers.append(config.host.atomic_numbers[near])
        positions.append(config.host.positions[near])
    return np.concatenate(numbers), np.concatenate(positions)
