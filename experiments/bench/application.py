"""The application's own sink and transformer: `python -m experiments.bench.application JOB` (see rounds.Job).

Both are put together as orchestration.roles does it, with all their guarantees and default limits.
"""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.bench.stopwatch import Stopwatch
from sinks.files import FileSink
from streaming.codecs import codec
from streaming.home import Home
from streaming.progress import Progress
from streaming.service import Limits, run_flow, run_sink
from streaming.topology import role, stream
from streaming.transformers.flows import step_for
from streaming.transports.kafka import KafkaTransport

PATIENCE_S = 600.0


@dataclass(slots=True)
class TimedProgress(Progress):
    """The loop's own counters, with a clock: it is told of each poll and each commit."""

    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def took(self, records: int) -> None:
        """Records were taken in."""
        Progress.took(self, records)
        self.stopwatch.takes(records)

    def commits(self, records: int, took_s: float = 0.0) -> None:
        """Records are durable and visible."""
        Progress.commits(self, records, took_s)
        self.stopwatch.finishes(records)


def sink(job: dict[str, Any], transport: KafkaTransport, progress: TimedProgress) -> None:
    """Positions to Parquet: decoded, derived, with partition and offset, in slots, synced."""
    chosen = role("positions-parquet")
    files = FileSink(
        Home(Path(job["folder"])),
        "kafka",
        chosen,
        codec(job["codec"], stream("positions").schema),
        transport.identity("positions"),
        writer="bench",
    )
    limits = Limits(PATIENCE_S, job["records"])
    run_sink(transport, chosen, files, stop=threading.Event(), progress=progress, limits=limits)


def means(job: dict[str, Any], transport: KafkaTransport, progress: TimedProgress) -> None:
    """Positions to 2 s means: output, state and offsets in transactions."""
    chosen = role("means-transformer")
    streams = ("positions", "position_means", "late_positions")
    codecs = {name: codec(job["codec"], stream(name).schema) for name in streams}
    limits = Limits(PATIENCE_S, job["records"])
    step = step_for(chosen)
    run_flow(transport, chosen, step, codecs, stop=threading.Event(), progress=progress, limits=limits)


def main(job: dict[str, Any]) -> None:
    """Run one of the two to the topic's end, and report."""
    transport = KafkaTransport(job["bootstrap_servers"], prefix=job["prefix"])
    progress = TimedProgress(job["contender"], Path(job["folder"]) / "run" / "progress.json")
    {"sink": sink, "means": means}[job["contender"]](job, transport, progress)
    progress.stopwatch.report()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
