"""A sink or a transformer as a process of its own, to be killed: sink|transform queues|streams HOME.

The address comes by environment, and STREAMGAUGE_CRASH_AT for a transformer (see orchestration/injection.py). Files and
commits are small, so that a kill meets every moment.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from orchestration.injection import checkpoint_of
from sinks.files import FileSink, Rotation
from streaming.home import Home
from streaming.interfaces import Sink
from streaming.progress import Progress
from streaming.service import run_flow, run_sink
from streaming.topology import role
from streaming.transformers.windows import MeansStep
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.queues import RabbitQueues
from streaming.transports.rabbitmq.streams import RabbitStreams
from tests.brokers.rabbitmq_scenes import CODEC, CODECS, ROLE, sink_at

SMALL = Rotation(rows=1_000, seconds=0.2)


def transport_of(kind: str, home: Path) -> Any:
    address = Address(
        int(os.environ["AMQP_PORT"]),
        "operator",
        os.environ["AMQP_PASSWORD"],
        stream_port=int(os.environ["STREAM_PORT"]),
        prefix=os.environ["AMQP_PREFIX"],
    )
    if kind == "queues":
        return RabbitQueues(address, prefetch=5_000, outbox=home / "outbox", codec=lambda name: CODECS[name])
    return RabbitStreams(address, outbox=home / "outbox")


def main(what: str, kind: str, home: Path) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    transport = transport_of(kind, home)
    if what == "transform":
        flow = role("means-transformer")
        transport.transaction = functools.partial(transport.transaction, checkpoint=checkpoint_of(os.environ))
        run_flow(transport, flow, MeansStep(), CODECS, stop=stop, progress=Progress("t"), commit_every_s=0.05)
        return
    run_sink(transport, ROLE, sink_of(kind, transport, home), stop=stop, progress=Progress("s"))


def sink_of(kind: str, transport: Any, home: Path) -> Sink:
    if kind == "queues":
        return sink_at(home, SMALL)
    identity = transport.identity("positions")
    return FileSink(Home(home), "rabbitmq", ROLE, CODEC, identity, rotation=SMALL, writer="test")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
