"""One run: attempts are computed in chunks, in this process or in several, and saved."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simgen.cohesion import Cohesion
from simgen.density import LogDensity, Repulsion, SimilarityKernel, SimilarityScore
from simgen.devices import keep_freed_memory, memory_budget, one_thread
from simgen.elements import SYMBOLS
from simgen.errors import DeviceError, InputError, SimgenError
from simgen.evolution import EvolutionSettings, evolve
from simgen.generation.config import GenerationConfig
from simgen.generation.critic import Critic, HeavyAtoms
from simgen.generation.finish import Finisher, Skeleton
from simgen.generation.journal import RunFolder
from simgen.generation.provenance import model_digest, versions
from simgen.generation.result import (
    Attempt,
    GenerationResult,
    attempt_from_json,
    attempt_to_json,
)
from simgen.known import collect, load_known
from simgen.landmarks import Landmarks
from simgen.models import Evaluator, ForceField, evaluator
from simgen.molecules import MoleculeBatch
from simgen.noise import Noise, Stream
from simgen.reference import ReferenceSet, list_references, theme_size, themes
from simgen.refinement import RefinementSettings, RepairSettings, refine, repair
from simgen.sampling import Callback, Progress, Samples, start_molecules
from simgen.schedules import noise_levels
from simgen.validation import mark_duplicates

_MAX_CHUNK = {"cpu": 64, "cuda": 1024}
"""Most attempts of a chunk, after which results are saved. Larger ones are no faster."""

_ATOMS_PER_HEAVY_ATOM = 2.5
"""Atoms of a finished molecule, hydrogens included, for each heavy atom; at most about that."""

_COPIES = 4
"""How often the features of an edge are held at a time while forces are computed."""

_GOAL = 0.75
"""Quantile of the energies of real atoms at which a molecule's mean energy counts as good."""

_ANGSTROM_PER_ATOM = 1.5
"""Length that an atom adds to a chain, at most."""

_WORKER_CHUNK = 4
"""Attempts that a worker process computes at a time."""

_SAMPLING_SHARE = 0.5
"""Share of the time of a chunk that the first pass of sampling takes, for the progress report."""


class Run:
    """One call of :meth:`simgen.generation.Generator.generate`.

    Parameters
    ----------
    model : ForceField
        Describes environments and relaxes molecules.
    config : GenerationConfig
        What to make.
    reference : ReferenceSet
        What to learn from.
    folder : RunFolder, optional
        Where to save.
    trajectory : bool
        Whether paths are written to the folder.
    callback : callable, optional
        Told how many attempts are done.
    observer : callable, optional
        Shown the molecules while they are sampled.
    """

    def __init__(
        self,
        model: ForceField,
        config: GenerationConfig,
        reference: ReferenceSet,
        folder: RunFolder | None = None,
        *,
        trajectory: bool = False,
        callback: Callable[[float, int], None] | None = None,
        observer: Callback | None = None,
    ) -> None:
        self.config = config
        self.reference = reference
        self.model = model
        self.device = model.embedding.device
        self.dtype = model.embedding.dtype
        self.folder = folder
        self.trajectory = trajectory
        self.callback = callback
        self.observer = observer
        self.frame = _frame(config)
        self.timings: dict[str, float] = {}
        frame_elements = {int(z) for z in self.frame[0]}
        heavy = {*config.composition.atomic_numbers, *frame_elements}
        _check_elements(f"force field {config.model}", model, {1, *heavy})
        network = config.descriptor.network(model)
        described = set(model.elements)
        if network is not None:
            _check_elements("network of the descriptor", network, heavy)
            described &= set(network.elements)
        with_bonds = [m.mol for m in reference.molecules if m.mol is not None]
        with self._timed("reference"):
            n_given = config.n_given
            low, high = config.n_heavy_atoms
            chosen = reference.select(
                (n_given + low, n_given + high), elements=sorted(described), wanted=sorted(heavy)
            )
            compared = chosen.heavy_atoms(dtype=self.dtype, device=self.device)
            descriptor = config.descriptor.build(network, compared)
            environments = chosen.environments(descriptor, dtype=self.dtype, device=self.device)
            # What grows from given atoms is to suit them, and not a theme.
            given = config.scaffold is not None or config.host is not None
            parts = themes(chosen, environments, len(chosen) if given else theme_size(high))
            kernel = SimilarityKernel(descriptor, environments, themes=parts)
            self.levels = noise_levels(config.n_steps).tolist()
        self._goal_of_theme: dict[int, Tensor] = {}
        self.score = SimilarityScore(kernel, self._terms())
        chemistry = load_known()
        if reference.name not in list_references():  # shipped ones are parts of what is known
            chemistry |= collect(with_bonds)
        self.finisher = Finisher(
            config,
            self._energy_and_forces,
            with_bonds,
            chemistry,
            dtype=self.dtype,
            device=self.device,
        )
        self.critic = Critic(self.finisher, self._own_atoms)
        # One clock for all stages.
        self.finisher.timings = self.timings
        self.provenance: dict[str, Any] = {
            "model": {"name": config.model, "sha256": model_digest(model)},
            # Without a network, its settings are all that a descriptor is.
            "descriptor": {"sha256": None if network is None else model_digest(network)},
            "reference": {
                "name": reference.name,
                "sha256": reference.digest,
                "n_molecules": len(reference),
                "n_molecules_used": len(chosen),
                "n_environments": len(environments.features),
                "skipped": list(chosen.skipped),
            },
            "device": str(self.device),
            "versions": versions(),
        }

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

    def finish(self, batch_size: int | None, n_workers: int) -> GenerationResult:
        """Compute what is missing and return all attempts."""
        attempts: dict[int, Attempt] = {}
        if self.folder is not None:
            identity = {
                "config": self.config.to_dict(),
                "model": self.provenance["model"]["sha256"],
                "descriptor": self.provenance["descriptor"]["sha256"],
                "reference": self.provenance["reference"]["sha256"],
            }
            attempts, timings = self.folder.open(identity, self.timings)
            self.timings.update(timings)
        missing = [k for k in range(self.config.n_molecules) if k not in attempts]
        self._report(len(attempts))
        n_workers = min(n_workers, len(missing))
        chunks = (
            self._in_parallel(missing, batch_size, n_workers)
            if n_workers > 1
            else self._one_by_one(missing, batch_size)
        )
        try:
            with closing(chunks):  # wherever it is interrupted, processes end
                for finished in chunks:
                    attempts |= {attempt.index: attempt for attempt in finished}
                    if self.folder is not None:
                        self.folder.append(finished, self.timings)
                    self._report(len(attempts))
        except BaseException:
            # While a run goes on the journal is enough; once it ends, the files are there.
            if self.folder is not None and attempts:
                with suppress(SimgenError):
                    self._result(attempts).to_dir(self.folder.path)
            raise
        result = self._result(attempts)
        if self.folder is not None:
            result.to_dir(self.folder.path)
        return result

    def _one_by_one(self, missing: list[int], limit: int | None) -> Generator[list[Attempt]]:
        """Compute attempts in this process, chunk by chunk."""
        sizes = self._sizes()
        while missing:
            chunk = missing[: self._chunk_size(sizes[missing], limit)]
            n_done = self.config.n_molecules - len(missing)
            try:
                finished = self.compute(chunk, sizes[chunk], n_done)
            except torch.OutOfMemoryError:
                if len(chunk) == 1:
                    raise DeviceError(
                        f"not enough memory on {self.device} for one molecule of "
                        f"{int(sizes[chunk[0]])} heavy atoms; use fewer --particles"
                    ) from None
                limit = len(chunk) // 2
                continue
            missing = missing[len(chunk) :]
            yield finished

    def _in_parallel(
        self, missing: list[int], batch_size: int | None, n_workers: int
    ) -> Generator[list[Attempt]]:
        """Compute attempts in processes of one thread each, chunk by chunk as they finish.

        Networks as small as ours spend much of their time between operations, where threads
        cannot help.
        """
        sizes = self._sizes()
        size = min(batch_size or _WORKER_CHUNK, -(-len(missing) // n_workers))
        path = self.folder.path if self.folder is not None and self.trajectory else None
        pool = ProcessPoolExecutor(
            n_workers,
            mp_context=get_context("spawn"),
            initializer=_start_worker,
            initargs=(self.model, self.config, self.reference, path),
        )
        try:
            futures = [
                pool.submit(_compute_in_worker, missing[i : i + size], sizes[missing[i : i + size]])
                for i in range(0, len(missing), size)
            ]
            for future in as_completed(futures):
                attempts, timings = future.result()
                for stage, seconds in timings.items():
                    self.timings[stage] = self.timings.get(stage, 0.0) + seconds
                yield [attempt_from_json(values) for values in attempts]
        finally:
            # Not that of the context manager, which waits for what has not begun as well.
            pool.shutdown(cancel_futures=True)

    def _sizes(self) -> NDArray[np.int64]:
        """Heavy atoms to place in each attempt, shape (n_molecules,)."""
        low, high = self.config.n_heavy_atoms
        noise = Noise(self.config.seed, torch.arange(self.config.n_molecules))
        uniform = noise.uniform_per_molecule(Stream.SIZE, 0).numpy()
        return low + (uniform * (high - low + 1)).astype(np.int64)

    def _chunk_size(self, sizes: NDArray[np.int64], limit: int | None) -> int:
        """How many of the next attempts, of these sizes, fit into memory together."""
        network = self.model.config
        n_pairs = (_ATOMS_PER_HEAVY_ATOM * (sizes + len(self.frame[0]))) ** 2
        n_values = network.n_layers * network.n_channels * (network.l_max + 1) ** 2
        itemsize = torch.finfo(self.dtype).bits // 8
        n_bytes = np.cumsum(n_pairs * n_values * itemsize * _COPIES)
        fitting = int(np.searchsorted(n_bytes, memory_budget(self.device), side="right"))
        most = _MAX_CHUNK[self.device.type]
        return max(1, min(fitting, most if limit is None else limit))

    def compute(self, chunk: list[int], sizes: NDArray[np.int64], n_done: int) -> list[Attempt]:
        """Carry out the attempts of a chunk together.

        On a CPU by one thread, however many there are: how matrix products round depends on it.
        """
        with one_thread():
            return self._compute(chunk, sizes, n_done)

    def _compute(self, chunk: list[int], sizes: NDArray[np.int64], n_done: int) -> list[Attempt]:
        frames: list[Progress] = []

        def on_progress(progress: Progress) -> None:
            share = _SAMPLING_SHARE * progress.step / (len(self.levels) - 1)
            self._report(n_done + share * len(chunk))
            if self.trajectory:
                frames.append(progress)
            if self.observer is not None:
                self.observer(progress)

        noise = Noise(self.config.seed, torch.tensor(chunk, device=self.device))
        drawn = noise.uniform_per_molecule(Stream.THEME, 0) * max(1, len(self.score.kernel.themes))
        theme = drawn.to(torch.int64)
        with self._timed("sampling"):
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
        with self._timed("reference"):
            goals = self._goals(theme)
        with self._timed("refinement"):
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
        with self._timed("repair"):
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
        if self.folder is not None and frames:
            self.folder.write_trajectories(chunk, frames)
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

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - start

    def _report(self, n_done: float) -> None:
        if self.callback is not None:
            self.callback(n_done, self.config.n_molecules)

    def _result(self, attempts: Mapping[int, Attempt]) -> GenerationResult:
        ordered = [attempts[k] for k in sorted(attempts)]
        reports = mark_duplicates(attempt.report for attempt in ordered)
        marked = (replace(a, report=report) for a, report in zip(ordered, reports, strict=True))
        return GenerationResult(self.config, tuple(marked), self.provenance, dict(self.timings))


def _check_elements(name: str, network: ForceField, needed: set[int]) -> None:
    """Raise an InputError if a network lacks an element that may occur."""
    if lacking := sorted(needed - set(network.elements)):
        raise InputError(
            f"the {name} lacks {', '.join(SYMBOLS[z] for z in lacking)}; it knows "
            f"{', '.join(SYMBOLS[z] for z in network.elements)}"
        )


def _frame(config: GenerationConfig) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
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


_worker: Run
"""The run that a worker process contributes to."""


def _start_worker(
    model: ForceField, config: GenerationConfig, reference: ReferenceSet, path: Path | None
) -> None:
    """Prepare a worker process; ``path`` is where trajectories go, if they are wanted."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process decides what happens
    keep_freed_memory()
    folder = None if path is None else RunFolder(path, resume=True)
    _worker = Run(model, config, reference, folder, trajectory=path is not None)


def _compute_in_worker(
    chunk: list[int], sizes: NDArray[np.int64]
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Carry out attempts in a worker process; returns them as JSON holds them, and the timings."""
    _worker.timings.clear()
    attempts = [attempt_to_json(a) for a in _worker.compute(chunk, sizes, n_done=0)]
    return attempts, dict(_worker.timings)
