"""The lab's RabbitMQ nodes for the commands `broker list | stop | kill | start`: what each has, before and after."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from streaming.errors import BrokerUnavailable
from streaming.lab import KAFKA

if TYPE_CHECKING:
    from collections.abc import Callable

    from streaming.home import Home
    from streaming.lab import Lab
    from streaming.transports.rabbitmq.browsing import NodeState

SERVICE = "rabbitmq-"
_LOOK_S = 0.3
Seen = dict[str, list["NodeState"]]  # a pattern of RabbitMQ (a virtual host) → its nodes


def look(home: Home, lab: Lab) -> Seen:
    """The nodes, for each of the lab's patterns; without any while no node answers."""
    from orchestration.brokers import address_of
    from streaming.cluster.rabbitmq import OPERATOR
    from streaming.transports.rabbitmq.browsing import nodes

    try:
        return {each: nodes(address_of(home, lab, each, OPERATOR)) for each in lab.brokers if each != KAFKA}
    except BrokerUnavailable:
        return {}


def operate(home: Home, lab: Lab, number: int, act: Callable[[], None], *, returns: bool, timeout_s: float) -> Change:
    """Do it to node `number`; wait until the others miss it, or see it again with all its copies."""
    before, began = look(home, lab), time.monotonic()
    act()
    while True:
        after = look(home, lab)
        is_settled = _has_returned(after, number) if returns else _has_left(after, number, lab.rabbitmq_nodes)
        took_s = time.monotonic() - began
        if is_settled or took_s > timeout_s:
            return Change(before, after, is_settled, took_s)
        time.sleep(_LOOK_S)


@dataclass(frozen=True, slots=True)
class Change:
    """What operate() saw."""

    before: Seen
    after: Seen
    is_settled: bool
    took_s: float

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        facts = {"is_settled": self.is_settled, "took_s": round(self.took_s, 2)}
        return {**facts, "before": as_dicts(self.before), "after": as_dicts(self.after)}


def as_dicts(seen: Seen) -> list[dict[str, Any]]:
    """One plain dict for each pattern and node."""
    return [{"broker": broker, **asdict(node)} for broker, nodes in seen.items() for node in nodes]


def table(title: str, before: Seen, after: Seen) -> Table:
    """Each node now, and what was otherwise before."""
    made = Table("broker", "node", "runs", title=title, title_justify="left")
    for column in ("leads", "keeps copies", "of these online"):
        made.add_column(column, justify="right")
    was = {(each["broker"], each["name"]): each for each in as_dicts(before)}
    for now in as_dicts(after):
        then = was.get((now["broker"], now["name"]), now)
        cells = (_moved(then[name], now[name]) for name in ("is_running", "leads", "copies", "copies_online"))
        made.add_row(now["broker"], now["name"], *cells)
    if not after:
        made.caption = "no node answers"
    return made


def _moved(then: object, now: object) -> str:
    words = ["yes" if each is True else "no" if each is False else str(each) for each in (then, now)]
    return words[1] if then == now else f"{words[0]} → {words[1]}"


def _has_left(seen: Seen, number: int, of_nodes: int) -> bool:
    """Whether the others miss it; the only node of a cluster is gone when it does not answer.

    Who leads what is told later, and not of all.
    """
    if not seen:
        return of_nodes == 1
    return not any(node.is_running for nodes in seen.values() for node in _of(nodes, number))


def _has_returned(seen: Seen, number: int) -> bool:
    """Whether it is seen, and all that it keeps a copy of is up to date there."""
    found = [node for nodes in seen.values() for node in _of(nodes, number)]
    return bool(found) and all(node.is_running and node.copies_online == node.copies for node in found)


def _of(nodes: list[NodeState], number: int) -> list[NodeState]:
    return [node for node in nodes if node.name.startswith(f"streamgauge{number}@")]
