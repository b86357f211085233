"""`python -m experiments.bench`: start brokers, run the rounds, print the table and what it was measured on.

Ends with 1 when a run is void: something was lost or doubled, or a process did not come to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape

from experiments import provenance
from experiments.bench import rabbitmq_rounds, results
from experiments.bench.options import count, some_of
from experiments.bench.rabbitmq_rounds import RabbitBench
from experiments.bench.results import CONTENDERS, Contender, Run
from experiments.bench.rounds import WARM_UP, Bench
from sinks.arrivals import ROTATION
from streaming.cluster import jars
from streaming.cluster.kafka import DisposableCluster
from streaming.cluster.rabbitmq import DisposableRabbitMQ
from streaming.codecs import CODECS
from streaming.errors import StreamgaugeError
from streaming.home import Home
from streaming.transports.rabbitmq.queue_publisher import WINDOW
from streaming.transports.rabbitmq.queue_source import PREFETCH
from streaming.transports.rabbitmq.stream_publisher import WINDOW as STREAM_WINDOW

KAFKA: Final = "kafka"
RABBITMQ: Final = "rabbitmq"
_CONTENDERS: Final = {KAFKA: CONTENDERS, RABBITMQ: rabbitmq_rounds.CONTENDERS}
_DIFFERENCES: Final = (  # between the application and its references, where the guarantees are not the same
    "PerfTest's messages have the mean size of the application's and one routing key; its consumer keeps nothing",
    f"rstream has no bound on what is unconfirmed (the application: {STREAM_WINDOW:,}), no name to drop repeats by",
    "PerfTest's memory is not measured, and its CPU includes the start of Java",
)
LEAST_RECORDS: Final = 100_000
_progress = Console(stderr=True, highlight=False)


def main(arguments: list[str]) -> int:
    """Measure and print; the exit code."""
    options = _options(arguments)
    folder = Home.locate(os.environ).open().root / "bench"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        facts = _facts(options, Path(scratch))
        runs = _runs(options, Path(scratch))
    counted = [run for run in runs if run.repetition != WARM_UP]
    contenders = [each for broker in options.brokers for each in _CONTENDERS[broker]]
    if options.json:
        print(json.dumps(_document(facts, runs, counted, contenders), indent=2))
    else:
        _print(facts, runs, counted, contenders)
    return int(any(run.is_void for run in runs))


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m experiments.bench", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--brokers",
        type=some_of(_CONTENDERS),
        default=tuple(_CONTENDERS),
        help="kafka,rabbitmq (default: one after the other)",
    )
    parser.add_argument("--records", type=count, default=1_000_000, help="positions in the topic (default: 1,000,000)")
    parser.add_argument(
        "--queue-records", type=count, default=300_000, help="positions in the queue (default: 300,000)"
    )
    parser.add_argument(
        "--stream-records", type=count, default=2_000_000, help="positions in RabbitMQ's stream (default: 2,000,000)"
    )
    parser.add_argument("--repetitions", type=count, default=5, help="rounds, each on new topics (default: 5)")
    parser.add_argument("--codec", choices=sorted(CODECS), default="json")
    parser.add_argument("--vehicles", type=count, default=20, help="simulated vehicles (default: 20)")
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    options = parser.parse_args(arguments)
    for name in ("records", "queue_records", "stream_records"):
        if (given := getattr(options, name)) < LEAST_RECORDS:
            option = name.replace("_", "-")
            parser.error(f"--{option} {given:,}: at least {LEAST_RECORDS:,}, or the first poll takes most of them")
    if options.queue_records % ROTATION.rows:
        parser.error(
            f"--queue-records {options.queue_records:,}: must be a multiple of {ROTATION.rows:,}, which the sink "
            "acknowledges at once and PerfTest shall too"
        )
    return options


def _runs(options: argparse.Namespace, scratch: Path) -> list[Run]:
    runs = []
    measures = {KAFKA: _on_kafka, RABBITMQ: _on_rabbitmq}
    for broker in options.brokers:
        for run in measures[broker](options, scratch):
            runs.append(run)
            _progress.print(_line(run, options.repetitions), style="red" if run.is_void else "dim")
    return runs


def _on_kafka(options: argparse.Namespace, scratch: Path) -> Iterator[Run]:
    with DisposableCluster() as cluster:
        servers = cluster.bootstrap_servers
        yield from Bench(servers, scratch, options.records, options.repetitions, options.codec, options.vehicles).run()


def _on_rabbitmq(options: argparse.Namespace, scratch: Path) -> Iterator[Run]:
    jars.install(_progress.print, jars.locked(jars.PERF_TEST_LOCK))
    with DisposableRabbitMQ() as node:
        yield from RabbitBench(
            node,
            scratch,
            options.queue_records,
            options.stream_records,
            options.repetitions,
            options.codec,
            options.vehicles,
        ).run()


def _line(run: Run, repetitions: int) -> str:
    said = "void: " + escape("; ".join(run.problems)) if run.is_void else f"{run.rate_hz:>9,.0f} records/s"
    return f"round {run.repetition} of {repetitions}  {run.contender:<15}{said}"


def _facts(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What must be known to judge the numbers and to measure again; taken before anything runs."""
    return {
        "began": provenance.now(),
        "code": provenance.code_version(),
        "records": options.records,
        "repetitions": options.repetitions,
        "codec": options.codec,
        "vehicles": options.vehicles,
        "settings": {broker: _settings(options, broker) for broker in options.brokers},
        "differences": list(_DIFFERENCES) if RABBITMQ in options.brokers else [],
        "machine": asdict(provenance.machine(folder)),
        "versions": provenance.versions(),
        "contention": provenance.contention(),
    }


def _settings(options: argparse.Namespace, broker: str) -> str:
    """What was measured there, under which settings, in one line."""
    if broker == KAFKA:
        topic = "6 partitions, replication 3, min.insync.replicas 2, three brokers on this machine"
        return f"Kafka {jars.KAFKA_VERSION}: {options.records:,} positions; {topic}"
    return (
        f"RabbitMQ {rabbitmq_rounds.installed_version()}, one node on this machine: "
        f"{options.queue_records:,} positions in a quorum queue (persistent, mandatory, {WINDOW:,} unconfirmed, "
        f"prefetch {PREFETCH:,}, one acknowledgement for {ROTATION.rows:,} messages), "
        f"beside PerfTest {jars.PERF_TEST_VERSION} with the same settings on a queue with the same arguments; "
        f"{options.stream_records:,} in a stream of one copy, beside rstream's own clients"
    )


def _document(
    facts: dict[str, Any], runs: list[Run], counted: list[Run], contenders: Sequence[Contender]
) -> dict[str, Any]:
    ratios = {each.name: results.ratio(counted, each) for each in contenders if each.name != each.beside}
    return {
        **facts,
        "is_void": any(run.is_void for run in runs),
        "runs": [asdict(run) for run in runs],
        "ratios": {name: asdict(found) if found else None for name, found in ratios.items()},
    }


def _print(facts: dict[str, Any], runs: list[Run], counted: list[Run], contenders: Sequence[Contender]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(results.table(counted, contenders))
    for line in _remarks(facts):
        console.print(line, style="dim")
    for trouble in facts["contention"]:
        console.print(f"disturbed: {trouble}", style="yellow")
    for run in runs:
        for problem in run.problems:
            console.print(f"void: round {run.repetition}, {run.contender}: {problem}", style="red", markup=False)


def _remarks(facts: dict[str, Any]) -> list[str]:
    machine, disk = facts["machine"], facts["machine"]["disk"]
    load = ", ".join(f"{each:.2f}" for each in machine["load_before"])
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    measured = f"{facts['codec']}, {facts['vehicles']} vehicles"
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB"
    return [
        *facts["settings"].values(),
        *facts["differences"],
        f"{measured}; {facts['repetitions']} repetitions on new topics; every record counted afterwards",
        "producers' memory is what sending added to the messages that were made before",
        f"{where}, Linux {machine['kernel']}; fsync {disk['median_ms']:.1f} ms; load before: {load}",
        f"Python {machine['python']}, {versions}; code {facts['code'][:12]}; {facts['began']}",
    ]


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except StreamgaugeError as error:
        _progress.print(str(error), style="red", markup=False)
        sys.exit(error.exit_code)
