"""``simgen evaluate``: an honest scorecard of any set of molecules."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from simgen.cli.progress import if_interrupted, progress_bar

_HEADLINES = (
    "valid",
    "posebusters",
    "relaxation_energy",
    "known_environments",
    "all_known",
    "unique",
    "novel",
    "diversity",
)


def evaluate(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Molecules of any program, SDF or XYZ (.gz of these too), or a folder that "
            "`simgen generate` wrote. Several are judged as one set.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for scorecard, table and plots.")],
    reference: Annotated[
        str, typer.Option(help="What to compare with: a shipped set, or a molecule file.")
    ] = "organic",
    attempts: Annotated[
        int | None,
        typer.Option(
            min=1, help="How often the program tried; what the files lack counts as failed."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds that one judge may take for one molecule.")
    ] = 300.0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one per core.")
    ] = None,
) -> None:
    """Judge molecules, whoever made them, and write a scorecard.

    RDKit, GFN2-xTB and PoseBusters judge every attempt. What cannot be read, hangs or crashes is a
    failure with its reason.
    """
    from simgen.evaluation.judges import require_packages
    from simgen.evaluation.report import evaluate, show
    from simgen.evaluation.scorecard import Reference
    from simgen.evaluation.sources import has_more_attempts, read_entries
    from simgen.reference import load_reference

    require_packages()
    entries = read_entries(files, attempts)
    for path in files:
        if attempts is None and has_more_attempts(path):
            typer.echo(
                f"note: {path} holds the valid molecules only; give {path.parent} to judge every "
                "attempt",
                err=True,
            )
    against = Reference.of(load_reference(reference))
    with if_interrupted("nothing was written"), progress_bar("judging", "molecules") as update:
        scorecard = evaluate(
            entries,
            out,
            against,
            n_workers=workers or os.cpu_count() or 1,
            timeout=timeout,
            callback=update,
        )
    typer.echo(f"{'attempts':38}{scorecard.n_attempts}")
    for name in _HEADLINES:
        figure = scorecard[name]
        typer.echo(f"{figure.label:38}{show(figure)}")
    typer.echo(f"see {out / 'scorecard.md'}")
