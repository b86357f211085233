"""Figures of profiles, drawn without a browser: icicles of cProfile's calls, hot lines and memory of scalene.

Invariant: a block's width is its share of its thread's time; what is too narrow to be seen is left out, not moved.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from experiments import figures
from experiments.profiles import calls, patterns
from experiments.profiles.calls import Key, Stats
from experiments.profiles.runs import Run
from experiments.profiles.scalene_report import short_path

DEPTH: Final = 13
NARROWEST: Final = 0.004
_NAMED_FROM: Final = 0.03
_CHARACTERS_A_WIDTH: Final = 150  # that fit into the whole width
HOT: Final = 12
_IN_LIBRARIES: Final = "in a library"
_COLOURS: Final = (*figures.PALETTE, "#9C6ADE", "#50A684", "#B5651D", "#7A8B99", "#C0D6DF", "#D9B8C4", "#A3B18A")


@dataclass(frozen=True, slots=True)
class Block:
    """A call under its callers: left edge, width and depth, of a width of 1 in all."""

    key: Key
    left: float
    width: float
    depth: int
    activity: str


def icicles(profs: Sequence[Path], path: Path, run: Run) -> Path:
    """One icicle a thread: each row is called by the one above it, wider is longer; the colour says what it does."""
    layouts = {prof.stem: list(blocks(calls.stats(prof))) for prof in profs}
    shown = {thread: found for thread, found in layouts.items() if found}
    colours = _colours(block.activity for found in shown.values() for block in found)
    with figures.style():
        figure, axes = figures.panels(1, max(len(shown), 1), width=12.5, height=4.6)
        for each, (thread, found) in zip(axes, shown.items(), strict=False):
            _draw(each, found, colours)
            each.set_title(f"{run.role}, thread {thread}: {seconds(profs, thread):.2f} s under cProfile")
        handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=6)
        return figures.save(figure, path, run.name, run.workload.says)


def seconds(profs: Sequence[Path], thread: str) -> float:
    """A thread's time under the profiler."""
    return sum(own for prof in profs if prof.stem == thread for _, _, own, _, _ in calls.stats(prof).values())


def blocks(stats: Stats) -> Iterator[Block]:
    """The calls from the roots down. cProfile knows pairs of caller and callee only, so deeper shares are estimates."""
    called: dict[Key, list[tuple[Key, float]]] = {}
    for key, (_, _, _, _, callers) in stats.items():
        for caller, edge in callers.items():
            called.setdefault(caller, []).append((key, edge[3]))
    roots = [key for key in stats if _is_root(stats, key)]
    total = sum(stats[key][3] for key in roots)
    left = 0.0
    for key in sorted(roots, key=lambda each: -stats[each][3]):
        width = stats[key][3] / total if total else 0.0
        yield from _below(stats, called, key, left, width, 0, _IN_LIBRARIES, frozenset())
        left += width


def _is_root(stats: Stats, key: Key) -> bool:
    """Whether nothing but the profiler's own wrapping calls it."""
    return not is_wrapper(key) and all(is_wrapper(caller) for caller in stats[key][4])


def is_wrapper(key: Key) -> bool:
    """A frame that only leads from the profiler to the role."""
    file = short_path(key[0])
    return any(each in file for each in calls.WRAPPERS) or "_lsprof.Profiler" in key[2]


def _below(
    stats: Stats,
    called: dict[Key, list[tuple[Key, float]]],
    key: Key,
    left: float,
    width: float,
    depth: int,
    doing: str,
    above: frozenset[Key],
) -> Iterator[Block]:
    if width < NARROWEST or depth >= DEPTH or key in above:
        return
    file = short_path(key[0])
    if file.startswith(calls.OURS):
        doing = patterns.activity(file, key[2])
    yield Block(key, left, width, depth, doing)
    callees = sorted(called.get(key, ()), key=lambda each: -each[1])
    # A generator's or a recursive call's time is counted with each of its callers: what is below may come to more.
    whole = max(stats[key][3], sum(edge_s for _, edge_s in callees))
    for callee, edge_s in callees:
        part = width * edge_s / whole if whole else 0.0
        yield from _below(stats, called, callee, left, part, depth + 1, doing, above | {key})
        left += part


def _draw(axes: Axes, found: Sequence[Block], colours: dict[str, str]) -> None:
    for block in found:
        axes.add_patch(
            Rectangle(
                (block.left, -block.depth - 1),
                block.width,
                0.94,
                facecolor=colours[block.activity],
                edgecolor="white",
                alpha=0.75,
            )
        )
        if block.width >= _NAMED_FROM:
            room = max(int(block.width * _CHARACTERS_A_WIDTH) - 1, 3)
            axes.text(
                block.left + 0.003, -block.depth - 0.53, _label(block.key)[:room], va="center", fontsize=7, clip_on=True
            )
    axes.set_xlim(0, 1)
    axes.set_ylim(-max(block.depth for block in found) - 1.1, 0)
    axes.set_yticks([])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 % of the time"])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)


def _label(key: Key) -> str:
    file, _, function = key
    method = re.search(r"method '(\w+)' of '([\w.]+)'|built-in method ([\w.]+)", function)
    if method:
        return f"{method[2]}.{method[1]}" if method[1] else method[3]
    return f"{Path(file).stem}.{function}"


def _colours(activities: Iterator[str]) -> dict[str, str]:
    """A colour an activity; waiting in greys, so that what is work stands out."""
    names = dict.fromkeys(activities)
    waits = [name for name in names if name in patterns.WAITING]
    work = [name for name in names if name not in patterns.WAITING and name not in {patterns.OTHER, _IN_LIBRARIES}]
    greys = {name: str(0.6 + 0.3 * place / max(len(waits), 1)) for place, name in enumerate(waits)}
    hues = {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(work)}
    rest = {name: "#E8DCC8" for name in names if name in {patterns.OTHER, _IN_LIBRARIES}}
    return {**hues, **greys, **rest}


def hot_lines(lines: pl.DataFrame, footprint: pl.DataFrame, path: Path, run: Run) -> Path:
    """Scalene's dearest lines that work as bars of Python, native and system time, and the memory held over time."""
    hot = patterns.working(lines.filter(pl.col("cpu") > 0)).head(HOT).reverse()
    with figures.style():
        figure, axes = figures.panels(2, 1, width=12.5, height=4.8)
        left = pl.zeros(len(hot), eager=True)
        names = [("python", figures.BLUE), ("native", figures.ORANGE), ("system", figures.GREY)]
        for name, colour in names:
            axes[0].barh(range(len(hot)), hot[name] * 100, left=left * 100, color=colour, label=name)
            left = left + hot[name]
        labels = [
            f"{Path(file).name}:{line}  {source[:44]}"
            for file, line, source in hot.select("file", "line", "source").iter_rows()
        ]
        axes[0].set_yticks(range(len(hot)), labels, fontsize=7, family="DejaVu Sans Mono")
        axes[0].set_xlabel("% of samples (system: waiting for the kernel, mostly)")
        axes[0].set_title(f"{run.role}: hottest lines under scalene, waiting left out")
        axes[0].legend(loc="lower right")
        axes[0].grid(visible=False, axis="y")
        axes[1].plot(footprint["at_s"], footprint["footprint_mb"], color=figures.GREEN)
        axes[1].set_xlabel("seconds")
        axes[1].set_ylabel("MB allocated and not freed")
        axes[1].set_title("memory that scalene saw growing")
        return figures.save(figure, path, run.name, run.workload.says)
