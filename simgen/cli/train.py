"""``simgen data build`` and ``simgen train``: make a force field from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from simgen.cli.progress import Device, progress_bar
from simgen.errors import ConfigError, LoadError

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


def train(
    data: Annotated[Path, typer.Option(help="dataset.npz of `simgen data build`.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted one goes on.")],
    settings: Annotated[
        Path | None,
        typer.Option(help='JSON file {"network": {...}, "training": {...}}; default settings.'),
    ] = None,
    device: Device = "auto",
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes on a CPU; by default one per core.")
    ] = None,
) -> None:
    """Train a force field on a data set."""
    from simgen.data.build import Dataset
    from simgen.devices import default_workers, resolve_device
    from simgen.models import NetworkConfig
    from simgen.training import TrainingConfig
    from simgen.training import train as run

    target = resolve_device(device)
    dataset = Dataset.load(data)
    chosen = _read_settings(settings) if settings else {}
    network = {"elements": sorted({int(z) for z in dataset.numbers}), **chosen.get("network", {})}
    try:
        training = TrainingConfig(**chosen.get("training", {}))
    except TypeError as error:
        raise ConfigError(f"{settings}, section training: {error}") from None
    n_processes = processes or default_workers(target)
    if n_processes > 1:
        import torch

        torch.set_num_threads(1)  # threads of several processes would wait for each other
    with progress_bar("training", "steps") as update:
        path = run(
            dataset,
            NetworkConfig.from_dict(network),
            training,
            out,
            device=target,
            n_processes=n_processes,
            progress=lambda step, n_steps, _: update(step, n_steps),
        )
    typer.echo(f"wrote {path}")


def _read_settings(path: Path) -> dict[str, Any]:
    import json

    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise LoadError(f"cannot read settings from {path}: {error}") from None
    if not isinstance(settings, dict) or set(settings) - {"network", "training"}:
        raise ConfigError(f'expected {{"network": {{...}}, "training": {{...}}}} in {path}')
    return settings
