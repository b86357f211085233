"""The commands that look into a cluster, on real brokers: what they print, for people and for scripts."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from orchestration.cli import app
from streaming.batch import Outgoing
from streaming.codecs import codec
from streaming.errors import StreamgaugeError, UsageError
from streaming.generators.vehicles import reference_data
from streaming.home import Home
from streaming.lab import Lab
from streaming.topology import STREAMS
from streaming.transports.kafka import KafkaTransport

pytestmark = pytest.mark.timeout(300)


class Person:
    """Types commands at a home whose lab uses the session's cluster, behind a prefix of its own."""

    def __init__(self, home: Home, bootstrap_servers: str) -> None:
        self.home = home
        self.lab = Lab(bootstrap_servers=bootstrap_servers, prefix=f"l{uuid.uuid4().hex[:8]}-")
        self.lab.save(home)

    def types(self, *arguments: str) -> Result:
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, [*arguments, "--home", str(self.home.root)])

    def reads(self, *arguments: str) -> Any:
        """The JSON that a command prints."""
        done = self.types(*arguments, "--json")
        assert done.exit_code == 0, (done.output, done.exception)
        return json.loads(done.stdout)

    def is_refused(self, *arguments: str) -> StreamgaugeError:
        done = self.types(*arguments)
        assert isinstance(done.exception, StreamgaugeError), (done.output, done.exception)
        return done.exception


@pytest.fixture(scope="module")
def person(kafka: Any, tmp_path_factory: pytest.TempPathFactory) -> Person:
    return Person(Home(tmp_path_factory.mktemp("look") / "home").open(), kafka.bootstrap_servers)


@pytest.fixture(scope="module")
def vehicles(person: Person) -> pl.DataFrame:
    """Five vehicles as the application sends them, and a record that is none."""
    transport = KafkaTransport(person.lab.kafka, prefix=person.lab.prefix)
    transport.create([STREAMS["vehicles"]], replication=3)
    rows = reference_data(1, 5).with_columns(
        pl.lit("tests").alias("producer"),
        pl.lit(1).alias("epoch"),
        pl.int_range(5).alias("sequence"),
        event_time=pl.lit(datetime.now(UTC), pl.Datetime("us", "UTC")),
    )
    publisher = transport.publisher("tests")
    values = codec("json", STREAMS["vehicles"].schema).encode(rows)
    keys = [name.encode() for name in rows["vehicle"]]
    publisher.publish(Outgoing("vehicles", [*values, b"nonsense"], [*keys, b"x"]))
    assert publisher.flush(60)
    publisher.close()
    return rows


@pytest.mark.brokers
def test_records_of_a_stream_are_decoded_and_others_are_shown_raw_with_the_reason(
    person: Person, vehicles: pl.DataFrame
) -> None:
    topic = f"{person.lab.prefix}vehicles"
    done = person.types("messages", topic, "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["offset"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert [line["row"]["vehicle"] for line in lines[:5]] == vehicles["vehicle"].to_list()
    assert (lines[5]["text"], lines[5]["key"]) == ("nonsense", "x")
    assert lines[5]["why_raw"]
    chosen = person.types("messages", topic, "--key", vehicles["vehicle"][2], "--json")
    assert json.loads(chosen.stdout)["offset"] == 2
    first = person.types("messages", topic, "--from", "1", "--limit", "1")
    assert vehicles["vehicle"][1] in first.stdout
    followed = person.types("messages", topic, "--follow", "--from", "earliest", "--limit", "3", "--json")
    assert [json.loads(line)["offset"] for line in followed.stdout.splitlines()] == [0, 1, 2]


@pytest.mark.brokers
def test_a_topic_is_printed_with_leaders_isr_offsets_and_settings(person: Person, vehicles: pl.DataFrame) -> None:
    topic = f"{person.lab.prefix}vehicles"
    [partition] = person.reads("topics", topic, "--count")["partitions"]
    assert (partition["in_sync"], partition["is_under_replicated"]) == ([1, 2, 3], False)
    assert (partition["low"], partition["end"]) == (0, 6)
    assert person.reads("topics", topic, "--count")["records"] == {"0": 6}
    assert topic in {each["name"] for each in person.reads("topics")}
    printed = person.types("topics", topic).stdout
    assert "min.insync.replicas" in printed
    assert topic in person.types("topics").stdout
    assert isinstance(person.reads("groups"), list)


@pytest.mark.brokers
def test_a_topic_of_ones_own_is_made_altered_and_deleted_each_shown_before_and_after(person: Person) -> None:
    name = f"{person.lab.prefix}mine"
    made = person.reads("topic", "create", name, "--partitions", "1", "--replication-factor", "1")
    assert (made["before"], [each["number"] for each in made["after"]]) == ([], [0])
    grown = person.reads("topic", "alter", name, "--partitions", "2", "--config", "retention.ms=60000")
    assert [len(each) for each in (grown["before"], grown["after"])] == [1, 2]
    assert grown["settings"] == {"retention.ms": "60000"}
    assert person.types("topic", "delete", name).exit_code == 1, "it asks first"
    assert person.reads("topic", "delete", name, "--yes")["after"] == []


@pytest.mark.brokers
def test_refusals_say_what_would_be_right(person: Person, vehicles: pl.DataFrame) -> None:
    assert f"did you mean {person.lab.prefix}vehicles?" in str(
        person.is_refused("messages", f"{person.lab.prefix}vehicels")
    )
    assert "did you mean" in str(person.is_refused("topics", f"{person.lab.prefix}vehicels"))
    own = person.is_refused("topic", "alter", f"{person.lab.prefix}vehicles", "--partitions", "9")
    assert isinstance(own, UsageError)
    assert "a key would move" in str(own)
    for action in ("stop", "start", "kill"):
        assert "not this lab's own" in str(person.is_refused("broker", action, "2"))
    brokers = person.reads("broker", "list")
    assert [(each["number"], each["is_alive"]) for each in brokers] == [(1, True), (2, True), (3, True)]


def test_without_a_lab_the_command_that_starts_one_is_named(tmp_path: Path) -> None:
    for arguments in (["topics"], ["groups"], ["messages", "positions"], ["broker", "list"]):
        done = CliRunner().invoke(app, [*arguments, "--home", str(tmp_path / "home")])
        assert isinstance(done.exception, StreamgaugeError), done.output
        assert (done.exception.exit_code, "streamgauge up" in str(done.exception)) == (4, True)
    done = CliRunner().invoke(app, ["broker", "kill", "1", "--home", str(tmp_path / "home")])
    assert "streamgauge up" in str(done.exception)
