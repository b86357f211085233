"""A sink as a process of its own, to be killed: its home as argument, the address by environment."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from sinks.files import Rotation
from streaming.progress import Progress
from streaming.service import run_sink
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.queues import RabbitQueues
from tests.brokers.rabbitmq_scenes import ROLE, sink_at


def main(home: Path) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    address = Address(
        int(os.environ["AMQP_PORT"]), "operator", os.environ["AMQP_PASSWORD"], prefix=os.environ["AMQP_PREFIX"]
    )
    # Small files and slow, so that a kill meets every moment between delivery and acknowledgement.
    sink = sink_at(home, Rotation(rows=1_000, seconds=0.2))
    transport = RabbitQueues(address, prefetch=5_000)
    run_sink(transport, ROLE, sink, stop=stop, progress=Progress("sink"))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
