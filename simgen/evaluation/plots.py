"""Pictures of a scorecard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simgen.evaluation.geometry import Comparison, Values, measure
from simgen.evaluation.molecule import MoleculeScore
from simgen.evaluation.scorecard import Reference, Scorecard, drawn
from simgen.io import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTS = ("validity_by_size", "relaxation_energy", "sa_qed", "bond_lengths", "angles")
"""Names of the pictures, without the ending ``.png``."""

N_KINDS = 9
"""Kinds of bonds, and of angles, that are drawn."""

_HERE, _REFERENCE = "#1f77b4", "#b0b0b0"


def write_plots(
    folder: Path, scores: Sequence[MoleculeScore], scorecard: Scorecard, reference: Reference
) -> None:
    """Write every picture of :data:`PLOTS` to a folder."""
    lengths, angles = measure(drawn(scores))
    figures = (
        _validity(scorecard),
        _relaxation(scores),
        _sa_qed(scores, reference),
        _distributions(lengths, reference.geometry[0], scorecard.lengths, "bond length (Å)"),
        _distributions(angles, reference.geometry[1], scorecard.angles, "angle (degrees)"),
    )
    for name, figure in zip(PLOTS, figures, strict=True):
        with atomic_path(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=120)


def _figure(width: float, height: float, n_rows: int = 1, n_columns: int = 1) -> tuple[Figure, Any]:
    # Not pyplot: it keeps figures in global state, and asks for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(n_rows, n_columns, squeeze=False)


def _validity(scorecard: Scorecard) -> Figure:
    figure, axes = _figure(6.4, 3.8)
    ax = axes[0, 0]
    rows = scorecard.by_size
    x = np.arange(len(rows))
    valid = np.array([row.valid for row in rows])
    spread = [
        valid - [row.valid_low for row in rows],
        np.array([row.valid_high for row in rows]) - valid,
    ]
    series = (
        ("valid", valid, "o", "#1f77b4"),
        ("PoseBusters", [row.posebusters for row in rows], "s", "#ff7f0e"),
        ("environments known", [row.known_environments for row in rows], "^", "#2ca02c"),
        ("no unknown environment", [row.all_known for row in rows], "v", "#9467bd"),
    )
    for k, (label, values, marker, colour) in enumerate(series):
        shift = 0.06 * (k - 1.5)  # so that equal values do not hide each other
        ax.plot(x + shift, 100 * np.asarray(values), marker, color=colour, label=label)
    low_high = 100 * np.clip(spread, 0, None)
    ax.errorbar(x - 0.09, 100 * valid, low_high, fmt="none", ecolor="#1f77b4", capsize=3)
    ax.set_xticks(x, [f"{row.heavy_atoms}\n({row.n_attempts})" for row in rows])
    ax.set(xlabel="heavy atoms (attempts)", ylabel="% of the attempts", ylim=(-2, 104))
    ax.set_xlim(-0.7, len(rows) - 0.3)
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _relaxation(scores: Sequence[MoleculeScore]) -> Figure:
    figure, axes = _figure(5.2, 3.6)
    ax = axes[0, 0]
    energies = np.array([s.gfn2.energy for s in scores])
    finite = np.clip(energies[np.isfinite(energies)], 0, None)
    if len(finite):
        # Energies span decades: a few hundredths where nothing moves, hundreds where a bond breaks.
        low = max(0.01, 0.5 * float(np.quantile(finite, 0.02)))
        high = max(2 * low, 1.2 * float(finite.max()))
        bins = np.geomspace(low, high, 25)
        ax.hist(np.clip(finite, low, high), bins=list(bins), color=_HERE)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        median = float(np.median(energies))
        if math.isfinite(median):
            ax.axvline(median, color="black", linewidth=1)
            ax.set_title(f"median of all attempts {median:.1f} kcal/mol", fontsize=10)
    n_missing = int((~np.isfinite(energies)).sum())
    ax.set(xlabel=f"energy released by GFN2-xTB (kcal/mol); {n_missing} have none")
    ax.set_ylabel("molecules")
    return figure


def _sa_qed(scores: Sequence[MoleculeScore], reference: Reference) -> Figure:
    figure, axes = _figure(8, 3.4, 1, 2)
    chemistry = [score.chemistry for score in scores if score.chemistry is not None]
    _compare(
        axes[0, 0],
        np.array([c.sa_score for c in chemistry if c.sa_score is not None]),
        reference.sa_scores,
        (1.0, 10.0),
    )
    _compare(
        axes[0, 1],
        np.array([c.qed for c in chemistry if c.qed is not None]),
        reference.qeds,
        (0.0, 1.0),
    )
    axes[0, 0].set(xlabel="SA score (1 easy, 10 hard)", ylabel="density")
    axes[0, 1].set(xlabel="QED")
    axes[0, 0].legend(fontsize=8)
    return figure


def _compare(ax: Axes, here: Any, reference: Any, limits: tuple[float, float]) -> None:
    """Draw two distributions over one another; values beyond the limits are put at the edge."""
    bins = list(np.linspace(*limits, 31))
    for values, label, colour, filled in (
        (reference, "reference", _REFERENCE, True),
        (here, "judged here", _HERE, False),
    ):
        if len(values):
            ax.hist(
                np.clip(values, *limits),
                bins=bins,
                density=True,
                histtype="stepfilled" if filled else "step",
                color=colour,
                label=label,
            )
    ax.set_yticks([])


def _distributions(
    here: Values, reference: Values, comparisons: Sequence[Comparison], label: str
) -> Figure:
    shown = comparisons[:N_KINDS]
    n_rows = max(1, -(-len(shown) // 3))
    figure, axes = _figure(8.5, 2.1 * n_rows + 0.4, n_rows, 3)
    for ax in axes.flat[len(shown) :]:
        ax.set_axis_off()
    for ax, comparison in zip(axes.flat, shown, strict=False):
        real = reference[comparison.kind]
        low, high = np.quantile(real, [0.005, 0.995])
        margin = 0.5 * (high - low) + 1e-3 * abs(high)
        _compare(ax, here[comparison.kind], real, (float(low - margin), float(high + margin)))
        ax.set_title(f"{comparison.kind}  ({comparison.n})", fontsize=9)
        ax.tick_params(labelsize=7)
    if shown:
        axes.flat[0].legend(fontsize=7)
    else:
        axes.flat[0].set_title("too few values to compare", fontsize=9)
    figure.supxlabel(label, fontsize=9)
    return figure
