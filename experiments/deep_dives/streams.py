"""Kafka Streams: windows, state and joins as a library does them, three times over, and what a crash leaves of each."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import orjson
import polars as pl
from confluent_kafka import KafkaException, Producer
from matplotlib.figure import Figure as Drawing

from experiments import figures
from experiments.experiment import Experiment, Figure, Scene, factor, fixed
from experiments.figures import BLUE, GREEN, GREY, ORANGE, RED
from experiments.findings import Claim, Judgement, always, compare, paired, per_repetition
from experiments.lab import Records, answer, produce
from experiments.load import due
from experiments.measurements import VOID, Measured
from experiments.processors import systems
from experiments.processors.systems import AT_LEAST_ONCE, KAFKA_STREAMS, OURS, QUIX, Job
from experiments.statistics import median_interval, ratio_interval
from experiments.trial import Trial
from streaming.codecs.json import JsonCodec
from streaming.events import VEHICLES, polars_schema
from streaming.generators.vehicles import recorded_reference_data
from streaming.topology import ROLES, STREAMS, StreamKind
from streaming.transformers.windows import LATENESS_US, WINDOW_US
from streaming.transports.kafka import KafkaTransport

ORDER: Final = (OURS, KAFKA_STREAMS, QUIX)
COLOURS: Final = {OURS: BLUE, KAFKA_STREAMS: ORANGE, QUIX: GREEN}
STREAMS_AT_LEAST_ONCE: Final = KAFKA_STREAMS + AT_LEAST_ONCE
CRASHED: Final = (OURS, KAFKA_STREAMS, STREAMS_AT_LEAST_ONCE)
AGO_US: Final = 30 * 60 * 1_000_000  # event times end so long ago: the clock on the wall is past every window
WITHIN_US, BEYOND_US = 1_500_000, 7_000_000  # how much too late a record is sent that still counts, or does not
EVERYBODY, NOBODY = "everybody", "nobody"
OUTPUT: Final = ("position_means", "alerts")
END_S: Final = 20.0
ALERTS_S: Final = 2.5  # after the last mean: one whose mean is wrong may never come
_MEAN: Final = pl.Schema(
    {
        "vehicle": pl.String,
        "window_start": pl.Int64,
        "count": pl.Int64,
        "latitude": pl.Float64,
        "longitude": pl.Float64,
        "speed_mps": pl.Float64,
    }
)
_WINDOW: Final = ["vehicle", "window_start"]


# -- the job, by definition --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What the rows sent so far must lead to: means of the windows that have closed, and those above the limit."""

    means: pl.DataFrame
    alerts: pl.DataFrame
    late: int  # rows that came after their window had closed
    open_windows: int


def expected(rows: pl.DataFrame, limits: pl.DataFrame) -> Expected:
    """Windows by definition, in plain polars. `rows` in order of sending, with their partition.

    A partition's time is the highest event time it has seen. A window is closed when that is past its end and the
    grace; what comes for it then is late and counts nowhere. Sums are of whole numbers, so means are the same bits.
    """
    at = pl.col("event_time").cast(pl.Int64)
    dated = rows.with_columns(window_start=at // WINDOW_US * WINDOW_US, high=at.cum_max().over("partition"))
    ends = pl.col("window_start") + WINDOW_US + LATENESS_US
    dated = dated.with_columns(
        is_late=(ends <= pl.col("high").shift(1).over("partition")).fill_null(value=False),
        is_closed=ends <= pl.col("high").max().over("partition"),
    )
    kept = dated.filter(~pl.col("is_late"))
    means = (
        kept.filter("is_closed")
        .group_by(_WINDOW)
        .agg(
            pl.len().cast(pl.Int64).alias("count"),
            *(_mean(name, scale) for name, scale in (("latitude", 10**9), ("longitude", 10**9), ("speed_mps", 10**6))),
        )
        .select(_MEAN.names())
    )
    judged = means.join(limits, on="vehicle", how="inner").filter(pl.col("speed_mps") > pl.col("speed_limit_mps"))
    still_open = kept.filter(~pl.col("is_closed")).select(_WINDOW).n_unique()
    return Expected(means, judged.select(_WINDOW), int(dated["is_late"].sum()), still_open)


def _mean(column: str, scale: int) -> pl.Expr:
    whole = (pl.col(column) * scale).round().cast(pl.Int64)
    return (whole.sum() / (whole.count().cast(pl.Int64) * scale)).fill_nan(None).alias(column)


# -- what is sent ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Input:
    """Positions in order of sending, each with its partition; what is known of their vehicles."""

    rows: pl.DataFrame
    values: list[bytes]
    vehicles: pl.DataFrame

    def expected(self, count: int) -> Expected:
        """What the first `count` of them must lead to."""
        return expected(self.rows.head(count), self.vehicles.select("vehicle", "speed_limit_mps"))


def _input(trial: Trial, count: int, partitions: int) -> Input:
    """The application's positions, some of them sent too late: half of these still within the grace."""
    rows = trial.lab.workload.table(count)
    times = rows["event_time"].cast(pl.Int64)
    ago = int(time.time() * 1e6) - AGO_US - int(times[-1])
    sent_at = times.to_numpy().astype(np.float64)
    late = trial.random("late").choice(count * 3 // 4, 2 * trial.count("stragglers"), replace=False)
    sent_at[late[::2]] += WITHIN_US
    sent_at[late[1::2]] += BEYOND_US
    names = rows["vehicle"].unique(maintain_order=True).to_list()
    lanes = {name: place % partitions for place, name in enumerate(names)}
    rows = rows.with_columns(
        pl.col("event_time") + pl.duration(microseconds=ago // WINDOW_US * WINDOW_US),
        partition=pl.col("vehicle").replace_strict(lanes, return_dtype=pl.Int64),
    )[np.argsort(sent_at, kind="stable")]
    return Input(rows, trial.lab.workload.codec.encode(rows.drop("partition")), recorded_reference_data(rows))


def _job(trial: Trial, system: str, *, is_prompt: bool = False) -> Job:
    """The contender, installed, with the application's own topics under a name of the trial's."""
    systems.install(system, lambda says: print(says, file=sys.stderr, flush=True))
    lab = trial.lab
    folder = Path(tempfile.mkdtemp(prefix="sg-streams-"))
    lab.keep(lambda: shutil.rmtree(folder, ignore_errors=True))
    job = Job(system, lab.bootstrap_servers, lab.application("app"), folder / "state", is_prompt)
    roles = [ROLES[name] for name in systems.ROLES]
    names = {name for role in roles for name in (*role.reads, *role.writes, *role.looks_up)}
    is_ours = system == OURS
    wanted = [STREAMS[name] for name in sorted(names) if is_ours or STREAMS[name].kind is not StreamKind.STATE]
    KafkaTransport(lab.bootstrap_servers, prefix=job.topic("")).create(wanted, replication=min(3, lab.broker_count))
    for each in wanted:
        lab.settings["topics"].setdefault(each.name, {"partitions": each.partitions, **each.settings})
    lab.settings["clients"].setdefault(system, systems.described(job))
    return job


def _send(trial: Trial, job: Job, producer: Producer, sent: Input, places: range) -> None:
    """Send these rows and wait until all are confirmed."""
    topic = job.topic("positions")
    rows = sent.rows.select("vehicle", "partition")[places.start : places.stop].iter_rows()
    for place, (vehicle, partition) in zip(places, rows, strict=True):
        produce(producer, topic, key=vehicle.encode(), value=sent.values[place], partition=partition)
    if producer.flush(trial.remaining_s):
        raise TimeoutError("the positions were not confirmed in time")


# -- what comes out ----------------------------------------------------------------------------------------------------


@dataclass
class Results:
    """A committed reader of means and alerts: which windows it has seen, and when a new one came last."""

    trial: Trial
    job: Job
    means: set[tuple[str, int]] = field(default_factory=set)
    alerts: set[tuple[str, int]] = field(default_factory=set)
    news_at: float = field(default_factory=time.monotonic)
    first_at: float | None = None  # since it was set to None

    def __post_init__(self) -> None:
        lab = self.trial.lab
        self._seen = {self.job.topic("position_means"): self.means, self.job.topic("alerts"): self.alerts}
        self._consumer = lab.consumer("results", "unused", isolation_level="read_committed", fetch_wait_max_ms=10)
        lab.keep(self._consumer.close)
        self._consumer.assign(lab.beginnings([*self._seen]))

    @property
    def count(self) -> int:
        """Different results seen."""
        return len(self.means) + len(self.alerts)

    def look(self, timeout_s: float = 0.01) -> bool:
        """Take what has come; whether there was a new result among it."""
        before = self.count
        for message in self._consumer.consume(5_000, timeout_s):
            if message.error() is None:
                row = orjson.loads(message.value() or b"{}")
                if _is_speeding(row):
                    self._seen[message.topic() or ""].add((row["vehicle"], row["window_start"]))
        if is_new := self.count > before:
            self.news_at = time.monotonic()
            self.first_at = self.first_at or self.news_at
        return is_new

    def look_for(self, seconds: float) -> int:
        """Look for so long; how many new results came."""
        before, end = self.count, time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0:
            self.look(min(0.05, left_s))
        return self.count - before

    def await_first(self, running: Running) -> float:
        """The moment of the first new result since `first_at` was None."""
        while self.first_at is None:
            running.check()
            self.look()
        return self.first_at

    def wait(self, wanted: Expected, running: Running) -> None:
        """Return when all that is wanted is there, or nothing new has come for as long as there is patience."""
        self.news_at = time.monotonic()
        while (is_short := len(self.means) < len(wanted.means)) or len(self.alerts) < len(wanted.alerts):
            running.check()
            self.look()
            patience_s = self.trial.number("patience_s") if is_short else ALERTS_S
            if time.monotonic() - self.news_at > patience_s:
                return


def _is_speeding(row: dict[str, object]) -> bool:
    return row.get("kind", "speeding") == "speeding"  # the application has alerts of other kinds too


def _found(records: Records) -> pl.DataFrame:
    return pl.DataFrame([row for value in records.values if _is_speeding(row := orjson.loads(value))], schema=_MEAN)


def _account(trial: Trial, job: Job, wanted: Expected, read: dict[str, Records]) -> None:
    """Compare what is committed in the topics with what should be: windows one by one, alerts as they follow from them.

    A trial with missing windows is void, unless it is about what a crash leaves.
    """
    means, alerts = (_found(read[job.topic(name)]) for name in OUTPUT)
    missing, extra, doubled = _off(wanted.means, means)
    wrong = means.join(wanted.means, on=_MEAN.names(), how="anti", nulls_equal=True)
    differing = wrong.join(wanted.means, on=_WINDOW, how="semi").select(_WINDOW).n_unique()
    counts = {"missing": missing, "extra": extra, "doubled": doubled, "differing": differing}
    for metric, value in counts.items():
        trial.record(metric, value, "windows")
    alerts_off = sum(_off(wanted.alerts, alerts))
    trial.record("alerts_off", alerts_off, "alerts")
    trial.record("is_exact", not (any(counts.values()) or alerts_off), "")
    if missing and not trial.allows_loss:
        trial.record(VOID, 1, "", note=f"{missing} of {len(wanted.means)} windows are missing")


def _off(wanted: pl.DataFrame, found: pl.DataFrame) -> tuple[int, int, int]:
    """Missing, extra, doubled."""
    different = found.select(_WINDOW).unique()
    missing = wanted.join(different, on=_WINDOW, how="anti").height
    return missing, different.join(wanted, on=_WINDOW, how="anti").height, found.height - different.height


# -- a contender at work -----------------------------------------------------------------------------------------------


@dataclass
class Running:
    """A contender's processes."""

    trial: Trial
    job: Job
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    began: float = 0.0

    def start(self) -> None:
        """Start them (again)."""
        self.began = time.monotonic()
        self.processes = systems.start(self.job)
        for each in self.processes:
            self.trial.lab.keep(each.kill)

    def await_assignment(self) -> float:
        """Seconds from the start until the group has all partitions of the positions."""
        partitions = STREAMS["positions"].partitions
        self.trial.wait_until(lambda: self.check() and self._assigned() >= partitions, f"{self.job.system} to begin")
        return time.monotonic() - self.began

    def check(self) -> bool:
        """RuntimeError with its last words when one of them has ended; TrialTimedOut when time is over."""
        if self.trial.remaining_s and any(each.poll() is not None for each in self.processes):
            said = self.job.log.read_text(errors="replace").strip()[-400:] or "it said nothing"
            raise RuntimeError(f"{self.job.system} ended by itself: {said}")
        return True

    def kill(self) -> None:
        """SIGKILL."""
        for each in self.processes:
            each.kill()
            each.wait()

    def stop(self) -> None:
        """SIGTERM, and wait until they have ended."""
        for each in self.processes:
            each.terminate()
        for each in self.processes:
            each.wait(min(END_S, self.trial.remaining_s))

    def _assigned(self) -> int:
        admin = self.trial.lab.admin
        try:
            members = answer(admin.describe_consumer_groups([self.job.group])[self.job.group]).members
        except KafkaException:  # no such group yet
            return 0
        return sum(len(each.assignment.topic_partitions) for each in members)


# -- catching up -------------------------------------------------------------------------------------------------------


def catch_up(trial: Trial) -> None:
    """Positions lie in the topic: how fast and how right is each? Then its local state is lost, and more come."""
    system, more = trial.text("system"), trial.count("more")
    count = trial.count("records_quix" if system == QUIX else "records")
    job = _job(trial, system)
    sent = _input(trial, count + more, STREAMS["positions"].partitions)
    producer = trial.lab.producer("source")
    _send_vehicles(trial, job, producer, sent)
    _send(trial, job, producer, sent, range(count))
    wanted, results, running = sent.expected(count), Results(trial, job), Running(trial, job)
    running.start()
    startup = running.await_assignment()
    began = time.monotonic()
    results.wait(wanted, running)
    trial.record("startup", startup, "s")
    trial.record("rate", count / (results.news_at - began), "records/s")
    trial.record("held_back", wanted.open_windows, "windows")
    trial.record("in_silence", results.look_for(trial.number("silence_s")), "results")
    running.stop()
    if trial.text("loses_state") in (EVERYBODY, system):
        shutil.rmtree(job.state)
        _send(trial, job, producer, sent, range(count, count + more))
        wanted, results.first_at = sent.expected(count + more), None
        running.start()
        count += more
        trial.record("recovery", results.await_first(running) - running.began, "s")
        results.wait(wanted, running)
        running.stop()
    late, states = job.topic("late_positions"), _states(trial, job)
    read = trial.lab.read_all([*map(job.topic, OUTPUT), late, *states], isolation_level="read_committed")
    _account(trial, job, wanted, read)
    trial.record("late", wanted.late, "records")
    trial.record("late_kept", len(read[late]), "records")
    _record_state(trial, [read[name] for name in states], sent.values[:count])


def _send_vehicles(trial: Trial, job: Job, producer: Producer, sent: Input) -> None:
    table = sent.vehicles.with_columns(
        producer=pl.lit("lab"),
        epoch=pl.lit(1, pl.Int64),
        sequence=pl.int_range(pl.len(), dtype=pl.Int64),
        event_time=sent.rows["event_time"].min(),
    ).select(polars_schema(VEHICLES).names())
    for vehicle, value in zip(table["vehicle"], JsonCodec(VEHICLES).encode(table), strict=True):
        produce(producer, job.topic("vehicles"), key=vehicle.encode(), value=value)
    producer.flush(trial.remaining_s)


def _states(trial: Trial, job: Job) -> list[str]:
    return [name for name in trial.lab.admin.list_topics(timeout=10).topics if job.is_state(name)]


def _record_state(trial: Trial, kept: Sequence[Records], values: Sequence[bytes]) -> None:
    """What was written to the topics that keep its state, against the input."""
    size = sum(len(key or b"") + len(value) for each in kept for key, value in zip(each.keys, each.values, strict=True))
    trial.record("state_records", sum(map(len, kept)) / len(values), "a record")
    trial.record("state_bytes", size / sum(map(len, values)), "a byte")


# -- a crash -----------------------------------------------------------------------------------------------------------


def crash(trial: Trial) -> None:
    """Positions come steadily; the processor is killed in the middle and starts again where it was."""
    system, rate = trial.text("system"), trial.number("rate")
    total = int(rate * trial.number("seconds"))
    job = _job(trial, system, is_prompt=True)
    sent = _input(trial, total, STREAMS["positions"].partitions)
    producer = trial.lab.producer("source")
    _send_vehicles(trial, job, producer, sent)
    wanted, results, running = sent.expected(total), Results(trial, job), Running(trial, job)
    running.start()
    running.await_assignment()
    kill_at, place = int(trial.random("kill").uniform(0.3, 0.55) * len(wanted.means)), 0
    for _, numbers in due(trial, rate, total * 3 // 4, tick_s=0.02):  # the rest is for after the kill
        _send(trial, job, producer, sent, numbers)
        place = numbers.stop
        if results.look(0) and len(results.means) >= kill_at:
            break
    while len(results.means) < kill_at:
        running.check()
        results.look()
    running.kill()
    killed_at = time.monotonic()
    results.look_for(0.1)  # what it had written before
    trial.record("results_before", results.count, "results")
    results.first_at = None
    running.start()
    for _, numbers in due(trial, rate, total - place, tick_s=0.02):
        _send(trial, job, producer, sent, range(place + numbers.start, place + numbers.stop))
        results.look(0)
    trial.record("back_after", results.await_first(running) - killed_at, "s")
    results.wait(wanted, running)
    running.stop()
    read = trial.lab.read_all([*map(job.topic, OUTPUT)], isolation_level="read_committed")
    _account(trial, job, wanted, read)


# -- claims ------------------------------------------------------------------------------------------------------------


def results_are_equal(measured: Measured) -> Judgement:
    """Judge: each contender's results are the ones by definition, before and after the loss of its state."""
    trials = measured.trials("catch_up", with_void=True)
    return always(
        per_repetition(trials, pl.col("is_exact") == 1), "All contenders gave the same results, to the last bit,"
    )


def _rates(measured: Measured, system: str) -> Judgement:
    trials = measured.trials("catch_up")
    pairs = paired(trials, "rate", pl.col("system") == system, pl.col("system") == KAFKA_STREAMS)
    return compare(ratio_interval(*pairs), "×", f"Rate of {system} against Kafka Streams", above=0.5)


def python_keeps_half(measured: Measured) -> Judgement:
    """Judge: Quix Streams, record by record in Python."""
    return _rates(measured, QUIX)


def batches_keep_half(measured: Measured) -> Judgement:
    """Judge: the application's transformers, batch by batch in Python."""
    return _rates(measured, OURS)


def state_is_rebuilt_soon(measured: Measured) -> Judgement:
    """Judge: the slowest contender's first result after the loss of its local state."""
    trials = measured.trials("catch_up").group_by("repetition").agg(pl.col("recovery").max())
    interval = median_interval(trials["recovery"].to_numpy())
    return compare(interval, "s", "Slowest first result after the loss of local state", below=10)


def clock_closes_windows(measured: Measured) -> Judgement:
    """Judge: whether Kafka Streams gives a window's result when nothing comes any more."""
    trials = measured.trials("catch_up").filter((pl.col("system") == KAFKA_STREAMS) & (pl.col("held_back") > 0))
    is_shown = per_repetition(trials, pl.col("in_silence") >= pl.col("held_back"))
    return always(is_shown, "Windows whose time was over came out without a further record")


def late_records_are_kept(measured: Measured) -> Judgement:
    """Judge: whether Kafka Streams leaves late records anywhere."""
    trials = measured.trials("catch_up").filter((pl.col("system") == KAFKA_STREAMS) & (pl.col("late") > 0))
    return always(
        per_repetition(trials, pl.col("late_kept") == pl.col("late")), "Every late record could be found again"
    )


def changelog_is_smaller(measured: Measured) -> Judgement:
    """Judge: records in Kafka Streams' changelogs for each record of the input."""
    trials = measured.trials("catch_up").filter(pl.col("system") == KAFKA_STREAMS)
    per = trials.group_by("repetition").agg(pl.col("state_records").median())["state_records"]
    return compare(median_interval(per.to_numpy()), "×", "Changelog records for each record of the input", below=1)


def _crashed(measured: Measured, system: str) -> pl.DataFrame:
    return measured.trials("crash", with_void=True).filter(pl.col("system") == system)


def at_least_once_is_enough(measured: Measured) -> Judgement:
    """Judge: Kafka Streams, at least once, killed."""
    is_right = (pl.col("doubled") == 0) & (pl.col("differing") == 0)
    shows = per_repetition(_crashed(measured, STREAMS_AT_LEAST_ONCE), is_right)
    return always(shows, "At least once left no window doubled or wrong after the kill")


def at_least_once_loses_nothing(measured: Measured) -> Judgement:
    """Judge: and is nothing missing?"""
    shows = per_repetition(_crashed(measured, STREAMS_AT_LEAST_ONCE), pl.col("missing") == 0)
    return always(shows, "At least once left no window missing after the kill")


def exactly_once_is_exact(measured: Measured) -> Judgement:
    """Judge: Kafka Streams, exactly once, killed."""
    shows = per_repetition(_crashed(measured, KAFKA_STREAMS), pl.col("is_exact") == 1)
    return always(shows, "exactly_once_v2 left every result right, once, after the kill")


def ours_is_exact(measured: Measured) -> Judgement:
    """Judge: the application's transformers, killed."""
    shows = per_repetition(_crashed(measured, OURS), pl.col("is_exact") == 1)
    return always(shows, "The application's transformers left every result right, once, after the kill")


# -- figures -----------------------------------------------------------------------------------------------------------


def _by_system(trials: pl.DataFrame, systems_wanted: Sequence[str], metric: str) -> list[list[float | None]]:
    return [trials.filter(pl.col("system") == each)[metric].to_list() for each in systems_wanted]


def draw_work(measured: Measured) -> Drawing:
    """Rate, recovery, and what the state costs in its topics."""
    trials = measured.trials("catch_up")
    names = [each for each in ORDER if each in set(trials["system"])]
    colours = [COLOURS[each] for each in names]
    panels = [
        ("rate", "Catching up", "records a second"),
        ("state_bytes", "Topics of state", "bytes for each byte of input"),
    ]
    if "recovery" in trials.columns:
        panels.append(("recovery", "Local state lost", "seconds to the first new result"))
    figure, axes = figures.panels(len(panels), height=2.3, width=11)
    for place, (axis, (metric, title, label)) in enumerate(zip(axes, panels, strict=True)):
        form = "{:,.0f}" if metric == "rate" else "{:.3g}"
        figures.bars(axis, names, _by_system(trials, names, metric), colours, form=form)
        axis.set_title(title)
        axis.set_xlabel(label)
        if place:
            axis.set_yticklabels([])
    figures.rates(axes[0], "x")
    return figure


def draw_crash(measured: Measured) -> Drawing:
    """What a kill leaves, and how long nothing new comes."""
    trials = measured.trials("crash", with_void=True)
    names = [each for each in (*CRASHED, QUIX, QUIX + AT_LEAST_ONCE) if each in set(trials["system"])]
    labels = [each.replace(", ", ",\n") for each in names]
    figure, axes = figures.panels(3, height=2.3, width=11)
    panels = (
        ("doubled", "Doubled", "windows", ORANGE),
        ("differing", "Wrong", "windows", RED),
        ("back_after", "Silence", "seconds from the kill to a new result", GREY),
    )
    for place, (axis, (metric, title, label, colour)) in enumerate(zip(axes, panels, strict=True)):
        figures.bars(axis, labels, _by_system(trials, names, metric), colour)
        axis.set_title(title)
        axis.set_xlabel(label)
        if place:
            axis.set_yticklabels([])
    return figure


# -- the experiment ----------------------------------------------------------------------------------------------------

STREAMS_DIVE = Experiment(
    name="streams",
    title="Kafka Streams",
    demand="D7",
    question=(
        "Two-second means and a join, as the application's transformers, as Quix Streams and as Kafka Streams on the "
        "JVM: are the results equal, how fast are they, what becomes of late records and of open windows, what does "
        "the state cost, how soon is it back when it is lost, and what does a kill double or falsify?"
    ),
    scenes=(
        Scene(
            "catch_up",
            "Positions lie in the application's topic, some of them sent too late: half of these still within the "
            "grace. A contender computes means per vehicle and window, joins them with `vehicles` and keeps those "
            "above the limit (the rate counts from its assignment to the last result; Quix Streams gets fewer "
            "records, for the run's sake; at `standard` all is over while Java still compiles, so Kafka Streams' rate "
            "is that of its first seconds). Results are compared, value by value, with windows by definition. Nothing "
            "comes for `silence_s`, though by the clock every window's time is over. It ends in order, its local "
            "state is deleted, `more` positions come that go on in the same windows, and it starts again.",
            catch_up,
            (
                factor("system", "who computes", ORDER, ORDER),
                fixed("records", "in the topic before the start", 6_000, 40_000, 200_000),
                fixed("records_quix", "for Quix Streams", 3_000, 3_000, 20_000),
                fixed("more", "after the loss of local state", 2_000),
                fixed("loses_state", "who does", NOBODY, EVERYBODY),
                fixed("stragglers", "records within the grace, and as many beyond it", 12),
                fixed("silence_s", "without a record", 0.2, 1.0),
                fixed("patience_s", "without a new window, then one is missing", 15.0),
            ),
            trial_s=14.5,
            timeout_s=120.0,
            columns=(
                "rate",
                "recovery",
                "missing",
                "doubled",
                "differing",
                "late",
                "late_kept",
                "held_back",
                "in_silence",
                "state_records",
                "state_bytes",
            ),
        ),
        Scene(
            "crash",
            "Positions come steadily, twenty times as fast as the vehicles send them. When between 30 and 55 % of the "
            "windows have come out, as the seed has it, the contender's processes are killed (SIGKILL) and started "
            "again at once, with the local state that they left. Kafka Streams works without its cache of records "
            "here, as where results should come promptly; everybody commits twice a second. All that is committed is "
            "then compared with windows by definition.",
            crash,
            (
                factor(
                    "system", "who computes", (STREAMS_AT_LEAST_ONCE,), CRASHED, (*CRASHED, QUIX, QUIX + AT_LEAST_ONCE)
                ),
                fixed("rate", "records a second", 4_000.0),
                fixed("seconds", "of load", 2.0),
                fixed("stragglers", "records within the grace, and as many beyond it", 12),
                fixed("patience_s", "without a new window, then one is missing", 15.0),
            ),
            trial_s=10.5,
            timeout_s=120.0,
            allows_loss=True,
            columns=("doubled", "differing", "missing", "extra", "alerts_off", "back_after"),
        ),
    ),
    claims=(
        Claim(
            "a-window-is-a-definition",
            "Three different engines give the same windows, to the last bit of a mean, with late records among the "
            "input and after the loss of their local state.",
            "Akidau et al., “The Dataflow Model”, VLDB 2015: results are defined by event time, not by the engine",
            results_are_equal,
        ),
        Claim(
            "python-keeps-half-the-rate",
            "A Python library for Kafka Streams' concept (Quix Streams) keeps at least half of the JVM's rate.",
            "folklore: “the broker is the bottleneck”",
            python_keeps_half,
        ),
        Claim(
            "batches-keep-half-the-rate",
            "Python that computes on columns (the application's transformers) keeps at least half of the JVM's rate.",
            "this project's first design idea: the batch is the unit of flow",
            batches_keep_half,
        ),
        Claim(
            "lost-state-is-back-soon",
            "Local state that is lost is rebuilt from the cluster, and the first new result is there within ten "
            "seconds, for state of this size.",
            "Apache Kafka documentation, Kafka Streams architecture: fault tolerance by changelog topics",
            state_is_rebuilt_soon,
        ),
        Claim(
            "the-clock-closes-windows",
            "With suppress(untilWindowCloses) a window's result comes when its time and grace are over.",
            "folklore; KIP-328 speaks of stream time, which stands still without records",
            clock_closes_windows,
        ),
        Claim(
            "late-records-leave-a-trace",
            "Records that come after the grace are kept somewhere by Kafka Streams, so that they can be looked at.",
            "folklore; the documentation knows a counter of dropped records only",
            late_records_are_kept,
        ),
        Claim(
            "the-changelog-is-smaller",
            "Thanks to the cache of records the changelogs of a windowed mean take fewer records than the input.",
            "Apache Kafka documentation, Kafka Streams memory management: record caches in the DSL",
            changelog_is_smaller,
        ),
        Claim(
            "at-least-once-is-enough",
            "Under at_least_once a kill leaves no doubled and no wrong result, for the state comes back with the "
            "offsets.",
            "folklore",
            at_least_once_is_enough,
        ),
        Claim(
            "at-least-once-loses-nothing",
            "Under at_least_once a kill loses no result.",
            "Apache Kafka documentation, processing.guarantee",
            at_least_once_loses_nothing,
        ),
        Claim(
            "exactly-once-v2-is-exact",
            "Under exactly_once_v2 a kill leaves every result right and exactly once, for committed readers.",
            "KIP-447, and Apache Kafka documentation, processing.guarantee",
            exactly_once_is_exact,
        ),
        Claim(
            "state-beside-offsets-is-exact",
            "Transformers that write output, a snapshot of their state and their offsets in one transaction leave "
            "every result right and exactly once.",
            "this project's decision 002: state beside the offsets",
            ours_is_exact,
        ),
    ),
    figures=(
        Figure("work", "Rate, recovery after the loss of local state, and what the state costs in topics.", draw_work),
        Figure("crash", "What a kill doubles and falsifies, and how long nothing new comes.", draw_crash),
    ),
    use_cases=(
        "Kafka Streams is at its best on the JVM where state is large and changes key by key (joins of two streams, "
        "aggregates over millions of keys): it keeps state on local disk, mirrors it in changelogs, and splits the "
        "work by partition with no cluster of its own. Choose exactly_once_v2 wherever a result is counted or paid, "
        "and make readers committed ones; at_least_once suits results that may be doubled and, where they are sums, "
        "too high: what a kill has falsified stays so. Where sparse partitions must not hold results back, send "
        "marks or emit early, for stream time stands still without records; where late data matters, branch it off "
        "before the window. In Python, Quix Streams gives the same concepts record by record, for teams without a "
        "JVM; where the rate is high and the state small, compute on columns in batches and keep a snapshot beside "
        "the offsets, as this application does."
    ),
)
