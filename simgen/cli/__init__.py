"""The command line: ``simgen``.

Nothing heavy is imported before a command needs it, so that ``simgen --help`` answers at once.

Exit codes: 0 success, 1 any other error, 2 bad arguments or input, 3 a file that cannot be read,
4 no such device or too little memory, 5 an optional package is missing, 130 interrupted.
"""

from __future__ import annotations

import signal
import sys
from typing import Annotated, NoReturn

import typer

import simgen
from simgen.cli import benchmark, evaluate, files, generate, models, priors, train, web
from simgen.errors import InterruptedRunError, SimgenError

app = typer.Typer(
    name="simgen",
    help="Make 3D molecules from a force field and a set of reference molecules, without training.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    epilog="Exit codes: 0 success, 1 other error, 2 bad arguments or input, 3 unreadable file, "
    "4 device or memory, 5 missing optional package, 130 interrupted.",
)
app.command("generate")(generate.generate)
app.command("run")(generate.run)
app.command("relax")(files.relax)
app.command("hydrogenate")(files.hydrogenate)
app.command("validate")(files.validate)
app.command("evaluate")(evaluate.evaluate)
app.command("train")(train.train)
app.command("web")(web.web)
app.add_typer(benchmark.app, name="benchmark")
app.add_typer(models.app, name="models")
app.add_typer(train.data_app, name="data")
app.add_typer(priors.app, name="priors")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"simgen {simgen.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and stop."
        ),
    ] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """Run the command line; errors become one line on stderr and an exit code."""
    # Who is asked to end keeps what is finished and leaves no process behind, as with Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = app(standalone_mode=False)
    except SimgenError as error:
        _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        _fail(_message(error), 2)
    # Commands that have nothing to say of an interruption leave it to typer, which returns this.
    if code == InterruptedRunError.exit_code:
        _fail("interrupted", code)
    sys.exit(code if isinstance(code, int) else 0)


def _message(error: typer.TyperException) -> str:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return " ".join(message.split())


def _fail(message: str, code: int) -> NoReturn:
    # A command called without anything has shown its help, and has no message.
    if message:
        print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
