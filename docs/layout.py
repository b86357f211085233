"""A drawing of a graph in layers: which layer and how far down each name lies, and by which waypoints an arrow goes.

Invariant: arrows go to later layers only; names of one layer keep their distance; the same graph gives the same places.
The usual method (Sugiyama): a waypoint in each layer that a long arrow crosses, the order within a layer by the mean of
the neighbours, then places near the neighbours as far as the distance allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import mean
from typing import Final

Arrow = tuple[str, str]
SWEEPS: Final = 60
WAYPOINT_SPACE: Final = 0.45  # of a row


@dataclass(frozen=True, slots=True)
class Layout:
    """`places`: name → (layer, row); waypoints have names too. `routes`: arrow → all names it goes through."""

    places: Mapping[str, tuple[int, float]]
    routes: Mapping[Arrow, Sequence[str]]


def layered(names: Iterable[str], arrows: Sequence[Arrow], outermost: Iterable[str] = ()) -> Layout:
    """Lay out a graph without cycles; `outermost` go to the last layer, and what leads to them just before it."""
    layer = _layers(list(names), arrows, set(outermost))
    routes = {(start, end): [start, *_waypoints(start, end, layer), end] for start, end in arrows}
    for route in routes.values():
        for at, name in enumerate(route):
            layer[name] = layer[route[0]] + at
    neighbours: dict[str, list[str]] = {name: [] for name in layer}
    for one, other in (pair for route in routes.values() for pair in pairwise(route)):
        neighbours[one].append(other)
        neighbours[other].append(one)
    columns = [[name for name in layer if layer[name] == at] for at in range(max(layer.values()) + 1)]
    rows = _rows(columns, neighbours)
    top = min(rows.values())
    return Layout({name: (layer[name], rows[name] - top) for name in layer}, routes)


def _layers(names: Sequence[str], arrows: Sequence[Arrow], outermost: set[str]) -> dict[str, int]:
    layer = dict.fromkeys(names, 0)
    for _ in names:
        for start, end in arrows:
            layer[end] = max(layer[end], layer[start] + 1)
    last = max(layer.values())
    for start, end in arrows:
        if end in outermost:
            layer[start], layer[end] = last - 1, last
    return layer


def _waypoints(start: str, end: str, layer: Mapping[str, int]) -> list[str]:
    return [f"{start} > {end} > {at}" for at in range(layer[start] + 1, layer[end])]


def _rows(columns: Sequence[list[str]], neighbours: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """How far down each name lies: sweeps to and fro, each column ordered and placed by its neighbours' rows."""
    rows = {name: float(at) for column in columns for at, name in enumerate(column)}
    for sweep in range(SWEEPS):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            wanted = {name: mean(rows[other] for other in neighbours[name] or [name]) for name in column}
            column.sort(key=lambda name: (wanted[name], name))
            rows.update(_apart(column, wanted))
    return rows


def _apart(column: Sequence[str], wanted: Mapping[str, float]) -> dict[str, float]:
    """The rows nearest to the wanted ones at which all keep their distance: who would collide moves as one block."""
    down = [0.0, *accumulate(_distance(one, other) for one, other in pairwise(column))]
    blocks: list[list[float]] = []  # what each name wants of its block's first row
    for name, offset in zip(column, down, strict=True):
        blocks.append([wanted[name] - offset])
        while len(blocks) > 1 and mean(blocks[-2]) >= mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    first = [mean(block) for block in blocks for _ in block]
    return {name: start + offset for name, start, offset in zip(column, first, down, strict=True)}


def _distance(one: str, other: str) -> float:
    return sum(0.5 if " > " not in name else WAYPOINT_SPACE / 2 for name in (one, other))
