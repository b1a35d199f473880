"""The acetylacetone task: how well a network learns one molecule from 500 geometries.

References
----------
Data and the figures of other networks: I. Batatia et al., arXiv:2205.06643 and arXiv:2206.07697.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from simgen import io
from simgen.errors import LoadError
from simgen.evaluation.report import table
from simgen.models import NetworkConfig, load_model
from simgen.training import Errors, TrainingConfig, evaluate, read_structures, record_errors, train

ELEMENTS = (1, 6, 8)

TRAIN_FILE = "train_300K.xyz"
TEST_FILES = {"300 K": "test_MD_300K.xyz", "600 K": "test_MD_600K.xyz"}
"""Test sets by name; those whose file is not there are left out."""

NETWORK = NetworkConfig(ELEMENTS, n_channels=48, l_max=2, radial_widths=(64,))
"""What promises the lowest errors after two hours on two CPU cores: see docs/benchmarks.md."""

VALID_FRACTION = 0.05
"""Share of the training geometries that only choose the weights: learning rates fall to zero and
the weights are averaged, so that there is little to choose from."""

TRAINING = TrainingConfig(
    n_steps=1_000_000,
    max_seconds=7200.0,
    batch_atoms=75,
    learning_rate=0.02,
    weight_decay=0.01,
    patience=1_000_000,
)
"""How it is trained; the time ends it, not the steps."""

PUBLISHED = {"MACE": (0.9, 5.1), "BOTNet": (0.89, 6.3), "NequIP": (0.81, 5.90)}
"""Root mean squared errors at 300 K of the publications: energy in meV, forces in meV/A."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was found.

    Attributes
    ----------
    errors : dict of str to Errors
        By test set.
    n_parameters, n_steps : int
        Size of the network, and steps that it was trained for.
    seconds : float
        How long that took.
    settings : dict
        Of the network and the training.
    """

    errors: dict[str, Errors]
    n_parameters: int
    n_steps: int
    seconds: float
    settings: dict[str, Any]


def benchmark(
    data: Path,
    out: Path,
    network: NetworkConfig = NETWORK,
    training: TrainingConfig = TRAINING,
    *,
    device: torch.device | str = "cpu",
    n_processes: int = 1,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> Result:
    """Train on 475 of the geometries at 300 K, choose the weights with 25, and test.

    Parameters
    ----------
    data : Path
        Folder with the files of the data set.
    out : Path
        Folder for the run, ``acac.json`` and ``acac.md``; an interrupted run goes on.
    network, training
        What to train and how.
    device, n_processes, progress
        As those of :func:`simgen.training.train`.

    Raises
    ------
    LoadError
        If a file of the data set is missing.
    """
    test_files = {name: data / file for name, file in TEST_FILES.items() if (data / file).exists()}
    if not test_files or not (data / TRAIN_FILE).exists():
        raise LoadError(
            f"expected the acetylacetone data set ({TRAIN_FILE} and {TEST_FILES['300 K']}) in "
            f"{data}; its folder is what --data names"
        )
    sets = {
        name: read_structures(
            [data / TRAIN_FILE], test=[file], valid_fraction=VALID_FRACTION, seed=training.seed
        )
        for name, file in test_files.items()
    }
    first = next(iter(sets.values()))
    weights = train(
        first, network, training, out, device=device, n_processes=n_processes, progress=progress
    )
    record_errors(weights, first)
    model = load_model(weights, device=device, dtype=torch.float64)
    with (out / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    result = Result(
        errors={name: evaluate(model, dataset, "test") for name, dataset in sets.items()},
        n_parameters=sum(p.numel() for p in model.parameters()),
        n_steps=int(last["step"]),
        seconds=float(last["seconds"]),
        settings={"network": asdict(network), "training": asdict(training)},
    )
    io.write_json(out / "acac.json", asdict(result))
    io.write_text(out / "acac.md", to_markdown(result))
    return result


def to_markdown(result: Result) -> str:
    """Return the table of errors beside those of the publications."""
    rows = [
        [f"this run, {name}", f"{1e3 * errors.energy_rmse:.2f}", f"{1e3 * errors.force_rmse:.2f}"]
        for name, errors in result.errors.items()
    ]
    rows += [
        [f"{name}, published, 300 K", f"{energy:g}", f"{force:g}"]
        for name, (energy, force) in PUBLISHED.items()
    ]
    lines = table(["", "energy RMSE, meV", "force RMSE, meV/Å"], rows)
    lines += [
        "",
        f"{result.n_parameters:,} parameters, {result.n_steps:,} steps in {result.seconds:,.0f} s.",
    ]
    return "\n".join(lines) + "\n"
