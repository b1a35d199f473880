"""The worker processes and their queue, with tasks that take no force field."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import ase
import pytest

from simgen.errors import InputError, LoadError
from simgen_webtool.tasks import Machine
from simgen_webtool.workers import Job, JobError, Pool, StoppedError, Worker, WorkerDiedError


@dataclass(frozen=True)
class Echo:
    """Tell, show and return what it is given."""

    value: object

    def run(self, machine: Machine) -> object:
        machine.tell(0.5, "half")
        machine.show([ase.Atoms("CO")])
        return self.value


@dataclass(frozen=True)
class Fail:
    error: Exception

    def run(self, machine: Machine) -> object:
        raise self.error


@dataclass(frozen=True)
class Die:
    def run(self, machine: Machine) -> object:
        os._exit(1)


@dataclass(frozen=True)
class Sleep:
    """Take some time, with or without an ear for whether to stop."""

    seconds: float
    listens: bool = True

    def run(self, machine: Machine) -> object:
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            time.sleep(0.01)
            if self.listens:
                machine.tell(0.1, "sleeping")
        return os.getpid()


def fail_to_load() -> None:
    raise LoadError("no such model")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker(dict)
    yield worker
    worker.close()


def job(room: str = "a", time_limit: float = 60.0, **listeners: object) -> Job:
    return Job(room, time_limit, **listeners)  # type: ignore[arg-type]


def test_an_outcome_and_what_was_told_come_back(worker: Worker) -> None:
    told: list[object] = []
    asked = job(
        on_progress=lambda done, words: told.append((done, words)),
        on_frames=lambda frames: told.append(frames[0].get_chemical_formula()),
    )
    assert worker.run(Echo({"answer": 42}), asked) == {"answer": 42}
    assert told == [(0.5, "half"), "CO"]


def test_the_error_of_a_task_is_the_message(worker: Worker) -> None:
    with pytest.raises(JobError, match=r"^too many atoms$"):
        worker.run(Fail(InputError("too many atoms")), job())
    with pytest.raises(JobError, match=r"internal error.*ZeroDivisionError"):
        worker.run(Fail(ZeroDivisionError("oops")), job())
    assert worker.run(Echo(1), job()) == 1


def test_a_process_that_dies_is_reported_and_started_anew(worker: Worker) -> None:
    with pytest.raises(WorkerDiedError, match="ended unexpectedly"):
        worker.run(Die(), job())
    assert worker.run(Echo(2), job()) == 2


def test_a_process_that_died_while_idle_is_started_anew(worker: Worker) -> None:
    worker.run(Echo(0), job())
    assert worker.pid is not None
    os.kill(worker.pid, 9)
    time.sleep(0.2)
    assert worker.run(Echo(3), job()) == 3


def test_a_task_that_listens_stops_at_once_and_keeps_its_process(worker: Worker) -> None:
    worker.run(Echo(0), job())
    before, asked = worker.pid, job()
    threading.Timer(0.3, asked.stop).start()
    begin = time.monotonic()
    with pytest.raises(StoppedError):
        worker.run(Sleep(30), asked)
    assert time.monotonic() - begin < 1.3
    assert worker.pid == before
    assert worker.run(Echo(4), job()) == 4


def test_a_task_that_does_not_listen_is_ended_within_a_second(worker: Worker) -> None:
    worker.run(Echo(0), job())
    before, asked = worker.pid, job()
    threading.Timer(0.3, asked.stop).start()
    begin = time.monotonic()
    with pytest.raises(StoppedError):
        worker.run(Sleep(30, listens=False), asked)
    assert time.monotonic() - begin < 1.3
    assert worker.pid != before
    assert worker.run(Echo(5), job()) == 5


def test_a_stop_that_comes_too_late_does_not_stop_the_next_task(worker: Worker) -> None:
    for _ in range(5):
        asked = job(on_frames=lambda frames: asked.stop())  # noqa: B023 -- of this round
        with suppress(StoppedError):
            assert worker.run(Echo(6), asked) == 6
        assert worker.run(Echo(7), job()) == 7


def test_a_job_that_takes_too_long_says_so(worker: Worker) -> None:
    with pytest.raises(StoppedError, match="the most a job may take"):
        worker.run(Sleep(30), job(time_limit=0.3))


def test_a_listener_that_fails_does_not_disturb_the_next_job(worker: Worker) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError("the room is gone")

    with pytest.raises(ConnectionError, match="the room is gone"):
        worker.run(Sleep(30), job(on_progress=fail))
    assert worker.run(Echo(8), job()) == 8


def test_a_force_field_that_cannot_be_loaded_is_said_to_the_job() -> None:
    worker = Worker(fail_to_load)  # type: ignore[arg-type]
    with pytest.raises(JobError, match="no such model"):
        worker.run(Echo(1), job())
    worker.close()


class TestPool:
    @pytest.fixture
    def pool(self, worker: Worker) -> Pool:
        return Pool([worker], max_jobs=3)

    def run(
        self, pool: Pool, room: str, name: str, ended: list[str], **listeners: object
    ) -> threading.Thread:
        def work() -> None:
            try:
                # The first one takes long enough for all others to come.
                pool.run(Sleep(0.1 if ended or pool._running else 2.0), job(room, **listeners))
                ended.append(name)
            except StoppedError:
                ended.append(f"{name} stopped")

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.05)
        return thread

    def test_rooms_take_turns(self, pool: Pool) -> None:
        ended: list[str] = []
        places: list[int] = []
        jobs = [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1")]
        threads = [
            self.run(
                pool, room, name, ended, **({"on_wait": places.append} if name == "a3" else {})
            )
            for room, name in jobs
        ]
        for thread in threads:
            thread.join()
        assert ended == ["a1", "b1", "c1", "a2", "a3"]
        # Second when it came; then two rooms came whose turn was before.
        assert places[0] == 2
        assert places[-4:] == [4, 3, 2, 1]

    def test_a_room_cannot_fill_the_queue(self, pool: Pool) -> None:
        ended: list[str] = []
        threads = [self.run(pool, "a", str(k), ended) for k in range(3)]
        with pytest.raises(JobError, match="3 jobs already"):
            pool.run(Echo(1), job("a"))
        assert pool.run(Echo(1), job("b")) == 1
        for thread in threads:
            thread.join()

    def test_stop_ends_the_jobs_of_one_room_only(self, pool: Pool) -> None:
        ended: list[str] = []
        threads = [self.run(pool, room, room + n, ended) for room in "ab" for n in "12"]
        assert pool.stop("a") == 2
        for thread in threads:
            thread.join()
        assert sorted(ended) == ["a1 stopped", "a2 stopped", "b1", "b2"]
        assert pool.stop("a") == 0

    def test_two_workers_compute_at_the_same_time(self) -> None:
        pool = Pool([Worker(dict), Worker(dict)])
        pool.start()
        for worker in pool.workers:
            worker.run(Echo(0), job())
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda room=room: found.append(pool.run(Sleep(0.5), job(room))))
            for room in "ab"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(found)) == 2
        pool.close()

    def test_closing_stops_jobs_and_leaves_no_process(self) -> None:
        worker = Worker(dict)
        pool = Pool([worker])
        pool.run(Echo(0), job())
        pid, ended = worker.pid, list[str]()
        assert pid is not None
        thread = threading.Thread(target=partial(self._run_until_stopped, pool, ended))
        thread.start()
        time.sleep(0.2)
        pool.close()
        thread.join(timeout=5)
        assert ended == ["the server shuts down"]
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    def _run_until_stopped(self, pool: Pool, ended: list[str]) -> None:
        try:
            pool.run(Sleep(30), job())
        except StoppedError as error:
            ended.append(str(error))
