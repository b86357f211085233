"""Distribution of brokers and partitions: who leads, who copies, what an outage moves, and how to move it back."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
from confluent_kafka import ElectionType, KafkaError, Message, TopicPartition
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]  # its stubs re-export nothing
from matplotlib.figure import Figure as Drawing

from experiments import figures
from experiments.experiment import Experiment, Figure, Needs, Scene, Sized, factor, fixed
from experiments.faults import SOON_MISSED
from experiments.figures import BLUE, GREEN, GREY, ORANGE, RED
from experiments.findings import Claim, Judgement, always, compare, paired, per_repetition
from experiments.lab import Lab, answer, produce
from experiments.ledger import reconcile
from experiments.load import due
from experiments.measurements import Measured
from experiments.statistics import ratio_interval
from experiments.trial import Trial
from streaming.cluster.kafka import DisposableCluster
from streaming.cluster.reassignment import execute_command, write_plan

STOPPED, KILLED, TWO_KILLED = "one stopped", "one killed", "two killed"
OUTAGES = (STOPPED, KILLED, TWO_KILLED)
PARTITIONS = 6


# -- trials ------------------------------------------------------------------------------------------------------------


def placement(trial: Trial) -> None:
    """Make the same number of partitions as one topic or as many; count leaders and copies of each broker."""
    lab, partitions = trial.lab, trial.count("partitions")
    if trial.text("shape") == "one topic":
        topics = [lab.topic("placed", partitions)]
    else:
        topics = [lab.topic(f"placed-{number}", 1) for number in range(partitions)]
    layouts = [partition for topic in topics for partition in lab.describe(topic).values()]
    leaders = np.bincount([leader for leader, _, _ in layouts], minlength=4)[1:]
    first = np.bincount([replicas[0] for _, replicas, _ in layouts], minlength=4)[1:]
    for number, count in enumerate(leaders, start=1):
        trial.sample("leaders", float(count), "partitions", f"broker {number}")
    trial.record("leader_gap", int(leaders.max() - leaders.min()), "partitions")
    trial.record("preferred_gap", int(first.max() - first.min()), "partitions")
    trial.record("busiest", leaders.max() * 3 / partitions, "× fair share")


def outage(trial: Trial) -> None:
    """Send steadily, take brokers away, bring them back, ask for the preferred leaders: who leads when, who waits?"""
    lab, rate, what = trial.lab, trial.number("rate"), trial.text("outage")
    topic = lab.topic("outage", PARTITIONS, 3, min_insync_replicas="2")
    victims = [1, 2] if what == TWO_KILLED else [1]
    total = int(rate * trial.number("seconds"))
    values = lab.workload.messages(total).values
    producer = lab.producer("steady", linger_ms=0, message_timeout_ms=60_000)
    acknowledged = np.full(total, np.nan)
    watch = threading.Thread(target=_take_away, args=(trial, victims), daemon=True)
    led_before = _led_by(lab, topic, 1)
    began = time.monotonic()
    for elapsed, numbers in due(trial, rate, total):
        if elapsed >= trial.number("outage_s") and watch.ident is None:
            watch.start()
        for number in numbers:
            produce(
                producer,
                topic,
                value=values[number],
                partition=number % PARTITIONS,
                on_delivery=_at(acknowledged, number),
            )
    trial.record("acknowledged", float(np.mean(~np.isnan(acknowledged))), "of all records")
    watch.join(trial.remaining_s)
    trial.record("in_sync_during", _fewest_in_sync(lab, topic, victims), "copies")
    lab.control.heal()
    trial.wait_until(lambda: producer.flush(0.2) == 0, "all records acknowledged after the return")
    waits = acknowledged - (began + np.arange(total) / rate)
    trial.record("longest_wait", float(np.nanmax(waits)), "s")
    trial.wait_until(lambda: all(len(isr) == 3 for _, _, isr in lab.describe(topic).values()), "all copies in sync")
    trial.record("led_before", led_before, "partitions")
    trial.record("led_after_return", _led_by(lab, topic, 1), "partitions")
    trial.within(lambda: _elect(trial, topic, led_before), trial.number("election_s"))
    trial.record("led_after_election", _led_by(lab, topic, 1), "partitions")
    read = lab.workload.sequences(lab.read(topic, sealed=True).values)
    trial.account(reconcile(total, np.flatnonzero(~np.isnan(acknowledged)), read, lanes=read % PARTITIONS))


def reassignment(trial: Trial) -> None:
    """Move a partition with data from one broker to two others, while records come: does anybody notice?"""
    lab, rate = trial.lab, trial.number("rate")
    topic = f"lab-{lab.run_id}-moved-{trial.place.trial}"
    lab.create(NewTopic(topic, num_partitions=1, replica_assignment=[[1]]))
    stored = lab.workload.messages(trial.count("stored"))
    lab.send(topic, stored.keys, stored.values)
    total = int(rate * trial.number("seconds"))
    values = lab.workload.messages(total, first=len(stored)).values
    acknowledged = np.full(total, np.nan)
    producer = lab.producer("steady", linger_ms=0)
    move = _Move(trial, topic, [2, 3])
    began = time.monotonic()
    for _, numbers in due(trial, rate, total):
        for number in numbers:
            produce(producer, topic, value=values[number], on_delivery=_at(acknowledged, number))
    producer.flush(trial.remaining_s)
    trial.record("move_time", move.finish(), "s")
    trial.record("longest_wait", float(np.nanmax(acknowledged - (began + np.arange(total) / rate))), "s")
    everything = len(stored) + total
    read = lab.workload.sequences(lab.read(topic, sealed=True).values)
    trial.account(
        reconcile(everything, np.arange(everything)[: len(stored) + int(np.sum(~np.isnan(acknowledged)))], read)
    )


def racks(trial: Trial) -> None:
    """Where do two copies go: on the lab's brokers, without racks, and on three more, 1 and 2 in one rack, 3 apart?"""
    if not trial.flag("racks"):
        _place_two_copies(trial, trial.lab)
        return
    _place_two_copies(trial, trial.lab.shared("racked brokers", lambda: _racked(trial.lab)))


@contextlib.contextmanager
def _racked(beside: Lab) -> Iterator[Lab]:
    """Three more brokers, 1 and 2 in one rack, 3 in another."""
    cluster = DisposableCluster()
    cluster.brokers = [
        replace(broker, settings=MappingProxyType({**broker.settings, "broker.rack": "ab"[broker.number == 3]}))
        for broker in cluster.brokers
    ]
    with cluster:
        yield Lab(beside.run_id, cluster.bootstrap_servers, beside.folder, beside.workload)


def _place_two_copies(trial: Trial, lab: Lab) -> None:
    topic = lab.topic("racked", trial.count("partitions"), 2)
    copies = [set(replicas) for _, replicas, _ in lab.describe(topic).values()]
    trial.record("in_both_racks", float(np.mean([3 in each for each in copies])), "of all partitions")
    counts = np.bincount([number for each in copies for number in each], minlength=4)[1:]
    trial.record("busiest_broker", counts.max() * 3 / counts.sum(), "× fair share")


# -- what the trials share ---------------------------------------------------------------------------------------------


def _take_away(trial: Trial, victims: list[int]) -> None:
    for victim in victims:
        (trial.lab.control.stop if trial.text("outage") == STOPPED else trial.lab.control.kill)(victim)


def _at(acknowledged: Any, number: int) -> Any:
    """A delivery callback that notes the moment."""

    def note(error: KafkaError | None, _: Message) -> None:
        if error is None:
            acknowledged[number] = time.monotonic()

    return note


def _led_by(lab: Lab, topic: str, broker: int) -> int:
    return sum(leader == broker for leader, _, _ in lab.describe(topic).values())


def _elect(trial: Trial, topic: str, wanted: int) -> bool:
    """Ask for the preferred leaders: does broker 1 lead so many within a second?

    Once may be too early: a broker that has just come back tells of the in-sync copies as it knew them.
    """
    lab, partitions = trial.lab, [TopicPartition(topic, number) for number in range(PARTITIONS)]
    answer(lab.admin.elect_leaders(ElectionType.PREFERRED, partitions))
    return trial.within(lambda: _led_by(lab, topic, 1) == wanted, 1.0)


def _fewest_in_sync(lab: Lab, topic: str, victims: list[int]) -> int:
    """In-sync copies of the poorest partition as the survivors know it, without those that are dead."""
    return min(len(set(isr) - set(victims)) for _, _, isr in lab.describe(topic).values())


class _Move:
    """Kafka's own reassignment tool, running beside the load."""

    def __init__(self, trial: Trial, topic: str, brokers: list[int]) -> None:
        self.trial, self.topic = trial, topic
        self.file = trial.lab.folder / f"{topic}.json"
        write_plan(self.file, {(topic, 0): brokers})
        trial.lab.keep(lambda: self.file.unlink(missing_ok=True))
        command = execute_command(trial.lab.bootstrap_servers, self.file)
        self.tool = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        trial.lab.keep(self.tool.kill)
        self.began: float | None = None
        self.ended: float | None = None
        self.watch = threading.Thread(target=self._watch, daemon=True)
        self.watch.start()

    def _watch(self) -> None:
        while self.ended is None and self.trial.elapsed_s < self.trial.timeout_s:
            _, replicas, in_sync = self.trial.lab.describe(self.topic)[0]
            if self.began is None and set(replicas) != {1}:
                self.began = time.monotonic()
            if set(replicas) == set(in_sync) == {2, 3}:
                self.ended = time.monotonic()
            time.sleep(0.02)

    def finish(self) -> float:
        """Wait for the end; seconds from the first new copy to the end of the move."""
        self.trial.wait_until(lambda: self.ended is not None, "the move to end")
        self.tool.wait(self.trial.remaining_s)
        return (self.ended or 0.0) - (self.began or self.ended or 0.0)


# -- claims ------------------------------------------------------------------------------------------------------------


def one_topic_is_even(measured: Measured) -> Judgement:
    """Judge: leaders of one topic differ by at most one between brokers."""
    trials = measured.trials("placement").filter(pl.col("shape") == "one topic")
    return always(
        per_repetition(trials, pl.col("leader_gap") <= 1), "No broker led more than one partition more than another"
    )


def many_topics_are_even(measured: Measured) -> Judgement:
    """Judge: the same for many topics of one partition."""
    trials = measured.trials("placement").filter(pl.col("shape") == "many topics")
    return always(
        per_repetition(trials, pl.col("leader_gap") <= 1), "No broker led more than one partition more than another"
    )


def return_takes_back(measured: Measured) -> Judgement:
    """Judge: a broker that returns leads again what it led before."""
    trials = measured.trials("outage")
    is_back = pl.col("led_after_return") == pl.col("led_before")
    return always(per_repetition(trials, is_back), "The broker that had returned led what it had led before")


def election_restores(measured: Measured) -> Judgement:
    """Judge: preferred election brings the leaders back."""
    trials = measured.trials("outage")
    is_back = pl.col("led_after_election") == pl.col("led_before")
    return always(per_repetition(trials, is_back), "After the election of preferred leaders each leader was back")


def stopping_is_gentle(measured: Measured) -> Judgement:
    """Judge: the longest wait, controlled shutdown against SIGKILL."""
    pairs = paired(measured.trials("outage"), "longest_wait", pl.col("outage") == STOPPED, pl.col("outage") == KILLED)
    says = "Longest wait of a record, shutdown in order against SIGKILL"
    return compare(ratio_interval(*pairs), "×", says, below=0.5)


def outage_loses_nothing(measured: Measured) -> Judgement:
    """Judge: no acknowledged record lost."""
    trials = measured.trials("outage", with_void=True)
    return always(per_repetition(trials, pl.col("lost") == 0), "Every acknowledged record was there after the outage")


def move_is_unnoticed(measured: Measured) -> Judgement:
    """Judge: nothing lost by moving a partition, no record waited half a second."""
    trials = measured.trials("reassignment", with_void=True)
    is_smooth = (pl.col("lost") == 0) & (pl.col("longest_wait") < 0.5)
    return always(per_repetition(trials, is_smooth), "The move lost nothing and let no record wait for half a second")


def racks_separate(measured: Measured) -> Judgement:
    """Judge: each partition has a copy in either rack."""
    trials = measured.trials("racks").filter(pl.col("racks"))
    return always(
        per_repetition(trials, pl.col("in_both_racks") == 1), "With racks each partition had a copy in either rack"
    )


def racks_balance(measured: Measured) -> Judgement:
    """Judge: and the brokers have the same number of copies."""
    trials = measured.trials("racks").filter(pl.col("racks"))
    return always(
        per_repetition(trials, pl.col("busiest_broker") < 1.1), "With racks each broker had its fair share of copies"
    )


# -- figures -----------------------------------------------------------------------------------------------------------


def draw_placement(measured: Measured) -> Drawing:
    """Leaders of each broker, one topic against many."""
    leaders = measured.samples("placement", "leaders")
    partitions = leaders.select(pl.col("partitions").max()).item()
    figure, axes = figures.panels(2, height=2.4)
    for axis, shape, colour in zip(axes, ("one topic", "many topics"), (BLUE, ORANGE), strict=True):
        chosen = leaders.filter((pl.col("shape") == shape) & (pl.col("partitions") == partitions))
        labels = [f"broker {number}" for number in (1, 2, 3)]
        figures.bars(
            axis, labels, [chosen.filter(pl.col("subject") == each)["value"].to_list() for each in labels], colour
        )
        axis.set_title(f"{partitions} partitions as {shape}")
        axis.set_xlabel("partitions led")
    return figure


def draw_outage(measured: Measured) -> Drawing:
    """Longest waits; what broker 1 leads before, after its return, after the election."""
    trials = measured.trials("outage", with_void=True)
    kinds = [each for each in OUTAGES if each in set(trials["outage"])]
    figure, axes = figures.panels(2, height=2.6)
    figures.bars(
        axes[0], kinds, [trials.filter(pl.col("outage") == each)["longest_wait"].to_list() for each in kinds], RED
    )
    axes[0].set_title("Longest wait of a record")
    axes[0].set_xlabel("seconds")
    stages = {
        "led_before": "before",
        "led_after_return": "after its return",
        "led_after_election": "after the election",
    }
    figures.bars(axes[1], list(stages.values()), [trials[each].to_list() for each in stages], [GREEN, GREY, GREEN])
    axes[1].set_title("Partitions that broker 1 leads")
    axes[1].set_xlabel(f"of {PARTITIONS}")
    return figure


# -- the experiment ----------------------------------------------------------------------------------------------------

DISTRIBUTION = Experiment(
    name="distribution",
    title="Distribution of brokers and partitions",
    demand="D3",
    question=(
        "Who leads and who copies which partition after topics are made, what do outages move, what comes back by "
        "itself, "
        "and what does a move to other brokers or racks do?"
    ),
    broker_settings=SOON_MISSED,
    scenes=(
        Scene(
            "placement",
            "The same number of partitions is made as one topic, or as topics of one partition each; three copies. "
            "Counted: the "
            "leaders of each of the three brokers.",
            placement,
            (
                factor("shape", "of the topics", ("one topic", "many topics"), ("one topic", "many topics")),
                factor("partitions", "in total", (12,), (24,), (6, 12, 24, 96)),
            ),
            trial_s=1.0,
            needs=Needs(brokers=3),
            columns=("leader_gap", "busiest"),
        ),
        Scene(
            "outage",
            "Records are sent steadily to six partitions; broker 1 is shut down in order, or killed, or brokers 1 "
            "and 2 are killed. "
            "After the load they return; once all copies are in sync the leaders are counted, the election of "
            "preferred leaders is "
            "asked for, and they are counted again. Waits run from the moment a record was due.",
            outage,
            (
                factor("outage", "what happens", (STOPPED,), OUTAGES),
                fixed("rate", "records a second", 120.0),
                fixed("seconds", "of load", 2.5, 2.5, 5.0),
                fixed("outage_s", "when it happens", 0.5),
                fixed("election_s", "the election is asked for again, at most", 20.0),
            ),
            trial_s=6.4,
            timeout_s=120.0,
            needs=Needs(broker_control=True, brokers=3),
            columns=(
                "longest_wait",
                "acknowledged",
                "in_sync_during",
                "led_before",
                "led_after_return",
                "led_after_election",
                "lost",
            ),
        ),
        Scene(
            "reassignment",
            "A partition with one copy and some records on broker 1 is moved to brokers 2 and 3 by Kafka's own "
            "tool, while records "
            "are sent to it steadily.",
            reassignment,
            (
                fixed("stored", "records there before", 2_000, 10_000),
                fixed("rate", "records a second", 100.0),
                fixed("seconds", "of load", 2.5, 3.0),
            ),
            trial_s=3.4,
            timeout_s=90.0,
            needs=Needs(broker_control=True, brokers=3),
            columns=("move_time", "longest_wait", "lost"),
        ),
        Scene(
            "racks",
            "A topic of two copies is made on three brokers without racks; and on three more that are started for it, "
            "two in one rack and one in another.",
            racks,
            (
                factor("racks", "whether broker.rack is set", (), (False, True)),
                fixed("partitions", "of the topic", 24),
            ),
            trial_s=1.2,
            timeout_s=120.0,
            repetitions=Sized(1, 5, 5),
            needs=Needs(broker_control=True, brokers=3),
            columns=("in_both_racks", "busiest_broker"),
        ),
    ),
    claims=(
        Claim(
            "one-topic-is-spread-evenly",
            "The partitions of one topic are spread so that no broker leads more than one more than another.",
            "Apache Kafka documentation, operations: partitions are distributed round-robin",
            one_topic_is_even,
        ),
        Claim(
            "many-topics-are-spread-evenly",
            "Many topics of one partition are spread as evenly as one topic of many partitions.",
            "folklore",
            many_topics_are_even,
        ),
        Claim(
            "a-broker-takes-its-leaders-back",
            "A broker that returns leads its partitions again as soon as it is in sync.",
            "folklore; auto.leader.rebalance looks every five minutes, and tolerates 10 %",
            return_takes_back,
        ),
        Claim(
            "election-restores-balance",
            "The election of preferred leaders restores the old leaders.",
            "Apache Kafka documentation, operations: balancing leadership",
            election_restores,
        ),
        Claim(
            "shutdown-in-order-is-gentle",
            "A shutdown in order makes records wait less than half as long as a SIGKILL.",
            "Apache Kafka documentation, operations: graceful shutdown",
            stopping_is_gentle,
        ),
        Claim(
            "outages-lose-nothing",
            "Outages of one or two of three brokers lose no acknowledged record of a topic with three copies, two "
            "required.",
            "Apache Kafka documentation, replication",
            outage_loses_nothing,
        ),
        Claim(
            "a-move-is-unnoticed",
            "Moving a partition to other brokers loses nothing and makes no record wait for half a second.",
            "Apache Kafka documentation, operations: expanding your cluster",
            move_is_unnoticed,
        ),
        Claim(
            "racks-separate-copies",
            "With broker.rack set, the copies of each partition are in different racks.",
            "KIP-36: Rack aware replica assignment",
            racks_separate,
        ),
        Claim(
            "racks-keep-balance",
            "Rack awareness leaves every broker its fair share of copies.",
            "folklore; the documentation advises an equal number of brokers in each rack",
            racks_balance,
        ),
    ),
    figures=(
        Figure("placement", "Partitions led by each broker.", draw_placement),
        Figure("outage", "What an outage makes wait, and who leads afterwards.", draw_outage),
    ),
    use_cases=(
        "Let topics have several times as many partitions as there are brokers, so that leaders spread; look at "
        "the leaders of all "
        "topics together, because many small topics may meet on one broker. After maintenance ask for the election "
        "of preferred "
        "leaders instead of waiting for it, and stop brokers in order, one at a time, waiting until all copies are "
        "in sync. Move "
        "partitions in the quiet hours and with a throttle when they are large. Set racks (or zones) on all "
        "brokers or none, with "
        "the same number of brokers in each, or the lonely broker of a rack gets a copy of everything."
    ),
)
