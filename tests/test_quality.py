"""The quality benchmark: cells, resuming, time and table."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Command, assert_one_line
from typer.testing import CliRunner

from simgen.benchmarks import quality
from simgen.benchmarks.quality import TIME_FILE, Cell, benchmark
from simgen.cli import app
from simgen.errors import InputError, LoadError
from simgen.evaluation.molecule import Fault, MoleculeScore
from simgen.evaluation.report import SCORECARD, to_json
from simgen.evaluation.scorecard import Reference, summarise
from simgen.generation import JOURNAL, Generator
from simgen.priors import Gaussian


@contextmanager
def no_bar(label: str, unit: str) -> Iterator[Callable[[float, int], None]]:
    yield lambda done, total: None


class StandIn:
    """Takes the place of the generator: writes a journal of attempts that came to nothing."""

    def __init__(self, stop_in: str = "") -> None:
        self.calls: list[tuple[str, bool]] = []
        self.stop_in = stop_in
        self.device = torch.device("cpu")

    def generate(
        self, n: int, size: int, *, out: Path, resume: bool, callback: Any, **_: Any
    ) -> None:
        self.calls.append((out.name, resume))
        done = n if resume and len((out / JOURNAL).read_text().splitlines()) > 1 else 0
        callback(done, n)
        out.mkdir(parents=True, exist_ok=True)
        header = json.dumps({"config": {"n_molecules": n}}) + "\n"
        (out / JOURNAL).write_text(header)
        if out.name == self.stop_in:
            raise KeyboardInterrupt
        report = {"name": "a", "status": "disconnected"}
        attempts = [
            {"index": k, "report": report, "atomic_numbers": [6], "positions": [[0, 0, 0]]}
            for k in range(n)
        ]
        (out / JOURNAL).write_text(
            header + json.dumps({"timings": {}, "attempts": attempts}) + "\n"
        )
        callback(n, n)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Judge without judges; gives the names of the folders that were judged."""
    folders: list[str] = []

    def evaluate(entries: list[Any], folder: Path, reference: Reference, **_: Any) -> None:
        folders.append(folder.name)
        errors = (Fault("no molecule"),)
        scores = [MoleculeScore("", entry.record.name, errors=errors) for entry in entries]
        (folder / SCORECARD).write_text(json.dumps(to_json(summarise(scores, reference))))

    monkeypatch.setattr(quality, "evaluate", evaluate)
    monkeypatch.setattr(quality, "load_reference", lambda _: None)
    monkeypatch.setattr(quality.Reference, "of", lambda _: Reference("none", ()))
    return folders


def suite(out: Path) -> list[tuple[Cell, Path]]:
    cells = [Cell(shape, 5, 4, 0, Gaussian()) for shape in ("gaussian", "line")]
    return [(cell, out / cell.folder) for cell in cells]


def run(generator: StandIn, out: Path) -> list[quality.CellScores]:
    return benchmark(generator, suite(out), out, progress=no_bar)  # type: ignore[arg-type]


def test_a_suite_goes_on_where_it_was_interrupted(tmp_path: Path, judged: list[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(StandIn(stop_in="line-05"), tmp_path)
    assert judged == ["gaussian-05"]
    assert "line" not in (tmp_path / "quality.md").read_text()
    spent = json.loads((tmp_path / "line-05" / TIME_FILE).read_text())["seconds"]
    before = json.loads((tmp_path / "gaussian-05" / TIME_FILE).read_text())

    generator = StandIn()
    scores = run(generator, tmp_path)
    assert generator.calls == [("gaussian-05", True), ("line-05", True)]
    assert judged == ["gaussian-05", "line-05"]
    # The time of what was finished stays, that of what was interrupted goes on.
    assert json.loads((tmp_path / "gaussian-05" / TIME_FILE).read_text()) == before
    assert scores[1].seconds is not None
    assert scores[1].seconds >= spent

    rows = (tmp_path / "quality.md").read_text().splitlines()
    assert len(rows) == 4
    assert re.match(r"\| gaussian \| 5 \| 4 \| 0 % \(0 to 49\) \| 0 % .*\| none ", rows[2])
    cells = json.loads((tmp_path / "quality.json").read_text())
    assert [cell["shape"] for cell in cells] == ["gaussian", "line"]
    assert cells[0]["seconds_per_attempt"] == before["seconds"] / 4


def test_the_time_of_a_run_of_another_command_is_not_known(
    tmp_path: Path, judged: list[str]
) -> None:
    folder = tmp_path / "gaussian-05"
    folder.mkdir()
    (folder / JOURNAL).write_text("{}\n")
    scores = run(StandIn(), tmp_path)
    assert scores[0].seconds is None
    assert (tmp_path / "quality.md").read_text().splitlines()[2].endswith("| - |")


def test_a_damaged_scorecard_is_an_error(tmp_path: Path, judged: list[str]) -> None:
    run(StandIn(), tmp_path)
    (tmp_path / "line-05" / SCORECARD).write_text("{")
    with pytest.raises(LoadError, match="remove it to have it made again"):
        run(StandIn(), tmp_path)


def test_the_standard_suite_from_the_command(
    tmp_path: Path, judged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Generator, "from_pretrained", lambda *_, **__: StandIn())
    command = f"benchmark quality --suite full --out {tmp_path}/suite"
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.output
    assert len(judged) == len(set(judged)) == 6 * 3
    rows = [line.split(" | ")[:3] for line in result.stdout.splitlines()[2:-1]]
    sizes = {row[1] for row in rows}
    assert sizes == {"5", "9", "12", "16", "20", "30"}
    assert {row[2] for row in rows} == {"100"}


def test_an_interruption_is_one_line(
    simgen: Command, tmp_path: Path, judged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = StandIn(stop_in="line-05")
    monkeypatch.setattr(Generator, "from_pretrained", lambda *_, **__: stand_in)
    outcome = simgen("benchmark", "quality", "--suite", "small", "--out", tmp_path / "suite")
    assert_one_line(outcome, 130, "the same command goes on")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--count 3", "give --heavy-atoms"),
        ("--suite small --heavy-atoms 9", "choose one"),
    ],
)
def test_options_that_contradict_each_other(tmp_path: Path, options: str, message: str) -> None:
    command = ["benchmark", "quality", "--out", str(tmp_path / "o"), *options.split()]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)


@pytest.mark.slow
def test_a_single_cell_from_the_command(tmp_path: Path) -> None:
    command = f"benchmark quality --heavy-atoms 3 --count 2 --device cpu --out {tmp_path}/q"
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.output
    assert "| gaussian | 3 | 2 |" in result.stdout
    names = {path.name for path in (tmp_path / "q").iterdir()}
    assert names >= {"quality.md", "quality.json", "scorecard.md", "molecules.csv", JOURNAL}
    (cell,) = json.loads((tmp_path / "q" / "quality.json").read_text())
    assert cell["seconds_per_attempt"] > 0
    assert cell["figures"]["valid"]["n"] == 2
    # Once more: nothing is made or judged again.
    before = (tmp_path / "q" / SCORECARD).stat().st_mtime_ns
    again = CliRunner().invoke(app, command.split())
    assert again.stdout == result.stdout
    assert (tmp_path / "q" / SCORECARD).stat().st_mtime_ns == before
