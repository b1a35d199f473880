"""The speed benchmark: cells, resuming, the table and mace-torch's part."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simgen.benchmarks import speed
from simgen.benchmarks.mace import seconds_per_call
from simgen.benchmarks.speed import Cell, CellSpeed, benchmark, cells, field_speed, measure
from simgen.cli import app
from simgen.errors import LoadError, SimgenError
from simgen.models import ForceField, NetworkConfig, save_model


@contextmanager
def no_bar(label: str, unit: str) -> Iterator[Callable[[float, int], None]]:
    yield lambda done, total: None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = NetworkConfig(
        elements=(1, 6, 7, 8, 9, 15, 16, 17, 35), n_channels=4, l_max=1, radial_widths=(8,)
    )
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    save_model(ForceField(config, seed=0), path, {})
    return str(path)


def test_cells_vary_one_thing_at_a_time() -> None:
    first, second, third = cells(Cell(""), n_particles=(1, 5), n_references=(None,))
    assert (first.name, second.name) == ("n_particles=1", "n_particles=5")
    assert second == Cell("n_particles", n_particles=5)
    assert third == Cell("n_references")


START_UP = {"help": 0.25, "one process": 2.5, "two processes": 3.5}


def test_start_up(model: str) -> None:
    found = speed.start_up(model)
    assert found.keys() == START_UP.keys()
    assert 0 < found["help"] < found["one process"]
    assert found["help"] < found["two processes"]


def test_a_measured_cell(model: str) -> None:
    cell = Cell("n_particles", n_molecules=2, n_heavy_atoms=3, n_particles=2, n_references=4)
    found = measure(cell, model)
    assert found.cpu_seconds > 0
    assert sum(found.stages.values()) == pytest.approx(found.seconds, rel=0.3)
    assert {"sampling", "refinement", "repair", "relaxation", "validation"} <= set(found.stages)
    assert found.peak_mib > 100
    assert 0 <= found.n_valid <= 2


def test_command_measures_what_is_missing(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    class InThisProcess:
        def __init__(self, *arguments: object, **options: object) -> None: ...
        def __enter__(self) -> "InThisProcess":
            return self

        def __exit__(self, *error: object) -> None: ...
        def submit(self, function: object, cell: Cell, name: str) -> "InThisProcess":
            measured.append(cell.name)
            return self

        def result(self) -> CellSpeed:
            return CellSpeed(4.0, 3.0, {"sampling": 3.0, "relaxation": 1.0}, 512.0, 7)

    monkeypatch.setattr(speed, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(speed, "start_up", lambda model: START_UP)
    monkeypatch.setattr(speed, "field_speed", lambda model: {"frozen": 0.01, "network": 0.04})
    monkeypatch.setitem(speed.SUITES, "small", cells(Cell(""), n_heavy_atoms=(5, 9)))
    command = ["benchmark", "speed", "--model", model, "--out", str(tmp_path / "o")]
    outcome = CliRunner().invoke(app, command, catch_exceptions=False)
    assert outcome.exit_code == 0
    assert measured == ["n_heavy_atoms=5", "n_heavy_atoms=9"]
    text = (tmp_path / "o" / "speed.md").read_text()
    assert text in outcome.stdout
    assert "| n_heavy_atoms | 5 | 8 | 8 | by default | all | 2.00 | 0.38 | 7 | 75 % | 0 % |" in text
    assert "| frozen | 10.0 | 4.0 |" in text
    assert "0.25 s; sampling begins after 2.5 s in one process, 3.5 s in two" in text

    monkeypatch.setitem(speed.SUITES, "small", cells(Cell(""), n_heavy_atoms=(5, 9, 12)))
    CliRunner().invoke(app, command, catch_exceptions=False)
    assert measured == ["n_heavy_atoms=5", "n_heavy_atoms=9", "n_heavy_atoms=12"]
    results = json.loads((tmp_path / "o" / "speed.json").read_text())
    assert results["cells"]["n_heavy_atoms=9"]["peak_mib"] == 512.0

    with pytest.raises(LoadError, match="another model"):
        benchmark([], "small", tmp_path / "o", progress=no_bar)
    (tmp_path / "o" / "speed.json").write_text("{")
    with pytest.raises(LoadError, match="cannot read"):
        benchmark([], model, tmp_path / "o", progress=no_bar)


def test_speed_of_the_field(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(speed.MACE_PYTHON, raising=False)
    monkeypatch.setattr(speed, "FIELD_BATCH", 2)
    found = field_speed(model)
    assert set(found) == {"frozen", "network"}
    assert min(found.values()) > 0
    monkeypatch.setenv(speed.MACE_PYTHON, "/bin/false")
    with pytest.raises(SimgenError, match="mace-torch did not run in /bin/false"):
        field_speed(model)


def test_the_first_call_and_delays_do_not_count() -> None:
    n_calls = 0

    def function() -> None:
        nonlocal n_calls
        n_calls += 1

    assert 0 <= seconds_per_call(function, n_calls=5) < 0.1
    assert n_calls == 6
