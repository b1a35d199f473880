"""``simgen web``: the web tool."""

from __future__ import annotations

import os
import signal
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from simgen.cli.progress import Device, Model
from simgen.errors import MissingDependencyError


def web(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILE",
            help="Shapes to offer (a mesh, points, a description) and molecules to begin with.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 8642,
    host: Annotated[
        str,
        typer.Option(
            help="Where to listen. Where others can connect the administrator, simgen, needs a "
            "password: SIMGEN_WEB_PASSWORD."
        ),
    ] = "127.0.0.1",
    model: Model = "small",
    device: Device = "auto",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that compute; by default two on a CPU, one on a GPU."),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")
    ] = True,
    password: Annotated[
        str | None, typer.Option(envvar="SIMGEN_WEB_PASSWORD", hidden=True, show_default=False)
    ] = None,
) -> None:
    """Draw shapes and make molecules in the browser."""
    try:
        from simgen_webtool.server import Settings, WebTool
    except ImportError as error:
        raise MissingDependencyError(
            f"the web tool needs the package {error.name}, which is not installed; "
            "pip install 'simgen-toolkit[web]'"
        ) from None
    settings = Settings(host, port, model, device, tuple(files or ()), workers, password)
    # A handler may run at any moment of this thread, and so must not take a lock: a pipe has none.
    reading, writing = os.pipe()

    def end_on_signals() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: os.write(writing, b"."))

    end_on_signals()
    with WebTool(settings) as tool:
        end_on_signals()  # again: the clients of sockets have put a handler of their own there
        typer.echo(f"simgen is at {tool.url}; end it with Ctrl-C")
        if browser:
            webbrowser.open(tool.url)
        os.read(reading, 1)
