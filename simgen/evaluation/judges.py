"""Judging many molecules: in parallel, and a judge that hangs or crashes costs one answer only.

Each question to each molecule is a task of its own, with a time limit. A worker process that is
late is killed and replaced, since chemistry toolkits do not answer to polite requests.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from simgen.errors import InputError, MissingDependencyError
from simgen.evaluation.molecule import (
    Chemistry,
    Fault,
    MoleculeScore,
    failed_posebusters,
    relax_gfn2,
    study,
)
from simgen.io import Record

if TYPE_CHECKING:
    from pebble import ProcessPool

TIMEOUT = 300.0
"""Seconds that one judge may take for one molecule."""

_PACKAGES = ("matplotlib", "pandas", "pebble", "posebusters", "tblite")

_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One attempt to be judged.

    Attributes
    ----------
    source : str
        File or folder.
    record : Record
        The entry; its ``error`` says why there is no molecule, if there is none.
    n_heavy : int or None
        Heavy atoms, where the record does not tell.
    """

    source: str
    record: Record
    n_heavy: int | None = None


def require_packages() -> None:
    """Raise an error that names them if optional packages are missing.

    Raises
    ------
    MissingDependencyError
        If one of the packages of the ``eval`` extra is not installed.
    """
    lacking = [name for name in _PACKAGES if find_spec(name) is None]
    if lacking:
        raise MissingDependencyError(
            f"evaluation needs {', '.join(lacking)}, which is not installed; "
            "pip install 'simgen-toolkit[eval]'"
        )


def judge(
    entries: Sequence[Entry],
    *,
    n_workers: int = 1,
    timeout: float = TIMEOUT,
    callback: Callable[[float, int], None] | None = None,
) -> list[MoleculeScore]:
    """Judge every entry.

    Parameters
    ----------
    entries : sequence of Entry
        Those that cannot be read get a score as well.
    n_workers : int
        Processes.
    timeout : float
        Seconds after which a judge of one molecule is stopped.
    callback : callable, optional
        Called with the number of molecules done, which has a fraction, and that of all.

    Returns
    -------
    list of MoleculeScore
        In the order of the entries.

    Raises
    ------
    MissingDependencyError
        If an optional package is missing.
    """
    if timeout <= 0 or n_workers < 1:
        raise InputError(f"expected timeout > 0 and n_workers >= 1, got {timeout} and {n_workers}")
    require_packages()
    scores = [_begin(entry) for entry in entries]
    n_done = 0

    def done(n_tasks: int = 1) -> None:
        nonlocal n_done
        n_done += n_tasks
        if callback is not None:
            callback(n_done / 3, len(entries))

    with _pool(n_workers) as pool:
        readable = {k: entry.record for k, entry in enumerate(entries) if not entry.record.error}
        done(3 * (len(entries) - len(readable)))
        tasks = [(k, "RDKit", study, record) for k, record in readable.items()]
        for k, _, answer, error in _ask(pool, tasks, timeout):
            scores[k] = _with_chemistry(scores[k], answer, error)
            done()
        questions: list[_Task] = []
        for k in readable:
            chemistry = scores[k].chemistry
            if chemistry is None or not scores[k].passes("coordinates"):
                done(2)
                continue
            questions.append((k, "PoseBusters", failed_posebusters, chemistry.mol))
            if scores[k].passes("hydrogens"):
                questions.append((k, "GFN2-xTB", relax_gfn2, chemistry.mol))
            else:
                done()
        for k, judge_name, answer, error in _ask(pool, questions, timeout):
            if error is not None:
                scores[k] = replace(scores[k], errors=(*scores[k].errors, error))
            elif judge_name == "PoseBusters":
                scores[k] = replace(scores[k], posebusters=answer)
            else:
                scores[k] = replace(scores[k], relaxation=answer)
            done()
    return scores


def _begin(entry: Entry) -> MoleculeScore:
    record, n_heavy = entry.record, entry.n_heavy
    if n_heavy is None and record.atomic_numbers is not None:
        n_heavy = int((record.atomic_numbers > 1).sum())
    return MoleculeScore(
        source=entry.source,
        name=record.name,
        line=record.line or None,
        errors=() if record.error is None else (Fault("no molecule", record.error),),
        n_heavy=n_heavy,
    )


def _with_chemistry(
    score: MoleculeScore, answer: Chemistry | None, error: Fault | None
) -> MoleculeScore:
    if error is not None or answer is None:
        return replace(score, errors=(error or Fault("no molecule"),))
    return replace(score, chemistry=answer, n_heavy=answer.n_heavy)


@contextmanager
def _pool(n_workers: int) -> Iterator[ProcessPool]:
    """Give a pool of processes of one thread each; whatever still runs at the end is killed."""
    from pebble import ProcessPool

    threads = os.environ.get(_THREADS)
    os.environ[_THREADS] = "1"  # inherited by the workers: one process per core is faster
    pool = ProcessPool(max_workers=n_workers, context=get_context("spawn"))
    try:
        yield pool
    finally:
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()
        if threads is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = threads


_Task = tuple[int, str, Callable[[Any], Any], Any]
"""Place of the molecule, name of the judge, function and its argument."""


def _ask(
    pool: ProcessPool, tasks: Sequence[_Task], timeout: float
) -> Iterator[tuple[int, str, Any, Fault | None]]:
    """Yield place, judge, answer and error of every task, in their order."""
    from pebble import ProcessExpired

    futures = [
        pool.schedule(function, args=(argument,), timeout=timeout)
        for _, _, function, argument in tasks
    ]
    for (k, name, _, _), future in zip(tasks, futures, strict=True):
        try:
            yield k, name, future.result(), None
        except FutureTimeoutError:
            yield k, name, None, Fault(f"{name}: stopped", f"after {timeout:g} s")
        except ProcessExpired as error:
            yield k, name, None, Fault(f"{name}: crashed", f"exit code {error.exitcode}")
        except Exception as error:
            # Whatever a chemistry toolkit raises for a molecule is a fact about that molecule.
            reason = " ".join(str(error).split()) or type(error).__name__
            yield k, name, None, Fault(f"{name}: failed", reason)
