"""``simgen models``: what force fields there are, and bringing one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Force fields: list, inspect, import from and export to mace-torch.",
    no_args_is_help=True,
)


@app.command("list")
def list_() -> None:
    """List the force fields that come with the package."""
    from simgen.models import list_models

    for name in list_models():
        typer.echo(name)


@app.command("info")
def info(
    model: Annotated[str, typer.Argument(help="Name of a shipped model, or a weights file.")],
) -> None:
    """Show the configuration and the model card of a force field, as JSON."""
    from simgen.models import load_model, read_metadata

    field = load_model(model)
    card = {
        "n_parameters": sum(p.numel() for p in field.parameters()),
        "config": json.loads(field.config.to_json()),
        "metadata": read_metadata(model),
    }
    typer.echo(json.dumps(card, indent=2))


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="Model file of mace-torch.")],
    out: Annotated[Path, typer.Argument(help="Weights file to write (.safetensors).")],
) -> None:
    """Convert a mace-torch model, such as MACE-OFF23, to one of ours (needs mace-torch)."""
    from simgen.models import save_model
    from simgen.models.mace_interop import import_mace

    save_model(import_mace(source), out, {"imported_from": source.name})
    typer.echo(f"wrote {out}")


@app.command("export")
def export(
    model: Annotated[str, typer.Argument(help="Name of a shipped model, or a weights file.")],
    out: Annotated[Path, typer.Argument(help="Model file of mace-torch to write.")],
) -> None:
    """Convert one of our force fields to a mace-torch model (needs mace-torch)."""
    import torch

    from simgen.models import load_model
    from simgen.models.mace_interop import export_mace

    export_mace(load_model(model, dtype=torch.float64), out)
    typer.echo(f"wrote {out}")
