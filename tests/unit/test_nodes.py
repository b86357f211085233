"""When a RabbitMQ node that was killed is missed, when one that was started is back, and who leads what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestration.cli.nodes import _has_left, _has_returned
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.browsing import NodeState, nodes

ONE, TWO = (
    NodeState(f"streamgauge{number}@localhost", is_running=True, queues=3, leads=leads, copies=3, copies_online=3)
    for number, leads in ((1, 2), (2, 1))
)
GONE = replace(ONE, is_running=False, leads=0, copies_online=0)


def test_a_node_has_left_when_the_others_miss_it() -> None:
    assert not _has_left({"rabbitmq": [ONE, TWO]}, 1, of_nodes=3)
    assert _has_left({"rabbitmq": [GONE, TWO]}, 1, of_nodes=3)
    assert not _has_left({}, 1, of_nodes=3), "nobody has said that it is gone"
    assert _has_left({}, 1, of_nodes=1), "a cluster of one does not answer without it"


def test_a_node_is_back_when_it_is_seen_for_each_pattern_with_all_its_copies() -> None:
    assert _has_returned({"rabbitmq": [ONE, TWO]}, 1)
    assert not _has_returned({}, 1)
    assert not _has_returned({"rabbitmq": [ONE, TWO], "rabbitmq-stream": [GONE, TWO]}, 1)
    assert not _has_returned({"rabbitmq": [replace(ONE, copies_online=2), TWO]}, 1)


def test_who_leads_a_stream_is_found_though_rabbitmq_3_10_does_not_say_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [ONE.name, TWO.name]
    copied = {"members": names, "online": names}
    answers: dict[str, list[dict[str, Any]]] = {
        "/queues/streamgauge": [
            {"name": "a", "type": "stream", "node": TWO.name, **copied},
            {"name": "b", "type": "quorum", "node": ONE.name, "leader": TWO.name, **copied},
            {"name": "c", "type": "classic", "node": ONE.name, "state": "running"},
        ],
        "/nodes": [{"name": name, "running": True} for name in names],
    }
    monkeypatch.setattr("streaming.transports.rabbitmq.browsing.ask", lambda _, path: answers[path])
    found = nodes(Address(1, "u", "p"))
    assert [(each.name, each.leads, each.copies, each.copies_online) for each in found] == [
        (ONE.name, 1, 3, 3),
        (TWO.name, 2, 2, 2),
    ]
