"""``simgen generate`` and the shapes it knows."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simgen.cli.progress import Device, Model, progress_bar
from simgen.errors import InputError

if TYPE_CHECKING:
    from simgen.priors import Prior

_METHOD = "Method"

priors_app = typer.Typer(help="Shapes that molecules can be given.", no_args_is_help=True)


class Shape(StrEnum):
    """Names of the shapes."""

    GAUSSIAN = "gaussian"
    LINE = "line"
    CIRCLE = "circle"


SHAPES = {
    Shape.GAUSSIAN: "a cloud that holds the atoms together, and no shape beyond that",
    Shape.LINE: "a straight line, 1 angstrom long for every 1.5 heavy atoms",
    Shape.CIRCLE: "a circle, 1 angstrom of circumference for every 1.5 heavy atoms: macrocycles",
}


def make_prior(name: str, n_heavy_atoms: tuple[int, int]) -> Prior:
    """Return the prior of a shape.

    Ready shapes have a size of their own; the others get the one that suits the middle of the range
    of heavy atoms.
    """
    from simgen.priors import ATOMS_PER_ANGSTROM, Circle, Gaussian, Line
    from simgen.shapes import list_shapes, load_shape

    if name not in SHAPES:
        ready = [shape.name for shape in list_shapes()]
        if name not in ready:
            known = ", ".join([*SHAPES, *ready])
            raise InputError(f"expected --shape to be one of {known}, got {name!r}")
        return load_shape(name)
    length = sum(n_heavy_atoms) / 2 / ATOMS_PER_ANGSTROM
    make: dict[Shape, Callable[[], Prior]] = {
        Shape.GAUSSIAN: Gaussian,
        Shape.LINE: lambda: Line(length),
        Shape.CIRCLE: lambda: Circle(length / (2 * math.pi)),
    }
    return make[Shape(name)]()


def parse_sizes(text: str) -> tuple[int, int]:
    """Read a number of heavy atoms, or a range of them.

    Examples
    --------
    >>> parse_sizes("9"), parse_sizes("8-14")
    ((9, 9), (8, 14))
    """
    low, separator, high = text.partition("-")
    try:
        return int(low), int(high if separator else low)
    except ValueError:
        raise InputError(
            f"expected --heavy-atoms as a number or a range such as 8-14, got {text!r}"
        ) from None


@priors_app.callback()
def priors() -> None:
    """Keep ``list`` a subcommand: with a single one, typer would merge it into its parent."""


@priors_app.command("list")
def list_priors() -> None:
    """List the shapes."""
    from simgen.shapes import list_shapes

    for name, description in SHAPES.items():
        typer.echo(f"{name:12}{description}")
    for ready in list_shapes():
        typer.echo(f"{ready.name:12}{ready.description}; suits {ready.n_heavy_atoms} heavy atoms")


def generate(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    count: Annotated[int, typer.Option(min=1, help="Number of attempts.")] = 16,
    heavy_atoms: Annotated[
        str, typer.Option(metavar="K|K1-K2", help="Heavy atoms of each molecule, or their range.")
    ] = "12",
    shape: Annotated[
        str, typer.Option(metavar="NAME", help="Shape to give: a name of `simgen priors list`.")
    ] = Shape.GAUSSIAN,
    reference: Annotated[
        str, typer.Option(help="Reference molecules: a shipped set, or an SDF, SMILES or XYZ file.")
    ] = "organic",
    elements: Annotated[
        str, typer.Option(metavar="C,N,...", help="Heavy elements that may occur.")
    ] = "C,N,O",
    seed: Annotated[
        int | None, typer.Option(help="Same seed, same molecules; drawn and recorded by default.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    trajectory: Annotated[
        bool, typer.Option("--trajectory", help="Also write the path of every attempt.")
    ] = False,
    steps: Annotated[int, typer.Option(min=4, help="Noise levels.", rich_help_panel=_METHOD)] = 50,
    particles: Annotated[
        int,
        typer.Option(min=1, help="Copies of each molecule that compete.", rich_help_panel=_METHOD),
    ] = 10,
    refinements: Annotated[
        int,
        typer.Option(
            min=0, help="Rounds for samples that do not fit yet.", rich_help_panel=_METHOD
        ),
    ] = 6,
    model: Model = "small",
    device: Device = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Attempts at once; by default what fits.", rich_help_panel=_METHOD
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes on a CPU; by default one per core.", rich_help_panel=_METHOD
        ),
    ] = None,
) -> None:
    """Make molecules and write them, with a report of every attempt."""
    sizes = parse_sizes(heavy_atoms)
    from simgen.devices import default_workers
    from simgen.generation import Generator

    generator = Generator.from_pretrained(model, device=device)
    try:
        with progress_bar("generating", "molecules") as update:
            result = generator.generate(
                count,
                sizes,
                prior=make_prior(shape, sizes),
                reference=reference,
                elements=[symbol for symbol in elements.split(",") if symbol.strip()],
                n_steps=steps,
                n_particles=particles,
                n_refinements=refinements,
                seed=seed,
                batch_size=batch_size,
                n_workers=workers or default_workers(generator.device),
                out=out,
                resume=resume,
                trajectory=trajectory,
                callback=update,
            )
    except KeyboardInterrupt:
        typer.echo(
            f"error: interrupted; what is finished is in {out}, and --resume goes on", err=True
        )
        raise typer.Exit(130) from None
    counts = ", ".join(f"{n} {status}" for status, n in result.counts.items())
    typer.echo(f"{len(result.attempts)} attempts with seed {result.seed}: {counts}; see {out}")
