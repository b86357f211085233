"""How figures look and how they are saved: one style, colours that colour-blind readers can tell apart, the run's id.

Invariant: a figure without its run's id does not leave this module, so a picture can always be traced to its numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import polars as pl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from experiments.findings import Verdict
from experiments.statistics import median_interval

# Okabe and Ito's palette: distinct under every common kind of colour blindness, and in print.
BLUE, ORANGE, GREEN, RED, SKY, PURPLE, YELLOW, INK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#1F2933",
)  # fmt: skip
PALETTE: Final = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW)
GREY: Final = "#8A94A0"
VERDICT_COLOURS: Final = {Verdict.HOLDS: GREEN, Verdict.REFUTED: RED, Verdict.UNKNOWN: GREY}

_STYLE: Final[dict[str, Any]] = {
    "figure.dpi": 130,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#B8C0C8",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=PALETTE),
    "grid.color": "#E4E8EC",
    "grid.linewidth": 0.8,
    "xtick.color": "#56616C",
    "ytick.color": "#56616C",
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw within: matplotlib's settings are ours inside and untouched outside."""
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        yield


def panels(
    columns: int = 1, rows: int = 1, *, width: float | None = None, height: float = 3.4, **axes: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with axes in reading order."""
    figure = Figure(figsize=(width or (5.2 if columns == 1 else 4.3 * columns), height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, **axes)
    return figure, list(np.ravel(grid))


def save(figure: Figure, path: Path, run_id: str, remark: str = "") -> Path:
    """Write a PNG with the run's id (and e.g. “partial run”) at its foot."""
    foot = f"run {run_id}" + (f" · {remark}" if remark else "")
    figure.get_layout_engine().set(rect=(0, 0.035, 1, 0.965))  # type: ignore[union-attr, call-arg]
    figure.text(0.995, 0.008, foot, ha="right", va="bottom", fontsize=6.5, color=GREY)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Title": foot, "Software": "streamgauge"})
    return path


def points_and_medians(axes: Axes, frame: pl.DataFrame, x: str, y: str, colour: str, label: str | None = None) -> None:
    """A line through the medians, their intervals as a band, and every repetition as a dot: nothing is hidden."""
    groups = [(key[0], group[y].drop_nulls()) for key, group in frame.sort(x).group_by(x, maintain_order=True)]
    groups = [(place, values) for place, values in groups if len(values)]
    intervals = [median_interval(values.to_numpy()) for _, values in groups]
    places = [place for place, _ in groups]
    axes.plot(places, [each.estimate for each in intervals], "o-", color=colour, label=label, zorder=3)
    axes.fill_between(
        places, [each.low for each in intervals], [each.high for each in intervals], color=colour, alpha=0.15, lw=0
    )
    axes.plot(frame[x], frame[y], "o", color=colour, alpha=0.35, markersize=2.5, zorder=2)


def bars(
    axes: Axes,
    labels: Sequence[str],
    values: Sequence[Sequence[float | None]],
    colours: Sequence[str] | str = BLUE,
    *,
    form: str = "{:.3g}",
) -> None:
    """Horizontal bars of medians from top to bottom, each repetition as a dot, the median written at the bar's end."""
    groups = [[value for value in each if value is not None] for each in values]
    places = np.arange(len(labels))[::-1]
    medians = [float(np.median(group)) if len(group) else 0.0 for group in groups]
    axes.barh(places, medians, color=colours, height=0.62, alpha=0.85, zorder=2)
    for place, group in zip(places, groups, strict=True):
        axes.plot(group, np.full(len(group), place), "o", color=INK, alpha=0.45, markersize=2.8, zorder=3)
    furthest = max((max(group) for group in groups if len(group)), default=0.0)
    for place, median, group in zip(places, medians, groups, strict=True):
        end = max([median, *group])
        axes.text(end + 0.02 * (furthest or 1), place, form.format(median), va="center", fontsize=8.5)
    axes.set_yticks(places, labels)
    axes.set_xlim(0, 1.18 * (furthest or 1))
    axes.grid(visible=False, axis="y")


def rates(axes: Axes, which: str = "y", unit: str = "") -> None:
    """Ticks as 10 k, 1 M."""
    getattr(axes, f"{which}axis").set_major_formatter(EngFormatter(unit=unit, sep=" " if unit else ""))
