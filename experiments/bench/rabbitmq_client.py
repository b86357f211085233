"""One contender on RabbitMQ as a process of its own: `python -m experiments.bench.rabbitmq_client JOB`.

The application's publisher and sink are put together as orchestration.roles does it; the references on streams are
rstream's own Producer and Consumer in a loop (on queues it is PerfTest, see perf_test). The password comes by the
environment.

On queues the clock runs from before connecting until after closing, because PerfTest's does; on streams, as everywhere
else, publishers' runs to the last confirm and readers' from the first records to the last one done.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any, Final

from experiments import workload
from experiments.bench.application import TimedProgress
from experiments.bench.stopwatch import Stopwatch, forget_peak
from sinks.arrivals import ArrivalSink
from sinks.files import FileSink
from streaming.batch import Outgoing
from streaming.codecs import codec
from streaming.home import Home
from streaming.service import Limits, run_sink
from streaming.topology import role, stream
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.queues import RabbitQueues
from streaming.transports.rabbitmq.stream_frames import pack
from streaming.transports.rabbitmq.streams import RabbitStreams

PASSWORD: Final = "STREAMGAUGE_BENCH_PASSWORD"  # noqa: S105 - the variable's name
GROUP: Final = "positions-parquet"
CHUNK_RECORDS: Final = 20_000  # as the unpaced generator sends them
PATIENCE_S: Final = 600.0


def address_of(told: dict[str, Any], password: str) -> Address:
    """The address that a job carries, with the password, which is on no command line."""
    return Address(password=password, **told)


def transport_of(pattern: str, address: Address) -> RabbitQueues | RabbitStreams:
    """Queues or streams; of queues only the sink's, so that each message is stored once."""
    return RabbitQueues(address, readers=lambda _: [GROUP]) if pattern == "queues" else RabbitStreams(address)


def publish(job: dict[str, Any], address: Address) -> None:
    """The application's publisher, until everything is confirmed; memory is what sending added to the messages'."""
    sent = _messages(job)
    keys = [vehicle.encode() for vehicle in sent.vehicles]
    before, clock = forget_peak(), Stopwatch()
    transport = transport_of(job["pattern"], address)
    clock.begin()
    publisher = transport.publisher("bench-publisher")
    for start in range(0, len(sent), CHUNK_RECORDS):
        chosen = slice(start, start + CHUNK_RECORDS)
        publisher.publish(Outgoing("positions", sent.values[chosen], keys[chosen]))
    if not publisher.flush(PATIENCE_S):
        sys.exit(f"{publisher.outstanding} records are not confirmed")
    clock.finishes(len(sent))
    publisher.close()
    if job["pattern"] == "queues":
        clock.finishes(0)  # the end is now
    clock.report(above_bytes=before)


def sink(job: dict[str, Any], address: Address) -> None:
    """Positions to Parquet, with all that the sink guarantees: derived, known by identity or offset, synced."""
    chosen = role(GROUP)
    transport = transport_of(job["pattern"], address)
    lands = ArrivalSink if job["pattern"] == "queues" else FileSink
    home = Home(Path(job["folder"]))
    schema = codec(job["codec"], stream("positions").schema)
    files = lands(home, "rabbitmq", chosen, schema, transport.identity("positions"), writer="bench")
    progress = TimedProgress("bench", home.run / "progress.json")
    limits = Limits(PATIENCE_S, job["records"])
    if job["pattern"] == "queues":
        progress.stopwatch.begin()
    run_sink(transport, chosen, files, stop=threading.Event(), progress=progress, limits=limits)
    if job["pattern"] == "queues":
        progress.stopwatch.finishes(0)  # the end is now
    progress.stopwatch.report()


def bare_send(job: dict[str, Any], address: Address) -> None:
    """Rstream's Producer: send_batch() in a loop, until everything is confirmed."""
    sent = _messages(job)
    before = forget_peak()
    asyncio.run(_send(sent.values, address)).report(above_bytes=before)


def bare_consume(job: dict[str, Any], address: Address) -> None:
    """Rstream's Consumer with a callback that counts and keeps nothing."""
    asyncio.run(_consume(job["records"], address)).report()


async def _send(values: list[bytes], address: Address) -> Stopwatch:
    from rstream import Producer  # noqa: PLC0415 - what is imported counts as a contender's memory

    clock, confirmed, is_done = Stopwatch(), 0, asyncio.Event()

    async def confirm(status: Any) -> None:
        nonlocal confirmed
        confirmed += status.is_confirmed
        if confirmed == len(values):
            clock.finishes(confirmed)
            is_done.set()

    log = address.log("positions")
    clock.begin()
    packed = pack(values)  # the same bytes that the application stores, which packs them within its time too
    async with Producer(
        address.host, address.stream_port or 0, vhost=address.vhost, username=address.user, password=address.password
    ) as producer:
        for start in range(0, len(values), CHUNK_RECORDS):
            await producer.send_batch(log, packed[start : start + CHUNK_RECORDS], on_publish_confirm=confirm)
        await asyncio.wait_for(is_done.wait(), PATIENCE_S)
    return clock


async def _consume(records: int, address: Address) -> Stopwatch:
    from rstream import Consumer, ConsumerOffsetSpecification, OffsetType  # noqa: PLC0415

    clock, is_done, count = Stopwatch(), asyncio.Event(), 0

    def counted(_message: Any, _context: Any) -> None:
        nonlocal count
        if count == 0:
            clock.begin()
        count += 1
        if count == records:
            clock.finishes(count)
            is_done.set()

    consumer = Consumer(
        address.host, address.stream_port or 0, vhost=address.vhost, username=address.user, password=address.password
    )
    await consumer.start()
    first = ConsumerOffsetSpecification(OffsetType.FIRST, None)
    await consumer.subscribe(address.log("positions"), counted, decoder=None, offset_specification=first)
    await asyncio.wait_for(is_done.wait(), PATIENCE_S)
    await consumer.close()
    return clock


def _messages(job: dict[str, Any]) -> workload.Messages:
    made = workload.fleet(codec(job["codec"], stream("positions").schema), vehicles=job["vehicles"])
    return made.messages(job["records"])


def main(job: dict[str, Any]) -> None:
    """Do one of them and report."""
    does = {"publish": publish, "sink": sink, "bare-send": bare_send, "bare-consume": bare_consume}
    does[job["does"]](job, address_of(job["address"], os.environ[PASSWORD]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
