"""What the RabbitMQ tests share: addresses with a prefix of their own, events, and a sink's process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import polars as pl

from sinks.arrivals import ROTATION, ArrivalSink
from sinks.files import Rotation
from streaming.batch import Outgoing
from streaming.cluster.rabbitmq import DisposableRabbitMQ, address_of
from streaming.codecs.json import JsonCodec
from streaming.events import POSITIONS, SCHEMAS
from streaming.home import Home
from streaming.interfaces import Identity
from streaming.topology import STREAMS, role
from streaming.transports.rabbitmq.address import Address

STREAM = STREAMS["positions"]
GROUP = "positions-parquet"
ROLE = role(GROUP)
CODEC = JsonCodec(POSITIONS)
CODECS = {name: JsonCodec(schema) for name, schema in SCHEMAS.items()}
IDENTITY = Identity("streamgauge", "queue")
DEADLINE_S = 60.0
OUTBOX_MOMENTS = ("before_outcome", "after_outcome", "after_confirms")


def address(node: DisposableRabbitMQ, user: str = "operator", prefix: str | None = None) -> Address:
    """As whom, with names of its own."""
    own = f"t{uuid.uuid4().hex[:8]}-" if prefix is None else prefix
    return address_of(node.nodes[0], node.credentials, user, prefix=own)


@dataclass
class Notebook:
    """A keeper that writes down what it is asked."""

    start: int | None = None
    resumed: int = 0
    lost: int = 0
    released: int = 0

    def resume(self, partition: int) -> int | None:  # noqa: ARG002
        self.resumed += 1
        return self.start

    def release(self, partitions: Iterable[int], *, lost: bool) -> None:  # noqa: ARG002
        self.lost += lost
        self.released += not lost


def sink_at(home: Path, rotation: Rotation = ROTATION) -> ArrivalSink:
    return ArrivalSink(Home(home), "rabbitmq", ROLE, CODEC, IDENTITY, rotation=rotation, writer="test")


def positions(count: int, *, first: int = 0, producer: str = "p") -> pl.DataFrame:
    """Events first, first + 1, … of one life of a producer, 20 vehicles in turn, 10 ms apart."""
    number = pl.int_range(first, first + count, eager=True, dtype=pl.Int64)
    return pl.DataFrame({"sequence": number}).select(
        vehicle=pl.format("v-{}", pl.col("sequence") % 20),
        producer=pl.lit(producer),
        epoch=pl.lit(1, pl.Int64),
        sequence="sequence",
        event_time=(pl.col("sequence") * 10_000 + 1_700_000_000_000_000).cast(pl.Datetime("us", "UTC")),
        latitude=pl.lit(52.0),
        longitude=pl.lit(13.0),
        altitude_m=pl.lit(None, pl.Float64),
        speed_mps=pl.col("sequence").cast(pl.Float64) % 30,
        heading_deg=pl.lit(90.0),
        dilution=pl.lit(None, pl.Float64),
    )


def outgoing(table: pl.DataFrame) -> Outgoing:
    return Outgoing("positions", CODEC.encode(table), table["vehicle"].cast(pl.Binary).to_list())


def until(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """Return when it is so; fails when it is not in time."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def landed(home: Path, broker: str) -> pl.DataFrame:
    """The table, read as a stranger would: every file of its folder."""
    table = home / "warehouse" / broker / "positions_parquet"
    return pl.read_parquet(table / "**/*.parquet") if any(table.glob("**/*.parquet")) else positions(0)


def until_landed(home: Path, count: int) -> None:
    until(lambda: len(landed(home, "rabbitmq")) >= count)


def assert_each_once(home: Path, broker: str, count: int) -> None:
    rows = landed(home, broker)
    assert sorted(rows["sequence"]) == list(range(count))
    assert sorted(rows["_offset"]) == sorted(set(rows["_offset"]))


@dataclass
class Killable:
    """A sink or a transformer as a process that is killed and started again."""

    what: str
    kind: str
    home: Path
    at: Address
    kills: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self, crash_at: str = "") -> None:
        program = Path(__file__).with_name("rabbitmq_process.py")
        own = {
            "AMQP_PORT": str(self.at.port),
            "STREAM_PORT": str(self.at.stream_port),
            "AMQP_PASSWORD": self.at.password,
            "AMQP_PREFIX": self.at.prefix,
            "PYTHONPATH": str(program.parents[2]),
            "STREAMGAUGE_CRASH_AT": crash_at,
        }
        command = [sys.executable, str(program), self.what, self.kind, str(self.home)]
        self.process = subprocess.Popen(command, env={**os.environ, **own})

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def kill_and_start(self) -> None:
        assert self.process is not None
        assert self.process.poll() is None, "it had ended by itself"
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.kills += 1
        self.start()

    def dies_at(self, moment: str) -> None:
        """In place of the present life one that ends by SIGKILL when a commit comes to this moment."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.start(crash_at=moment)
        assert self.process.wait(DEADLINE_S) == -signal.SIGKILL, "the moment never came"
        self.kills += 1

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        # One that was just started may not listen to signals yet, and had nothing open then.
        assert self.process.wait(30) in {0, -signal.SIGTERM}
