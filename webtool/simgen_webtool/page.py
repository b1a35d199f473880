"""ZnDraw's page with our words in it: how to begin, help, and the files that can be uploaded.

The page is a program that was compiled; some of what it says can only be changed in its text.
"""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import zndraw
from flask import Flask, Response, request
from zndraw.extensions import Extension

HELP_PATH = "/simgen/help"
"""Where the "?" of the toolbar leads."""

_OURS = Path(__file__).parent
_THEIRS = Path(zndraw.__file__).parent / "static"


def install_page(
    app: Flask, tools: Iterable[tuple[str, type[Extension]]], files: Sequence[str]
) -> None:
    """Serve the page, its programs and its help.

    Parameters
    ----------
    app : Flask
        ZnDraw's application.
    tools : iterable of (str, type)
        What the help explains, by the names in the menu.
    files : sequence of str
        Endings of the files that can be uploaded.
    """
    welcome = (_OURS / "welcome.html").read_text(encoding="utf-8")
    page = (_THEIRS / "index.html").read_text(encoding="utf-8")
    page = page.replace("<title>ZnDraw</title>", "<title>simgen</title>")
    page = page.replace("</body>", f"{welcome}</body>")
    app.view_functions["utility.serve_react_router_paths"] = lambda path="": page

    help_page = (_OURS / "help.html").read_text(encoding="utf-8")
    help_page = help_page.replace("<!-- tools -->", _explained(tools))
    app.add_url_rule(HELP_PATH, "simgen_help", lambda: help_page)

    programs = {
        path.name: _in_our_words(path.read_text(encoding="utf-8"), files)
        for path in (_THEIRS / "assets").glob("index-*.js")
    }
    serve_asset = app.view_functions["utility.serve_static_assets"]

    def asset(filename: str) -> Response:
        if filename not in programs:
            served: Response = serve_asset(filename=filename)
            return served
        answer = Response(programs[filename], mimetype="text/javascript")
        answer.add_etag()
        return answer.make_conditional(request)

    app.view_functions["utility.serve_static_assets"] = asset


def _in_our_words(program: str, files: Sequence[str]) -> str:
    """Return the page's program, with our tool and our help behind its buttons, and our files."""
    program = program.replace('"SiMGenDemo"', '"Generate"')
    program = program.replace("Run SiMGen Demo", "Make molecules along the drawn curve")
    program = re.sub(r'"https://slides\.com/[^"]*"', f'"{HELP_PATH}"', program)
    program = program.replace("SiMGen Tutorial", "Help")
    program = re.sub(r'accept:"\.xyz,[^"]*"', f'accept:"{",".join(files)}"', program)
    return program.replace("(XYZ, PDB, CIF, H5MD, etc.)", f"({', '.join(files)})")


def _explained(tools: Iterable[tuple[str, type[Extension]]]) -> str:
    """Return a row of a table for each tool: its name, and what it says of itself."""
    return "\n".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(inspect.getdoc(tool) or '')}</td></tr>"
        for name, tool in tools
    )
