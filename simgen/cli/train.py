"""``simgen data build`` and ``simgen train``: make a force field from scratch."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from simgen.cli.progress import Device, progress_bar, resumable
from simgen.errors import ConfigError, InputError, LoadError

data_app = typer.Typer(help="Training data for force fields.", no_args_is_help=True)


@data_app.callback()
def data() -> None:
    """Keep ``build`` a subcommand: with a single one, typer would merge it into its parent."""


@data_app.command("build")
def build(
    out: Annotated[Path, typer.Option(help="Folder of the data set; finished parts are kept.")],
    workers: Annotated[int | None, typer.Option(help="Processes; default one per core.")] = None,
) -> None:
    """Label the bundled molecules with GFN2-xTB (needs tblite); run again to go on."""
    from simgen.data.build import build_dataset

    with progress_bar("labelling", "shards") as update:
        dataset = build_dataset(out, n_workers=workers, progress=update)
    typer.echo(f"{len(dataset)} geometries, checksum {dataset.checksum()}")


class Preset(StrEnum):
    """Networks of the literature."""

    ACE = "ace"
    BOTNET = "botnet"
    NEQUIP = "nequip"
    MACE = "mace"


def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted one goes on.")],
    data: Annotated[
        Path | None, typer.Option(help="dataset.npz of `simgen data build`; or files of your own:")
    ] = None,
    train: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Extended XYZ with energies (eV) and forces (eV/A); may be repeated. Frames of a "
            "single atom give the energies of isolated atoms, which are fitted otherwise.",
        ),
    ] = None,
    valid: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="The same, to choose the best weights with."),
    ] = None,
    test: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="The same, of which only the errors are reported."),
    ] = None,
    valid_fraction: Annotated[
        float, typer.Option(help="Without --valid: share of --train that is taken for it.")
    ] = 0.1,
    energy_key: Annotated[str, typer.Option(help="Name of the energy in these files.")] = "energy",
    forces_key: Annotated[str, typer.Option(help="Name of the forces.")] = "forces",
    preset: Annotated[
        Preset | None, typer.Option(help="Network; by default MACE with invariant messages.")
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(help='JSON file {"network": {...}, "training": {...}} of what shall differ.'),
    ] = None,
    device: Device = "auto",
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes on a CPU; by default one per core.")
    ] = None,
) -> None:
    """Train a force field on a data set, or on files of your own.

    Interrupt it at any time; the same command goes on.
    """
    if (data is None) == (not train):
        raise InputError("expected --data or --train, got both or none; choose one")
    from simgen.data.build import Dataset
    from simgen.devices import default_workers, resolve_device
    from simgen.models import PRESETS, NetworkConfig
    from simgen.training import TrainingConfig, TrainingData, read_structures, record_errors
    from simgen.training import train as run

    target = resolve_device(device)
    chosen = read_settings(settings)
    training = TrainingConfig.from_dict(chosen.get("training", {}))
    dataset: TrainingData
    atomic_energies: dict[int, float] = {}
    if data is not None:
        dataset = Dataset.load(data)
    else:
        dataset = structures = read_structures(
            train or [],
            valid or [],
            test or [],
            valid_fraction=valid_fraction,
            seed=training.seed,
            energy_key=energy_key,
            forces_key=forces_key,
        )
        atomic_energies = structures.atomic_energies
    elements = tuple(sorted({int(z) for z in dataset.numbers}))
    base = PRESETS[preset](elements) if preset else NetworkConfig(elements)
    network = NetworkConfig.from_dict(asdict(base) | chosen.get("network", {}))
    n_processes = processes or default_workers(target)
    if n_processes > 1:
        import torch

        torch.set_num_threads(1)  # threads of several processes would wait for each other
    with resumable(out), progress_bar("training", "steps") as update:
        path = run(
            dataset,
            network,
            training,
            out,
            atomic_energies=atomic_energies,
            device=target,
            n_processes=n_processes,
            progress=lambda step, n_steps, _: update(step, n_steps),
        )
    for part, errors in record_errors(path, dataset).items():
        figures = ", ".join(f"{name} {value:g}" for name, value in errors.items())
        typer.echo(f"{part}: {figures}")
    typer.echo(f"wrote {path}")


def read_settings(path: Path | None) -> dict[str, dict[str, Any]]:
    """Read the sections ``network`` and ``training`` of a settings file, if there is one."""
    if path is None:
        return {}
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise LoadError(f"cannot read settings from {path}: {error}") from None
    if not (
        isinstance(settings, dict)
        and set(settings) <= {"network", "training"}
        and all(isinstance(section, dict) for section in settings.values())
    ):
        raise ConfigError(f'expected {{"network": {{...}}, "training": {{...}}}} in {path}')
    return settings
