"""Listeners of brokers in containers: who comes in by the wrong door is told the right one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streaming.cluster import listeners, ports
from streaming.cluster.machine import Finding
from tests.unit.cluster.speaking import Door

COMPOSE = {
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,INTERNAL:PLAINTEXT,EXTERNAL:PLAINTEXT",
    "inter.broker.listener.name": "INTERNAL",
    "controller.listener.names": "CONTROLLER",
}


@pytest.fixture
def inside() -> Iterator[tuple[int, int]]:
    """Two brokers as a container sees them: what EXTERNAL advertises is not reached. 1's ports INTERNAL, EXTERNAL."""
    internal, external, other, *nobody = ports.free(5)
    shown = f"INTERNAL://{ports.HOST}:{internal},EXTERNAL://{ports.HOST}:{nobody[0]}"
    settings = {**COMPOSE, "listeners": "INTERNAL://:19092,EXTERNAL://:9092", "advertised.listeners": shown}
    by_name = {1: (ports.HOST, internal), 2: (ports.HOST, other)}
    published = {1: (ports.HOST, nobody[0]), 2: (ports.HOST, nobody[1])}
    with Door(internal, 1, by_name, settings), Door(external, 1, published, settings), Door(other, 2, by_name, {}):
        yield internal, external


def of_broker(number: int, port: int) -> Finding:
    return next(each for each in listeners.examine(f"{ports.HOST}:{port}") if each.name == f"broker {number}")


def test_whoever_comes_in_by_the_door_for_outside_is_told_the_door_for_inside(inside: tuple[int, int]) -> None:
    internal, external = inside
    for number in (1, 2):
        found = of_broker(number, external)
        assert found.is_bad
        assert found.remedy.startswith(f"begin with {ports.HOST}:{internal} instead: broker 1's listener INTERNAL")
    remedy = of_broker(1, external).remedy
    assert "KAFKA_ADVERTISED_LISTENERS" in remedy
    assert f"advertised.listeners=EXTERNAL://{ports.HOST}:{external}" in remedy
    assert of_broker(1, internal).ok


def test_an_address_for_others_is_told_beside_one_that_answers() -> None:
    internal, external = ports.free(2)
    shown = f"INTERNAL://kafka-1.invalid:{internal},EXTERNAL://{ports.HOST}:{external}"
    settings = {**COMPOSE, "listeners": "INTERNAL://:19092,EXTERNAL://:9092", "advertised.listeners": shown}
    with Door(external, 1, {1: (ports.HOST, external)}, settings):
        said = {each.name: each for each in listeners.examine(f"{ports.HOST}:{external},kafka-1.invalid:{internal}")}
    mixed = said[f"address kafka-1.invalid:{internal}"]
    assert not mixed.ok
    assert mixed.remedy.startswith(f"give {ports.HOST}:{external} instead")


def test_a_brokers_release_is_what_the_broker_tells(inside: tuple[int, int]) -> None:
    assert listeners.survey(f"{ports.HOST}:{inside[0]}").versions == "4.3 (brokers 1, 2)"
    assert listeners.survey(f"{ports.HOST}:{inside[1]}").versions == "4.3 (broker 1), unknown (broker 2)"


def test_a_containers_name_that_is_not_known_here_is_no_case_for_etc_hosts_alone() -> None:
    *_, address = listeners.examine("no-such-container:19092")
    assert address.remedy.startswith("if no-such-container is a container, begin with the address that it publishes")
