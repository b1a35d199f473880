"""``simgen models``: what force fields there are, and bringing one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from simgen.models import ForceField

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
    """Show size, cutoff, elements, errors, speed and all else of a force field, as JSON.

    The speed is measured: energies and forces of molecules of 20 atoms, on one CPU core.
    """
    from simgen.elements import SYMBOLS
    from simgen.models import find_model, load_model, read_metadata

    field, metadata = load_model(model), read_metadata(model)
    card = {
        "n_parameters": sum(p.numel() for p in field.parameters()),
        "file_size_MB": round(find_model(model).stat().st_size / 1e6, 2),
        "r_max_A": field.r_max,
        "elements": " ".join(SYMBOLS[z] for z in field.elements),
        "errors": {key: value for key, value in metadata.items() if key.startswith("errors")},
        "milliseconds_per_molecule": round(1e3 * _seconds_per_molecule(field), 3),
        "config": json.loads(field.config.to_json()),
        "metadata": metadata,
    }
    typer.echo(json.dumps(card, indent=2))


def _seconds_per_molecule(field: ForceField) -> float:
    """Time energies and forces of atoms as dense as in a molecule, but in random places."""
    import numpy as np
    import torch

    from simgen.benchmarks.mace import seconds_per_call
    from simgen.models import evaluator
    from simgen.molecules import MoleculeBatch

    n_molecules, n_atoms, spacing = 16, 20, 2.0
    rng = np.random.default_rng(0)
    grid = spacing * np.stack(np.meshgrid(*[np.arange(3.0)] * 3), axis=-1).reshape(-1, 3)
    batch = MoleculeBatch.from_arrays(
        [
            (rng.choice(field.elements, n_atoms), places + rng.uniform(-0.3, 0.3, places.shape))
            for places in (rng.permutation(grid)[:n_atoms] for _ in range(n_molecules))
        ]
    )
    fast = evaluator(field)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return seconds_per_call(lambda: fast.energy_and_forces(batch), 3) / n_molecules
    finally:
        torch.set_num_threads(n_threads)


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
