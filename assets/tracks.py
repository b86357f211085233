"""A figure of where the fleet drove lately: tracks coloured by speed, the beginnings of alerts, the depots.

Invariant: only what has landed is drawn; a pause of more than a minute breaks the line, so no way is invented.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any, Final

import dagster as dg
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from assets.keys import summary_key, table_key
from streaming.transformers.geodesy import haversine_m

SHOWN: Final = timedelta(hours=1)
BREAK_S: Final = 60.0
PANELS: Final = 3
KM_PER_DEGREE: Final = 111.195
ALERTS: Final = {"speeding": ("^", "#d62728"), "geofence": ("s", "#ff7f0e"), "anomaly": ("X", "#c2185b")}
INK: Final = "#263238"
HALO: Final = [withStroke(linewidth=2.2, foreground="white")]
# The name of a replay ends with the moment of its start, in base 36 (ledger.fresh_name).
_STARTED: Final = re.compile(r"-[0-9a-z]{9,12}$")


@dg.asset(
    key=summary_key("tracks"),
    ins={
        "means": dg.AssetIn(table_key("position_means_parquet")),
        "alerts": dg.AssetIn(table_key("alerts_parquet")),
        "vehicles": dg.AssetIn(table_key("vehicles_parquet")),
    },
    group_name="summaries",
    kinds={"matplotlib", "polars"},
    owners=["team:analysis"],
    io_manager_key="figures",
)
def tracks(means: pl.LazyFrame, alerts: pl.LazyFrame, vehicles: pl.LazyFrame) -> Figure:
    """Where the fleet drove in the last hour that has landed: speed by colour, where alerts began, the depots."""
    newest = means.select(pl.col("window_end").max()).collect().item()
    if newest is None:
        return _sheet("No means have landed yet", 1)[0]
    lately = means.filter(pl.col("window_end") > newest - SHOWN).collect()
    begun = beginnings(alerts.filter(pl.col("window_end") > newest - SHOWN).collect(), lately)
    return drawn(segments(lately), begun, vehicles.collect(), newest)


def segments(means: pl.DataFrame) -> pl.DataFrame:
    """Each step between a vehicle's consecutive windows: source, vehicle, both places, kmh, moment."""
    life = ["source", "vehicle"]
    latitude, longitude = pl.col("latitude"), pl.col("longitude")
    seconds = pl.col("window_start").diff().over(life).dt.total_microseconds() / 1e6
    return (
        means.drop_nulls(["latitude", "longitude"])
        .sort(*life, "window_start")
        .with_columns(latitude_a=latitude.shift().over(life), longitude_a=longitude.shift().over(life), seconds=seconds)
        .with_columns(metres=haversine_m(pl.col("latitude_a"), pl.col("longitude_a"), latitude, longitude))
        .filter(pl.col("seconds") <= BREAK_S)
        .with_columns(kmh=3.6 * pl.col("metres") / pl.col("seconds"))
        .filter(pl.col("kmh") < 360)  # faster is no way but a recording that begins again
        .select(*life, "latitude_a", "longitude_a", "latitude", "longitude", "kmh", moment="window_start")
    )


def beginnings(alerts: pl.DataFrame, means: pl.DataFrame) -> pl.DataFrame:
    """Where each spell of alerts of one kind began: source, vehicle, kind, latitude, longitude."""
    spell = ["source", "vehicle", "kind"]
    pause = pl.col("window_start").diff().over(spell)
    first = alerts.sort(*spell, "window_start").filter(pause.is_null() | (pause > timedelta(seconds=BREAK_S)))
    window = ["source", "vehicle", "window_start"]
    places = means.select(*window, "latitude", "longitude").unique(window)
    return first.join(places, on=window, how="inner", maintain_order="left").select(*spell, "latitude", "longitude")


def drawn(steps: pl.DataFrame, begun: pl.DataFrame, vehicles: pl.DataFrame, newest: Any) -> Figure:
    """The figure: a panel for the simulation and for each recording, the ones with most steps first."""
    steps, begun = (
        frame.with_columns(panel=pl.col("source").map_elements(_panel_of, return_dtype=pl.String))
        for frame in (steps, begun)
    )
    shown = steps.group_by("panel").len().sort("len", "panel", descending=[True, False])["panel"].to_list()[:PANELS]
    title = f"Where the fleet drove in the hour before {newest:%d %B %Y %H:%M:%S} UTC"
    figure, axes = _sheet(title, max(1, len(shown)))
    pace = Normalize(0, max(20.0, float(steps["kmh"].quantile(0.99) or 0.0)))
    for ax, panel in zip(axes, shown, strict=False):
        mine = pl.col("panel") == panel
        _draw_panel(ax, panel, steps.filter(mine), begun.filter(mine), vehicles, pace)
    if shown:
        bar = figure.colorbar(axes[0].collections[0], ax=axes, shrink=0.7, pad=0.015, aspect=32)
        bar.set_label("km/h", color=INK)
        bar.outline.set_visible(False)
        _draw_legend(figure, begun)
    return figure


def _panel_of(source: str) -> str:
    return "simulated fleet" if source.startswith("positions-generator") else _STARTED.sub("", source)


def _sheet(title: str, panels: int) -> tuple[Figure, list[Axes]]:
    widths = [2.0, *[1.0] * (panels - 1)]
    figure = Figure(figsize=(12.5, 7.2), layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=14, color=INK, x=0.01, ha="left", weight="bold")
    axes = figure.subplots(1, panels, width_ratios=widths, squeeze=False)[0]
    for ax in axes:
        ax.tick_params(colors="#78909c", labelsize=8)
        ax.locator_params(nbins=6)
        ax.grid(color="#eceff1", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[:].set_visible(False)
    return figure, list(axes)


def _draw_panel(
    ax: Axes, panel: str, steps: pl.DataFrame, begun: pl.DataFrame, vehicles: pl.DataFrame, pace: Normalize
) -> None:
    north, east = float(steps["latitude"].mean()), float(steps["longitude"].mean())  # type: ignore[arg-type]
    x, y = _kilometres(steps, "", north, east)
    x_a, y_a = _kilometres(steps, "_a", north, east)
    lines = np.stack([np.column_stack([x_a, y_a]), np.column_stack([x, y])], axis=1)
    tracks_ = LineCollection(list(lines), cmap="viridis", norm=pace, linewidths=1.4, alpha=0.85, capstyle="round")
    tracks_.set_array(steps["kmh"].to_numpy())
    ax.add_collection(tracks_)
    here = vehicles.filter(pl.col("vehicle").is_in(steps["vehicle"].unique().implode())).unique("depot", keep="any")
    _draw_depots(ax, here.rename({"depot_latitude": "latitude", "depot_longitude": "longitude"}), north, east)
    for kind, (marker, colour) in ALERTS.items():
        where = _kilometres(begun.filter(kind=kind), "", north, east)
        ax.scatter(*where, marker=marker, s=34, color=colour, edgecolors="white", linewidths=0.6, zorder=4)
    _name_vehicles(ax, steps, north, east)
    count = steps["vehicle"].n_unique()
    title = f"{panel}: {count} vehicle{'s' * (count != 1)}"
    ax.set_title(title, fontsize=11, color=INK, loc="left")
    ax.set_xlabel(f"km east of {east:.3f}°", color="#546e7a", fontsize=9)
    ax.set_ylabel(f"km north of {north:.3f}°", color="#546e7a", fontsize=9)
    ax.set_aspect("equal", adjustable="datalim")
    ax.margins(0.06)
    ax.autoscale_view()


def _kilometres(frame: pl.DataFrame, suffix: str, north: float, east: float) -> tuple[Any, Any]:
    """Places as kilometres from a centre: flat, right to a per mille over some tens of kilometres."""
    y = (frame[f"latitude{suffix}"] - north) * KM_PER_DEGREE
    x = (frame[f"longitude{suffix}"] - east) * KM_PER_DEGREE * float(np.cos(np.radians(north)))
    return x.to_numpy(), y.to_numpy()


def _draw_depots(ax: Axes, depots: pl.DataFrame, north: float, east: float) -> None:
    x, y = _kilometres(depots, "", north, east)
    ax.scatter(x, y, marker="*", s=190, color=INK, edgecolors="white", linewidths=0.9, zorder=5)
    for name, left, up in zip(depots["depot"], x, y, strict=True):
        ax.annotate(
            name, (left, up), (7, 5), textcoords="offset points", fontsize=9, color=INK, weight="bold", zorder=6
        )


def _name_vehicles(ax: Axes, steps: pl.DataFrame, north: float, east: float) -> None:
    """Each vehicle's last place and name."""
    last = steps.sort("moment").unique("vehicle", keep="last", maintain_order=True)
    x, y = _kilometres(last, "", north, east)
    ax.scatter(x, y, s=16, color="white", edgecolors=INK, linewidths=0.9, zorder=5)
    for name, left, up in zip(last["vehicle"], x, y, strict=True):
        _label(ax, name.removeprefix("vehicle-"), (left, up), (4, -8), fontsize=7, color="#455a64")


def _label(ax: Axes, text: str, place: tuple[float, float], beside: tuple[float, float], **look: Any) -> None:
    ax.annotate(text, place, beside, textcoords="offset points", zorder=6, path_effects=HALO, **look)


def _draw_legend(figure: Figure, begun: pl.DataFrame) -> None:
    counts = dict(begun.group_by("kind").len().iter_rows())
    marks = [
        Line2D([], [], marker=marker, color=colour, linestyle="", label=f"{kind} begins ({counts.get(kind, 0)})")
        for kind, (marker, colour) in ALERTS.items()
    ]
    marks.append(Line2D([], [], marker="*", markersize=11, color=INK, linestyle="", label="depot"))
    marks.append(Line2D([], [], marker="o", color="white", markeredgecolor=INK, linestyle="", label="last place"))
    figure.legend(handles=marks, loc="outside lower left", ncols=len(marks), frameon=False, fontsize=9)
