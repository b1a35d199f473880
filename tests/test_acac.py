"""The acetylacetone benchmark, on a data set of the same form and a tiny network."""

import json
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from command_line import Command

from simgen.benchmarks import acac
from simgen.models import load_model
from simgen.molecules import MoleculeBatch


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with 12 and 4 geometries of formaldehyde in random forces."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    equilibrium = np.array([[0, 0, 0], [0, 0, 1.2], [0.9, 0, -0.6], [-0.9, 0, -0.6]])
    for name, n in ((acac.TRAIN_FILE, 12), (acac.TEST_FILES["300 K"], 4)):
        frames = []
        for _ in range(n):
            atoms = ase.Atoms("COHH", equilibrium + 0.05 * rng.normal(size=(4, 3)))
            atoms.calc = SinglePointCalculator(
                atoms, energy=-3000.0 + rng.normal(), forces=rng.normal(size=(4, 3))
            )
            frames.append(atoms)
        ase.io.write(folder / name, frames, format="extxyz")
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "settings.json"
    network = {"n_channels": 4, "l_max": 1, "radial_widths": [8]}
    path.write_text(
        json.dumps({"network": network, "training": {"n_steps": 6, "validate_every": 3}})
    )
    return path


def test_the_command_writes_the_table_and_goes_on(
    simgen: Command, data: Path, settings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = (
        "benchmark", "acac", "--data", data, "--out", out, "--settings", settings,
        "--device", "cpu", "--processes", 1,
    )  # fmt: skip
    outcome = simgen(*command)
    assert outcome.code == 0, outcome.err
    assert (out / "acac.md").read_text() in outcome.out
    assert (out / "training.png").stat().st_size > 1000
    result = json.loads((out / "acac.json").read_text())
    assert result["n_steps"] == 6
    assert list(result["errors"]) == ["300 K"]
    # The errors are those of the weights on the test file.
    model = load_model(out / "model.safetensors", dtype=torch.float64)
    frames = ase.io.read(data / acac.TEST_FILES["300 K"], ":")
    batch = MoleculeBatch.from_arrays(
        [(a.numbers, a.positions) for a in frames], dtype=torch.float64
    )
    energies, forces = model.energy_and_forces(batch)
    wrong = energies.numpy() - [atoms.get_potential_energy() for atoms in frames]
    assert result["errors"]["300 K"]["energy_rmse"] == pytest.approx(np.sqrt(np.mean(wrong**2)))
    wrong = forces.numpy() - np.concatenate([atoms.get_forces() for atoms in frames])
    found = result["errors"]["300 K"]["force_rmse"]
    assert found == pytest.approx(np.sqrt(np.mean(wrong**2)), rel=1e-5)
    assert f"{1e3 * found:.2f}" in outcome.out
    before = (out / "metrics.csv").read_text()
    assert simgen(*command).code == 0
    assert (out / "metrics.csv").read_text() == before


def test_hours_limit_the_training(
    simgen: Command, data: Path, settings: Path, tmp_path: Path
) -> None:
    chosen = json.loads(settings.read_text())
    chosen["training"]["n_steps"] = 1_000_000
    settings.write_text(json.dumps(chosen))
    out = tmp_path / "out"
    outcome = simgen(
        "benchmark", "acac", "--data", data, "--out", out, "--settings", settings,
        "--device", "cpu", "--processes", 1, "--hours", 0.0005,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    result = json.loads((out / "acac.json").read_text())
    assert 0.0 < result["seconds"] < 60.0  # a million steps take hours
    assert result["settings"]["training"]["max_seconds"] == pytest.approx(1.8)


def test_missing_data_are_named(simgen: Command, tmp_path: Path) -> None:
    outcome = simgen("benchmark", "acac", "--data", tmp_path, "--out", tmp_path / "out")
    assert outcome.code == 3
    assert acac.TRAIN_FILE in outcome.err.splitlines()[-1]
