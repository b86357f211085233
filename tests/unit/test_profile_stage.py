"""Where roles are profiled: the codecs' own check, and what is done when nobody answers at the broker's address."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from experiments.profiles import alone, corners, runner, runs, stage
from experiments.profiles.runner import Request, profile
from experiments.profiles.runs import Load, Profiler, Status, Workload
from orchestration.cli.profile import app
from streaming.batch import Decoded
from streaming.codecs import CODECS, codec
from streaming.errors import BrokerUnavailable, DataError, UsageError
from streaming.home import Home
from streaming.interfaces import Codec
from streaming.topology import stream

ROOM = 200_000  # queue.buffering.max.messages of the application's producer
PATIENCE_S = 60.0


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nobody listens, kept so."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@dataclass
class Bent:
    """The real codec, but for one value that comes back as another."""

    real: Codec
    name: str = "bent"

    def encode(self, table: pl.DataFrame) -> list[bytes]:
        return self.real.encode(table)

    def decode(self, values: Sequence[bytes]) -> Decoded:
        found = self.real.decode(values)
        is_last = pl.int_range(pl.len()) == pl.len() - 1
        bent = found.table.with_columns(sequence=pl.when(is_last).then(pl.col("sequence") + 1).otherwise("sequence"))
        return Decoded(bent, found.rows, found.rejections)


@pytest.mark.parametrize("name", CODECS)
def test_what_a_codec_gives_back_are_the_rows_that_went_in_of_every_stream(name: str) -> None:
    prepared = alone.blocks(name, 20, 1)
    assert len(prepared) == len(alone.STREAMS)
    assert [block.turn(700) for block in prepared] == [700] * len(prepared)


def test_a_codec_that_gives_another_row_back_ends_the_run() -> None:
    [block, *_] = alone.blocks("json", 20, 1)
    bent = alone.Block(block.rows, Bent(codec("json", stream("positions").schema)))
    with pytest.raises(DataError, match="others come back"):
        bent.turn(100)


def test_kafkas_address_with_every_broker_is_refused_before_anything_is_started(tmp_path: Path, nobody: str) -> None:
    words = ["run", "positions-parquet", "--broker", "all", "--bootstrap-servers", nobody, "--home", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, UsageError), done.output
    assert "Kafka cluster's address" in str(done.exception)
    assert runs.listed(Home(tmp_path)) == []


def test_a_codec_that_there_is_not_is_refused_before_anything_is_started() -> None:
    with pytest.raises(UsageError, match="json, avro"):
        stage.insist("positions-parquet", "kafka", Workload(codec="pigeon"))


def test_a_sender_that_gives_up_waits_for_nobody(nobody: str) -> None:
    given_up = threading.Event()
    sender = corners.KafkaCorner(nobody, "nobody-").sender("test", given_up.is_set)
    assert isinstance(sender, corners._KafkaSender)
    records = [b"record"] * (ROOM + 1)

    def sends() -> None:
        sender.send("positions", records, records)
        sender.confirm()
        sender.close()

    sending = threading.Thread(target=sends, daemon=True)
    sending.start()
    deadline = time.monotonic() + PATIENCE_S
    while len(sender.producer) < ROOM:
        assert time.monotonic() < deadline, "the client's queue does not fill"
        time.sleep(0.01)
    given_up.set()
    sending.join(PATIENCE_S)
    assert not sending.is_alive()


def test_what_may_be_left_on_a_broker_that_does_not_answer_is_said(
    nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corners, "ADMIN_S", 0.5)
    with pytest.raises(BrokerUnavailable, match="profile-one-") as caught:
        corners.KafkaCorner(nobody, "profile-one-").sweep()
    assert nobody in str(caught.value)


def test_a_run_that_is_stopped_before_it_begins_is_interrupted_and_no_failure(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    home = Home(tmp_path).open()
    run = profile(home, Request("codecs", "none", Profiler.CPROFILE, Workload(messages=1)), None, stop=stop)
    assert (run.status, run.records) == (Status.INTERRUPTED, 0)
    assert stage.leftovers(home) == []


def test_reference_data_is_published_once_so_its_run_ends_with_the_last_vehicle() -> None:
    asked = Workload(messages=50_000, vehicles=7)
    assert stage.possible("vehicles-generator", asked).messages == 7
    assert stage.possible("positions-generator", asked) == asked


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("streamgauge: no broker answers\n\nScalene: profile saved\n  To view: scalene view\n", "no broker answers"),
        ("Traceback\nMemoryError\n", "MemoryError"),
        ("\n", "it said nothing"),
    ],
)
def test_why_a_run_failed_is_what_the_role_said_and_not_where_its_profile_lies(
    tmp_path: Path, said: str, reason: str
) -> None:
    log = tmp_path / "role.log"
    log.write_text(said)
    assert runner._last_words(log).endswith(reason)


def test_records_that_come_at_a_rate_are_waited_for() -> None:
    paced = Workload(messages=100_000, load=Load.STEADY, rate_hz=20.0)
    assert runner._patience_s(paced) > 5_000
    assert runner._patience_s(Workload(messages=100_000, rate_hz=20.0)) == runner.PATIENCE_S
    assert runner._patience_s(replace(paced, seconds=7.0)) == 7.0
