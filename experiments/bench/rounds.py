"""Rounds: in each, topics of their own are filled, read by every contender in a turning order, checked and deleted.

Invariant: each contender is a process of its own that ends with this one; nothing of it is believed but its clock, what
it left on the brokers and on disk is counted here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from confluent_kafka.admin import AdminClient

from experiments.bench import results
from experiments.bench.results import CONSUME, MEANS, PRODUCE, PUBLISH, SINK, Contender, Run
from sinks.reader import scan
from streaming.cluster import tether
from streaming.codecs import codec
from streaming.home import Home
from streaming.topology import STREAMS, stream
from streaming.transports.kafka import KafkaTransport
from streaming.transports.kafka.settings import CLASSIC_CONSUMER

BARE: Final = "bare-"  # before the name of the topic that produce() fills
MARKS: Final = STREAMS["positions"].partitions
_STREAMS: Final = [STREAMS[name] for name in ("positions", "position_means", "late_positions", "means_state")]
_MODULES: Final = {
    PUBLISH: "producing",
    PRODUCE: "producing",
    CONSUME: "bare",
    SINK: "application",
    MEANS: "application",
}
WARM_UP: Final = 0  # the round whose numbers are thrown away


@dataclass(frozen=True, slots=True)
class Job:
    """What a contender's process is told."""

    contender: str
    bootstrap_servers: str
    prefix: str
    topic: str
    records: int  # that it sends or reads
    codec: str
    vehicles: int
    is_published: bool
    folder: str
    settings: dict[str, Any] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured: where, how much, how often. `folder` takes the sink's files, on a real disk."""

    bootstrap_servers: str
    folder: Path
    records: int
    repetitions: int
    codec: str = "json"
    vehicles: int = 20
    name: str = "bench"
    warm_up_records: int = 50_000

    def run(self) -> Iterator[Run]:
        """Every run, as it is done. A first round with few records warms the brokers up and is not told of."""
        if self.warm_up_records:
            for run in replace(self, records=min(self.records, self.warm_up_records)).round(WARM_UP):
                if run.is_void:
                    yield run
        for repetition in range(1, self.repetitions + 1):
            yield from self.round(repetition)

    def round(self, repetition: int) -> Iterator[Run]:
        """One repetition on new topics."""
        prefix = f"{self.name}-{repetition}-"
        made = {prefix: _STREAMS, BARE + prefix: _STREAMS[:1]}
        for where, streams in made.items():
            KafkaTransport(self.bootstrap_servers, prefix=where).create(streams, replication=3)
        try:
            for contender in order(repetition):
                yield self._measured(contender, repetition, prefix)
        finally:
            names = [where + each.name for where, streams in made.items() for each in streams]
            delete_topics(self.bootstrap_servers, names)

    def _measured(self, contender: Contender, repetition: int, prefix: str) -> Run:
        folder = self.folder / f"{contender.name}-{repetition}"
        folder.mkdir(parents=True)
        load = os.getloadavg()[0]
        try:
            job = self._job(contender, prefix, folder)
            timed = process(_MODULES[contender], asdict(job), timeout_s=120 + self.records / 5_000)
            problems = () if "problem" in timed else self._problems(contender, job, timed)
            return measured(contender.name, repetition, load, timed, problems)
        finally:
            shutil.rmtree(folder)

    def _job(self, contender: Contender, prefix: str, folder: Path) -> Job:
        where = BARE + prefix if contender is PRODUCE else prefix
        is_reader = contender not in {PUBLISH, PRODUCE}
        job = Job(
            contender.name, self.bootstrap_servers, where, where + "positions", self.records + MARKS * is_reader,
            self.codec, self.vehicles, contender is PUBLISH, str(folder),
        )  # fmt: skip
        return replace(job, settings=dict(CLASSIC_CONSUMER), ends=self._ends(where)) if contender is CONSUME else job

    def _ends(self, prefix: str) -> dict[str, int]:
        extents = KafkaTransport(self.bootstrap_servers, prefix=prefix).extents("positions")
        return {str(partition): extent.high for partition, extent in extents.items()}

    def _problems(self, contender: Contender, job: Job, timed: dict[str, Any]) -> tuple[str, ...]:
        """What is wrong with what the contender left."""
        if timed["done"] != job.records:
            return (f"{timed['done']} of {job.records} records done",)
        if contender is SINK:
            return landed_problems(Home(Path(job.folder)), "kafka", self.records)
        if contender is MEANS:
            return self._means_problems(job.prefix)
        sent = sum(self._ends(job.prefix).values()) - (0 if contender is PRODUCE else MARKS)
        return () if sent == self.records else (f"the topic has {sent} records, {self.records} were sent",)

    def _means_problems(self, prefix: str) -> tuple[str, ...]:
        transport = KafkaTransport(self.bootstrap_servers, prefix=prefix)
        values = [value for batch in transport.read_all("position_means") for value in batch.values]
        means = codec(self.codec, stream("position_means").schema).decode(values)
        late = sum(map(len, transport.read_all("late_positions")))
        return results.means_problems(means.table, late + len(means.rejections), self.records)


def order(repetition: int) -> list[Contender]:
    """Who runs after whom: the readers take turns, so that none is always the first after the filling."""
    readers = [CONSUME, SINK, MEANS]
    turn = repetition % len(readers)
    producers = [PRODUCE, PUBLISH] if repetition % 2 else [PUBLISH, PRODUCE]
    return [*producers, *readers[turn:], *readers[:turn]]


def measured(contender: str, repetition: int, load: float, timed: dict[str, Any], problems: Sequence[str] = ()) -> Run:
    """A run from what its process reported, `problem` if that failed, and what was found wrong afterwards."""
    if "problem" in timed:
        return Run(contender, repetition, load_before=load, problems=(timed["problem"],))
    return Run(
        contender,
        repetition,
        rate_hz=timed["timed"] / timed["seconds"] if timed["seconds"] else 0.0,
        cpu_us=1e6 * timed["cpu_s"] / max(timed["timed"], 1),
        peak_mb=timed["peak_mb"],
        load_before=load,
        problems=tuple(problems),
    )


def process(
    module: str, job: dict[str, Any], *, timeout_s: float, secrets: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """What the contender's process reports; a `problem` when it has not come to its end. Secrets go by environment."""
    words = [sys.executable, "-m", f"experiments.bench.{module}", json.dumps(job)]
    try:
        done = subprocess.run(
            tether.tethered(words),
            env=tether.environment(secrets),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"problem": f"not done within {timeout_s:.0f} s"}
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        return {"problem": f"ended with {done.returncode}: {said[-1]}"}
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def landed_problems(home: Home, broker: str, records: int, *, is_gapless: bool = True) -> tuple[str, ...]:
    """What is wrong with the positions that a sink has landed."""
    table = scan(home, broker, "positions_parquet").select("sequence", "_partition", "_offset").collect()
    problems = results.landed_problems(table, records, is_gapless=is_gapless)
    aside = list(home.quarantine(broker).glob("**/*.parquet"))
    return (*problems, *([f"{len(aside)} files in quarantine"] if aside else []))


def delete_topics(bootstrap_servers: str, topics: list[str]) -> None:
    """Delete them and wait until it is done."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 2})
    for future in admin.delete_topics(topics).values():
        future.result(30)
