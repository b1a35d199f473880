"""``simgen benchmark``: what the program can do, measured."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from simgen.cli.generate import DescriptorName
from simgen.cli.priors import Shape, make_prior
from simgen.cli.progress import Device, Model, progress_bar, resumable
from simgen.errors import InputError

app = typer.Typer(help="Measure quality.", no_args_is_help=True)


class Suite(StrEnum):
    """Sizes of the standard suite."""

    SMALL = "small"
    FULL = "full"


@app.command("quality")
def quality(
    out: Annotated[Path, typer.Option(help="Folder for the results; what is finished stays.")],
    suite: Annotated[
        Suite | None,
        typer.Option(
            help="Standard suite, 10 or 100 attempts of each size and shape; small by default."
        ),
    ] = None,
    heavy_atoms: Annotated[
        int | None,
        typer.Option(min=2, help="Instead of a suite, molecules of so many heavy atoms."),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="With --heavy-atoms: number of attempts, by default 200."),
    ] = None,
    shape: Annotated[
        Shape | None, typer.Option(help="With --heavy-atoms: their shape, by default gaussian.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every run.")] = 0,
    model: Model = "small",
    device: Device = "auto",
) -> None:
    """Make molecules with default settings, and have GFN2-xTB and PoseBusters judge them all.

    Interrupt it at any time; the same command goes on.
    """
    if heavy_atoms is None and (count is not None or shape is not None):
        raise InputError("--count and --shape are of a single size; give --heavy-atoms as well")
    if heavy_atoms is not None and suite is not None:
        raise InputError("expected --suite or --heavy-atoms, got both; choose one")
    from simgen.benchmarks.quality import SIZES, SUITES, Cell, benchmark, to_markdown
    from simgen.devices import default_workers
    from simgen.generation import Generator

    def cell(shape: Shape, size: int, n_attempts: int) -> Cell:
        return Cell(str(shape), size, n_attempts, seed, make_prior(shape, (size, size)))

    if heavy_atoms is not None:
        cells = [(cell(shape or Shape.GAUSSIAN, heavy_atoms, count or 200), out)]
    else:
        n_attempts = SUITES[suite or Suite.SMALL]
        suite_cells = [cell(shape, size, n_attempts) for size in SIZES for shape in Shape]
        cells = [(one, out / one.folder) for one in suite_cells]
    generator = Generator.from_pretrained(model, device=device)
    with resumable(out):
        scores = benchmark(
            generator,
            cells,
            out,
            progress=progress_bar,
            n_workers=default_workers(generator.device),
        )
    typer.echo(to_markdown(scores), nl=False)
    typer.echo(f"see {out / 'quality.md'}")


@app.command("descriptors")
def descriptors(
    out: Annotated[Path, typer.Option(help="Folder for the results; what is finished stays.")],
    descriptor: Annotated[
        list[DescriptorName] | None,
        typer.Option(help="Which to compare; by default all whose network is there."),
    ] = None,
    heavy_atoms: Annotated[int, typer.Option(min=2, help="Heavy atoms of each molecule.")] = 9,
    count: Annotated[int, typer.Option(min=1, help="Attempts with each descriptor.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of every run.")] = 0,
    model: Model = "small",
    device: Device = "auto",
) -> None:
    """Compare descriptors: what they cost, and the molecules that are made with them.

    Interrupt it at any time; the same command goes on.
    """
    import torch

    from simgen.benchmarks import descriptors as costs
    from simgen.benchmarks.quality import Cell, benchmark, to_markdown
    from simgen.devices import default_workers
    from simgen.errors import LoadError
    from simgen.generation import Generator

    generator = Generator.from_pretrained(model, device=device)
    chosen = {}
    for name in descriptor or DescriptorName:
        try:
            name.settings.network(generator.model)
        except LoadError as error:
            if descriptor:
                raise
            typer.echo(f"note: {name} is left out: {error}", err=True)
        else:
            chosen[str(name)] = name.settings
    some = costs.reference_batch(9, (1, 6, 7, 8), 12, torch.float64)
    found = costs.convergence(some)
    costs.plot_convergence(found, out / "tensor_reduction.png")
    text = costs.costs_to_markdown(costs.costs(chosen, generator.model, heavy_atoms))
    prior = make_prior(Shape.GAUSSIAN, (heavy_atoms, heavy_atoms))
    cells = [
        (Cell(name, heavy_atoms, count, seed, prior, settings), out / name)
        for name, settings in chosen.items()
    ]
    with resumable(out):
        scores = benchmark(
            generator,
            cells,
            out,
            progress=progress_bar,
            n_workers=default_workers(generator.device),
        )
    text += "\n" + to_markdown(scores, "descriptor")
    _show(out / "descriptors.md", text)


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


@app.command("shapes")
def shapes(
    out: Annotated[Path, typer.Option(help="Folder for the results; what is finished stays.")],
    count: Annotated[int, typer.Option(min=1, help="Attempts of each shape.")] = 20,
    only: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE,...", help="Shapes to measure; by default all ready ones."),
    ] = None,
    macrocycles: Annotated[
        int, typer.Option(min=0, help="Attempts of the published macrocycles.")
    ] = 100,
    molecules: Annotated[
        int, typer.Option(min=0, help="Held-out reference molecules whose shape is imitated.")
    ] = 100,
    seed: Annotated[int, typer.Option(help="Seed of every run.")] = 0,
    model: Model = "small",
    device: Device = "auto",
) -> None:
    """Make molecules in given shapes and measure how well they fit.

    Interrupt it at any time; the same command goes on.
    """
    from simgen.benchmarks.shapes import benchmark, to_markdown
    from simgen.devices import default_workers
    from simgen.generation import Generator
    from simgen.shapes import list_shapes, load_shape

    names = [shape.name for shape in list_shapes()] if only is None else only.split(",")
    priors = {Path(name).stem: load_shape(name) for name in names if name}
    generator = Generator.from_pretrained(model, device=device)
    with resumable(out):
        scores = benchmark(
            generator,
            priors,
            out,
            n_attempts=count,
            n_macrocycles=macrocycles,
            n_molecules=molecules,
            seed=seed,
            progress=progress_bar,
            n_workers=default_workers(generator.device),
        )
    _show(out / "shapes.md", to_markdown(scores))


Attempts = Annotated[int, typer.Option(min=1, help="Attempts of each task.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes of each run; by default one per core.")
]


@app.command("linkers")
def linkers(
    out: Annotated[Path, typer.Option(help="Folder for the results; what is finished stays.")],
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of fragments to link.")] = 50,
    attempts: Attempts = 4,
    seed: Annotated[int, typer.Option(help="Seed of the first run.")] = 0,
    workers: Workers = None,
    model: Model = "small",
    device: Device = "auto",
) -> None:
    """Link fragments of held-out reference molecules, the linker's size given and not.

    Interrupt it at any time; the same command goes on.
    """
    from simgen.benchmarks.constraints import benchmark_linkers, linkers_to_markdown
    from simgen.devices import default_workers
    from simgen.generation import Generator

    generator = Generator.from_pretrained(model, device=device)
    with resumable(out):
        scores = benchmark_linkers(
            generator,
            out,
            n_pairs=pairs,
            n_attempts=attempts,
            seed=seed,
            progress=progress_bar,
            n_workers=workers or default_workers(generator.device),
        )
    _show(out / "linkers.md", linkers_to_markdown(scores))


@app.command("scaffolds")
def scaffolds(
    out: Annotated[Path, typer.Option(help="Folder for the results; what is finished stays.")],
    count: Annotated[int, typer.Option(min=1, help="Ring systems to decorate.")] = 20,
    attempts: Attempts = 4,
    seed: Annotated[int, typer.Option(help="Seed of the first run.")] = 0,
    workers: Workers = None,
    model: Model = "small",
    device: Device = "auto",
) -> None:
    """Decorate ring systems of held-out reference molecules where a substituent was.

    Interrupt it at any time; the same command goes on.
    """
    from simgen.benchmarks.constraints import benchmark_scaffolds, scaffolds_to_markdown
    from simgen.devices import default_workers
    from simgen.generation import Generator

    generator = Generator.from_pretrained(model, device=device)
    with resumable(out):
        scores = benchmark_scaffolds(
            generator,
            out,
            n_scaffolds=count,
            n_attempts=attempts,
            seed=seed,
            progress=progress_bar,
            n_workers=workers or default_workers(generator.device),
        )
    _show(out / "scaffolds.md", scaffolds_to_markdown(scores))


@app.command("analogues")
def analogues(
    out: Annotated[Path, typer.Option(help="Folder for the results; what is finished stays.")],
    attempts: Attempts = 16,
    seed: Annotated[int, typer.Option(help="Seed of every run.")] = 0,
    workers: Workers = None,
    model: Model = "small",
    device: Device = "auto",
) -> None:
    """Make analogues of three series, with their core fixed and without.

    Interrupt it at any time; the same command goes on.
    """
    from simgen.benchmarks.constraints import analogues_to_markdown, benchmark_analogues
    from simgen.devices import default_workers
    from simgen.generation import Generator

    generator = Generator.from_pretrained(model, device=device)
    with resumable(out):
        scores = benchmark_analogues(
            generator,
            out,
            n_attempts=attempts,
            seed=seed,
            progress=progress_bar,
            n_workers=workers or default_workers(generator.device),
        )
    _show(out / "analogues.md", analogues_to_markdown(scores))


def _show(path: Path, text: str) -> None:
    """Write a table and print it."""
    from simgen.io import write_text

    write_text(path, text)
    typer.echo(text, nl=False)
    typer.echo(f"see {path}")


@app.command("speed")
def speed(
    out: Annotated[Path, typer.Option(help="Folder for the results; what is finished stays.")],
    size: Annotated[Suite, typer.Option(help="small takes minutes, full hours.")] = Suite.SMALL,
    model: Model = "small",
) -> None:
    """Time generation on one CPU core: stages, memory, growth, and the force field.

    Interrupt it at any time; the same command goes on.
    """
    from simgen.benchmarks.speed import SUITES, benchmark, to_markdown

    with resumable(out):
        results = benchmark(SUITES[size], model, out, progress=progress_bar)
    typer.echo(to_markdown(results), nl=False)
    typer.echo(f"see {out / 'speed.md'}")


@app.command("reference-program")
def reference_program(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    heavy_atoms: Annotated[int, typer.Option(min=2, help="Heavy atoms of the molecules.")] = 9,
    count: Annotated[
        int, typer.Option(min=1, help="Attempts of the published program; ours makes 8 times that.")
    ] = 4,
    seed: Annotated[int, typer.Option(help="Seed of both programs.")] = 0,
    model: Model = "small",
) -> None:
    """Time the published program beside ours, with the same weights and reference molecules.

    Skipped unless SIMGEN_REFERENCE_PYTHON names an interpreter that has simgen==0.3.1.
    """
    import torch

    from simgen.benchmarks.reference_program import REFERENCE_PYTHON, benchmark, to_markdown
    from simgen.devices import default_workers

    results = benchmark(
        model,
        out,
        n_heavy_atoms=heavy_atoms,
        n_attempts=count,
        n_workers=default_workers(torch.device("cpu")),
        seed=seed,
    )
    if results is None:
        typer.echo(f"skipped: {REFERENCE_PYTHON} names no interpreter with simgen==0.3.1")
        return
    typer.echo(to_markdown(results), nl=False)
    typer.echo(f"see {out / 'reference-program.json'}")


@app.command("acac")
def acac(
    data: Annotated[Path, typer.Option(help="Folder of the acetylacetone data set.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; what is finished stays.")],
    hours: Annotated[float, typer.Option(help="Time that training may take.")] = 2.0,
    settings: Annotated[
        Path | None,
        typer.Option(help='JSON file {"network": {...}, "training": {...}} of what shall differ.'),
    ] = None,
    device: Device = "auto",
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes on a CPU; by default one per core.")
    ] = None,
) -> None:
    """Train a network on 500 geometries of acetylacetone, and test it on others.

    Interrupt it at any time; the same command goes on.
    """
    from dataclasses import asdict

    import torch

    from simgen.benchmarks.acac import NETWORK, TRAINING, benchmark, to_markdown
    from simgen.cli.train import read_settings
    from simgen.devices import default_workers, resolve_device
    from simgen.models import NetworkConfig
    from simgen.training import TrainingConfig

    target = resolve_device(device)
    chosen, limit = read_settings(settings), 3600.0 * hours
    network = NetworkConfig.from_dict(asdict(NETWORK) | chosen.get("network", {}))
    training = TrainingConfig.from_dict(
        asdict(TRAINING) | chosen.get("training", {}) | {"max_seconds": limit}
    )
    n_processes = processes or default_workers(target)
    if n_processes > 1:
        torch.set_num_threads(1)  # threads of several processes would wait for each other
    with resumable(out), progress_bar("training", "s") as update:
        result = benchmark(
            data,
            out,
            network,
            training,
            device=target,
            n_processes=n_processes,
            progress=lambda _, __, metrics: update(min(metrics["elapsed"], limit), int(limit)),
        )
    typer.echo(to_markdown(result), nl=False)
    typer.echo(f"see {out / 'acac.md'}")
