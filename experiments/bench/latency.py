"""`python -m experiments.bench.latency`: how long a message is under way, by rate and broker, three copies on each.

Sender and reader are processes of their own, the rate is kept whatever the broker does (open loop), and a delay counts
from the moment at which a message was due. Ends with 1 when a run is void: something was lost or doubled, or an end
did not come to its end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from matplotlib.figure import Figure as Drawing
from rich.console import Console
from rich.table import Table

from experiments import figures, provenance
from experiments.bench.latency_client import QUANTILES
from experiments.bench.options import count, some_of
from experiments.bench.rabbitmq_client import PASSWORD, transport_of
from experiments.bench.rabbitmq_rounds import address_on, delete_positions, installed_version, told
from experiments.bench.results import Spread
from experiments.bench.rounds import WARM_UP, delete_topics
from streaming.cluster import jars, tether
from streaming.cluster.kafka import DisposableCluster
from streaming.cluster.rabbitmq import DisposableRabbitMQ
from streaming.errors import StreamgaugeError
from streaming.topology import STREAMS
from streaming.transports.kafka import KafkaTransport

WAYS: Final = {
    "kafka": "Kafka, the application's clients",
    "prompt": "Kafka, prompt clients",
    "queues": "RabbitMQ, quorum queue",
    "streams": "RabbitMQ, stream",
}
COLOURS: Final = {"kafka": figures.BLUE, "prompt": figures.SKY, "queues": figures.ORANGE, "streams": figures.GREEN}
METRICS: Final = tuple(f"p{100 * each:g}_ms" for each in QUANTILES)
RATES: Final = (100, 1_000, 10_000)
REMARKS: Final = (
    (
        "three nodes and three copies on each side, all on this machine; Kafka: acks=all, min.insync.replicas=2, "
        "6 partitions; RabbitMQ: persistent, confirmed; one queue, one stream"
    ),
    (
        "not the same guarantee: a quorum queue's majority has synced a message to disk when it is confirmed, "
        "Kafka's and the stream's copies have it in memory"
    ),
    (
        "the application's clients of Kafka wait for company to save work (linger.ms 5, fetch.min.bytes 64 KiB for at "
        "most 100 ms); prompt ones do not (0 and 1); otherwise their settings are the same"
    ),
)
COPIES: Final = 3
START_S: Final = 0.2  # from both ends' readiness until the first message is due
_progress = Console(stderr=True, highlight=False)


@dataclass(frozen=True, slots=True)
class Latency:
    """One run: a way, a rate, and its percentiles in milliseconds; with any problem it is void."""

    way: str
    rate: int
    repetition: int
    found: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""


class _End:
    """One of the two processes."""

    def __init__(self, job: dict[str, Any], secrets: Mapping[str, str]) -> None:
        words = [sys.executable, "-m", "experiments.bench.latency_client", json.dumps(job)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            tether.tethered(words), env=tether.environment(secrets), stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def line(self) -> str:
        """What it says next. RuntimeError with its last words when it has ended."""
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        if said := self._process.stdout.readline():
            return said
        _, error = self._process.communicate()
        raise RuntimeError((error.strip().splitlines() or ["it ended and said nothing"])[-1])

    def tell(self, line: str) -> None:
        """Give it a line."""
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


@dataclass(frozen=True)
class Bench:
    """Brokers of one kind and what to do on them."""

    ways: Sequence[str]
    rates: Sequence[int]
    seconds: float
    repetitions: int
    servers: str = ""
    node: DisposableRabbitMQ | None = None

    def run(self) -> Iterator[Latency]:
        """Every run, shuffled within each repetition. Of a first round, which warms up, only what is void is told."""
        order = random.Random(1)  # noqa: S311 - an order, not a secret
        points = [(way, rate) for way in self.ways for rate in self.rates]
        for repetition in range(WARM_UP, self.repetitions + 1):
            for way, rate in order.sample(points, len(points)):
                run = self.measure(way, rate, repetition)
                if run.problem or repetition != WARM_UP:
                    yield run

    def measure(self, way: str, rate: int, repetition: int) -> Latency:
        """One run on a topic, queue or stream of its own."""
        prefix = f"latency-{way}-{rate}-{repetition}-"
        job: dict[str, Any] = {"way": way, "rate": rate, "records": int(rate * self.seconds), "prefix": prefix}
        with self._place(way, prefix) as (where, secrets):
            found = _between(job | where, secrets)
        return Latency(way, rate, repetition, *found)

    @contextlib.contextmanager
    def _place(self, way: str, prefix: str) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
        """A topic, queue or stream that lasts as long as the block: where it is, and the secrets to get there."""
        positions = STREAMS["positions"]
        if self.node is None:
            KafkaTransport(self.servers, prefix=prefix).create([positions], replication=COPIES)
            try:
                yield {"servers": self.servers}, {}
            finally:
                delete_topics(self.servers, [prefix + positions.name])
            return
        address = address_on(self.node, way, prefix)
        transport = transport_of(way, address)
        transport.create([positions], replication=COPIES)
        transport.close()
        try:
            yield {"address": told(address)}, {PASSWORD: address.password}
        finally:
            delete_positions(address, way)


def _between(job: dict[str, Any], secrets: Mapping[str, str]) -> tuple[dict[str, float], str]:
    """What the two ends found, and what is wrong with it."""
    try:
        with _End({**job, "does": "read"}, secrets) as reader, _End({**job, "does": "send"}, secrets) as sender:
            for end in (sender, reader):
                end.line()
            at = time.monotonic() + START_S
            for end in (sender, reader):
                end.tell(str(at))
            sent, read = json.loads(sender.line()), json.loads(reader.line())
    except RuntimeError as error:
        return {}, str(error)
    wrong = [f"{read[name]} {name}" for name in ("lost", "doubled") if read[name]]
    return {**sent, **read}, ", ".join(wrong)


def sound(runs: Sequence[Latency], way: str, rate: int, metric: str) -> list[float]:
    """The metric of those runs that count; a percentile beyond which too few messages lay is missing."""
    return [
        run.found[metric]
        for run in runs
        if (run.way, run.rate) == (way, rate) and not run.problem and metric in run.found
    ]


def table(runs: Sequence[Latency]) -> Table:
    """Median and extremes over the repetitions, a line for each way and rate."""
    drawn = Table(box=None, pad_edge=False)
    for title in ("what", "messages/s", *(f"{metric.removesuffix('_ms')} ms" for metric in METRICS), "late ms", "void"):
        drawn.add_column(title, justify="left" if title == "what" else "right")
    for way, rate in sorted({(run.way, run.rate) for run in runs}, key=lambda each: (each[1], [*WAYS].index(each[0]))):
        spreads = [Spread.of(sound(runs, way, rate, metric)) for metric in (*METRICS, "behind_ms")]
        void = sum(bool(run.problem) for run in runs if (run.way, run.rate) == (way, rate))
        cells = [f"{each.median:,.1f} ({each.least:,.1f} – {each.most:,.1f})" if each else "–" for each in spreads]
        drawn.add_row(WAYS[way], f"{rate:,}", *cells, str(void) if void else "")
    return drawn


def draw(runs: Sequence[Latency]) -> Drawing:
    """Median and 95th percentile of the delay over the rate, a colour a way."""
    figure, axes = figures.panels(2, width=10.0, height=3.6, sharey=True)
    for axis, metric, title in zip(axes, METRICS, ("Half of the messages within", "95 % within"), strict=False):
        for way, says in WAYS.items():
            found = {rate: Spread.of(sound(runs, way, rate, metric)) for rate in sorted({run.rate for run in runs})}
            known = {rate: spread for rate, spread in found.items() if spread}
            if known:
                least, median, most = zip(
                    *((each.least, each.median, each.most) for each in known.values()), strict=True
                )
                axis.plot([*known], median, "o-", color=COLOURS[way], label=says)
                axis.fill_between([*known], least, most, color=COLOURS[way], alpha=0.15, linewidth=0)
        axis.set(xscale="log", yscale="log", xlabel="messages a second", title=title)
    axes[0].set_ylabel("ms from due to received")
    axes[0].legend()
    return figure


def main(arguments: list[str]) -> int:
    """Measure and print; the exit code."""
    options = _options(arguments)
    facts = _facts()
    runs = []
    for run in _runs(options):
        runs.append(run)
        said = f"void: {run.problem}" if run.problem else f"p50 {run.found['p50_ms']:8.1f} ms"
        _progress.print(
            f"round {run.repetition} of {options.repetitions}  {run.way:<8}{run.rate:>7,}/s  {said}",
            style="red" if run.problem else "dim",
            markup=False,
        )
    if options.figure:
        with figures.style():
            figures.save(draw(runs), options.figure, str(facts["began"]))
    if options.json:
        print(json.dumps({**facts, "remarks": REMARKS, "runs": [asdict(run) for run in runs]}, indent=2))
    else:
        _print(facts, runs, options)
    return int(any(run.problem for run in runs))


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m experiments.bench.latency", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--ways", type=some_of(WAYS), default=tuple(WAYS), help=f"some of {', '.join(WAYS)} (default: all)"
    )
    parser.add_argument("--rates", type=_rates, default=RATES, help="messages a second (default: 100,1000,10000)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of load a run (default: 4)")
    parser.add_argument("--repetitions", type=count, default=5, help="of each way and rate (default: 5)")
    parser.add_argument("--figure", type=Path, help="draw it into this PNG")
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    options = parser.parse_args(arguments)
    if options.seconds <= 0:
        parser.error("--seconds: above 0")
    return options


def _rates(text: str) -> tuple[int, ...]:
    return tuple(count(each) for each in text.split(","))


def _runs(options: argparse.Namespace) -> Iterator[Latency]:
    told_to = (options.rates, options.seconds, options.repetitions)
    if ways := [way for way in options.ways if way in {"kafka", "prompt"}]:
        with DisposableCluster(count=COPIES) as cluster:
            yield from Bench(ways, *told_to, servers=cluster.bootstrap_servers).run()
    if ways := [way for way in options.ways if way in {"queues", "streams"}]:
        with DisposableRabbitMQ(count=COPIES) as node:
            yield from Bench(ways, *told_to, node=node).run()


def _facts() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        machine = asdict(provenance.machine(Path(folder)))
    return {
        "began": provenance.now(),
        "code": provenance.code_version(),
        "machine": machine,
        "versions": provenance.versions(),
        "brokers": {"kafka": jars.KAFKA_VERSION, "rabbitmq": installed_version()},
        "contention": provenance.contention(),
    }


def _print(facts: dict[str, Any], runs: list[Latency], options: argparse.Namespace) -> None:
    console, machine = Console(width=None if sys.stdout.isatty() else 140, highlight=False), facts["machine"]
    console.print(table(runs))
    load = ", ".join(f"{each:.2f}" for each in machine["load_before"])
    brokers = ", ".join(f"{name} {number}" for name, number in facts["brokers"].items())
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    remarks = (
        *REMARKS,
        f"median (least – most) of {options.repetitions} runs of {options.seconds:g} s, the first fifth left out",
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}; load before: {load}",
        f"{brokers}; Python {machine['python']}, {versions}; code {facts['code'][:12]}; {facts['began']}",
    )
    for line in remarks:
        console.print(line, style="dim")
    for trouble in facts["contention"]:
        console.print(f"disturbed: {trouble}", style="yellow")
    for run in runs:
        if run.problem:
            said = f"void: round {run.repetition}, {run.way}, {run.rate}/s: {run.problem}"
            console.print(said, style="red", markup=False)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except StreamgaugeError as error:
        _progress.print(str(error), style="red", markup=False)
        sys.exit(error.exit_code)
