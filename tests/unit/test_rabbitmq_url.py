"""A RabbitMQ cluster by URL: what is read out of it, what is refused, and that its password stays where it belongs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestration.brokers import address_of, remember
from orchestration.cli import app
from streaming.errors import SetupError, UsageError
from streaming.home import Home
from streaming.lab import KAFKA, QUEUES, RABBITMQ_STREAMS, Lab
from streaming.transports.rabbitmq import url

DECODED = "s3cret/@:"
URL = "amqp://me:s3cret%2f%40%3a@one:5673,two/a%2fb?stream_port=5553"


def test_a_url_names_nodes_ports_virtual_host_and_user() -> None:
    address = url.address_of(URL)
    assert [(each.host, each.port, each.stream_port) for each in (address, *address.others)] == [
        ("one", 5673, 5553),
        ("two", 5672, 5553),
    ]
    assert (address.user, address.password, address.vhost) == ("me", DECODED, "a/b")
    assert address.management_port == 15672
    assert {each.host for each in address.nodes} == {"one", "two"}
    assert url.address_of("amqp://u:p@[::1]:5673").host == "::1"
    assert url.address_of("amqp://u:p@host").vhost == "/"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("one:5672", "does not begin with amqp://"),
        ("amqp://one/v", "user and password are missing"),
        ("amqp://me:@one/v", "user and password are missing"),
        ("amqp://:s3cret@one/v", "user and password are missing"),
        ("amqps://me:s3cret@one/v", "TLS"),
        ("amqp://me:s3cret@one:fast/v", "the port is no number"),
        ("amqp://me:s3cret@,two", "a host is missing"),
        ("amqp://me:s3cret@one/v?stream=5", "stream is unknown"),
        ("amqp://me:s3cret@one/v?stream_port=99999", "stream_port is no number"),
        ("amqp://me:s3cret/1@one/v", r"user and password are missing|write : as %3a"),
        ("amqp://me:s3cret@[one/v", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_url_is_said_without_its_password(wrong: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as raised:
        url.address_of(wrong)
    assert "s3cret" not in str(raised.value)


def test_the_password_is_kept_for_the_homes_owner_and_nowhere_else(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").open()
    lab = Lab().changed({"brokers": (QUEUES, RABBITMQ_STREAMS), "rabbitmq_url": remember(home, URL)})
    lab.save(home)
    assert Lab.load(home) == lab
    holders = [path for path in home.root.rglob("*") if path.is_file() and "s3cret" in path.read_text()]
    assert [path.name for path in holders] == ["urls.json"]
    assert holders[0].stat().st_mode & 0o077 == 0
    address = address_of(home, lab, QUEUES, "positions-parquet")
    assert (address.password, address.queue("positions", "g")) == (DECODED, "rabbitmq.positions.g")
    assert address_of(home, lab, RABBITMQ_STREAMS, "operator").others[0].log("alerts") == "rabbitmq-stream.alerts"
    assert "s3cret" not in f"{address} {address!r} {lab}"
    assert not lab.owns_rabbitmq
    holders[0].write_text(json.dumps({}))
    with pytest.raises(SetupError, match="say it again"):
        address_of(home, lab, QUEUES, "operator")


def test_a_url_without_a_pattern_to_use_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--brokers rabbitmq or rabbitmq-stream"):
        Lab(brokers=(KAFKA,)).changed({"rabbitmq_url": "amqp://me@one:5672/v"})
    said = CliRunner().invoke(app, ["up", "--rabbitmq-url", URL, "--home", str(tmp_path)])
    assert isinstance(said.exception, UsageError)
    assert "s3cret" not in said.output + str(said.exception)
