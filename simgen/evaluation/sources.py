"""What is to be judged: entries of files, or all attempts of a run of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simgen.errors import InputError, LoadError
from simgen.evaluation.judges import Entry
from simgen.generation import JOURNAL, read_attempts
from simgen.io import Record, read_molecules


def read_entries(paths: Sequence[Path], n_attempts: int | None = None) -> list[Entry]:
    """Read files and folders of runs.

    Parameters
    ----------
    paths : sequence of Path
        SDF, XYZ or SMILES files, and folders that ``simgen generate`` wrote.
    n_attempts : int, optional
        How often the program that made them tried; what is missing counts as failed.

    Raises
    ------
    LoadError
        If a path is missing, empty or holds nothing readable.
    InputError
        If there are more entries than attempts.
    """
    entries: list[Entry] = []
    for path in paths:
        if path.is_dir():
            entries += _attempts(path)
        else:
            entries += [Entry(str(path), record) for record in read_molecules(path)]
    if n_attempts is None:
        return entries
    if n_attempts < len(entries):
        raise InputError(
            f"expected at least as many attempts as there are entries, {len(entries)}; "
            f"got --attempts {n_attempts}"
        )
    missing = range(len(entries) + 1, n_attempts + 1)
    error = "no entry in the file: the attempt gave nothing"
    return entries + [Entry("", Record(k, 0, f"attempt-{k}", error=error)) for k in missing]


def _attempts(folder: Path) -> list[Entry]:
    """Every attempt of a run, those that an interruption left out included."""
    if not (folder / JOURNAL).exists():
        raise LoadError(f"expected a molecule file or a folder with {JOURNAL}, got {folder}")
    config, attempts = read_attempts(folder)
    entries = []
    for k in range(int(config.get("n_molecules", 0))):
        if k not in attempts:
            record = Record(k + 1, 0, f"attempt-{k}", error="interrupted: the run is not finished")
            entries.append(Entry(str(folder), record))
            continue
        attempt = attempts[k]
        report = attempt.report
        if attempt.mol is None:
            error = f"{report.status}: {report.detail}" if report.detail else str(report.status)
            record = Record(k + 1, 0, report.name, error=error)
        else:
            record = Record(
                k + 1, 0, report.name, attempt.mol, attempt.atomic_numbers, attempt.positions
            )
        n_heavy = int((attempt.atomic_numbers > 1).sum())
        entries.append(Entry(str(folder), record, n_heavy))
    if not entries:
        raise LoadError(f"{folder / JOURNAL} is empty; the run has not begun")
    return entries


def has_more_attempts(path: Path) -> bool:
    """Whether a file is the one of a run of ours that holds its valid molecules only."""
    return path.name == "molecules.sdf" and (path.parent / JOURNAL).exists()
