"""How fast molecules are made, what each stage takes, and how time and memory grow.

Each cell of the table is a run in a fresh process, so that its peak memory is its own. A process
has one thread: what several do together depends on what else the machine does.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import simgen
from simgen import io
from simgen.benchmarks.mace import seconds_per_call
from simgen.benchmarks.quality import ProgressBar
from simgen.errors import LoadError, SimgenError
from simgen.evaluation.report import table
from simgen.generation import Generator, versions
from simgen.models import FrozenForceField, load_model, save_model
from simgen.molecules import MoleculeBatch
from simgen.reference import load_reference

MACE_PYTHON = "SIMGEN_MACE_PYTHON"
"""Environment variable with a Python interpreter that has mace-torch and safetensors."""

FIELD_BATCH = 32
"""Molecules whose energies and forces are computed together."""

RESULTS = "speed.json"
"""File with all results; what it holds already is not measured again."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A run: how many molecules of what size, and how.

    Attributes
    ----------
    varied : str
        Which of the other attributes is varied in the group that it belongs to.
    n_molecules, n_heavy_atoms, batch_size : int
        Attempts, their heavy atoms, and attempts at once.
    n_particles, n_references : int or None
        Copies of each attempt, and reference molecules; None for as many as generation takes by
        default.
    """

    varied: str
    n_molecules: int = 8
    n_heavy_atoms: int = 9
    n_particles: int | None = None
    batch_size: int = 8
    n_references: int | None = None

    @property
    def name(self) -> str:
        """Name among the results."""
        return f"{self.varied}={getattr(self, self.varied)}"


@dataclass(frozen=True, slots=True)
class CellSpeed:
    """What a run took.

    Attributes
    ----------
    seconds, cpu_seconds : float
        Of all attempts together, without start-up.
    stages : dict of str to float
        Seconds of each stage.
    peak_mib : float
        Largest resident memory of its process, start-up included, MiB.
    n_valid : int
        Valid molecules.
    """

    seconds: float
    cpu_seconds: float
    stages: dict[str, float]
    peak_mib: float
    n_valid: int


def cells(base: Cell, **values: Sequence[int | None]) -> list[Cell]:
    """Vary one attribute of a cell after the other."""
    return [
        replace(base, varied=name, **{name: value})  # type: ignore[arg-type]
        for name, row in values.items()
        for value in row
    ]


SUITES = {
    "small": [
        *cells(
            Cell(""),
            batch_size=(1, 8),
            n_molecules=(4, 16),
            n_particles=(1, 10),
            n_references=(64, None),
        ),
        *cells(Cell("", n_molecules=16, batch_size=16), n_heavy_atoms=(5, 9, 16, 40)),
    ],
    "full": [
        *cells(
            Cell("", n_molecules=64, batch_size=64),
            batch_size=(1, 4, 16, 64),
            n_molecules=(16, 64, 256),
            n_particles=(1, 5, 10, 20),
            n_references=(16, 64, None),
        ),
        *cells(Cell("", n_molecules=16, batch_size=16), n_heavy_atoms=(5, 9, 12, 16, 20, 30, 40)),
    ],
}
"""Cells of each size of the benchmark."""


def measure(cell: Cell, model: str) -> CellSpeed:
    """Carry out a run; in a process of its own the peak memory is that of the run."""
    torch.set_num_threads(1)
    generator = Generator.from_pretrained(model, device="cpu")
    reference = load_reference("organic")
    if cell.n_references is not None:
        reference = reference.select(
            (cell.n_heavy_atoms, cell.n_heavy_atoms),
            elements=generator.model.elements,
            n_molecules=cell.n_references,
        )
    start, start_cpu = time.perf_counter(), time.process_time()
    result = generator.generate(
        cell.n_molecules,
        cell.n_heavy_atoms,
        reference=reference,
        n_particles=cell.n_particles,
        batch_size=cell.batch_size,
        seed=0,
    )
    return CellSpeed(
        seconds=time.perf_counter() - start,
        cpu_seconds=time.process_time() - start_cpu,
        stages=result.timings,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        n_valid=len(result.molecules),
    )


_SHOW_HELP = "import sys; sys.argv[1:] = ['--help']; from simgen.cli import main; main()"

_SAMPLE = """
import sys, time
from contextlib import contextmanager
import simgen.cli.generate as command
from simgen.cli import main

@contextmanager
def bar(label, unit):
    reports = []
    def update(done, total):
        reports.append(done)
        if len(reports) == 2:  # after what was there before, that sampling has begun
            print(time.time(), flush=True)
            sys.exit()
    yield update

command.progress_bar = bar
main()
"""


def start_up(model: str) -> dict[str, float]:
    """Seconds of ``simgen --help``, and from that of ``simgen generate`` until sampling begins.

    The latter for a single attempt, and for one in each of two processes.
    """
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", _SHOW_HELP], check=True, stdout=subprocess.DEVNULL)
    found = {"help": time.perf_counter() - start}
    for count, name in ((1, "one process"), (2, "two processes")):
        options = f"--count {count} --workers {count} --heavy-atoms 9 --device cpu".split()
        with tempfile.TemporaryDirectory() as folder:
            command = [*options, "--model", model, "--out", f"{folder}/run"]
            begin = time.time()
            done = subprocess.run(
                [sys.executable, "-c", _SAMPLE, "generate", *command],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
        found[name] = float(done.stdout) - begin
    return found


def field_speed(model: str) -> dict[str, float]:
    """Seconds for energies and forces of a batch of molecules, on one core, in float32.

    Returns
    -------
    dict of str to float
        ``frozen`` and ``network``: ours, with the weights worked in and without; ``mace-torch``
        with the same weights, if an interpreter that has it is named by the environment variable
        ``SIMGEN_MACE_PYTHON``.

    Raises
    ------
    SimgenError
        If mace-torch fails, or its results are not ours.
    """
    field = load_model(model).requires_grad_(False)
    chosen = load_reference("organic").select((9, 12), elements=field.elements)
    batch = MoleculeBatch.from_arrays(
        [(m.atomic_numbers, m.positions) for m in chosen.molecules[:FIELD_BATCH]]
    )
    frozen = FrozenForceField(field)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = {
            "frozen": seconds_per_call(lambda: frozen.energy_and_forces(batch)),
            "network": seconds_per_call(lambda: field.energy_and_forces(batch)),
        }
    finally:
        torch.set_num_threads(n_threads)
    if python := os.environ.get(MACE_PYTHON):
        with tempfile.TemporaryDirectory() as folder:
            weights, molecules = Path(folder) / "field.safetensors", Path(folder) / "batch.npz"
            save_model(field, weights, {})
            np.savez(
                molecules,
                positions=batch.positions.numpy(),
                atomic_numbers=batch.atomic_numbers.numpy(),
                molecule_idx=batch.molecule_idx.numpy(),
            )
            found = _run_mace(python, weights, molecules)
        energies, forces = frozen.energy_and_forces(batch)
        same = np.allclose(found["energies"], energies.numpy(), rtol=1e-5)
        if not same or not np.isclose(found["force_norm"], float(forces.norm()), rtol=1e-3):
            raise SimgenError(
                "expected the energies and forces of mace-torch to be ours, got others; its "
                "version may be another than 0.3.16"
            )
        seconds["mace-torch"] = found["seconds"]
    return seconds


def _run_mace(python: str, weights: Path, molecules: Path) -> dict[str, Any]:
    package = Path(simgen.__file__).parent.parent
    command = [python, "-m", "simgen.benchmarks.mace", str(weights), str(molecules)]
    environment = {**os.environ, "PYTHONPATH": str(package)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError) as error:
        stderr = getattr(error, "stderr", None) or str(error)
        raise SimgenError(
            f"mace-torch did not run in {python}: {stderr.strip().splitlines()[-1]}; unset "
            f"{MACE_PYTHON}, or name an interpreter with mace-torch and safetensors"
        ) from None
    return found


def benchmark(
    suite: Sequence[Cell], model: str, out: Path, *, progress: ProgressBar
) -> dict[str, Any]:
    """Measure everything and write ``speed.json`` and ``speed.md``.

    Parameters
    ----------
    suite : sequence of Cell
        Runs to time.
    model : str
        Name or file of the force field.
    out : Path
        Folder of the results; what is measured there already is not measured again.
    progress : callable
        Makes a progress bar.

    Returns
    -------
    dict
        What ``speed.json`` holds.

    Raises
    ------
    LoadError
        If the folder holds results that cannot be read, or those of another program or model.
    """
    known: dict[str, Any] = {"model": model, "versions": versions(), "cells": {}}
    path = out / RESULTS
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise LoadError(f"cannot read {path}: {error}; remove it to begin again") from None
        if any(found.get(key) != known[key] for key in ("model", "versions")):
            raise LoadError(f"{path} is of another model or version; choose another folder")
        known = found
    with progress("speed", "runs") as update:
        for n_done, cell in enumerate(suite):
            update(n_done, len(suite))
            if cell.name not in known["cells"]:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    speed = pool.submit(measure, cell, model).result()
                known["cells"][cell.name] = {**asdict(cell), **asdict(speed)}
                io.write_json(path, known)
        update(len(suite), len(suite))
    for name, function in (("start_up", start_up), ("field", field_speed)):
        if name not in known:
            known[name] = function(model)
            io.write_json(path, known)
    io.write_text(out / "speed.md", to_markdown(known))
    return known


SMALLEST = 9
"""Heavy atoms from which on growth is stated: smaller molecules are mostly overhead."""


def growth(seconds: Mapping[int, float]) -> str:
    """Say how the time of an attempt grows with the number of heavy atoms.

    Examples
    --------
    >>> growth({5: 1.0, 9: 3.0, 40: 48.0})
    'From 9 to 40 heavy atoms the time of an attempt grows with the 1.86th power of their number.'
    """
    sizes = sorted(size for size in seconds if size >= SMALLEST)
    if len(sizes) < 2:
        return ""
    small, large = sizes[0], sizes[-1]
    power = math.log(seconds[large] / seconds[small]) / math.log(large / small)
    return (
        f"From {small} to {large} heavy atoms the time of an attempt grows with the {power:.2f}th "
        "power of their number."
    )


_STAGES = (
    "sampling",
    "refinement",
    "repair",
    "bonds and hydrogens",
    "relaxation",
    "validation",
)


def to_markdown(results: dict[str, Any]) -> str:
    """Return the tables of :func:`benchmark`'s results."""
    columns = ("varied", "heavy atoms", "attempts", "at once", "particles", "references")
    figures = ("attempts/s", "CPU s an attempt", "valid", *_STAGES, "peak memory")
    rows = []
    for cell in results["cells"].values():
        total = sum(cell["stages"].values())
        rows.append(
            (
                cell["varied"],
                *(
                    "by default" if cell[key] is None else str(cell[key])
                    for key in ("n_heavy_atoms", "n_molecules", "batch_size", "n_particles")
                ),
                "all" if cell["n_references"] is None else str(cell["n_references"]),
                f"{cell['n_molecules'] / cell['seconds']:.2f}",
                f"{cell['cpu_seconds'] / cell['n_molecules']:.2f}",
                f"{cell['n_valid']}",
                *(f"{100 * cell['stages'].get(stage, 0.0) / total:.0f} %" for stage in _STAGES),
                f"{cell['peak_mib']:.0f} MiB",
            )
        )
    field = results["field"]
    sizes = {
        cell["n_heavy_atoms"]: cell["cpu_seconds"] / cell["n_molecules"]
        for cell in results["cells"].values()
        if cell["varied"] == "n_heavy_atoms"
    }
    lines = [
        "One process of one thread for each row. To import and load things is not part of the "
        "time; to prepare the reference, about a second for each row, is.",
        "",
        *table((*columns, *figures), rows),
        "",
        growth(sizes),
        "",
        f"Energies and forces of {FIELD_BATCH} molecules, one thread:",
        "",
        *table(
            ("program", "milliseconds", "times faster"),
            (
                (name, f"{1e3 * seconds:.1f}", f"{max(field.values()) / seconds:.1f}")
                for name, seconds in field.items()
            ),
        ),
        "",
        f"`simgen --help`: {results['start_up']['help']:.2f} s; sampling begins after "
        f"{results['start_up']['one process']:.1f} s in one process, "
        f"{results['start_up']['two processes']:.1f} s in two.",
    ]
    return "\n".join(lines) + "\n"
