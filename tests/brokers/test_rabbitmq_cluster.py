"""Three RabbitMQ nodes of a lab, one of them killed by the command line: who worked there, or begins there, goes on.

The node that dies leads every queue and stream, for whoever is asked for a node in this process gets the first one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestration import services
from orchestration.brokers import create_streams, transport_of
from orchestration.cli import app
from orchestration.trial import new_lab
from sinks.reader import scan
from streaming.events import MARK
from streaming.home import Home
from streaming.lab import QUEUES, RABBITMQ_STREAMS, Lab, service_name
from tests.brokers.rabbitmq_scenes import CODEC, Notebook, outgoing, positions, until

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(280)]
PATTERNS = (QUEUES, RABBITMQ_STREAMS)
GENERATORS, SINKS = (
    tuple(service_name(broker, role) for broker in PATTERNS) for role in ("positions-generator", "positions-parquet")
)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Home, Lab]]:
    """A lab of three nodes that sends and lands positions on both patterns."""
    monkeypatch.setattr("streaming.transports.rabbitmq.address.random.randrange", lambda _: 0)
    home, lab = new_lab(tmp_path / "home", PATTERNS, nodes=3)
    with contextlib.ExitStack() as stack:
        stack.callback(services.down, home)
        services.up(
            home,
            lab,
            create_topics=lambda: create_streams(home, lab),
            progress=print,
            roles=(*GENERATORS, *SINKS),
            dagster=False,
        )
        yield home, lab


def operated(home: Home, *arguments: str, exit_code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["broker", *arguments, "--json", "--home", str(home.root)])
    assert done.exit_code == exit_code, (done.output, done.exception)
    return json.loads(done.stdout)


def landed(home: Home, broker: str) -> dict[str, list[int]]:
    """Each producer's sequences, in order."""
    rows = scan(home, broker, "positions_parquet").collect()
    return {
        str(producer): sorted(number for number in table["sequence"] if number != MARK)
        for (producer,), table in rows.group_by("producer")
    }


def until_more_land(home: Home) -> None:
    """On both patterns, of the lab's own generators."""
    before = {broker: sum(map(len, landed(home, broker).values())) for broker in PATTERNS}
    until(lambda: all(sum(map(len, landed(home, broker).values())) > before[broker] + 200 for broker in PATTERNS))


def read(home: Home, lab: Lab, broker: str, count: int) -> list[int]:
    """What another reader of positions gets of this test's own, until it has so many."""
    source, found = transport_of(home, lab, broker).source("positions", "means-transformer", Notebook()), set[int]()

    def are_enough() -> bool:
        for batch in source.poll(0.2):
            table = CODEC.decode(batch.values).table
            found.update(table.filter(table["producer"] == "p")["sequence"].to_list())
        return len(found) >= count

    until(are_enough)
    source.close()
    return sorted(found)


def test_a_killed_node_stops_nobody_and_returns_with_all_its_copies(cluster: tuple[Home, Lab]) -> None:
    home, lab = cluster
    began_early = {each: transport_of(home, lab, each).publisher("early") for each in PATTERNS}
    for publisher in began_early.values():
        publisher.publish(outgoing(positions(500)))
        assert publisher.flush(60)
    until_more_land(home)
    pids = {each.name: each.pid for each in services.status(home) if each.name in {*GENERATORS, *SINKS}}

    killed = operated(home, "kill", "rabbitmq-1")
    assert killed["is_settled"]
    assert [each["is_running"] for each in killed["after"]] == [False, True, True] * 2
    until(lambda: all(led_by_others(operated(home, "list", exit_code=1), each) for each in PATTERNS))
    until_more_land(home)

    for broker, publisher in began_early.items():
        publisher.publish(outgoing(positions(500, first=500)))
        assert publisher.flush(60), broker
        publisher.close()
        begins_late = transport_of(home, lab, broker).publisher("late")
        begins_late.publish(outgoing(positions(500, first=1_000)))
        assert begins_late.flush(60), broker
        begins_late.close()
        assert read(home, lab, broker, 1_500) == list(range(1_500)), broker

    started = operated(home, "start", "rabbitmq-1")
    assert started["is_settled"]
    assert [each["is_running"] for each in started["after"]] == [True] * 6
    assert all(each["copies_online"] == each["copies"] == each["queues"] > 0 for each in started["after"])

    until_more_land(home)
    assert pids == {each.name: each.pid for each in services.status(home) if each.name in pids}
    for broker, generator, sink in zip(PATTERNS, GENERATORS, SINKS, strict=True):
        services.stop(home, generator)
        sent = json.loads((home.run / f"{generator}.json").read_bytes())["records"]
        until(partial(has_landed, home, broker, sent + 1_500))
        services.stop(home, sink)
        found = landed(home, broker)
        assert found.pop("p") == list(range(1_500)), broker
        assert list(found.values()) == [list(range(sent))], broker


def has_landed(home: Home, broker: str, count: int) -> bool:
    return sum(map(len, landed(home, broker).values())) >= count


def led_by_others(listed: list[dict[str, Any]], broker: str) -> bool:
    first, *others = [each for each in listed if each["broker"] == broker]
    return bool(first["leads"] == 0 and sum(each["leads"] for each in others) == first["queues"])
