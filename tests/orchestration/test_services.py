"""The lab's life on real brokers: order, no-op, one service, kill -9 of everything, nothing left behind.

Roles are small real programs here, so that these tests are about the processes and nothing else.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from orchestration import services
from streaming.cluster import kafka, ports
from streaming.cluster.supervision import Service, ServiceState, Supervisor
from streaming.errors import BrokerUnavailable, SetupError, UsageError
from streaming.home import Home
from streaming.lab import Lab
from streaming.topology import ROLES

ROLE = """
import json, os, pathlib, signal, sys, time
name, run, events = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
def say(what): print(name, what, time.time(), file=open(events, "a"))
def end(*_): say("ended"); sys.exit(0)
signal.signal(signal.SIGTERM, end)
say("began")
(run / f"{name}.json").write_text(json.dumps({"pid": os.getpid(), "records": 7, "rate_hz": 10.1}))
while True: signal.pause()
"""


@pytest.fixture
def lab() -> Lab:
    """Ports of this run's own: a base whose ports are free."""
    for base in range(31_000, 31_900, 7):
        lab = Lab(port_base=base)
        if all(ports.is_free(port) for port in services.ports_of(lab).values()):
            return lab
    raise AssertionError("no free ports")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "home").open()
    yield home
    services.down(home)
    assert not Supervisor(home.root, run=home.run, logs=home.logs).survivors()


def table(home: Home, lab: Lab) -> list[Service]:
    """The real brokers, and small programs as roles and as control room."""
    script = home.root / "role.py"
    script.write_text(ROLE)
    brokers = [each for each in services.services_of(home, lab) if each.group == services.BROKERS]
    return [*brokers, *(_small(home, name, services.APPLICATION) for name in ("source", "sink"))]


def _small(home: Home, name: str, group: str) -> Service:
    command = (sys.executable, str(home.root / "role.py"), name, str(home.run), str(home.root / "events"))
    log = services.log_path(home, name)
    return Service(name, group, command, home.root, log, final_exit_codes=services.FINAL_EXIT_CODES)


def up(home: Home, lab: Lab, said: list[str] | None = None, create_topics: Callable[[], None] = lambda: None) -> None:
    says = said.append if said is not None else lambda _: None
    services.up(
        home, lab, create_topics=create_topics, progress=says, roles=("source", "sink"), dagster=False, table=table
    )


def events(home: Home) -> list[str]:
    return [line.rsplit(" ", 1)[0] for line in (home.root / "events").read_text().splitlines()]


@pytest.mark.brokers
def test_a_lab_starts_in_order_survives_kills_and_leaves_nothing(home: Home, lab: Lab) -> None:
    """One story, because a start of three brokers costs seconds."""
    found_at_topics: list[object] = []

    def create_topics() -> None:
        found_at_topics.append(kafka.is_ready(services.brokers_of(home, lab)))
        found_at_topics.append((home.root / "events").exists())

    up(home, lab, create_topics=create_topics)
    assert found_at_topics == [True, False], "topics are made when the brokers answer and before any role starts"
    assert [(each.name, each.state) for each in services.status(home)] == [
        (name, "RUNNING") for name in ("kafka-1", "kafka-2", "kafka-3", "source", "sink")
    ]
    assert (services.status(home)[3].records, services.status(home)[3].rate_hz) == (7, 10.1)

    said: list[str] = []
    before = services.status(home)
    up(home, lab, said)
    assert said == ["the lab is up already: nothing to do"]
    assert [each.pid for each in services.status(home)] == [each.pid for each in before]
    with pytest.raises(UsageError, match="other settings"):
        up(home, replace(lab, vehicles=3))

    services.stop(home, "sink")
    assert (services.status(home)[4].state, services.status(home)[4].pid) == ("STOPPED", None)
    assert services.status(home)[3].pid == before[3].pid
    services.start(home, "sink")
    assert services.status(home)[4].pid not in {None, before[4].pid}
    with pytest.raises(UsageError, match="kafka-1, kafka-2, kafka-3, source, sink"):
        services.stop(home, "nobody")

    everything = Supervisor(home.root, run=home.run, logs=home.logs).survivors()
    for process in everything:
        process.kill()
    psutil.wait_procs(everything, timeout=10)
    assert not services.is_up(home)
    up(home, lab)
    assert all(each.state == "RUNNING" for each in services.status(home))

    everything = Supervisor(home.root, run=home.run, logs=home.logs).survivors()
    os.kill(int((home.run / "supervisord.pid").read_text()), signal.SIGKILL)
    _, alive = psutil.wait_procs(everything, timeout=10)
    assert not alive, "what is tethered ends with the supervisor"
    up(home, lab)

    everything = Supervisor(home.root, run=home.run, logs=home.logs).survivors()
    stopping: list[str] = []
    services.down(home, progress=stopping.append)
    assert stopping == ["stopping application (2)", "stopping brokers (3)", "the lab is down"]
    assert events(home)[-2:] in (["source ended", "sink ended"], ["sink ended", "source ended"])
    assert not [process for process in everything if process.is_running()]
    assert services.status(home) == []
    services.down(home, progress=stopping.append)
    assert stopping[-1] == "nothing runs"


@pytest.mark.brokers
def test_a_start_that_fails_leaves_nothing_running(home: Home, lab: Lab) -> None:
    def create_topics() -> None:
        raise UsageError("the topics have another shape")

    with pytest.raises(UsageError, match="another shape"):
        up(home, lab, create_topics=create_topics)
    assert not services.is_up(home)
    assert not Supervisor(home.root, run=home.run, logs=home.logs).survivors()
    assert not kafka.registered(services.brokers_of(home, lab)[0])


def test_a_port_in_use_is_named_with_its_holder_and_the_remedy(home: Home, lab: Lab) -> None:
    with socket.socket() as holder:
        holder.bind((ports.HOST, lab.broker_port(2)))
        holder.listen()
        with pytest.raises(SetupError) as caught:
            up(home, lab)
    said = str(caught.value)
    assert f"port {lab.broker_port(2)}" in said
    assert f"process {os.getpid()}" in said
    assert "--port-base" in said
    assert not services.is_up(home)


def test_a_cluster_that_does_not_answer_is_an_error_before_any_role_starts(home: Home, lab: Lab) -> None:
    elsewhere = replace(lab, bootstrap_servers=f"{ports.HOST}:{lab.port_base}")
    with pytest.raises(BrokerUnavailable, match="no broker answers"):
        up(home, elsewhere)
    assert not (home.root / "events").exists()
    assert not services.is_up(home)


def test_dagster_gets_its_settings_once_and_keeps_what_a_person_changed(home: Home) -> None:
    services.write_dagster_yaml(home)
    path = home.dagster / "dagster.yaml"
    assert "telemetry: {enabled: false}" in path.read_text()
    path.write_text("# mine\n")
    services.write_dagster_yaml(home)
    assert path.read_text() == "# mine\n"


def test_every_role_and_dagster_are_services_and_brokers_only_if_they_are_the_labs_own(home: Home) -> None:
    names = [each.name for each in services.services_of(home, Lab())]
    assert names[:3] == ["kafka-1", "kafka-2", "kafka-3"]
    assert names[-3:] == ["profile-pages", "dagster-webserver", "dagster-daemon"]
    assert names[3:-3] == list(ROLES)
    assert [each.name for each in services.services_of(home, Lab(bootstrap_servers="elsewhere:9092"))] == names[3:]


def test_progress_of_an_earlier_process_is_not_shown_as_this_ones(home: Home) -> None:
    home.run.mkdir()
    (home.run / "sink.json").write_text(json.dumps({"pid": 1, "records": 9, "rate_hz": 1.0}))
    state = ServiceState("sink", services.APPLICATION, "RUNNING", pid=2, uptime_s=1.0, exit_code=None)
    assert services._status(home, state).records is None
    assert services._status(home, replace(state, pid=1)).records == 9


def test_the_lab_can_be_asked_while_it_is_down(home: Home) -> None:
    assert services.status(home) == []
    with pytest.raises(UsageError, match="the lab is down"):
        services.start(home, "kafka-1")
