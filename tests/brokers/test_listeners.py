"""Listeners of real brokers: the table they tell of themselves, and wrong ones told with the line that mends them."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from orchestration import clocks
from streaming.cluster import jars, listeners, ports
from streaming.cluster.kafka import DisposableCluster
from streaming.cluster.machine import Finding

pytestmark = pytest.mark.brokers


def call(bootstrap_servers: str, home: Path) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "orchestration.cli", "listeners", "--json", "--home", str(home)]
    command += ["--bootstrap-servers", bootstrap_servers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_brokers_tell_their_listeners_and_all_are_reached(kafka: DisposableCluster, tmp_path: Path) -> None:
    code, said = call(kafka.bootstrap_servers, tmp_path / "home")
    assert code == 0, said["findings"]
    rows = {(each["broker"], each["name"]): each for each in said["listeners"]}
    for broker in kafka.brokers:
        client, controller = rows[broker.number, "CLIENT"], rows[broker.number, "CONTROLLER"]
        assert client["advertised"] == client["bind"] == broker.address
        assert controller["advertised"] == f"{ports.HOST}:{broker.ports.controller}"
        assert client["from_here"] == controller["from_here"] == "reached"
        assert (client["used_by"], controller["used_by"]) == ("clients, brokers", "controllers")
    release = jars.KAFKA_VERSION.rpartition(".")[0]
    assert listeners.survey(kafka.bootstrap_servers).versions == f"{release} (brokers 1, 2, 3)"


def test_no_broker_ends_with_4(tmp_path: Path) -> None:
    code, said = call(f"{ports.HOST}:{ports.free(1)[0]}", tmp_path / "home")
    assert code == 4
    assert said["findings"][0]["remedy"]


def test_brokers_on_this_machine_have_its_clock_and_no_topic_is_left(kafka: DisposableCluster) -> None:
    found = clocks.of_brokers(kafka.bootstrap_servers)
    assert [(each.name, each.ok) for each in found] == [(f"clock of broker {n}", True) for n in (1, 2, 3)]
    fast = clocks.of_brokers(kafka.bootstrap_servers, now=lambda: time.time() + 60)
    assert not any(each.ok for each in fast)
    assert all(each.detail.startswith(("-59", "-60")) for each in fast), fast
    from confluent_kafka.admin import AdminClient  # noqa: PLC0415

    admin, deadline = AdminClient({"bootstrap.servers": kafka.bootstrap_servers}), time.monotonic() + 60
    while left := [name for name in admin.list_topics(timeout=30).topics if name.startswith("streamgauge-doctor")]:
        assert time.monotonic() < deadline, left  # a broker learns of a deletion a moment later
        time.sleep(0.1)


@pytest.fixture(scope="module")
def crooked(kafka: DisposableCluster) -> Iterator[tuple[DisposableCluster, dict[str, int]]]:
    """One broker with doors that are wrong in different ways; door → the port where it really listens."""
    doors = dict(zip(("NAME", "PORT", "OTHER", "LOCKED"), ports.free(4), strict=True))
    nobody = ports.free(1)[0]
    shows = {
        "NAME": "kafka-1.invalid:9092",
        "PORT": f"{ports.HOST}:{nobody}",
        "OTHER": kafka.brokers[0].address,
        "LOCKED": f"{ports.HOST}:{doors['LOCKED']}",
    }
    cluster = DisposableCluster(count=1)
    (broker,) = cluster.brokers
    was = broker.settings
    login = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_me="secret";'
    changed = {
        "listeners": ",".join([was["listeners"], *(f"{door}://{ports.HOST}:{port}" for door, port in doors.items())]),
        "advertised.listeners": ",".join(
            [was["advertised.listeners"], *(f"{door}://{address}" for door, address in shows.items())]
        ),
        "listener.security.protocol.map": was["listener.security.protocol.map"]
        + ",NAME:PLAINTEXT,PORT:PLAINTEXT,OTHER:PLAINTEXT,LOCKED:SASL_PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.locked.plain.sasl.jaas.config": login,
    }
    cluster.brokers = [dataclasses.replace(broker, settings=MappingProxyType({**was, **changed}))]
    with cluster:
        yield cluster, doors


def judged(port: int) -> Finding:
    """What is said of broker 1, found through `port`."""
    return next(each for each in listeners.examine(f"{ports.HOST}:{port}") if each.name == "broker 1")


def test_an_advertised_name_that_nobody_knows_is_told(crooked: tuple[DisposableCluster, dict[str, int]]) -> None:
    cluster, doors = crooked
    found = judged(doors["NAME"])
    assert found.is_bad
    assert found.remedy.startswith(f"begin with {cluster.brokers[0].address} instead: broker 1's listener CLIENT")
    assert "the name kafka-1.invalid is not known" in found.detail
    assert f"advertised.listeners=NAME://{ports.HOST}:{doors['NAME']}" in found.remedy
    assert "/etc/hosts" in found.remedy


def test_an_advertised_address_where_another_cluster_answers_is_told(
    crooked: tuple[DisposableCluster, dict[str, int]],
) -> None:
    _, doors = crooked
    assert "another cluster" in judged(doors["OTHER"]).detail


@pytest.mark.parametrize("door", ["LOCKED", "CONTROLLER"])
def test_a_door_that_is_not_for_plain_clients_is_called_so(
    crooked: tuple[DisposableCluster, dict[str, int]], door: str
) -> None:
    cluster, doors = crooked
    port = {**doors, "CONTROLLER": cluster.brokers[0].ports.controller}[door]
    answer, address = listeners.examine(f"{ports.HOST}:{port}")
    assert answer.is_bad
    assert {"LOCKED": "SASL", "CONTROLLER": "controllers' listener"}[door] in address.detail


def test_changing_the_line_that_is_told_mends_it(
    crooked: tuple[DisposableCluster, dict[str, int]], tmp_path: Path
) -> None:
    cluster, doors = crooked
    address = f"{ports.HOST}:{doors['PORT']}"
    code, said = call(address, tmp_path / "home")
    bad = next(each for each in said["findings"] if each["name"] == "broker 1")
    assert code == 1
    assert "nothing listens there" in bad["detail"]
    line = re.search(r"advertised\.listeners=(PORT://\S+)", bad["remedy"])
    assert line, bad["remedy"]

    settings = cluster.brokers[0].folder / "server.properties"
    settings.write_text(re.sub(r"PORT://[^,\n]*(?=,OTHER)", line[1], settings.read_text(), count=2))
    cluster.stop(1)
    cluster.start(1)
    assert call(address, tmp_path / "home")[0] == 0
