"""One run: attempts are made in chunks, in this process or in several, and saved."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from multiprocessing.queues import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from simgen.devices import keep_freed_memory, memory_budget
from simgen.elements import SYMBOLS
from simgen.errors import DeviceError, InputError, SimgenError
from simgen.generation.config import GenerationConfig
from simgen.generation.journal import RunFolder
from simgen.generation.maker import Maker, frame_atoms
from simgen.generation.provenance import model_digest, versions
from simgen.generation.result import (
    Attempt,
    GenerationResult,
    attempt_from_json,
    attempt_to_json,
)
from simgen.generation.timing import timed
from simgen.models import ForceField
from simgen.noise import Noise, Stream
from simgen.processes import end_with_parent, worker_context
from simgen.reference import ReferenceSet
from simgen.sampling import Callback
from simgen.validation import mark_duplicates

_CHUNK_ATOMS = {"cpu": 400, "cuda": 2**14}
"""Heavy atoms of the attempts of a chunk, after which results are saved: enough to share the calls
of torch, and few enough that little is lost where a run is interrupted."""

_ATOMS_PER_HEAVY_ATOM = 2.5
"""Atoms of a finished molecule, hydrogens included, for each heavy atom; at most about that."""

_PAIR_BYTES = 4 * 24
"""Indices of a pair of atoms, for each part of the score that remembers some."""

_MATRICES = 4
"""Matrices of all coordinates of a molecule that there are at a time while it relaxes."""

_REPORT_EVERY = 0.2
"""Seconds between looks at what worker processes report."""


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

    Raises
    ------
    InputError
        If a network lacks an element, or no reference molecule suits.
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
        self.model = model
        self.device = model.embedding.device
        self.folder = folder
        self.callback = callback
        self.observer = observer
        self.timings: dict[str, float] = {}
        frame, _ = frame_atoms(config)
        self.n_frame_atoms = len(frame)
        heavy = {*config.composition.atomic_numbers, *(int(z) for z in frame)}
        _check_elements(f"force field {config.model}", model, {1, *heavy})
        network = config.descriptor.network(model)
        described = set(model.elements)
        if network is not None:
            _check_elements("network of the descriptor", network, heavy)
            described &= set(network.elements)
        with timed(self.timings, "reference"):
            n_given = config.n_given
            low, high = config.n_heavy_atoms
            chosen = reference.select(
                (n_given + low, n_given + high), elements=sorted(described), wanted=sorted(heavy)
            )
        trajectories = folder.path / "trajectories" if folder is not None and trajectory else None
        self._make_maker = partial(
            Maker, model, config, reference, chosen, trajectories=trajectories
        )
        self.provenance: dict[str, Any] = {
            "model": {"name": config.model, "sha256": model_digest(model)},
            # Without a network, its settings are all that a descriptor is.
            "descriptor": {"sha256": None if network is None else model_digest(network)},
            "reference": {
                "name": reference.name,
                "sha256": reference.digest,
                "n_molecules": len(reference),
                "n_molecules_used": len(chosen),
                "n_environments": sum(int(m.kept.sum()) for m in chosen.molecules),
                "skipped": list(chosen.skipped),
            },
            "device": str(self.device),
            "versions": versions(),
        }

    def finish(self, batch_size: int | None, n_workers: int) -> GenerationResult:
        """Make what is missing and return all attempts."""
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
        """Make attempts in this process, chunk by chunk."""
        sizes = self._sizes()
        maker = self._make_maker(observer=self.observer)
        while missing:
            chunk = missing[: self._chunk_size(sizes[missing], limit)]
            n_done = self.config.n_molecules - len(missing)
            try:
                callback = partial(self._report_share, n_done, len(chunk))
                finished = maker.make(chunk, sizes[chunk], callback)
            except torch.OutOfMemoryError:
                if len(chunk) == 1:
                    raise DeviceError(
                        f"not enough memory on {self.device} for one molecule of "
                        f"{int(sizes[chunk[0]])} heavy atoms; use fewer --particles"
                    ) from None
                limit = len(chunk) // 2
                continue
            missing = missing[len(chunk) :]
            self._add_timings(maker.timings)
            yield finished
            self._report(n_done + len(chunk))

    def _in_parallel(
        self, missing: list[int], batch_size: int | None, n_workers: int
    ) -> Generator[list[Attempt]]:
        """Make attempts in processes of one thread each, chunk by chunk as they finish.

        Networks as small as ours spend much of their time between operations, where threads
        cannot help.
        """
        sizes = self._sizes()
        fair_share = -(-len(missing) // n_workers)
        size = min(self._chunk_size(sizes[missing], batch_size), fair_share)
        chunks = (missing[i : i + size] for i in range(0, len(missing), size))
        context = worker_context()
        shares: SimpleQueue[tuple[int, float]] = context.SimpleQueue()
        pool = ProcessPoolExecutor(
            n_workers,
            mp_context=context,
            initializer=_start_worker,
            initargs=(self._make_maker, shares),
        )
        running: dict[Future[_Made], list[int]] = {}
        share_of: dict[int, float] = {}
        n_done = self.config.n_molecules - len(missing)
        try:
            while True:
                # One for each worker, and one that it can go on with.
                for chunk in islice(chunks, 2 * n_workers - len(running)):
                    running[pool.submit(_make_in_worker, chunk, sizes[chunk])] = chunk
                if not running:
                    break
                done, _ = wait(running, timeout=_REPORT_EVERY, return_when=FIRST_COMPLETED)
                while not shares.empty():
                    first, share = shares.get()
                    share_of[first] = share
                for future in done:
                    chunk = running.pop(future)
                    n_done += len(chunk)
                    attempts, timings = future.result()
                    self._add_timings(timings)
                    yield [attempt_from_json(values) for values in attempts]
                if share_of:
                    parts = (len(c) * share_of.get(c[0], 0.0) for c in running.values())
                    self._report(n_done + sum(parts))
        except BrokenProcessPool:
            raise DeviceError(
                "a worker process was killed, as happens where memory is short; use fewer --workers"
            ) from None
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
        """How many of the next attempts, of these sizes, are made together: as many as fit into
        memory, up to a limit, by default one of their atoms; at least one.

        Networks bound their memory themselves (:class:`simgen.graph.Layout`).
        """
        n_atoms = sizes + self.n_frame_atoms
        n_pairs = self.config.n_particles * n_atoms**2
        n_elements = (3 * _ATOMS_PER_HEAVY_ATOM * n_atoms) ** 2
        itemsize = self.model.embedding.itemsize
        n_bytes = np.cumsum(n_pairs * _PAIR_BYTES + n_elements * itemsize * _MATRICES)
        fitting = int(np.searchsorted(n_bytes, memory_budget(self.device), side="right"))
        if limit is None:
            most = _CHUNK_ATOMS[self.device.type]
            limit = int(np.searchsorted(np.cumsum(n_atoms), most, side="right"))
        return max(1, min(fitting, limit))

    def _add_timings(self, timings: dict[str, float]) -> None:
        """Add the seconds that each stage took since this was last done."""
        for stage, seconds in timings.items():
            self.timings[stage] = self.timings.get(stage, 0.0) + seconds
        timings.clear()

    def _report_share(self, n_done: int, n_in_chunk: int, share: float) -> None:
        self._report(n_done + share * n_in_chunk)

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


class _Worker:
    """A process that makes attempts; ready once the first are asked for."""

    def __init__(
        self, make_maker: Callable[[], Maker], shares: SimpleQueue[tuple[int, float]]
    ) -> None:
        self._make_maker = make_maker
        self.shares = shares

    @cached_property
    def maker(self) -> Maker:
        # Not when the process starts: whatever goes wrong then reaches nobody.
        return self._make_maker()


_worker: _Worker
"""What this process is, if it is a worker."""


def _start_worker(make_maker: Callable[[], Maker], shares: SimpleQueue[tuple[int, float]]) -> None:
    """Prepare a worker process, which puts the first attempt of a chunk and what is done there."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process decides what happens
    end_with_parent()
    keep_freed_memory()
    torch.set_num_threads(1)
    _worker = _Worker(make_maker, shares)


_Made = tuple[list[dict[str, Any]], dict[str, float]]
"""Attempts as JSON holds them, and seconds of each stage."""


def _make_in_worker(chunk: list[int], sizes: NDArray[np.int64]) -> _Made:
    """Make attempts in a worker process."""
    maker = _worker.maker
    attempts = maker.make(chunk, sizes, lambda share: _worker.shares.put((chunk[0], share)))
    timings = dict(maker.timings)
    maker.timings.clear()
    return [attempt_to_json(attempt) for attempt in attempts], timings
