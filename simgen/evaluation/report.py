"""What is written about a set: scorecard as JSON and as text, a table of molecules, pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import simgen
from simgen.evaluation.geometry import Comparison
from simgen.evaluation.judges import TIMEOUT, Entry, judge
from simgen.evaluation.molecule import MoleculeScore
from simgen.evaluation.plots import PLOTS, write_plots
from simgen.evaluation.scorecard import Figure, Kind, Reference, Scorecard, summarise
from simgen.io import write_csv, write_json, write_text

SCORECARD = "scorecard.json"
"""File with the figures; written last, so that where it is, everything is."""

_N_SHOWN = 12
"""Kinds of bonds, angles and faults in the text; the JSON file has all of them."""


def write_report(
    folder: Path, scores: Sequence[MoleculeScore], scorecard: Scorecard, reference: Reference
) -> None:
    """Write ``molecules.csv``, the plots, ``scorecard.md`` and ``scorecard.json`` to a folder."""
    rows = [score.to_row() for score in scores]
    write_csv(folder / "molecules.csv", rows, list(rows[0]))
    write_plots(folder, scores, scorecard, reference)
    write_text(folder / "scorecard.md", to_markdown(scorecard))
    write_json(folder / SCORECARD, to_json(scorecard))


def to_json(scorecard: Scorecard) -> dict[str, Any]:
    """Return a scorecard as what JSON can hold: null where a number is infinite or missing."""
    packages = ("posebusters", "tblite", "rdkit")
    values = {
        "n_attempts": scorecard.n_attempts,
        "reference": scorecard.reference,
        "figures": {figure.name: asdict(figure) for figure in scorecard.figures},
        "by_size": [asdict(row) for row in scorecard.by_size],
        "faults": [asdict(fault) for fault in scorecard.faults],
        "unknown_environments": scorecard.unknown_environments,
        "bond_lengths": [asdict(one) for one in scorecard.lengths],
        "angles": [asdict(one) for one in scorecard.angles],
        "versions": {"simgen": simgen.__version__, **{name: version(name) for name in packages}},
    }
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def figure_from_json(values: Mapping[str, Any]) -> Figure:
    """Return a figure of :func:`to_json`.

    A value that JSON cannot hold comes back as infinite where attempts were counted, as it does for
    the median of an energy that most of them do not have, and as NaN where there were none.
    """
    missing = math.inf if values["n"] else math.nan
    given = {**values, "kind": Kind(values["kind"])}
    has_interval = values["kind"] == Kind.MEDIAN or values["low"] is not None
    for name in ("value", "low", "high"):
        if given[name] is None and (name == "value" or has_interval):
            given[name] = missing
    return Figure(**given)


def show(figure: Figure) -> str:
    """Return a figure with its interval, such as ``97 % (90-99)``."""
    text = _number(figure.value, figure.kind)
    if figure.low is None or figure.high is None:
        return text
    low, high = (_number(x, figure.kind).removesuffix(" %") for x in (figure.low, figure.high))
    return f"{text} ({low} to {high})"


def _number(value: float | None, kind: Kind) -> str:
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "none"
    return f"{100 * value:.0f} %" if kind in (Kind.SHARE, Kind.FRACTION) else f"{value:.3g}"


def to_markdown(scorecard: Scorecard) -> str:
    """Return a scorecard as text."""
    lines = [
        "# Scorecard",
        "",
        f"{scorecard.n_attempts} attempts, every one counts: an entry that cannot be read, or a "
        "judge that gave up, is a failure. In brackets 95 % intervals.",
        "",
        "*Valid*: one fragment, closed shell, neutral, sanitised, all hydrogens there, and the "
        "bonds kept when GFN2-xTB relaxes the geometry. *Known*: the heavy atom, its neighbours "
        "and bonds occur in the bundled collections. An attempt without an energy counts as the "
        f"largest in medians. The reference is `{scorecard.reference}`.",
        "",
        *table(
            ("figure", "", "of", "reference"),
            (
                (
                    f.label,
                    show(f),
                    str(f.n),
                    "" if f.reference is None else _number(f.reference, f.kind),
                )
                for f in scorecard.figures
            ),
        ),
        "",
        "## By size",
        "",
        *table(
            (
                "heavy atoms",
                "attempts",
                "valid",
                "PoseBusters",
                "GFN2 relaxation, median",
                "environments known",
                "no unknown one",
            ),
            (
                (
                    row.heavy_atoms,
                    str(row.n_attempts),
                    _number(row.valid, Kind.SHARE),
                    _number(row.posebusters, Kind.SHARE),
                    _number(row.relaxation_energy, Kind.MEDIAN),
                    _number(row.known_environments, Kind.SHARE),
                    _number(row.all_known, Kind.SHARE),
                )
                for row in scorecard.by_size
            ),
        ),
        "",
        "## What is wrong",
        "",
    ]
    if scorecard.faults:
        faults = scorecard.faults[:_N_SHOWN]
        rows = ((f.name, str(f.n_attempts), f.example) for f in faults)
        lines += table(("fault", "attempts", "for instance"), rows)
    else:
        lines.append("Nothing.")
    lines += ["", "Environments that are not known, the most frequent:", ""]
    if scorecard.unknown_environments:
        unknown = scorecard.unknown_environments.items()
        lines += table(("environment", "atoms"), ((f"`{w}`", str(n)) for w, n in unknown))
    else:
        lines.append("None.")
    lines += ["", "## Geometry beside the reference", ""]
    lines += _comparisons(scorecard.lengths, "bond", "Å", 3)
    lines += ["", *_comparisons(scorecard.angles, "angle", "degrees", 1), ""]
    lines += [f"![{name.replace('_', ' ')}]({name}.png)" for name in PLOTS]
    return "\n".join(lines) + "\n"


def _comparisons(found: Sequence[Comparison], what: str, unit: str, digits: int) -> list[str]:
    if not found:
        return [f"Too few values to compare: {what}."]
    columns = (what, "number", f"mean ({unit})", "reference", "distance of the distributions")
    rows = (
        (
            f"`{one.kind}`",
            str(one.n),
            f"{one.mean:.{digits}f}",
            f"{one.mean_reference:.{digits}f}",
            f"{one.distance:.{digits}f}",
        )
        for one in found[:_N_SHOWN]
    )
    return table(columns, rows)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]


def evaluate(
    entries: Sequence[Entry],
    folder: Path,
    reference: Reference,
    *,
    n_workers: int = 1,
    timeout: float = TIMEOUT,
    callback: Callable[[float, int], None] | None = None,
) -> Scorecard:
    """Judge a set of attempts and write all that is found to a folder.

    Parameters
    ----------
    entries : sequence of Entry
        At least one; see :func:`simgen.evaluation.sources.read_entries`.
    folder : Path
        Where :func:`write_report` writes to.
    reference : Reference
        What the set is compared with.
    n_workers, timeout, callback
        See :func:`simgen.evaluation.judges.judge`.

    Raises
    ------
    MissingDependencyError
        If an optional package is missing.
    """
    scores = judge(entries, n_workers=n_workers, timeout=timeout, callback=callback)
    scorecard = summarise(scores, reference)
    write_report(folder, scores, scorecard, reference)
    return scorecard
