"""``simgen priors``, and the shape options of the other commands."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simgen.errors import InputError

if TYPE_CHECKING:
    from simgen.priors import AtomPrior

app = typer.Typer(help="Shapes that molecules can be given.", no_args_is_help=True)

AUTO = "auto"
"""The number of heavy atoms that suits the shape."""

PANEL = "Shape"

_SHOWN_ATOMS = (38, 38)
"""Heavy atoms that a line or a circle is drawn for: the published macrocycles."""

Scale = Annotated[
    float,
    typer.Option(
        "--shape-scale", help="Factor on all lengths of the shape.", rich_help_panel=PANEL
    ),
]
Solid = Annotated[
    bool,
    typer.Option(
        "--shape-solid",
        help="What a mesh encloses, not its surface.",
        rich_help_panel=PANEL,
    ),
]


class Shape(StrEnum):
    """Shapes that take their size from the number of heavy atoms."""

    GAUSSIAN = "gaussian"
    LINE = "line"
    CIRCLE = "circle"


SHAPES = {
    Shape.GAUSSIAN: "a cloud that holds the atoms together, and no shape beyond that",
    Shape.LINE: "a straight line, 1 angstrom long for every 1.5 heavy atoms",
    Shape.CIRCLE: "a circle, 1 angstrom of circumference for every 1.5 heavy atoms: macrocycles",
}


def make_prior(
    name: str,
    n_heavy_atoms: tuple[int, int] | None,
    *,
    scale: float = 1.0,
    solid: bool = False,
) -> AtomPrior:
    """Return the prior of a shape.

    Parameters
    ----------
    name : str
        A name of ``simgen priors list``, or a file.
    n_heavy_atoms : tuple of int, optional
        Range of heavy atoms, to the middle of which a line or a circle is fitted. Other shapes have
        a size of their own.
    scale : float
        Factor on all lengths.
    solid : bool
        What a mesh encloses, not its surface.

    Raises
    ------
    InputError
        If there is no such shape, or no number to fit a line or a circle to.
    LoadError
        If the file cannot be read.
    """
    from simgen.priors import Circle, Gaussian, Line, Transformed
    from simgen.priors.base import ATOMS_PER_ANGSTROM
    from simgen.shapes import SUFFIXES, list_shapes, load_shape

    if name not in SHAPES:
        ready = [shape.name for shape in list_shapes()]
        if name not in ready and not Path(name).suffix and not Path(name).exists():
            known = ", ".join([*SHAPES, *ready])
            raise InputError(
                f"expected --shape to be one of {known}, or a file ({', '.join(SUFFIXES)}), "
                f"got {name!r}"
            )
        return load_shape(name, scale=scale, solid=solid)
    if solid:
        raise InputError(f"expected a mesh for --shape-solid, got {name}; leave the option out")
    if n_heavy_atoms is None and name != Shape.GAUSSIAN:
        raise InputError(
            f"a {name} takes its size from --heavy-atoms; expected a number there, or a shape with "
            "a size of its own, see simgen priors list"
        )
    mean = sum(n_heavy_atoms or (0, 0)) / 2
    length = mean / ATOMS_PER_ANGSTROM
    make: dict[Shape, Callable[[], AtomPrior]] = {
        Shape.GAUSSIAN: lambda: Gaussian.suited_to(int(mean)) if mean else Gaussian(),
        Shape.LINE: lambda: Line(length),
        Shape.CIRCLE: lambda: Circle(length / (2 * math.pi)),
    }
    prior = make[Shape(name)]()
    return prior if scale == 1.0 else Transformed(prior, scale=scale)


@app.command("list")
def list_priors() -> None:
    """List the shapes."""
    from simgen.shapes import list_shapes

    for name, description in SHAPES.items():
        typer.echo(f"{name:18}{description}")
    for ready in list_shapes():
        typer.echo(f"{ready.name:18}{ready.description}; suits {ready.n_heavy_atoms} heavy atoms")


@app.command("show")
def show(
    shape: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A name of `simgen priors list`, or a file.")
    ],
    out: Annotated[Path, typer.Option(help="Picture to write: .png.")],
    scale: Scale = 1.0,
    solid: Solid = False,
) -> None:
    """Draw a shape, and say how large it is and how many heavy atoms suit it."""
    from simgen.shapes import draw_shape

    if out.suffix != ".png":
        raise InputError(f"expected --out to end in .png, got {out}")
    prior = make_prior(shape, _SHOWN_ATOMS, scale=scale, solid=solid)
    draw_shape(prior, out, title=Path(shape).name)
    points = prior.outline()
    extents = (points.max(0).values - points.min(0).values).tolist()
    typer.echo("extent    " + " x ".join(f"{extent:.1f}" for extent in extents) + " angstrom")
    if prior.size is not None:
        for name, unit in (("length", ""), ("area", "^2"), ("volume", "^3")):
            if (value := getattr(prior.size, name)) > 0.0:
                typer.echo(f"{name:10}{value:.1f} angstrom{unit}")
        typer.echo(f"suits     {prior.size.suggest_atoms()} heavy atoms")
    typer.echo(f"drawn in  {out}")
