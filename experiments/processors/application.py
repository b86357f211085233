"""One of the application's transformers: `python -m experiments.processors.application JOB` (JSON, from systems.py).

Put together as orchestration.roles does it, with all its guarantees and default limits. SIGTERM ends it in order.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from streaming.codecs import codec
from streaming.progress import Progress
from streaming.service import run_flow
from streaming.stopping import stop_on_signals
from streaming.topology import STREAMS, StreamKind, role
from streaming.transformers.flows import reference_table, step_for
from streaming.transports.kafka import KafkaTransport


def main(job: dict[str, Any]) -> None:
    """Run the role until told to stop."""
    stop = stop_on_signals()
    chosen = role(job["role"])
    transport = KafkaTransport(job["bootstrap_servers"], prefix=job["prefix"])
    names = [name for name in (*chosen.reads, *chosen.writes) if STREAMS[name].kind is not StreamKind.STATE]
    codecs = {name: codec("json", STREAMS[name].schema) for name in names}
    vehicles = None
    if chosen.looks_up:
        vehicles = reference_table(transport.read_all("vehicles"), codec("json", STREAMS["vehicles"].schema))
    step, progress = step_for(chosen, vehicles=vehicles), Progress(chosen.name, Path(job["state"]) / chosen.name)
    run_flow(transport, chosen, step, codecs, stop=stop, progress=progress)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
