"""Rounds on RabbitMQ: queues beside RabbitMQ's own PerfTest, streams beside rstream's own producer and consumer.

In each round queues and streams of its own are filled and read by both sides, in an order that turns, then counted and
deleted. Invariant: nothing of a contender is believed but its clock (and PerfTest's own average): what is in the queue,
the stream and the files is counted here.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from experiments import workload
from experiments.bench import perf_test
from experiments.bench.rabbitmq_client import GROUP, PASSWORD, transport_of
from experiments.bench.results import Contender, Run
from experiments.bench.rounds import BARE, WARM_UP, landed_problems, measured, process
from streaming.cluster import rabbitmq
from streaming.cluster.rabbitmq import DisposableRabbitMQ
from streaming.codecs import codec
from streaming.errors import BrokerUnavailable
from streaming.home import Home
from streaming.topology import STREAMS, stream
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.declaring import channel_of, ready_in
from streaming.transports.rabbitmq.streams import RabbitStreams

_PERF_SEND = Contender("perf-publish", "queue: PerfTest publishes", "perf-publish")
_SEND = Contender("queue-publish", "queue: the application's publisher", "perf-publish", 0.8)
_PERF_READ = Contender("perf-consume", "queue: PerfTest consumes", "perf-consume")
_SINK = Contender("queue-sink", "queue: sink to Parquet", "perf-consume", 0.8)
_BARE_SEND = Contender("stream-send", "stream: rstream send_batch()", "stream-send")
_STREAM_SEND = Contender("stream-publish", "stream: the application's publisher", "stream-send")
_BARE_READ = Contender("stream-read", "stream: rstream Consumer", "stream-read")
_STREAM_SINK = Contender("stream-sink", "stream: sink to Parquet", "stream-read", 0.375)
CONTENDERS: Final = (_PERF_SEND, _SEND, _PERF_READ, _SINK, _BARE_SEND, _STREAM_SEND, _BARE_READ, _STREAM_SINK)
_DOES: Final = {
    _SEND: "publish",
    _SINK: "sink",
    _BARE_SEND: "bare-send",
    _STREAM_SEND: "publish",
    _BARE_READ: "bare-consume",
    _STREAM_SINK: "sink",
}
_REFERENCES: Final = {_PERF_SEND, _PERF_READ, _BARE_SEND}  # on names of their own; readers of a stream share one
_FILLED_BY: Final = {_PERF_READ: _PERF_SEND, _SINK: _SEND, _BARE_READ: _STREAM_SEND, _STREAM_SINK: _STREAM_SEND}
_LEAVING_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class RabbitBench:
    """What is measured: where, how much, how often. `folder` takes the sinks' files, on a real disk."""

    node: DisposableRabbitMQ
    folder: Path
    queue_records: int
    stream_records: int
    repetitions: int
    codec: str = "json"
    vehicles: int = 20
    name: str = "bench"
    warm_up_records: int = 50_000

    def run(self) -> Iterator[Run]:
        """Every run, as it is done. A first round with few records warms the node up and is not told of."""
        if few := self.warm_up_records:
            warm_up = replace(
                self, queue_records=min(self.queue_records, few), stream_records=min(self.stream_records, few)
            )
            yield from (run for run in warm_up.round(WARM_UP) if run.is_void)
        for repetition in range(1, self.repetitions + 1):
            yield from self.round(repetition)

    def round(self, repetition: int) -> Iterator[Run]:
        """One repetition on new queues and streams."""
        prefix = f"{self.name}-{repetition}-"
        for pattern in ("queues", "streams"):
            for before in ("", BARE):
                transport = transport_of(pattern, self.address(pattern, before + prefix))
                transport.create([STREAMS["positions"]], replication=1)
                transport.close()
        try:
            void = set()
            for contender in order(repetition):
                filler = _FILLED_BY.get(contender)
                if filler is not None and filler in void:  # it would wait for what is not there
                    run = Run(contender.name, repetition, problems=(f"{filler.name} was void: nothing sound to read",))
                else:
                    run = self._measured(contender, repetition, prefix)
                void |= {contender} if run.is_void else set()
                yield run
        finally:
            for pattern in ("queues", "streams"):
                for before in ("", BARE):
                    delete_positions(self.address(pattern, before + prefix), pattern)

    def address(self, pattern: str, prefix: str) -> Address:
        """Where the pattern's positions are."""
        return address_on(self.node, pattern, prefix)

    def _measured(self, contender: Contender, repetition: int, prefix: str) -> Run:
        pattern = "streams" if contender.name.startswith("stream") else "queues"
        records = self.stream_records if pattern == "streams" else self.queue_records
        address = self.address(pattern, (BARE if contender in _REFERENCES else "") + prefix)
        folder = self.folder / f"{contender.name}-{repetition}"
        folder.mkdir(parents=True)
        load = os.getloadavg()[0]
        try:
            timed = self._timed(contender, pattern, address, records, folder)
            problems = () if "problem" in timed else _problems(contender, pattern, address, records, timed, folder)
            return measured(contender.name, repetition, load, timed, problems)
        finally:
            shutil.rmtree(folder)

    def _timed(
        self, contender: Contender, pattern: str, address: Address, records: int, folder: Path
    ) -> dict[str, Any]:
        timeout_s = 300 + records / 1_000  # for what hangs; a busy machine may be slow
        if contender in _DOES:
            job = {"does": _DOES[contender], "pattern": pattern, "records": records, "folder": str(folder)}
            job |= {"codec": self.codec, "vehicles": self.vehicles, "address": told(address)}
            return process("rabbitmq_client", job, timeout_s=timeout_s, secrets={PASSWORD: address.password})
        options = (
            perf_test.publishing(records, self.message_bytes) if contender is _PERF_SEND else perf_test.reading(records)
        )
        queue = address.queue("positions", GROUP)
        return perf_test.run(address, queue, "positions.v-1", options, records=records, timeout_s=timeout_s)

    @property
    def message_bytes(self) -> int:
        """The mean size of the application's messages."""
        values = workload.fleet(codec(self.codec, stream("positions").schema), self.vehicles).messages(1_000).values
        return sum(map(len, values)) // len(values)


def address_on(node: DisposableRabbitMQ, pattern: str, prefix: str) -> Address:
    """The first node, as the operator, in the virtual host of the pattern."""
    vhost = rabbitmq.VHOST if pattern == "queues" else rabbitmq.STREAM_VHOST
    return rabbitmq.address_of(node.nodes[0], node.credentials, vhost=vhost, prefix=prefix)


def told(address: Address) -> dict[str, Any]:
    """The address as a job carries it: without the password, which goes by environment."""
    return {name: getattr(address, name) for name in ("port", "user", "host", "stream_port", "vhost", "prefix")}


def delete_positions(address: Address, pattern: str) -> None:
    """Delete the stream, or the queue with all that was made beside it."""
    with channel_of(address) as channel:
        if pattern == "streams":
            channel.queue_delete(address.log("positions"))
            return
        for queue in (address.queue("positions", GROUP), address.dead_letters):
            channel.queue_delete(queue)
        for exchange in (address.exchange, address.dead_letters):
            channel.exchange_delete(exchange)


def order(repetition: int) -> list[Contender]:
    """Who runs after whom: fill before read; which side is first takes turns."""
    pairs = [(_PERF_SEND, _SEND), (_PERF_READ, _SINK), (_BARE_SEND, _STREAM_SEND), (_BARE_READ, _STREAM_SINK)]
    return [each for pair in pairs for each in (pair if repetition % 2 else pair[::-1])]


def installed_version() -> str:
    """RabbitMQ's, from the folder in which the distribution's package puts it."""
    found = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*"))
    return found[-1].name.split("-", 1)[1] if found else "of unknown version"


def _problems(
    contender: Contender, pattern: str, address: Address, records: int, timed: dict[str, Any], folder: Path
) -> tuple[str, ...]:
    """What is wrong with what the contender left: in the queue or the stream, and on disk."""
    if timed["done"] != records:
        return (f"{timed['done']} of {records} records done",)
    found: tuple[str, ...] = ()
    if contender in {_SINK, _STREAM_SINK}:  # a stream's offsets have gaps: the broker's own entries take some
        found = landed_problems(Home(folder), "rabbitmq", records, is_gapless=pattern == "queues")
    if pattern == "queues":
        with channel_of(address) as channel:
            left = _left_in(channel, address.queue("positions", GROUP))
            dead = ready_in(channel, address.dead_letters)
        wanted = 0 if contender in {_PERF_READ, _SINK} else records
        return (
            *found,
            *([f"the queue has {left} messages instead of {wanted}"] if left != wanted else []),
            *([f"{dead} dead letters"] if dead else []),
        )
    if contender in {_BARE_SEND, _STREAM_SEND}:
        transport = RabbitStreams(address)
        try:
            extent = transport.extents("positions")[0]
            held = transport.count_between("positions", 0, extent.low, extent.high)
        finally:
            transport.close()
        return () if held == records else (f"the stream has {held} records, {records} were sent",)
    return found


def _left_in(channel: Any, queue: str) -> int:
    """How many messages are in it when its readers are gone, who give back what they have not acknowledged."""
    deadline = time.monotonic() + _LEAVING_S
    while (found := channel.queue_declare(queue, passive=True).method).consumer_count:
        if time.monotonic() > deadline:
            raise BrokerUnavailable(f"{queue} still has a reader after {_LEAVING_S:.0f} s")
        time.sleep(0.1)
    return int(found.message_count)
