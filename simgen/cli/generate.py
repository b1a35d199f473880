"""``simgen generate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simgen.cli.priors import AUTO, PANEL, Scale, Shape, Solid, make_prior
from simgen.cli.progress import Device, Model, progress_bar
from simgen.errors import InputError

if TYPE_CHECKING:
    from simgen.priors import Prior

_METHOD = "Method"


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
            f"expected --heavy-atoms as a number, a range such as 8-14 or auto, got {text!r}"
        ) from None


def _fitting_size(prior: Prior, density: float | None) -> int:
    """Return the number of heavy atoms that suits a shape, if molecules of that size are made."""
    from simgen.generation import MAX_HEAVY_ATOMS
    from simgen.priors import suggest_atoms

    n_atoms = suggest_atoms(prior, density)
    if n_atoms > MAX_HEAVY_ATOMS:
        raise InputError(
            f"expected a shape for at most {MAX_HEAVY_ATOMS} heavy atoms, got one that suits "
            f"{n_atoms}; make it smaller with --shape-scale"
        )
    return n_atoms


def generate(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    count: Annotated[int, typer.Option(min=1, help="Number of attempts.")] = 16,
    heavy_atoms: Annotated[
        str,
        typer.Option(
            metavar="K|K1-K2|auto",
            help="Heavy atoms of each molecule, or their range; auto for what suits the shape.",
        ),
    ] = "12",
    shape: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="Shape to give: a name of `simgen priors list`, points, a mesh or molecules.",
            rich_help_panel=PANEL,
        ),
    ] = Shape.GAUSSIAN,
    shape_scale: Scale = 1.0,
    shape_solid: Solid = False,
    density: Annotated[
        float | None,
        typer.Option(
            metavar="D",
            help="Heavy atoms for each angstrom (curve), square (surface) or cubic angstrom "
            "(solid), with --heavy-atoms auto.",
            rich_help_panel=PANEL,
        ),
    ] = None,
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
    sizes = None if heavy_atoms == AUTO else parse_sizes(heavy_atoms)
    if density is not None and sizes is not None:
        raise InputError(f"expected --density with --heavy-atoms auto only, got {heavy_atoms}")
    prior = make_prior(shape, sizes, scale=shape_scale, solid=shape_solid)
    from simgen.devices import default_workers
    from simgen.generation import Generator

    generator = Generator.from_pretrained(model, device=device)
    try:
        with progress_bar("generating", "molecules") as update:
            result = generator.generate(
                count,
                sizes or _fitting_size(prior, density),
                prior=prior,
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
