"""When a RabbitMQ node that was killed is missed, and when one that was started is back."""

from __future__ import annotations

from dataclasses import replace

from orchestration.cli.nodes import _has_left, _has_returned
from streaming.transports.rabbitmq.browsing import NodeState

ONE, TWO = (
    NodeState(f"streamgauge{number}@localhost", is_running=True, queues=3, leads=leads, copies=3, copies_online=3)
    for number, leads in ((1, 2), (2, 1))
)
GONE = replace(ONE, is_running=False, leads=0, copies_online=0)


def test_a_node_has_left_when_the_others_miss_it() -> None:
    assert not _has_left({"rabbitmq": [ONE, TWO]}, 1)
    assert _has_left({"rabbitmq": [GONE, TWO]}, 1)
    assert _has_left({}, 1), "a cluster of one does not answer without it"


def test_a_node_is_back_when_it_is_seen_for_each_pattern() -> None:
    assert _has_returned({"rabbitmq": [ONE, TWO]}, 1)
    assert not _has_returned({}, 1)
    assert not _has_returned({"rabbitmq": [ONE, TWO], "rabbitmq-stream": [GONE, TWO]}, 1)
