"""The overview of what a run made: a plot whose points lead to the frames, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from simgen.validation import Report, Status

_COLUMNS = ("#", "status", "SMILES", "simil.", "relax.", "SA")
_GOOD, _BAD = "#2e7d32", "#ef6c00"
"""Not red, in which the page marks the frame that is shown."""


def overview(reports: Sequence[Report], first_frame: int) -> Any:
    """Return a figure of reports whose molecules are in successive frames of a room.

    Parameters
    ----------
    reports : sequence of Report
        In the order of the frames.
    first_frame : int
        Frame of the first one.
    """
    frames = list(range(first_frame, first_frame + len(reports)))
    figure = make_subplots(
        rows=2,
        cols=1,
        specs=[[{"type": "xy"}], [{"type": "table"}]],
        row_heights=[0.55, 0.45],
        vertical_spacing=0.2,
    )
    shown = [
        (frame, report)
        for frame, report in zip(frames, reports, strict=True)
        if report.similarity is not None and report.relaxation_energy is not None
    ]
    figure.add_trace(
        go.Scatter(
            x=[report.similarity for _, report in shown],
            y=[report.relaxation_energy for _, report in shown],
            customdata=[[frame] for frame, _ in shown],
            mode="markers",
            marker={
                "size": 12,
                "color": [_GOOD if r.status is Status.OK else _BAD for _, r in shown],
                "line": {"width": 1, "color": "white"},
            },
            text=[f"{r.smiles or r.formula or r.name}<br>{r.status}" for _, r in shown],
            hovertemplate="%{text}<br>similarity %{x:.2f}<br>relaxed by %{y:.1f} kcal/mol"
            "<extra>frame %{customdata[0]}</extra>",
            meta={"interactions": [{"click": "step", "select": "step", "hover": "step"}]},
            showlegend=False,
        ),
        row=1,
        col=1,
    )
    cells = [
        [str(frame) for frame in frames],
        [str(report.status) for report in reports],
        [report.smiles or "" for report in reports],
        [_number(report.similarity, 2) for report in reports],
        [_number(report.relaxation_energy, 1) for report in reports],
        [_number(report.sa_score, 1) for report in reports],
    ]
    colours = [_GOOD if report.status is Status.OK else _BAD for report in reports]
    figure.add_trace(
        go.Table(
            columnwidth=[0.6, 0.9, 3.4, 0.8, 0.8, 0.6],
            header={"values": [f"<b>{column}</b>" for column in _COLUMNS], "align": "left"},
            cells={
                "values": cells,
                "align": "left",
                "font": {"color": ["black", colours, *["black"] * 4], "size": 11},
            },
        ),
        row=2,
        col=1,
    )
    figure.update_xaxes(title="similarity to the reference", row=1, col=1)
    figure.update_yaxes(title="relaxation, kcal/mol", row=1, col=1)
    figure.update_layout(
        margin={"l": 60, "r": 15, "t": 35, "b": 10}, dragmode="select", hovermode="closest"
    )
    return figure


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
