"""The package as users get it: a wheel that works anywhere, and imports without surprises."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import simgen

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= {
        "simgen/py.typed",
        "simgen/references/organic.sdf.gz",
        "simgen/known.json.gz",
        "simgen/models/pretrained/small.safetensors",
        "simgen/models/pretrained/ace.safetensors",
        "simgen/models/pretrained/botnet.safetensors",
        "simgen/models/pretrained/nequip.safetensors",
        "simgen/finishing/statistics.json",
    }
    shapes = {path.name for path in (ROOT / "priors").iterdir()}
    assert {f"simgen/priors_data/{name}" for name in shapes} <= names
    assert not [name for name in names if name.startswith(("tests", "runs", "out"))]


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    environment = {**os.environ, "PYTHONPATH": str(target)}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-W", "error", *arguments]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment
        ).stdout

    assert run("-c", "import simgen; print(simgen.__file__)").startswith(str(target))
    options = "--count 2 --heavy-atoms 5 --steps 10 --particles 2 --seed 0 --device cpu --out run"
    run("-c", "from simgen.cli import main; main()", "generate", *options.split())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["n_attempts"] == 2


def test_the_public_names_are_there_and_no_others() -> None:
    for name in simgen.__all__:
        assert getattr(simgen, name) is not None
        assert name in dir(simgen)
    assert simgen.Generator.__module__ == "simgen.generation.generator"
    assert simgen.priors.Circle(radius=4.0) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Generater'"):
        simgen.Generater  # noqa: B018


def test_importing_has_no_side_effects() -> None:
    program = """
import sys, random, warnings, logging
warnings.simplefilter("error")
before = set(sys.modules)
import simgen
new = {name.split(".")[0] for name in set(sys.modules) - before}
assert new <= {"simgen", "importlib", "typing"} | set(sys.stdlib_module_names), new
import numpy, torch

def state():
    numbers = numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    settings = torch.get_num_threads(), torch.get_default_dtype(), logging.root.handlers[:]
    return random.getstate(), numbers, settings

before = state()
for name in simgen.__all__:
    getattr(simgen, name)
import simgen.generation, simgen.training, simgen.data.build, simgen.validation, simgen.cli
assert state() == before
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_layers_are_kept() -> None:
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    outcome = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert outcome.returncode == 0, outcome.stdout
