"""How much faster molecules are made than by the published program, side by side.

``simgen==0.3.1`` of PyPI is in an environment of its own, since its name is ours:

    pip install torch==2.13.0 'simgen==0.3.1' 'asebytes<0.3' rdkit safetensors

and ``SIMGEN_REFERENCE_PYTHON`` names the interpreter there. It gets our weights, converted, and our
reference molecules, and has 50 noise levels, 10 particles, mutations every 2 steps and hydrogens by
valences, relaxed as it does. Start-up counts for neither program. The same check, which knows
elements and positions only, decides which molecules are valid.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import simgen
from simgen import io
from simgen.benchmarks import reference_driver
from simgen.errors import SimgenError
from simgen.evaluation.report import table
from simgen.finishing.status import Status
from simgen.generation import Generator, versions
from simgen.models import save_model
from simgen.reference import load_reference
from simgen.validation import validate

REFERENCE_PYTHON = "SIMGEN_REFERENCE_PYTHON"
"""Environment variable with a Python interpreter that has simgen 0.3.1 and safetensors."""

_EXPORT = (
    "import sys, torch, warnings\n"
    "warnings.filterwarnings('ignore')\n"
    "from simgen.models.mace_interop import export_mace\n"
    "from simgen.models.weights import load_model\n"
    "export_mace(load_model(sys.argv[1], dtype=torch.float64), sys.argv[2])\n"
)


@dataclass(frozen=True, slots=True)
class ProgramSpeed:
    """What a program took for a number of attempts.

    Attributes
    ----------
    n_attempts, n_valid : int
        All attempts, and how many of them are valid molecules of the size asked for.
    sampling, total : float
        Seconds of sampling, and of everything from sampling to the finished molecule.
    cpu_seconds : float
        The latter in seconds of processors.
    """

    n_attempts: int
    n_valid: int
    sampling: float
    total: float
    cpu_seconds: float


def is_valid(numbers: Sequence[int], positions: object, n_heavy_atoms: int) -> bool:
    """Whether atoms are one closed-shell, neutral molecule of so many heavy atoms."""
    elements = np.asarray(numbers, dtype=np.int64)
    if int((elements > 1).sum()) != n_heavy_atoms:
        return False
    mol = io.perceive_bonds(elements, np.asarray(positions, dtype=np.float64))
    return mol is not None and validate(mol).status is Status.OK


def benchmark(
    model: str, out: Path, *, n_heavy_atoms: int, n_attempts: int, n_workers: int, seed: int
) -> dict[str, Any] | None:
    """Time both programs and write ``reference-program.json``.

    Parameters
    ----------
    model : str
        Name or file of the force field.
    out : Path
        Folder of the results.
    n_heavy_atoms : int
        Size of the molecules.
    n_attempts : int
        Attempts of the published program; ours makes eight times as many.
    n_workers : int
        Processes of ours; the published one is a process with as many threads.
    seed : int
        Seed of both.

    Returns
    -------
    dict or None
        What the file holds; None if there is no interpreter.

    Raises
    ------
    SimgenError
        If the published program does not run.
    """
    python = os.environ.get(REFERENCE_PYTHON)
    if not python:
        return None
    generator = Generator.from_pretrained(model, device="cpu")
    theirs = _run_theirs(python, generator, n_heavy_atoms, n_attempts, n_workers, seed)
    ours = _run_ours(generator, n_heavy_atoms, 8 * n_attempts, n_workers, seed)
    results = {
        "model": model,
        "n_heavy_atoms": n_heavy_atoms,
        "n_cores": n_workers,
        "seed": seed,
        "versions": versions(),
        "ours": asdict(ours),
        "simgen 0.3.1": asdict(theirs),
    }
    io.write_json(out / "reference-program.json", results)
    return results


def _run_ours(
    generator: Generator, n_heavy_atoms: int, n_attempts: int, n_workers: int, seed: int
) -> ProgramSpeed:
    result = generator.generate(n_attempts, n_heavy_atoms, n_workers=n_workers, seed=seed)
    stages = dict(result.timings)
    stages.pop("reference", None)  # start-up
    # Each process has its own clock.
    total = sum(stages.values()) / n_workers
    n_valid = sum(
        is_valid(a.atomic_numbers.tolist(), a.positions, n_heavy_atoms) for a in result.attempts
    )
    return ProgramSpeed(
        n_attempts, n_valid, stages["sampling"] / n_workers, total, total * n_workers
    )


def _run_theirs(
    python: str,
    generator: Generator,
    n_heavy_atoms: int,
    n_attempts: int,
    n_workers: int,
    seed: int,
) -> ProgramSpeed:
    reference = load_reference("organic").select(
        (n_heavy_atoms, n_heavy_atoms), elements=generator.model.elements
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights, exported = folder / "model.safetensors", folder / "model.model"
        save_model(generator.model, weights, {})
        package = str(Path(simgen.__file__).parent.parent)
        _call([python, "-c", _EXPORT, str(weights), str(exported)], {"PYTHONPATH": package})
        job = {
            "model": str(exported),
            "reference": [
                (m.atomic_numbers[m.kept].tolist(), m.positions[m.kept].tolist())
                for m in reference.molecules
            ],
            "n_heavy_atoms": n_heavy_atoms,
            "n_attempts": n_attempts,
            "seed": seed,
        }
        io.write_json(folder / "job.json", job)
        driver = str(reference_driver.__file__)
        output = _call(
            [python, "-P", driver, str(folder / "job.json")], {"OMP_NUM_THREADS": str(n_workers)}
        )
    # Its libraries print as well.
    attempts = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if len(attempts) != n_attempts:
        raise SimgenError(f"expected {n_attempts} attempts of the program, got {len(attempts)}")

    def seconds(*stages: str) -> float:
        return sum(float(attempt.get(stage, 0.0)) for attempt in attempts for stage in stages)

    n_valid = sum(
        "numbers" in a and is_valid(a["numbers"], a["positions"], n_heavy_atoms) for a in attempts
    )
    return ProgramSpeed(
        n_attempts,
        n_valid,
        seconds("sampling"),
        seconds("sampling", "finishing", "failing"),
        seconds("sampling_cpu", "finishing_cpu", "failing_cpu"),
    )


def _call(command: list[str], variables: dict[str, str]) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(
            command, env=environment | variables, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        stderr = (getattr(error, "stderr", None) or str(error)).strip()
        raise SimgenError(
            f"the published program did not run in {command[0]}: {stderr.splitlines()[-1]}; unset "
            f"{REFERENCE_PYTHON}, or name an interpreter with simgen==0.3.1 and safetensors"
        ) from None
    return done.stdout


def to_markdown(results: dict[str, Any]) -> str:
    """Return the table of :func:`benchmark`'s results."""
    speeds = {name: ProgramSpeed(**results[name]) for name in ("ours", "simgen 0.3.1")}
    rates = {
        name: (
            s.n_attempts / s.sampling,
            s.n_attempts / s.total,
            s.n_valid / s.total,
            s.n_valid / s.cpu_seconds,
        )
        for name, s in speeds.items()
    }
    ratios = [
        f"{a / b:.0f}" if b else "-"
        for a, b in zip(rates["ours"], rates["simgen 0.3.1"], strict=True)
    ]
    columns = ("sampled/s", "finished/s", "valid/s", "valid/CPU s")
    rows = [
        (name, str(s.n_attempts), str(s.n_valid), *(f"{rate:.3g}" for rate in rates[name]))
        for name, s in speeds.items()
    ]
    rows.append(("times faster", "", "", *ratios))
    lines = [
        f"{results['n_heavy_atoms']} heavy atoms, {results['n_cores']} CPU cores, model "
        f"`{results['model']}`; the same weights and reference molecules.",
        "",
        *table(("program", "attempts", "valid", *columns), rows),
    ]
    return "\n".join(lines) + "\n"
