"""What roles are put through: at least four configurations each of producers, transformers and sinks.

Each says what it varies against the first of its kind; what dominates where is found out by patterns.py, not said here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from experiments.profiles import calls, patterns, results, runs
from experiments.profiles.corners import At
from experiments.profiles.runner import Request, profile
from experiments.profiles.runs import Load, Profiler, Run, Status, Workload
from experiments.profiles.stage import matters
from streaming.home import Home
from streaming.topology import RoleKind, role
from streaming.tuning import Tuning

MESSAGES: Final = 100_000
FEW: Final = 20_000
SECONDS: Final = 6.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A role under a workload; `varies`: what is different from the first of its kind."""

    name: str
    role: str
    workload: Workload
    varies: str

    @property
    def kind(self) -> RoleKind:
        """Producer, transformer or sink."""
        return role(self.role).kind

    def is_for(self, broker: str) -> bool:
        """Whether what it varies is of consequence on this broker."""
        return all(matters(name, self.role, broker) for name in self.workload.tuning.given)


def _free(**changes: object) -> Workload:
    return Workload(**{"messages": MESSAGES, **changes})  # type: ignore[arg-type]


def _tuned(messages: int = MESSAGES, **settings: object) -> Workload:
    return Workload(messages=messages, tuning=Tuning(**settings))  # type: ignore[arg-type]


def _timed(load: Load, rate_hz: float, **changes: object) -> Workload:
    return Workload(messages=None, seconds=SECONDS, load=load, rate_hz=rate_hz, **changes)  # type: ignore[arg-type]


SCENARIOS: Final = (
    Scenario("producer-json", "positions-generator", _free(), "positions in JSON, as fast as it can"),
    Scenario("producer-avro", "positions-generator", _free(codec="avro"), "codec: Avro"),
    Scenario("producer-many", "positions-generator", _free(vehicles=2_000), "2,000 vehicles instead of 20"),
    Scenario("producer-large", "diagnostics-generator", _free(messages=FEW), "20,000 nested messages of 540 bytes"),
    Scenario("producer-paced", "positions-generator", _timed(Load.STEADY, 202), "low load: 10.1 Hz and vehicle"),
    Scenario("producer-plain", "positions-generator", _tuned(compression="none"), "no compression instead of lz4"),
    Scenario("producer-zstd", "positions-generator", _tuned(compression="zstd"), "compression: zstd instead of lz4"),
    Scenario("producer-batches", "positions-generator", _tuned(batch_bytes=16_384), "batches of 16 KiB, not 1 MB"),
    Scenario("transformer-json", "means-transformer", _free(), "2 s means of a backlog in JSON"),
    Scenario("transformer-avro", "means-transformer", _free(codec="avro"), "codec: Avro"),
    Scenario(
        "transformer-many", "means-transformer", _free(vehicles=2_000), "2,000 vehicles: a hundred times the windows"
    ),
    Scenario("transformer-low", "means-transformer", _timed(Load.STEADY, 200), "low load: 200 a second"),
    Scenario("transformer-burst", "means-transformer", _timed(Load.BURST, 5_000), "bursts of 10,000 every 2 s"),
    Scenario("transformer-join", "alerts-transformer", _free(), "another step: join and judge"),
    Scenario(
        "transformer-batches",
        "means-transformer",
        _tuned(poll_records=2_000, commit_records=2_000),
        "polls and transactions of 2,000 records",
    ),
    Scenario(
        "transformer-partitions", "means-transformer", _tuned(partitions=12), "12 partitions instead of 6, one process"
    ),
    Scenario(
        "transformer-prefetch", "means-transformer", _tuned(prefetch=10_000), "prefetch: 10,000 instead of 60,000"
    ),
    Scenario("sink-parquet", "positions-parquet", _free(), "positions to Parquet, a backlog in JSON"),
    Scenario("sink-avro", "positions-parquet", _free(codec="avro"), "codec: Avro"),
    Scenario("sink-csv", "position-means-csv", _free(), "format: CSV (of the means)"),
    Scenario("sink-large", "diagnostics-parquet", _free(messages=FEW), "20,000 nested messages of 540 bytes"),
    Scenario("sink-plain", "positions-parquet", _tuned(parquet="uncompressed"), "no compression instead of zstd"),
    Scenario("sink-files", "positions-parquet", _tuned(file_rows=10_000), "a file of each partition every 10,000 rows"),
    Scenario("sink-batches", "positions-parquet", _tuned(poll_records=2_000), "polls of 2,000 records, not 20,000"),
    Scenario("sink-partitions", "positions-parquet", _tuned(partitions=12), "12 partitions instead of 6, one process"),
    Scenario(
        "sink-prefetch",
        "positions-parquet",
        _tuned(FEW, prefetch=10_000),
        "20,000 records; prefetch: a third of a file's 30,000 rows",
    ),
    Scenario("sink-low", "positions-parquet", _timed(Load.STEADY, 200), "low load: 200 a second"),
    Scenario("sink-burst", "positions-parquet", _timed(Load.BURST, 5_000), "bursts of 10,000 every 2 s"),
)


def run(
    home: Home,
    at: At | None,
    chosen: Sequence[Scenario] = SCENARIOS,
    *,
    broker: str = "kafka",
    stop: threading.Event | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Run]:
    """Each scenario that is for this broker once under cProfile, as far as it comes before `stop`."""
    found: list[Run] = []
    chosen = [each for each in chosen if each.is_for(broker)]
    for place, each in enumerate(chosen, start=1):
        if stop is not None and stop.is_set():
            break
        said = f"{place} of {len(chosen)}, {each.name}: "
        request = Request(each.role, broker, Profiler.CPROFILE, each.workload, each.name)
        found.append(profile(home, request, at, stop=stop, say=lambda text, said=said: say(said + text)))  # type: ignore[misc]
    return found


def table(home: Home, found: Sequence[Run]) -> pl.DataFrame:
    """What each scenario's profile says, in the words of patterns.py: one row a run that has a profile."""
    return pl.DataFrame([row for run in found if (row := _row(home, run))], infer_schema_length=None)


def of(run: Run) -> Scenario | None:
    """The scenario a run belongs to."""
    return next((each for each in SCENARIOS if each.name == run.scenario), None)


def _row(home: Home, run: Run) -> dict[str, object] | None:
    folder = runs.folder_of(home, run)
    activities, found = results.read(folder, results.ACTIVITIES), results.read(folder, results.CALLS)
    if run.status is Status.FAILED or activities is None or found is None or activities.is_empty():
        return None
    verdict, scenario = patterns.verdict(activities), of(run)
    hottest = calls.working(found).head(1).to_dicts()
    return {
        "scenario": run.scenario,
        "role": run.role,
        "broker": run.broker,
        "kind": str(role(run.role).kind),
        "varies": scenario.varies if scenario else "",
        "records": run.records,
        "cpu_us_per_record": run.cpu_us_per_record,
        "waiting": verdict.waiting,
        "bottleneck": verdict.bottleneck,
        "share_of_work": verdict.share_of_work,
        "pattern": verdict.pattern,
        "is_mostly_waiting": verdict.is_mostly_waiting,
        "top_call": calls.named(hottest[0]) if hottest else "",
        "top_call_s": hottest[0]["own_s"] if hottest else None,
        "run": run.name,
    }
