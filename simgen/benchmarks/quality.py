"""How good generated molecules are, judged by programs that had no part in making them.

The standard suite makes molecules of several sizes and shapes with default settings and fixed
seeds. Every attempt is in every denominator; :mod:`simgen.evaluation` is the judge.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simgen import io
from simgen.descriptors.settings import DescriptorSettings, NetworkInvariants
from simgen.errors import LoadError
from simgen.evaluation.judges import require_packages
from simgen.evaluation.report import SCORECARD, evaluate, figure_from_json, show, table
from simgen.evaluation.scorecard import Reference
from simgen.evaluation.sources import read_entries
from simgen.generation import JOURNAL, Generator
from simgen.priors import Prior
from simgen.reference import load_reference

SIZES = (5, 9, 12, 16, 20, 30)
"""Heavy atoms of the molecules of the standard suite."""

SUITES = {"small": 10, "full": 100}
"""Attempts of each size and shape."""

TIME_FILE = "generation_time.json"
"""File in a cell's folder with the seconds that its generation took, interruptions summed up."""

_SAVE_EVERY = 5.0
"""Seconds between two updates of that file."""

Callback = Callable[[float, int], None]
ProgressBar = Callable[[str, str], AbstractContextManager[Callback]]
"""Takes a label and a unit; gives what is called with how much is done and how much there is."""


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """Molecules of one size and one shape.

    Attributes
    ----------
    shape : str
        Name of the shape, or of whatever else distinguishes the cell.
    n_heavy_atoms, n_attempts, seed : int
        What to make.
    prior : Prior
        The shape itself.
    descriptor : DescriptorSettings
        What environments are compared by.
    """

    shape: str
    n_heavy_atoms: int
    n_attempts: int
    seed: int
    prior: Prior
    descriptor: DescriptorSettings = NetworkInvariants()  # noqa: RUF009 -- frozen

    @property
    def folder(self) -> str:
        """Name of its folder in a suite."""
        return f"{self.shape}-{self.n_heavy_atoms:02d}"


@dataclass(frozen=True, slots=True, eq=False)
class CellScores:
    """What was found of a cell.

    Attributes
    ----------
    shape : str
        Name of the shape.
    n_heavy_atoms, n_attempts, seed : int
        What was made.
    seconds : float or None
        Time of generation alone, start-up included; None if the run was made by another command.
    figures : dict
        Those of ``scorecard.json``, by name.
    """

    shape: str
    n_heavy_atoms: int
    n_attempts: int
    seed: int
    seconds: float | None
    figures: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Return the scores as what JSON can hold."""
        return {
            "shape": self.shape,
            "heavy_atoms": self.n_heavy_atoms,
            "attempts": self.n_attempts,
            "seed": self.seed,
            "seconds_per_attempt": None if self.seconds is None else self.seconds / self.n_attempts,
            "figures": dict(self.figures),
        }


def benchmark(
    generator: Generator,
    cells: Sequence[tuple[Cell, Path]],
    out: Path,
    *,
    progress: ProgressBar,
    n_workers: int = 1,
) -> list[CellScores]:
    """Make and judge the molecules of cells, and write ``quality.md`` and ``quality.json``.

    What an earlier call finished is not done again; an interrupted cell goes on.

    Parameters
    ----------
    generator : Generator
        What makes the molecules.
    cells : sequence of (Cell, Path)
        Each with its folder.
    out : Path
        Folder of the table, which grows with every cell that is finished.
    progress : callable
        Makes a progress bar.
    n_workers : int
        Processes.

    Raises
    ------
    ConfigError
        If a folder holds a run of another configuration.
    MissingDependencyError
        If an optional package for judging is missing.
    """
    require_packages()
    reference_set = load_reference("organic")
    reference = Reference.of(reference_set)
    finished = []
    for cell, folder in cells:
        with (
            progress(f"{cell.folder}: generating", "attempts") as update,
            _timed(folder, update) as timed,
        ):
            generator.generate(
                cell.n_attempts,
                cell.n_heavy_atoms,
                prior=cell.prior,
                reference=reference_set,
                descriptor=cell.descriptor,
                seed=cell.seed,
                n_workers=n_workers,
                out=folder,
                resume=(folder / JOURNAL).exists(),
                callback=timed,
            )
        if not (folder / SCORECARD).exists():
            entries = read_entries([folder])
            with progress(f"{cell.folder}: judging", "attempts") as update:
                evaluate(entries, folder, reference, n_workers=n_workers, callback=update)
        finished.append(_read_scores(cell, folder))
        io.write_text(out / "quality.md", to_markdown(finished))
        io.write_json(out / "quality.json", [scores.to_json() for scores in finished])
    return finished


@contextmanager
def _timed(folder: Path, callback: Callback) -> Iterator[Callback]:
    """Give a callback for generation, and keep the time that generation takes on disk.

    It is saved every few seconds, so that no interruption resets it. Looking at a run that is
    finished takes no time, and of one that another command began the time is not known.
    """
    known = (folder / TIME_FILE).exists() or not (folder / JOURNAL).exists()
    before = _read_seconds(folder) or 0.0
    start = saved = time.perf_counter()
    works = False

    def save() -> None:
        nonlocal saved
        saved = time.perf_counter()
        if known and works:
            io.write_json(folder / TIME_FILE, {"seconds": round(before + saved - start, 3)})

    def update(n_done: float, total: int) -> None:
        nonlocal works
        works = works or n_done < total
        if time.perf_counter() - saved > _SAVE_EVERY:
            save()
        callback(n_done, total)

    try:
        yield update
    finally:
        save()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise LoadError(f"cannot read {path}: {error}; remove it to have it made again") from None


def _read_seconds(folder: Path) -> float | None:
    path = folder / TIME_FILE
    return float(_read_json(path)["seconds"]) if path.exists() else None


def _read_scores(cell: Cell, folder: Path) -> CellScores:
    return CellScores(
        shape=cell.shape,
        n_heavy_atoms=cell.n_heavy_atoms,
        n_attempts=cell.n_attempts,
        seed=cell.seed,
        seconds=_read_seconds(folder),
        figures=_read_json(folder / SCORECARD)["figures"],
    )


_COLUMNS = {
    "valid": "valid",
    "posebusters": "PoseBusters",
    "relaxation_energy": "GFN2 relaxation, kcal/mol",
    "known_environments": "environments known",
    "all_known": "no unknown one",
    "unique": "unique",
    "novel": "novel",
    "diversity": "diversity",
}
"""Figures of the table, and their columns."""


def to_markdown(scores: Sequence[CellScores], first_column: str = "shape") -> str:
    """Return the table of a suite: a row for each cell, 95 % intervals in brackets."""
    columns = (first_column, "heavy atoms", "attempts", *_COLUMNS.values(), "time an attempt")
    rows = (
        (
            cell.shape,
            str(cell.n_heavy_atoms),
            str(cell.n_attempts),
            *(show(figure_from_json(cell.figures[name])) for name in _COLUMNS),
            "-" if cell.seconds is None else f"{cell.seconds / cell.n_attempts:.1f} s",
        )
        for cell in scores
    )
    return "\n".join(table(columns, rows)) + "\n"
