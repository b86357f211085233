"""Diagrams as SVG, laid out from streaming/topology.py: nothing in them is placed or named by hand.

Invariant: every arrow is a `reads`, `writes` or `looks_up` of a role; every box a role, a stream or a table's folder.
The same topology gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import Final

from docs.layout import layered
from streaming.topology import Role, RoleKind, Stream, StreamKind

WIDTH: Final = 172
HEIGHT: Final = 40
LAYER_STEP: Final = 228
ROW_STEP: Final = 58
MARGIN: Final = 24
HEAD: Final = 56
COLOURS: Final = {  # fill, line
    "generator": ("#e7f0fb", "#2f6db5"),
    "transformer": ("#fdf1dd", "#b7791f"),
    "sink": ("#e6f4ea", "#2e7d4f"),
    "table": ("#ffffff", "#2e7d4f"),
    "source": ("#f3eefa", "#6b46a8"),
    "reference": ("#f3eefa", "#6b46a8"),
    "derived": ("#f3eefa", "#6b46a8"),
    "state": ("#f7f7f7", "#8a8a8a"),
}
_SVG: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"
     font-family="Helvetica, Arial, sans-serif" font-size="12">
<title>{title}</title>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>
<rect width="{width}" height="{height}" fill="#fff"/>
<text x="24" y="32" font-size="16" font-weight="bold" fill="#222">{title}</text>
{drawn}
</svg>
"""


@dataclass(frozen=True, slots=True)
class Box:
    """A node: `colour` is a kind in COLOURS; streams are drawn round."""

    name: str
    colour: str
    says: str = ""
    is_round: bool = False


@dataclass(slots=True)
class Graph:
    """Boxes and arrows; `dashed` arrows are a transformer's memory and its look-ups."""

    boxes: dict[str, Box] = field(default_factory=dict)
    arrows: list[tuple[str, str]] = field(default_factory=list)
    dashed: set[tuple[str, str]] = field(default_factory=set)

    def arrow(self, start: str, end: str, *, is_dashed: bool = False) -> None:
        """Add one."""
        self.arrows.append((start, end))
        if is_dashed:
            self.dashed.add((start, end))


def application(streams: Mapping[str, Stream], roles: Mapping[str, Role]) -> Graph:
    """The whole application: roles, streams, tables."""
    graph = Graph()
    for stream in streams.values():
        says = f"{stream.partitions} partition{'s' * (stream.partitions > 1)}, {stream.kind}"
        graph.boxes[stream.name] = Box(stream.name, stream.kind, says, is_round=True)
    for role in roles.values():
        graph.boxes[role.name] = Box(role.name, role.kind, role.kind)
        for name in (*role.reads, *role.looks_up):
            graph.arrow(name, role.name, is_dashed=name in role.looks_up)
        for name in role.writes:
            graph.arrow(role.name, name, is_dashed=streams[name].kind is StreamKind.STATE)
        if role.table:
            graph.boxes[f"{role.table}/"] = Box(f"{role.table}/", "table", f"{role.format} files")
            graph.arrow(role.name, f"{role.table}/")
    return graph


def base_figure() -> Graph:
    """The task's own figure: producers, Kafka, one consumer that writes back, two that write to disk."""
    graph = Graph()
    parts = {
        "Producer 1": ("generator", "data generator"),
        "Producer n": ("generator", "data generator"),
        "Kafka": ("source", "cluster"),
        "Consumer 1": ("transformer", "processes, re-inserts"),
        "Kafka ": ("source", "the same cluster"),
        "Consumer 2": ("sink", "data sink"),
        "Consumer 3": ("sink", "data sink"),
        "Disk 2": ("table", "e.g. CSV"),
        "Disk 3": ("table", "e.g. CSV"),
    }
    for name, (colour, says) in parts.items():
        graph.boxes[name] = Box(name.strip(), colour, says, is_round=name.startswith("Kafka"))
    for start, end in (
        ("Producer 1", "Kafka"),
        ("Producer n", "Kafka"),
        ("Kafka", "Consumer 1"),
        ("Consumer 1", "Kafka "),
        ("Kafka ", "Consumer 2"),
        ("Kafka ", "Consumer 3"),
        ("Consumer 2", "Disk 2"),
        ("Consumer 3", "Disk 3"),
    ):
        graph.arrow(start, end)
    return graph


def contains_base_figure(streams: Mapping[str, Stream], roles: Mapping[str, Role]) -> bool:
    """Whether two generators, a stream, a transformer back into a stream and two sinks behind it are there."""
    of = {kind: [role for role in roles.values() if role.kind is kind] for kind in RoleKind}
    landed = [role.reads[0] for role in of[RoleKind.SINK]]
    returns = [
        name
        for role in of[RoleKind.TRANSFORMER]
        for name in role.writes
        if streams[name].kind is StreamKind.DERIVED and landed.count(name) >= 2
    ]
    return len(of[RoleKind.GENERATOR]) >= 2 and bool(returns)


def svg(graph: Graph, title: str) -> str:
    """The graph as an SVG document."""
    tables = [name for name, box in graph.boxes.items() if box.colour == "table"]
    layout = layered(graph.boxes, graph.arrows, tables)
    places = {name: _point(place) for name, place in layout.places.items()}
    drawn = [
        _edge([places[name] for name in route], is_dashed=arrow in graph.dashed)
        for arrow, route in layout.routes.items()
    ]
    drawn += [_box(box, *places[name]) for name, box in graph.boxes.items()]
    width = max(x for x, _ in places.values()) + WIDTH + MARGIN
    height = max(y for _, y in places.values()) + HEIGHT + MARGIN
    return _SVG.format(width=width, height=height, title=escape(title), drawn="\n".join(drawn))


def _point(place: tuple[int, float]) -> tuple[int, int]:
    """The upper left corner of a box at this layer and row."""
    layer, row = place
    return MARGIN + layer * LAYER_STEP, HEAD + round(row * ROW_STEP)


def _edge(points: Sequence[tuple[int, int]], *, is_dashed: bool) -> str:
    """A line from box to box by way of the waypoints, level where it meets each of them."""
    (x, y), middle = points[0], HEIGHT // 2
    path = [f"M{x + WIDTH} {y + middle}"]
    for (x, y), (to_x, to_y) in pairwise(points):
        bend = (LAYER_STEP - WIDTH) // 2
        path.append(f"C{x + WIDTH + bend} {y + middle} {to_x - bend} {to_y + middle} {to_x} {to_y + middle}")
        path.append(f"H{to_x + WIDTH}")  # through a waypoint; at the end the box covers it
    path.pop()
    dashes = ' stroke-dasharray="5 4"' if is_dashed else ""
    return f'<path d="{"".join(path)}" fill="none" stroke="#555" stroke-width="1.3"{dashes} marker-end="url(#tip)"/>'


def _box(box: Box, x: int, y: int) -> str:
    fill, line = COLOURS[box.colour]
    corner = HEIGHT // 2 if box.is_round else 4
    middle = x + WIDTH // 2
    return (
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="{corner}" fill="{fill}" stroke="{line}"/>'
        f'<text x="{middle}" y="{y + 17}" text-anchor="middle" font-weight="bold" fill="#222">{escape(box.name)}</text>'
        f'<text x="{middle}" y="{y + 32}" text-anchor="middle" font-size="10.5" fill="#555">{escape(box.says)}</text>'
    )
