"""A broker of a real lab is killed, started and stopped by the command line; the cluster is shown before and after."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestration import services
from orchestration.cli import app
from streaming.cluster import ports
from streaming.home import Home
from streaming.lab import Lab
from streaming.topology import STREAMS
from streaming.transports.kafka import KafkaTransport
from streaming.transports.kafka.inspection import Cluster, wait_until
from streaming.transports.kafka.operating import elect_preferred, has_returned

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(600)]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A lab of brokers only, with one topic."""
    home, lab = Home(tmp_path / "home").open(), _lab()
    transport = KafkaTransport(lab.kafka, timeout_s=60)
    with contextlib.ExitStack() as stack:
        stack.callback(services.down, home)
        _start(home, lab, transport)
        yield home


def _start(home: Home, lab: Lab, transport: KafkaTransport) -> None:
    services.up(
        home,
        lab,
        create_topics=lambda: transport.create([STREAMS["positions"]], replication=3),
        progress=lambda _: None,
        roles=(),
        dagster=False,
    )
    cluster = Cluster(lab.kafka, timeout_s=60)
    assert wait_until(lambda: all(has_returned(cluster, number) for number in (1, 2, 3)), 120)
    elect_preferred(cluster)


def operated(home: Home, *arguments: str) -> dict[str, Any]:
    """What a broker command says, when it has succeeded."""
    done = CliRunner().invoke(app, ["broker", *arguments, "--json", "--home", str(home.root)])
    assert done.exit_code == 0, (done.output, done.exception)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def states(home: Home) -> dict[str, str]:
    return {each.name: each.state for each in services.status(home) if each.group == services.BROKERS}


def has_stopped_in_order(home: Home, number: int) -> bool:
    """Whether the broker has left the mark that Kafka leaves at the end of a clean shutdown, and takes at a start."""
    return (home.brokers("kafka") / str(number) / "data" / ".kafka_cleanshutdown").exists()


def test_a_broker_is_killed_rests_returns_and_another_is_stopped_in_order(home: Home) -> None:
    killed = operated(home, "kill", "2")
    assert (killed["action"], killed["broker"], killed["is_settled"]) == ("kill", 2, True)
    assert 2 in {each["leader"] for each in killed["before"]}
    assert all(each["in_sync"] == [1, 2, 3] for each in killed["before"])
    assert {each["leader"] for each in killed["after"]} <= {1, 3}
    assert all(each["in_sync"] == [1, 3] for each in killed["after"])
    assert not has_stopped_in_order(home, 2), "it must not have heard of its end"
    assert states(home) == {"kafka-1": "RUNNING", "kafka-2": "STOPPED", "kafka-3": "RUNNING"}
    listed = CliRunner().invoke(app, ["broker", "list", "--json", "--home", str(home.root)])
    assert listed.exit_code == 1
    assert [each["is_alive"] for each in json.loads(listed.stdout)] == [True, False, True]

    started = operated(home, "start", "2", "--elect")
    assert started["before"] == killed["after"]
    assert all(each["leader"] == each["replicas"][0] for each in started["after"])
    assert all(each["in_sync"] == [1, 2, 3] for each in started["after"])
    assert states(home)["kafka-2"] == "RUNNING"

    stopped = operated(home, "stop", "1")
    assert all(each["in_sync"] == [2, 3] for each in stopped["after"])
    assert has_stopped_in_order(home, 1)
    assert states(home)["kafka-1"] == "STOPPED"


def _lab() -> Lab:
    for base in range(21_000, 21_300, 7):
        lab = Lab(port_base=base)
        if all(ports.is_free(port) for port in services.ports_of(lab).values()):
            return lab
    raise AssertionError("no free ports")
