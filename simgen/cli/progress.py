"""The progress bar of all commands, and what several of them ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from simgen.errors import InterruptedRunError

Model = Annotated[
    str, typer.Option(help="Force field: a name of `simgen models list`, or a weights file.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


@contextmanager
def progress_bar(label: str, unit: str) -> Iterator[Callable[[float, int], None]]:
    """Show a bar with rate and remaining time on stderr while the block runs.

    Yields
    ------
    callable
        Takes how much is done and how much there is; what was done at the first call does not
        count for the rate.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(TextColumn):
        def render(self, task: Task) -> Text:
            elapsed = task.elapsed or 0.0
            done = task.completed - task.fields["before"]
            return Text(f"{done / elapsed:.2f} {unit}/s" if elapsed > 0 and done > 0 else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(""),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=None, start=False, before=0.0)

        def update(done: float, total: int) -> None:
            if not progress.tasks[0].started:
                progress.start_task(task)
                progress.update(task, before=done)
            progress.update(task, completed=done, total=total)

        yield update


@contextmanager
def if_interrupted(advice: str) -> Iterator[None]:
    """Say what is left of the block's work, and how to go on, if the user interrupts it."""
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRunError(f"interrupted; {advice}") from None


def resumable(out: Path) -> AbstractContextManager[None]:
    """Say that the same command goes on if the block is interrupted."""
    return if_interrupted(f"the same command goes on with what is in {out}")
