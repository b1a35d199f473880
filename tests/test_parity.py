"""The same numbers as mace-torch, from goldens that it wrote and from mace-torch itself.

Set ``SIMGEN_MACE_PYTHON`` to a Python interpreter with mace-torch 0.3.16 and safetensors to run
the live tests.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simgen.models import evaluator, load_model
from simgen.molecules import MoleculeBatch

GOLDENS = Path(__file__).parent / "goldens"
SCRIPT = Path(__file__).parent / "parity" / "mace_models.py"
NAMES = sorted(path.stem for path in GOLDENS.glob("*.safetensors") if path.stem != "results")
TOLERANCE = 1e-10
FOUNDATION_MODELS = [name for name in NAMES if name.startswith(("off23", "mp", "omat"))]
MACE_PYTHON = os.environ.get("SIMGEN_MACE_PYTHON")

live = pytest.mark.skipif(
    not MACE_PYTHON, reason="SIMGEN_MACE_PYTHON does not name an interpreter with mace-torch"
)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def batch_of(results: dict[str, torch.Tensor], dtype: torch.dtype) -> MoleculeBatch:
    return MoleculeBatch(
        results["positions"].to(dtype),
        results["atomic_numbers"],
        results["molecule_idx"],
        n_molecules=4,
    )


def compare(folder: Path, name: str, results: dict[str, torch.Tensor]) -> None:
    batch = batch_of(results, torch.float64)
    model = load_model(folder / f"{name}.safetensors", dtype=torch.float64)
    energies, forces = model.energy_and_forces(batch)
    assert relative_error(energies, results[f"{name}.energies"]) < TOLERANCE
    assert relative_error(forces, results[f"{name}.forces"]) < TOLERANCE
    invariants = model.node_invariants(batch)
    assert relative_error(invariants, results[f"{name}.invariants"]) < TOLERANCE


def run_mace(*arguments: str | Path) -> None:
    root = Path(__file__).parents[1]
    subprocess.run(
        [str(MACE_PYTHON), str(SCRIPT), *map(str, arguments)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )


def test_every_setting_has_a_golden() -> None:
    source = SCRIPT.read_text()
    assert len(NAMES) == 19
    assert all(f'"{name}": {{' in source for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_goldens(name: str) -> None:
    compare(GOLDENS, name, load_file(GOLDENS / "results.safetensors"))


@pytest.mark.parametrize("name", FOUNDATION_MODELS)
def test_goldens_in_single_precision(name: str) -> None:
    results = load_file(GOLDENS / "results.safetensors")
    model = load_model(GOLDENS / f"{name}.safetensors", dtype=torch.float32)
    for field, tolerance in ((model, 1e-6), (evaluator(model), 2e-6)):
        energies, forces = field.energy_and_forces(batch_of(results, torch.float32))
        assert relative_error(energies, results[f"{name}.energies"]) < tolerance
        assert relative_error(forces, results[f"{name}.forces"]) < tolerance


@pytest.mark.slow
@live
def test_live_import_and_export(tmp_path: Path) -> None:
    run_mace("make", tmp_path)
    results = load_file(tmp_path / "results.safetensors")
    goldens = load_file(GOLDENS / "results.safetensors")
    for name in NAMES:
        compare(tmp_path, name, results)
        error = relative_error(results[f"{name}.forces"], goldens[f"{name}.forces"])
        assert error < TOLERANCE, f"the golden of {name} is out of date"
    run_mace("export", tmp_path)
    exported = load_file(tmp_path / "exported.safetensors")
    for key, value in exported.items():
        assert relative_error(value, results[key]) < TOLERANCE, key


@pytest.mark.slow
@live
def test_live_single_precision() -> None:
    run_mace("single")


@pytest.mark.slow
@live
def test_live_refusals() -> None:
    run_mace("refuse")


def test_converting_without_mace_torch_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from simgen.errors import MissingDependencyError
    from simgen.models.mace_interop import export_mace, import_mace

    monkeypatch.setitem(sys.modules, "mace", None)
    with pytest.raises(MissingDependencyError, match="pip install mace-torch"):
        import_mace(tmp_path / "a.model")
    with pytest.raises(MissingDependencyError, match="pip install mace-torch"):
        export_mace(load_model(GOLDENS / "invariant.safetensors"), tmp_path / "a.model")
