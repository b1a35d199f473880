"""Processes that compute tasks, and their fair queue.

A worker is a process of its own: however hard it computes, the page stays responsive; what takes
too long can be ended; and a crash takes nothing with it but the task. Each holds the force field,
loaded once. A room whose tasks wait gets its turn after every other room had one.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

import ase

from simgen.errors import SimgenError
from simgen_webtool.tasks import Machine, Task

if TYPE_CHECKING:
    from simgen import Generator

STOP_GRACE = 0.5
"""Seconds that a task gets to end by itself before its process is killed."""
_POLL = 0.1
"""Seconds between looks at whether a task is to be stopped."""
_PROGRESS_INTERVAL = 0.2
"""Seconds between reports of progress, at least."""


class JobError(SimgenError):
    """A job did not come to its end; the message is for its user."""


class StoppedError(JobError):
    """The user stopped a job."""


class WorkerDiedError(JobError):
    """The process that computed a job is gone."""


# --- in the worker process ---------------------------------------------------------------------


_STOP = "stop"
"""What the server sends to end a task."""


class _Progress(NamedTuple):
    fraction: float
    words: str


class _Frames(NamedTuple):
    frames: list[ase.Atoms]


class _Done(NamedTuple):
    outcome: Any


class _Failed(NamedTuple):
    message: str


class _StopError(Exception):
    """Raised within a task that is to end."""


def load_generator(model: str, device: str, n_threads: int) -> Generator:
    """Load the force field of a worker process, which computes with so many threads."""
    import torch

    from simgen import Generator

    torch.set_num_threads(n_threads)
    return Generator.from_pretrained(model, device=device)


def _work(pipe: Connection, load: Callable[[], Generator]) -> None:
    """Compute tasks as they come through the pipe, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process decides what happens
    try:
        generator = load()
    except SimgenError as error:
        pipe.send(_Failed(str(error)))
        return
    last = 0.0

    def check() -> None:
        if pipe.poll():
            raise _StopError

    def tell(fraction: float, words: str) -> None:
        nonlocal last
        check()
        if time.monotonic() - last >= _PROGRESS_INTERVAL:
            last = time.monotonic()
            pipe.send(_Progress(fraction, words))

    def show(frames: list[ase.Atoms]) -> None:
        check()
        pipe.send(_Frames(frames))

    machine = Machine(generator, tell, show)
    with suppress(EOFError, OSError):  # the server is gone
        pipe.send(_Done(None))
        while True:
            task: Any = pipe.recv()
            if task == _STOP:  # meant for a task that had just ended
                continue
            try:
                answer: _Done | _Failed = _Done(task.run(machine))
            except _StopError:
                pipe.recv()  # the word to stop
                answer = _Failed("stopped")
            except SimgenError as error:
                answer = _Failed(str(error))
            except MemoryError:
                answer = _Failed("not enough memory; ask for fewer or smaller molecules")
            except Exception as error:
                traceback.print_exc()
                answer = _Failed(f"internal error, see the log of the server: {error!r}")
            pipe.send(answer)


# --- in the server -----------------------------------------------------------------------------


class Worker:
    """A process that computes one task at a time; it is started anew when it is gone.

    Parameters
    ----------
    load : callable
        Returns the generator; it is called in the process, and must be one that can be pickled.
    """

    def __init__(self, load: Callable[[], Generator]) -> None:
        self._load = load
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._closed = False
        self._ready = False
        # The thread of a job and the one that closes the server may end the process at one time.
        self._changing = threading.RLock()

    @property
    def pid(self) -> int | None:
        """Process id, if there is a process."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process, if there is none; it loads the force field on its own."""
        with self._changing:
            if self._closed or (self._process is not None and self._process.is_alive()):
                return
            self.kill()
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(
                target=_work, args=(theirs, self._load), name="simgen-worker", daemon=True
            )
            self._process.start()
            theirs.close()
            self._ready = False

    def kill(self) -> None:
        """End the process at once."""
        with self._changing:
            if self._process is not None:
                self._process.kill()
                self._process.join()
            if self._pipe is not None:
                self._pipe.close()
            self._process = self._pipe = None

    def close(self) -> None:
        """End the process for good."""
        self._closed = True
        self.kill()

    def run(self, task: Task, job: Job) -> Any:
        """Compute a task.

        Raises
        ------
        JobError
            If it fails, is stopped, takes too long, or the process dies.
        """
        self.start()
        try:
            return self._converse(task, job)
        except JobError:
            raise
        except BaseException:
            self.kill()  # whatever it is doing, nobody listens any more
            raise
        finally:
            self.start()

    def _converse(self, task: Task, job: Job) -> Any:
        while not self._ready:
            if job.stopping.is_set():
                raise StoppedError(job.reason)
            match self._receive(job):
                case _Failed(message):
                    raise JobError(message)
                case _Done():
                    self._ready = True
        self._send(task, job)
        told_at = None
        deadline = time.monotonic() + job.time_limit
        while True:
            match self._receive(job):
                case _Done(outcome):
                    return outcome
                case _Failed(message):
                    raise StoppedError(job.reason) if told_at is not None else JobError(message)
                case _Progress(fraction, words):
                    job.on_progress(fraction, words)
                case _Frames(frames):
                    job.on_frames(frames)
            now = time.monotonic()
            if now > deadline and not job.stopping.is_set():
                job.stop(f"stopped after {job.time_limit:.0f} s, the most a job may take")
            if job.stopping.is_set() and told_at is None:
                told_at = now
                self._send(_STOP, job)
            if told_at is not None and now - told_at > STOP_GRACE:
                self.kill()
                raise StoppedError(job.reason)

    def _receive(self, job: Job) -> Any:
        """Return the next message of the process, or None if there is none for a while."""
        with self._noticing_death(job) as pipe:
            return pipe.recv() if pipe.poll(_POLL) else None

    def _send(self, message: Any, job: Job) -> None:
        with self._noticing_death(job) as pipe:
            pipe.send(message)

    @contextmanager
    def _noticing_death(self, job: Job) -> Iterator[Connection]:
        try:
            if self._pipe is None:
                raise EOFError
            yield self._pipe
        except (EOFError, OSError):
            self.kill()
            if job.stopping.is_set():
                raise StoppedError(job.reason) from None
            raise WorkerDiedError(
                "the process that computed this ended unexpectedly, perhaps for lack of memory; "
                "it is started anew, try again or ask for less"
            ) from None


@dataclass(eq=False)
class Job:
    """A task of a room, in the queue or being computed.

    Attributes
    ----------
    room : str
        Whose it is.
    time_limit : float
        Seconds it may take once it has begun.
    on_wait : callable
        Takes its place in the queue, from 1, whenever that changes.
    on_progress, on_frames : callable
        Take what the task tells.
    """

    room: str
    time_limit: float
    on_wait: Callable[[int], None] = lambda place: None
    on_progress: Callable[[float, str], None] = lambda fraction, words: None
    on_frames: Callable[[list[ase.Atoms]], None] = lambda frames: None
    stopping: threading.Event = field(default_factory=threading.Event)
    reason: str = "stopped"

    def stop(self, reason: str = "stopped") -> None:
        """End it: from the queue, or while it is computed."""
        self.reason = reason
        self.stopping.set()


class Pool:
    """Workers and the jobs that wait for them.

    Parameters
    ----------
    workers : sequence of Worker
        They compute.
    max_jobs : int
        Most jobs that a room may have, waiting or not.
    """

    def __init__(self, workers: list[Worker], *, max_jobs: int = 4) -> None:
        self.workers = workers
        self.max_jobs = max_jobs
        self._idle = list(workers)
        self._running: list[Job] = []
        self._waiting: list[Job] = []
        self._last_turns: dict[str, int] = {}
        self._changed = threading.Condition()

    def start(self) -> None:
        """Start all processes, so that they are ready when the first job comes."""
        for worker in self.workers:
            worker.start()

    def close(self) -> None:
        """Stop all jobs and end all processes."""
        with self._changed:
            for job in [*self._running, *self._waiting]:
                job.stop("the server shuts down")
            self._changed.notify_all()
        for worker in self.workers:
            worker.close()

    def stop(self, room: str) -> int:
        """Stop all jobs of a room, and return how many there were."""
        with self._changed:
            jobs = [job for job in [*self._running, *self._waiting] if job.room == room]
            for job in jobs:
                job.stop()
            self._changed.notify_all()
        return len(jobs)

    def run(self, task: Task, job: Job) -> Any:
        """Wait for the job's turn, compute its task and return the outcome.

        Raises
        ------
        JobError
            If it fails, is stopped, or its room has too many jobs already.
        """
        with self._turn(job) as worker:
            job.on_progress(0.0, "starting")
            return worker.run(task, job)

    @contextmanager
    def _turn(self, job: Job) -> Iterator[Worker]:
        with self._changed:
            n_jobs = sum(other.room == job.room for other in [*self._running, *self._waiting])
            if n_jobs >= self.max_jobs:
                raise JobError(
                    f"this room has {n_jobs} jobs already, the most there may be; wait for one to "
                    "end, or use Stop"
                )
            self._waiting.append(job)
            self._changed.notify_all()
        worker = self._wait(job)
        try:
            yield worker
        finally:
            with self._changed:
                self._running.remove(job)
                self._idle.append(worker)
                self._changed.notify_all()

    def _queue(self) -> list[Job]:
        """Waiting jobs in the order of their turns.

        First the first ones of all rooms, then the second ones; among these, rooms whose last turn
        was longer ago come first.
        """
        n_ahead = Counter(job.room for job in self._running)
        ranks = {}
        for job in self._waiting:
            ranks[job] = (n_ahead[job.room], self._last_turns.get(job.room, 0))
            n_ahead[job.room] += 1
        return sorted(self._waiting, key=ranks.__getitem__)

    def _wait(self, job: Job) -> Worker:
        shown = 0
        while True:
            with self._changed:
                place = 1 + self._queue().index(job)
                if job.stopping.is_set():
                    self._waiting.remove(job)
                    self._changed.notify_all()
                    raise StoppedError(job.reason)
                if place == 1 and self._idle:
                    self._waiting.remove(job)
                    self._running.append(job)
                    self._last_turns[job.room] = 1 + max(self._last_turns.values(), default=0)
                    self._changed.notify_all()
                    return self._idle.pop()
                if place == shown:
                    self._changed.wait(timeout=1.0)
                    continue
            shown = place
            job.on_wait(place)  # outside the lock, as it may take its time
