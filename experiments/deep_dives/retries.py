"""Retries: what they double, reorder and save on the producer's side; what they block on the consumer's."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
from confluent_kafka import KafkaError, Message, Producer
from matplotlib.figure import Figure as Drawing

from experiments import figures
from experiments.experiment import Experiment, Figure, Needs, Scene, factor, fixed
from experiments.faults import SOON_MISSED
from experiments.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED
from experiments.findings import Claim, Judgement, always, compare, paired, per_repetition
from experiments.lab import produce
from experiments.ledger import reconcile
from experiments.load import due
from experiments.measurements import Levels, Measured
from experiments.statistics import median_interval, ratio_interval
from experiments.trial import Trial

PRODUCERS: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        "idempotent": {"enable.idempotence": True},
        "5 in flight": {"max.in.flight.requests.per.connection": 5},
        "1 in flight": {"max.in.flight.requests.per.connection": 1},
        "no retries": {"retries": 0, "max.in.flight.requests.per.connection": 5},
    }
)
LATE, HANGS, KILLED = "acknowledgements late", "leader hangs", "leader killed"
FAULTS = (LATE, HANGS, KILLED)
STRATEGIES = ("in place", "retry topic")


# -- the producer's side -----------------------------------------------------------------------------------------------


def faults(trial: Trial) -> None:
    """Send steadily through a fault; then read everything: what is double, out of order, missing?"""
    lab, seconds = trial.lab, trial.number("seconds")
    topic = lab.topic("faulty", 1, min_insync_replicas="2")
    total = int(trial.number("rate") * seconds)
    values = lab.workload.messages(total).values
    settings = {"acks": "all", "linger.ms": 1, "message.timeout.ms": 20_000, "retry.backoff.ms": 50}
    settings |= {"request.timeout.ms": 500, "socket.timeout.ms": 1_000}
    producer = Producer(lab.client(trial.text("producer"), settings | PRODUCERS[trial.text("producer")]))
    fault = _Fault(trial, topic)
    confirmed: list[int] = []
    latencies: list[float] = []

    def report(number: int) -> Callable[[KafkaError | None, Message], None]:
        def heard(error: KafkaError | None, message: Message) -> None:
            if error is None:
                confirmed.append(number)
                latencies.append(message.latency() or 0.0)

        return heard

    for elapsed, numbers in due(trial, trial.number("rate"), total):
        fault.follow(elapsed)
        for number in numbers:
            produce(producer, topic, value=values[number], on_delivery=report(number))
    fault.end()
    trial.wait_until(lambda: producer.flush(0.5) == 0, "all records confirmed or given up")
    read = lab.read(topic, sealed=True)
    trial.account(reconcile(total, confirmed, lab.workload.sequences(read.values)))
    trial.record("refused", total - len(confirmed), "records")
    trial.record("longest_wait", max(latencies, default=0.0), "s")


class _Fault:
    """One fault that begins at `fault_s` and lasts for `fault_lasts_s`."""

    def __init__(self, trial: Trial, topic: str) -> None:
        self.brokers, self.kind = trial.lab.control, trial.text("fault")
        self.leader, replicas, _ = trial.lab.describe(topic)[0]
        self.victim = self.leader if self.kind != LATE else next(each for each in replicas if each != self.leader)
        self.begins_s, self.ends_s = trial.number("fault_s"), trial.number("fault_s") + trial.number("fault_lasts_s")
        self.state = "before"

    def follow(self, elapsed: float) -> None:
        """Begin or end when it is time."""
        if self.state == "before" and elapsed >= self.begins_s:
            self.state = "during"
            (self.brokers.kill if self.kind == KILLED else self.brokers.pause)(self.victim)
        elif self.state == "during" and elapsed >= self.ends_s:
            self.end()

    def end(self) -> None:
        """The fault is over. A killed broker stays away until the trial is over."""
        if self.state == "during" and self.kind != KILLED:
            self.brokers.resume(self.victim)
        self.state = "after"


def give_up(trial: Trial) -> None:
    """The leader hangs for longer than the delivery time-out: when is the sender told, and was it true?"""
    lab, count = trial.lab, trial.count("records")
    topic = lab.topic("silent", 1, replication=1)
    leader, _, _ = lab.describe(topic)[0]
    values = lab.workload.messages(count).values
    settings = {"linger.ms": 0, "message.timeout.ms": trial.count("timeout_ms"), "socket.timeout.ms": 10_000}
    producer = Producer(lab.client("impatient", settings))
    told: list[tuple[float, str | None]] = []
    producer.produce(topic, value=values[0])
    producer.flush(trial.remaining_s)
    lab.control.pause(leader)
    began = time.monotonic()
    for value in values[1:]:
        produce(
            producer, topic, value=value, on_delivery=lambda error, _: told.append((time.monotonic(), _name(error)))
        )
    trial.wait_until(lambda: producer.poll(0.02) is not None and len(told) == count - 1, "the client to give up")
    lab.control.resume(leader)
    trial.wait_until(lambda: lab.broker_count == len(lab.control.numbers), "the leader to answer again")
    arrived = lab.workload.sequences(lab.read(topic, sealed=True).values)
    trial.record("gave_up_after", float(np.median([at for at, _ in told])) - began, "s")
    trial.record("reported_failed", sum(error is not None for _, error in told), "records")
    trial.record("arrived_all_the_same", len(np.unique(arrived)) - 1, "records")
    for error, number in Counter(error for _, error in told if error).items():
        trial.sample("errors", number, "records", error)


def _name(error: KafkaError | None) -> str | None:
    return None if error is None else error.name()


# -- the consumer's side -----------------------------------------------------------------------------------------------


def poison(trial: Trial) -> None:
    """Work on a stream in which some records fail at first and some for ever; retry in place or by way of a topic."""
    lab, rate = trial.lab, trial.number("rate")
    total = int(rate * trial.number("seconds"))
    worker = _Worker(trial, lab.topic("work", 1), lab.topic("work.retry", 1), lab.topic("work.dead", 1), total)
    values = lab.workload.messages(total).values
    loader = lab.producer("source", linger_ms=0)
    intended = time.monotonic() + np.arange(total) / rate
    for _, numbers in due(trial, rate, total):
        for number in numbers:
            produce(loader, worker.topic, value=values[number], key=b"%d" % number)
        loader.poll(0)
        worker.step(0.0)
    loader.flush(trial.remaining_s)
    while not worker.is_done:
        worker.step(min(0.02, trial.remaining_s))
    worker.producer.flush(trial.remaining_s)
    good = [number for number in range(total) if worker.fails[number] == 0]
    delays = np.array([worker.done_at[number] - intended[number] for number in good])
    trial.record("delay_p50", 1000 * float(np.median(delays)), "ms")
    trial.record("delay_p95", 1000 * float(np.quantile(delays, 0.95)), "ms")
    found = reconcile(total, range(total), [*worker.order, *worker.dead])
    trial.account(
        replace(found, reordered=reconcile(total, [], worker.order).reordered)
    )  # the dead have no place in it
    trial.record("dead_letters", len(lab.read(worker.dead_topic)), "records")
    trial.record("tries", worker.tries, "tries")


class _Worker:
    """A consumer whose work on some records fails. Which, and how often, is drawn before."""

    def __init__(self, trial: Trial, topic: str, retry_topic: str, dead_topic: str, total: int) -> None:
        self.topic, self.retry_topic, self.dead_topic, self.total = topic, retry_topic, dead_topic, total
        self.is_in_place = trial.text("strategy") == "in place"
        self.backoff_s, self.most_tries = trial.number("backoff_ms") / 1000, trial.count("most_tries")
        luck = trial.random("poison").random(total)
        poisoned, shaky = luck < trial.number("poison"), luck > 1 - trial.number("shaky")
        self.fails = np.where(poisoned, self.most_tries, np.where(shaky, 2, 0))  # how many tries fail
        self.order: list[int] = []
        self.dead: list[int] = []
        self.done_at: dict[int, float] = {}
        self.tries = 0
        self.producer = trial.lab.producer("retries", linger_ms=0)
        self.consumer = trial.lab.consumer("worker", trial.lab.group("work"), fetch_wait_max_ms=20)
        trial.lab.keep(self.consumer.close)
        self.consumer.subscribe([topic, retry_topic])
        trial.wait_until(self._has_joined, "the worker to join")
        self._waiting: list[tuple[float, int, int]] = []  # due, record, tries so far: what the retry topic holds back

    @property
    def is_done(self) -> bool:
        """Every record is finished or dead."""
        return len(self.order) + len(self.dead) == self.total

    def step(self, timeout_s: float) -> None:
        """Take what has come, and what has waited long enough."""
        for message in self.consumer.consume(20, timeout_s):
            if message.error():
                continue
            number = int(message.key() or b"0")
            if message.topic() == self.retry_topic:
                headers: dict[str, Any] = dict(message.headers() or [])
                heapq.heappush(self._waiting, (float(headers["due"]), number, int(headers["tries"])))
            else:
                self._work(number, 0)
        while self._waiting and self._waiting[0][0] <= time.monotonic():
            _, number, tries = heapq.heappop(self._waiting)
            self._work(number, tries)

    def _work(self, number: int, tries: int) -> None:
        while True:
            self.tries += 1
            tries += 1
            if tries > self.fails[number]:
                self.order.append(number)
                self.done_at[number] = time.monotonic()
            elif tries >= self.most_tries:
                produce(self.producer, self.dead_topic, key=b"%d" % number, value=b"", headers={"tries": b"%d" % tries})
                self.dead.append(number)
            elif self.is_in_place:
                time.sleep(self._backoff_s(tries))
                continue
            else:
                due_at = time.monotonic() + self._backoff_s(tries)
                headers = {"due": b"%f" % due_at, "tries": b"%d" % tries}
                produce(self.producer, self.retry_topic, key=b"%d" % number, value=b"", headers=headers)
            return

    def _backoff_s(self, tries: int) -> float:
        return float(self.backoff_s * 2 ** (tries - 1))

    def _has_joined(self) -> bool:
        self.consumer.poll(0.02)
        return len(self.consumer.assignment()) == 2


# -- claims ------------------------------------------------------------------------------------------------------------


def _ambiguous(measured: Measured) -> pl.DataFrame:
    return measured.trials("faults").filter(pl.col("fault").is_in([LATE, HANGS]))  # written, but not acknowledged


def retries_double(measured: Measured) -> Judgement:
    """Judge: retries without idempotence leave no duplicates."""
    trials = _ambiguous(measured).filter(pl.col("producer") == "5 in flight")
    shows = trials.group_by("repetition", maintain_order=True).agg((pl.col("duplicated").sum() == 0).alias("shows"))[
        "shows"
    ]
    return always(shows.to_list(), "Retries without idempotence left no duplicate")


def idempotence_is_clean(measured: Measured) -> Judgement:
    """Judge: nothing doubled, reordered or lost by an idempotent producer, whatever the fault."""
    trials = measured.trials("faults", with_void=True).filter(pl.col("producer") == "idempotent")
    is_clean = (pl.col("duplicated") == 0) & (pl.col("reordered") == 0) & (pl.col("lost") == 0)
    return always(per_repetition(trials, is_clean), "An idempotent producer left no duplicate, disorder or loss")


def one_in_flight_is_enough(measured: Measured) -> Judgement:
    """Judge: one request in flight gives no duplicates."""
    trials = _ambiguous(measured).filter(pl.col("producer") == "1 in flight")
    return always(per_repetition(trials, pl.col("duplicated") == 0), "One request in flight left no duplicate")


def confirmed_is_kept(measured: Measured) -> Judgement:
    """Judge: no confirmed record is lost, whatever the producer."""
    trials = measured.trials("faults", with_void=True)
    return always(per_repetition(trials, pl.col("lost") == 0), "No record confirmed under acks=all was lost")


def gives_up_in_time(measured: Measured) -> Judgement:
    """Judge: the delivery time-out is kept."""
    trials = measured.trials("give_up").with_columns(relative=pl.col("gave_up_after") / (pl.col("timeout_ms") / 1000))
    per = trials.group_by("repetition").agg(pl.col("relative").median())["relative"]
    interval = median_interval(per.to_numpy())
    return compare(interval, "× delivery.timeout.ms", "Time until the sender is told", above=0.9, below=1.5)


def failed_means_absent(measured: Measured) -> Judgement:
    """Judge: what was reported failed is not in the topic."""
    trials = measured.trials("give_up")
    return always(
        per_repetition(trials, pl.col("arrived_all_the_same") == 0), "What was reported failed was not in the topic"
    )


def in_place_blocks(measured: Measured) -> Judgement:
    """Judge: delay of good records, in place against by topic."""
    pairs = paired(
        measured.trials("poison"), "delay_p95", pl.col("strategy") == "in place", pl.col("strategy") == "retry topic"
    )
    says = "Delay of good records (95th percentile), retrying in place against by way of a topic"
    return compare(ratio_interval(*pairs), "×", says, above=5)


def retry_topic_keeps_order(measured: Measured) -> Judgement:
    """Judge: the records are finished in order with a retry topic."""
    trials = measured.trials("poison").filter(pl.col("strategy") == "retry topic")
    return always(per_repetition(trials, pl.col("reordered") == 0), "With a retry topic records were finished in order")


def all_accounted(measured: Measured) -> Judgement:
    """Judge: finished + dead letters is everything, once."""
    trials = measured.trials("poison", with_void=True)
    is_all = (pl.col("lost") == 0) & (pl.col("duplicated") == 0)
    return always(per_repetition(trials, is_all), "Finished records and dead letters made up everything, once")


# -- figures -----------------------------------------------------------------------------------------------------------


def draw_faults(measured: Measured) -> Drawing:
    """Duplicates and disorder by fault and producer."""
    trials = measured.trials("faults", with_void=True)
    kinds = [each for each in FAULTS if each in set(trials["fault"])]
    producers = [each for each in PRODUCERS if each in set(trials["producer"])]
    figure, axes = figures.panels(len(kinds), 2, width=3.2 + 3.0 * len(kinds), height=2.0)
    for row, (metric, colour) in enumerate((("duplicated", ORANGE), ("reordered", PURPLE))):
        for column, kind in enumerate(kinds):
            axis, chosen = axes[row * len(kinds) + column], trials.filter(pl.col("fault") == kind)
            groups = [chosen.filter(pl.col("producer") == each)[metric].to_list() for each in producers]
            figures.bars(axis, producers, groups, colour)
            axis.set_title(kind if row == 0 else "")
            axis.set_xlabel(f"records {metric}")
            if column:
                axis.set_yticklabels([])
    return figure


def draw_give_up(measured: Measured) -> Drawing:
    """When the sender is told, and what arrived all the same."""
    trials = measured.trials("give_up").with_columns(timeout_s=pl.col("timeout_ms") / 1000)
    figure, axes = figures.panels(2, height=2.8)
    figures.points_and_medians(axes[0], trials, "timeout_s", "gave_up_after", BLUE)
    longest = float(trials["timeout_s"].max())  # type: ignore[arg-type]
    axes[0].plot([0, longest], [0, longest], "--", color=GREY, linewidth=1, label="the time-out itself")
    axes[0].set_xlabel("delivery.timeout.ms, seconds")
    axes[0].set_ylabel("sender told after, seconds")
    axes[0].set_title("Time to give up")
    axes[0].legend(loc="upper left")
    groups = [trials[metric].to_list() for metric in ("reported_failed", "arrived_all_the_same")]
    figures.bars(axes[1], ["reported failed", "in the topic\nall the same"], groups, [GREY, RED])
    axes[1].set_title("Was it true?")
    axes[1].set_xlabel("records")
    return figure


def draw_poison(measured: Measured) -> Drawing:
    """Delay of good records, and what the retry topic costs in order."""
    trials = measured.trials("poison")
    figure, axes = figures.panels(2, height=2.3)
    for axis, metric, title in zip(axes, ("delay_p95", "reordered"), ("Delay of good records", "Order"), strict=True):
        groups = [trials.filter(pl.col("strategy") == each)[metric].to_list() for each in STRATEGIES]
        figures.bars(axis, list(STRATEGIES), groups, [RED, GREEN])
        axis.set_title(title)
        axis.set_xlabel({"delay_p95": "95th percentile, ms", "reordered": "records finished out of order"}[metric])
    axes[1].set_yticklabels([])
    return figure


# -- the experiment ----------------------------------------------------------------------------------------------------


def _is_telling(levels: Levels) -> bool:
    fault, producer = levels["fault"], levels["producer"]
    return fault == LATE or producer == "idempotent" or (fault == HANGS and producer == "5 in flight")


RETRIES = Experiment(
    name="retries",
    title="Retries",
    demand="D8",
    question=(
        "What do a producer's retries double or put out of order, and what do idempotence, requests in flight and "
        "time-outs "
        "change? What does a consumer's retry block, and what do a retry topic and dead letters cost?"
    ),
    broker_settings=MappingProxyType(SOON_MISSED | {"broker.session.timeout.ms": "2000"}),
    scenes=(
        Scene(
            "faults",
            "Positions are sent steadily under acks=all to a topic with three copies and min.insync.replicas=2, "
            "while for "
            "`fault_lasts_s` a follower hangs (so that the leader has the records but can't acknowledge them within "
            "request.timeout.ms), the leader hangs (so that the client cuts the connection), or the leader is "
            "killed for "
            "good. Then all is read and compared with what was confirmed.",
            faults,
            (
                factor("fault", "what happens", (LATE,), FAULTS),
                factor("producer", "its settings", ("idempotent", "5 in flight", "1 in flight"), tuple(PRODUCERS)),
                fixed("rate", "records a second", 500.0),
                fixed("seconds", "of load", 1.7, 1.7, 3.0),
                fixed("fault_s", "when the fault begins", 0.4),
                fixed("fault_lasts_s", "how long it lasts", 1.2, 1.2, 1.8),
            ),
            keep=_is_telling,
            trial_s=2.4,
            timeout_s=90.0,
            needs=Needs(broker_control=True, brokers=3),
            columns=("duplicated", "reordered", "lost", "recovered", "refused", "longest_wait"),
        ),
        Scene(
            "give_up",
            "The only replica's broker hangs (SIGSTOP). Measured: when the client reports failure; and, after the "
            "broker goes "
            "on, how many of the records reported as failed are in the topic.",
            give_up,
            (
                factor(
                    "timeout_ms",
                    "delivery.timeout.ms (message.timeout.ms)",
                    (1_000,),
                    (1_000, 2_000),
                    (1_000, 3_000, 10_000),
                ),
                fixed("records", "sent", 100),
            ),
            trial_s=2.7,
            needs=Needs(broker_control=True),
            allows_loss=True,
            columns=("gave_up_after", "reported_failed", "arrived_all_the_same"),
        ),
        Scene(
            "poison",
            "Records come steadily; `shaky` of them fail twice before the work succeeds, `poison` of them always. "
            "After "
            "`most_tries` a record becomes a dead letter. Retries wait `backoff_ms`, twice as long each time: in "
            "place, or in "
            "a retry topic from which the same worker takes them when they are due.",
            poison,
            (
                factor("strategy", "how a failed record is tried again", STRATEGIES, STRATEGIES),
                fixed("rate", "records a second", 150.0),
                fixed("seconds", "of load", 1.2, 1.5, 2.5),
                fixed("poison", "share of records that never succeed", 0.02),
                fixed("shaky", "share of records that fail twice", 0.06),
                fixed("backoff_ms", "before the second try", 40.0),
                fixed("most_tries", "then it is dead", 4),
            ),
            trial_s=2.6,
            columns=("delay_p50", "delay_p95", "dead_letters", "tries", "reordered", "lost", "duplicated"),
        ),
    ),
    claims=(
        Claim(
            "retries-are-harmless",
            "A producer's retries are harmless: the broker knows what it has already written.",
            "folklore; true only with enable.idempotence",
            retries_double,
        ),
        Claim(
            "idempotence-is-clean",
            "An idempotent producer neither doubles, reorders nor loses a record of one session, whatever happens "
            "to the leader.",
            "KIP-98, and Apache Kafka documentation, enable.idempotence",
            idempotence_is_clean,
        ),
        Claim(
            "one-in-flight-suffices",
            "max.in.flight.requests.per.connection=1 makes retries safe without idempotence: no duplicates.",
            "folklore; the documentation promises order only",
            one_in_flight_is_enough,
        ),
        Claim(
            "confirmed-is-kept",
            "What was confirmed under acks=all with min.insync.replicas=2 survives a hanging or dead broker.",
            "Apache Kafka documentation, min.insync.replicas",
            confirmed_is_kept,
        ),
        Claim(
            "delivery-timeout-is-kept",
            "The sender is told of a failure when delivery.timeout.ms has passed (within 0.9 to 1.5 times).",
            "KIP-91: Intuitive user timeouts in the producer",
            gives_up_in_time,
        ),
        Claim(
            "failed-means-not-written",
            "A record that the client reported as failed is not in the topic, so sending it again is safe.",
            "folklore",
            failed_means_absent,
        ),
        Claim(
            "in-place-retries-block-the-rest",
            "Retrying in place delays the good records behind a failing one at least five times as much as a retry "
            "topic does.",
            "Uber Engineering, “Building reliable reprocessing and dead letter queues with Apache Kafka”",
            in_place_blocks,
        ),
        Claim(
            "retry-topic-keeps-order",
            "A retry topic keeps the order of the stream.",
            "folklore, by omission in most descriptions of the pattern",
            retry_topic_keeps_order,
        ),
        Claim(
            "dead-letters-account-for-all",
            "Finished records and dead letters together are every record, exactly once (without a crash).",
            "the dead letter pattern (Enterprise Integration Patterns)",
            all_accounted,
        ),
    ),
    figures=(
        Figure("faults", "Records doubled and out of order after a fault, by producer.", draw_faults),
        Figure(
            "give_up", "A hanging broker: when the sender is told of the failure, and whether it was one.", draw_give_up
        ),
        Figure("poison", "Retrying in place against a retry topic.", draw_poison),
    ),
    use_cases=(
        "Leave idempotence on: it is what makes retries safe within one session of a producer. Let "
        "the client "
        "retry until delivery.timeout.ms, and choose that by how long the source can hold its data back; a failure "
        "that is "
        "reported is an unknown outcome, so send again only under the same identity (an id in the record, as every "
        "event of "
        "this application has) and let the reader drop the double. On the consumer's side retry in place where "
        "order matters "
        "more than delay (a ledger, a state machine), with a short limit; use a retry topic where records are "
        "independent "
        "(notifications, calls of other services); and always end in a dead-letter topic that somebody looks at, "
        "because a "
        "poison record that is retried for ever stops its partition."
    ),
)
