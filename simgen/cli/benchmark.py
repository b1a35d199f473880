"""``simgen benchmark``: what the program can do, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simgen.cli.generate import Shape, make_prior
from simgen.cli.progress import Device, Model, progress_bar

app = typer.Typer(help="Measure quality.", no_args_is_help=True)


@app.command("quality")
def quality(
    out: Annotated[Path, typer.Option(help="Folder for the run; an interrupted one goes on.")],
    heavy_atoms: Annotated[int, typer.Option(min=2, help="Heavy atoms of each molecule.")] = 9,
    count: Annotated[int, typer.Option(min=1, help="Number of attempts.")] = 200,
    shape: Annotated[Shape, typer.Option(help="What shape the molecules are given.")] = (
        Shape.GAUSSIAN
    ),
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 0,
    model: Model = "small",
    device: Device = "auto",
) -> None:
    """Make molecules with default settings, and have GFN2-xTB and PoseBusters judge them all."""
    from simgen.benchmarks.quality import benchmark
    from simgen.devices import default_workers
    from simgen.generation import Generator

    generator = Generator.from_pretrained(model, device=device)
    with progress_bar("generating", "attempts") as update:
        scores = benchmark(
            generator,
            heavy_atoms,
            count,
            seed,
            out,
            prior=make_prior(shape, (heavy_atoms, heavy_atoms)),
            n_workers=default_workers(generator.device),
            callback=update,
        )
    for line in (
        f"{'attempts':26}{scores.n_attempts}",
        f"{'valid':26}{scores.valid:.1%}",
        f"{'PoseBusters (mol)':26}{scores.posebusters:.1%}",
        f"{'unique of the valid':26}{scores.unique:.1%}",
        f"{'GFN2 relaxation, median':26}{scores.relaxation_energy:.1f} kcal/mol",
        f"{'time':26}{scores.seconds:.0f} s, {scores.seconds / scores.n_attempts:.2f} s an attempt",
        f"{'status':26}{scores.statuses}",
        f"{'failed PoseBusters tests':26}{scores.failed_tests}",
    ):
        typer.echo(line)


@app.command("force-field")
def force_field(
    data: Annotated[Path, typer.Option(help="dataset.npz of `simgen data build`.")],
    out: Annotated[Path | None, typer.Option(help="JSON file to write as well.")] = None,
    model: Model = "small",
) -> None:
    """Compare a force field with GFN2-xTB on the scaffolds that were held out of training."""
    import json

    from simgen import io
    from simgen.benchmarks.force_field import field_report
    from simgen.data.build import Dataset
    from simgen.models import load_model

    card = field_report(load_model(model), Dataset.load(data)).to_card()
    typer.echo(json.dumps(card, indent=1))
    if out is not None:
        io.write_json(out, card)
