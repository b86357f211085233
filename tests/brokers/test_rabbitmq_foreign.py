"""`up --rabbitmq-url`: the whole application on a RabbitMQ that the lab has not started, and what that one refuses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from typer.testing import CliRunner, Result

from orchestration import services
from orchestration.cli import app
from orchestration.trial import new_lab
from sinks.reader import scan
from streaming.cluster import guests
from streaming.cluster.rabbitmq import DisposableRabbitMQ, address_of
from streaming.errors import SetupError
from streaming.home import Home
from streaming.lab import QUEUES
from streaming.topology import ROLES
from streaming.transports.rabbitmq import url
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.browsing import bindings, queues
from tests.brokers.rabbitmq_scenes import until

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(240)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    monkeypatch.setenv("STREAMGAUGE_FILE_SECONDS", "1")
    home = Home(tmp_path / "home").open()
    yield home
    services.down(home)


@pytest.fixture
def theirs(rabbitmq: DisposableRabbitMQ) -> Iterator[Address]:
    """A virtual host of somebody else's, and a user who may do everything there."""
    node, credentials = rabbitmq.nodes[0], rabbitmq.credentials
    guests.admit(node, credentials, "theirs-", QUEUES, [])
    yield address_of(node, credentials, vhost=guests.vhost_of("theirs-", QUEUES))
    guests.dismiss(node, credentials, "theirs-", QUEUES)


def called(home: Home, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--home", str(home.root)])


def up(home: Home, at: Address) -> Result:
    """As somebody types it, in a lab of few vehicles on ports that are free."""
    _, lab = new_lab(home.root, (QUEUES,))
    told = ["--brokers", QUEUES, "--rabbitmq-url", written(at), "--port-base", str(lab.port_base)]
    return called(home, "up", *told, "--vehicles", "5", "--no-dagster")


def written(at: Address) -> str:
    login = f"{at.user}:{quote(at.password, safe='')}"
    ports = f"stream_port={at.stream_port}&management_port={at.management_port}"
    return f"amqp://{login}@{at.host}:{at.port}/{quote(at.vhost, safe='')}?{ports}"


def landed(home: Home, table: str) -> int:
    with contextlib.suppress(FileNotFoundError):
        return len(scan(home, QUEUES, table).collect())
    return 0


def test_the_whole_application_works_there_and_down_leaves_it_running(home: Home, theirs: Address) -> None:
    begun = up(home, theirs)
    assert begun.exit_code == 0, (begun.output, begun.exception)
    assert theirs.password not in begun.output
    found = services.status(home)
    assert {each.name for each in found if each.group == services.APPLICATION} == {f"{QUEUES}.{name}" for name in ROLES}
    assert not [each.name for each in found if each.group == services.BROKERS]
    assert all(each.is_well for each in found)

    until(lambda: all(landed(home, table) for table in ("positions_parquet", "position_means_csv")))
    verified = called(home, "verify", "--broker", QUEUES)
    assert verified.exit_code == 0, verified.output

    ended = called(home, "down")
    kept = url.without_password(theirs)
    said = f"RabbitMQ at {kept} goes on and keeps the lab's queues, streams and exchanges: {QUEUES}.*"
    assert ended.output.splitlines()[-2:] == ["the lab is down", said]
    assert theirs.password not in ended.output
    there = replace(theirs, prefix=f"{QUEUES}.")
    assert {each.stream for each in queues(there)} >= {"positions", "position_means", "alerts"}
    assert all(each.exchange.startswith(f"{QUEUES}.") for each in bindings(there))
    until(lambda: not any(each.consumers for each in queues(there)))


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [({"password": "s3cret-guess"}, "authentication"), ({"vhost": "nobody's"}, "virtual host")],
    ids=["password", "vhost"],
)
def test_what_the_broker_refuses_is_told_before_any_role_starts(
    home: Home, theirs: Address, changed: dict[str, Any], wrong: str
) -> None:
    at = replace(theirs, **changed)
    refused = up(home, at)
    assert isinstance(refused.exception, SetupError), refused.output
    said = str(refused.exception)
    assert "refuses" in said
    assert wrong in said
    assert f"{at.user}@{at.host}:{at.port}/{at.vhost}" in said
    assert at.password not in said + refused.output
    assert not services.is_up(home)
    assert not list(home.logs.glob("rabbitmq.*.log")), "a role has run"
