"""Consumer groups: how work is shared, what a rebalance stalls, what a crash doubles or loses; share groups."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
from confluent_kafka import Consumer, KafkaError
from confluent_kafka.admin import ResourceType  # type: ignore[attr-defined]  # its stubs re-export nothing
from matplotlib.figure import Figure as Drawing

from experiments import figures
from experiments.experiment import Experiment, Figure, Scene, factor, fixed
from experiments.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED
from experiments.findings import Claim, Judgement, always, compare, paired, per_repetition
from experiments.lab import produce
from experiments.ledger import Reconciliation, reconcile
from experiments.measurements import Levels, Measured
from experiments.members import Member, Members
from experiments.statistics import difference_interval, median_interval, ratio_interval
from experiments.trial import Trial

HEARTBEAT_MS = 300
PROTOCOLS: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        "classic, eager": {"partition.assignment.strategy": "range", "heartbeat.interval.ms": HEARTBEAT_MS},
        "classic, cooperative": {
            "partition.assignment.strategy": "cooperative-sticky",
            "heartbeat.interval.ms": HEARTBEAT_MS,
        },
        "consumer (KIP-848)": {"group.protocol": "consumer"},
    }
)
POLICIES: MappingProxyType[str, tuple[dict[str, Any], str]] = MappingProxyType(
    {
        "auto-commit": ({"enable.auto.commit": True, "auto.commit.interval.ms": 150}, "none"),
        "auto-commit of stored": (
            {"enable.auto.commit": True, "auto.commit.interval.ms": 150, "enable.auto.offset.store": False},
            "stored",
        ),
        "commit before work": ({}, "before"),
        "commit after work": ({}, "after"),
    }
)


# -- in one process: who gets what -------------------------------------------------------------------------------------


def assignment(trial: Trial) -> None:
    """Let members join one by one until nothing moves, then send: who has partitions, who reads how much?"""
    lab, partitions, count = trial.lab, trial.count("partitions"), trial.count("records")
    topic, group = lab.topic("shared", partitions), lab.group("shared")
    members = _join(trial, topic, [group] * trial.count("members"), PROTOCOLS[trial.text("protocol")])
    owned = np.array([len(member.assignment()) for member in members])
    trial.record("join_time", trial.elapsed_s, "s")
    trial.record("idle_members", int((owned == 0).sum()), "members")
    trial.record("most_partitions", int(owned.max()), "partitions")
    trial.record("least_partitions", int(owned.min()), "partitions")
    confirmed, counts, received = _send_and_read(trial, topic, members, count)
    trial.account(reconcile(count, confirmed, received))
    trial.record("busiest_share", counts.max() / count, "of all records")
    for number, each in enumerate(counts):
        trial.sample("records", float(each), "records", f"member {number + 1}")


def hundred(trial: Trial) -> None:
    """The report's exercise: 100 messages, three consumers; one group, or a group each."""
    lab, count, members = trial.lab, trial.count("records"), trial.count("members")
    topic = lab.topic("data", trial.count("partitions"))
    if trial.text("groups") == "one group":
        groups = [lab.group("data-consumers")] * members
    else:
        groups = [lab.group(f"data-consumers-{number}") for number in range(members)]
    consumers = _join(trial, topic, groups, PROTOCOLS["classic, eager"])
    wanted = count if trial.text("groups") == "one group" else count * members
    confirmed, counts, received = _send_and_read(trial, topic, consumers, count, wanted)
    found = reconcile(count, confirmed, received)
    trial.record("read_in_total", len(received), "records")
    trial.record("lost", found.lost, "records")
    trial.record("fewest", float(counts.min()), "records")
    trial.record("most", float(counts.max()), "records")
    for number, each in enumerate(counts):
        trial.sample("records", float(each), "records", f"consumer {number + 1}")


def silent_mistakes(trial: Trial) -> None:
    """The report's two silent mistakes: one group id for different consumers; a topic's name in another case."""
    lab, count = trial.lab, trial.count("records")
    own, other = lab.topic("gps_data", 3), lab.topic("sensor_data", 3)
    is_case = trial.text("mistake") == "topic name in another case"
    group = lab.group("data-consumers")
    errors: list[str] = []
    wanted = own.upper() if is_case else own
    consumer = lab.consumer("wants-gps-data", group, error_cb=lambda error: errors.append(str(error)))
    lab.keep(consumer.close)
    consumer.subscribe([wanted])
    everything = lab.consumer("wants-all", group)
    lab.keep(everything.close)
    everything.subscribe([own, other])
    got, complaints = _settle_and_count(trial, consumer, everything, own, count, is_case=is_case)
    trial.record("share_read", got / count, "of what it wanted")
    trial.record("exceptions", 0, "exceptions")  # had one been raised, the trial would have failed
    trial.record("complaints", complaints + len(errors), "error events")


def _settle_and_count(
    trial: Trial, consumer: Consumer, everything: Consumer, topic: str, count: int, *, is_case: bool
) -> tuple[int, int]:
    got = complaints = 0

    def poll() -> bool:
        nonlocal got, complaints
        everything.poll(0.01)
        for message in consumer.consume(50, timeout=0.01):
            error = message.error()
            got += error is None
            complaints += error is not None and error.code() != KafkaError._PARTITION_EOF
        return len(everything.assignment()) > 0 and (is_case or len(consumer.assignment()) > 0)

    trial.wait_until(poll, "both consumers in the group")
    keys = [b"%d" % number for number in range(count)]
    trial.lab.send(topic, keys, trial.lab.workload.messages(count).values)
    until = time.monotonic() + trial.number("patience_s")
    while time.monotonic() < until:
        poll()
    return got, complaints


def _join(trial: Trial, topic: str, groups: Sequence[str], settings: dict[str, Any]) -> list[Consumer]:
    """Consumers that have joined and whose assignment has come to rest; a member may be left without partitions."""
    consumers = [trial.lab.consumer("member", group, **settings) for group in groups]
    for consumer in consumers:
        trial.lab.keep(consumer.close)
        consumer.subscribe([topic])
    partitions = len(trial.lab.describe(topic))
    quiet_since = time.monotonic()
    before: list[int] = []

    def is_settled() -> bool:
        nonlocal quiet_since, before
        for consumer in consumers:
            consumer.poll(0.01)
        owned = [len(consumer.assignment()) for consumer in consumers]
        if owned != before:
            quiet_since, before = time.monotonic(), owned
        complete = all(
            sum(n for n, other in zip(owned, groups, strict=True) if other == group) == partitions for group in groups
        )
        busy = sum(n > 0 for n in owned)
        spread = busy >= min(len(groups), partitions) or len(set(groups)) > 1
        return complete and spread and time.monotonic() - quiet_since > 0.3

    trial.wait_until(is_settled, f"{len(groups)} members at rest")
    return consumers


def _send_and_read(
    trial: Trial, topic: str, consumers: Sequence[Consumer], count: int, wanted: int | None = None
) -> tuple[Any, Any, list[int]]:
    """Send `count` messages under keys of their own; what was confirmed, records per consumer, sequences in order."""
    keys = [b"%s" % trial.random(f"{number}").bytes(16) for number in range(min(count, 500))]
    messages = trial.lab.workload.messages(count)
    confirmed = trial.lab.send(topic, [keys[n % len(keys)] for n in range(count)], messages.values)
    counts = np.zeros(len(consumers), dtype=np.int64)
    values: list[bytes] = []

    def is_done() -> bool:
        for number, consumer in enumerate(consumers):
            records = [each for each in consumer.consume(500, timeout=0.01) if not each.error()]
            counts[number] += len(records)
            values.extend(each.value() or b"" for each in records)
        return len(values) >= (wanted or count)

    trial.wait_until(is_done, f"{wanted or count} records")
    return confirmed, counts, trial.lab.workload.sequences(values).tolist()


# -- in processes: what a crash and a rebalance do ---------------------------------------------------------------------


def crash(trial: Trial) -> None:
    """SIGKILL a consumer in mid-work; its successor does the rest. Which records were worked on twice, or never?"""
    lab, count = trial.lab, trial.count("records")
    settings, commit = POLICIES[trial.text("policy")]
    topic = lab.topic("work", 1)
    lab.send(topic, [None] * count, lab.workload.messages(count).values)
    session = {"session.timeout.ms": trial.count("session_ms"), "heartbeat.interval.ms": HEARTBEAT_MS}
    group = Members(trial, topic, lab.group("work"), {**settings, **session})
    role: dict[str, Any] = {"work_s": trial.number("work_ms") / 1000, "batch": trial.count("batch"), "commit": commit}
    first = group.start(**role)
    stop_after = int(count * trial.random("crash").uniform(0.3, 0.6))
    trial.wait_until(lambda: _done(first) >= stop_after, "the first consumer to work")
    first.kill()
    second = group.start(**role)
    trial.wait_until(lambda: _last_offset(second) == count - 1, "the successor to reach the end")
    found = _worked(group, count)
    trial.account(found)
    trial.record("is_exact", found.lost == 0 and found.duplicated == 0, "")
    trial.record("killed_after", _done(first), "records")


def rebalance(trial: Trial) -> None:
    """A third member joins while records come steadily: how long does each partition stand still?"""
    lab, partitions = trial.lab, trial.count("partitions")
    topic = lab.topic("stream", partitions)
    group = Members(trial, topic, lab.group("stream"), PROTOCOLS[trial.text("protocol")])
    role: dict[str, Any] = {"revoke_s": trial.number("revoke_s"), "batch": 10}
    members = [group.start(**role) for _ in range(2)]
    group.wait_settled(partitions, members)
    before = group.owners()
    stream = Stream(trial, topic, partitions, trial.number("rate"))
    stream.run(trial.number("steady_s"))
    joined = time.monotonic()
    members.append(group.start(**role))
    stream.run_until(lambda: _is_settled(group, partitions, members))
    settled = time.monotonic()
    stream.run(trial.number("steady_s"))
    started = group.events().filter(event="started", member=2)["at"].max()
    trial.record("rebalance_time", settled - float(started), "s")  # type: ignore[arg-type]
    moved = {partition for partition, owner in group.owners().items() if owner != before[partition]}
    stalls = longest_gaps(group.processed(), joined, time.monotonic())
    usual = longest_gaps(group.processed(), joined - trial.number("steady_s"), joined)
    for partition, stall in stalls.items():
        trial.sample("stall", stall, "s", f"{partition} {'moved' if partition in moved else 'kept'}")
    kept = [stall for partition, stall in stalls.items() if partition not in moved]
    trial.record("moved", len(moved), "partitions")
    trial.record("stall_kept", max(kept, default=0.0), "s")
    trial.record("stall_moved", max((stalls.get(each, 0.0) for each in moved), default=0.0), "s")
    trial.record("usual_gap", max(usual.values(), default=0.0), "s")


def failover(trial: Trial) -> None:
    """SIGKILL one of three members; how long until somebody else reads its partitions?"""
    lab, partitions, session_ms = trial.lab, trial.count("partitions"), trial.count("session_ms")
    topic = lab.topic("stream", partitions)
    settings = {"session.timeout.ms": session_ms, "heartbeat.interval.ms": HEARTBEAT_MS}
    group = Members(trial, topic, lab.group("stream"), settings)
    members = [group.start(batch=10) for _ in range(3)]
    group.wait_settled(partitions, members)
    orphans = [partition for partition, owner in group.owners().items() if owner == 2]
    stream = Stream(trial, topic, partitions, trial.number("rate"))
    stream.run(0.5)
    killed = time.monotonic()
    members[2].kill()

    def is_taken_over() -> bool:
        after = group.processed().filter((pl.col("at") > killed) & (pl.col("member") != 2))
        return set(orphans) <= set(after["partition"])

    stream.run_until(is_taken_over)
    after = group.processed().filter((pl.col("at") > killed) & (pl.col("member") != 2))
    firsts = after.filter(pl.col("partition").is_in(orphans)).group_by("partition").agg(pl.col("at").min())
    took = float(firsts["at"].max()) - killed  # type: ignore[arg-type]
    trial.record("failover_time", took, "s")
    trial.record("in_sessions", took / (session_ms / 1000), "× session time-out")


def restart(trial: Trial) -> None:
    """Restart one of three members within the session time-out, as a dynamic and as a static member."""
    lab, partitions = trial.lab, trial.count("partitions")
    topic = lab.topic("stream", partitions)
    is_static = trial.text("membership") == "static"
    settings = {"session.timeout.ms": 10_000, "heartbeat.interval.ms": HEARTBEAT_MS}
    group = Members(trial, topic, lab.group("stream"), settings)
    names = [f"member-{number}" if is_static else None for number in range(3)]
    members = [group.start(instance=name, batch=10) for name in names]
    group.wait_settled(partitions, members)
    stream = Stream(trial, topic, partitions, trial.number("rate"))
    stream.run(0.5)
    left = time.monotonic()
    members[2].leave()
    again = group.start(instance=names[2], number=2, batch=10)
    stream.run_until(lambda: any(each["event"] == "assigned" for each in again.events()))
    stream.run_until(lambda: _is_settled(group, partitions, [*members[:2], again]))
    stream.run(0.5)
    others = group.events().filter((pl.col("at") > left) & (pl.col("member") != 2))
    trial.record("disturbances", others.filter(pl.col("event").is_in(["assigned", "revoked"])).height, "callbacks")


# -- share groups ------------------------------------------------------------------------------------------------------


def sharing(trial: Trial) -> None:
    """More members than partitions, as a consumer group and as a share group."""
    lab, count, partitions = trial.lab, trial.count("records"), trial.count("partitions")
    topic = lab.topic("tasks", partitions)
    is_share = trial.text("kind") == "share group"
    group = _share_group(trial, topic) if is_share else Members(trial, topic, lab.group("tasks"))
    members = [
        group.start(is_share=is_share, work_s=trial.number("work_ms") / 1000) for _ in range(trial.count("members"))
    ]
    if not is_share:
        group.wait_settled(partitions, members)
    trial.wait_until(lambda: all(_has_started(each) for each in members), "all members")
    producer = lab.producer("tasks", batch_num_messages=10)  # a share group takes whole batches
    for number, value in enumerate(lab.workload.messages(count).values):
        produce(producer, topic, value=value, partition=number % partitions)
    producer.flush(trial.remaining_s)
    trial.wait_until(
        lambda: group.processed().select("partition", "offset").n_unique() >= count, "all records worked on"
    )
    work = group.processed()
    trial.record("busy_members", work["member"].n_unique(), "members")
    trial.record("work_time", float(work["at"].max()) - float(work["at"].min()), "s")  # type: ignore[arg-type]
    sequences = (work["partition"] + work["offset"] * partitions).to_numpy()
    trial.account(reconcile(count, range(count), sequences, lanes=work["partition"].to_numpy()))


def redelivery(trial: Trial) -> None:
    """SIGKILL one member of a share group in mid-work: what it had taken goes to the others."""
    lab, count = trial.lab, trial.count("records")
    topic = lab.topic("tasks", 1)
    lab.send(topic, [None] * count, lab.workload.messages(count).values)
    group = _share_group(trial, topic)
    work: dict[str, Any] = {"is_share": True, "work_s": trial.number("work_ms") / 1000}
    victim = group.start(**work)
    trial.wait_until(lambda: _done(victim) >= count // 20, "the first member to work")
    victim.kill()
    killed = time.monotonic()
    for _ in range(2):
        group.start(**work)
    trial.wait_until(lambda: group.processed()["offset"].n_unique() >= count, "all records worked on")
    found = _worked(group, count)
    trial.account(found)
    overtaken = group.processed().filter((pl.col("at") > killed) & (pl.col("offset") < _done(victim) + 1))
    trial.record("redelivered", found.duplicated, "records")
    trial.record("wait_for_lock", float(overtaken["at"].min() or killed) - killed, "s")  # type: ignore[arg-type]


def _share_group(trial: Trial, topic: str) -> Members:
    name = trial.lab.group("tasks")
    trial.lab.configure(
        ResourceType.GROUP,
        name,
        share_auto_offset_reset="earliest",
        share_record_lock_duration_ms=f"{trial.count('lock_ms')}",
    )
    return Members(trial, topic, name, {"share.acknowledgement.mode": "explicit", "max.poll.records": 10})


# -- what the trials share ---------------------------------------------------------------------------------------------


class Stream:
    """Records into every partition at a steady rate, for as long as asked."""

    def __init__(self, trial: Trial, topic: str, partitions: int, rate: float) -> None:
        self.trial, self.topic, self.partitions, self.rate = trial, topic, partitions, rate
        self.producer = trial.lab.producer("steady", linger_ms=0)
        self.value = trial.lab.workload.messages(1).values[0]
        self.next_s = time.monotonic()

    def run(self, seconds: float) -> None:
        """Send for so long."""
        end = time.monotonic() + seconds
        self.run_until(lambda: time.monotonic() >= end)

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Send until the condition holds; it is looked at ten times a second."""
        self.next_s, look_s = time.monotonic(), 0.0
        while True:
            if time.monotonic() >= look_s:
                if condition():
                    return
                look_s = time.monotonic() + 0.1
            for partition in range(self.partitions):
                produce(self.producer, self.topic, value=self.value, partition=partition)
            self.next_s += 1 / self.rate
            time.sleep(max(0.0, min(self.next_s - time.monotonic(), self.trial.remaining_s)))


def longest_gaps(processed: pl.DataFrame, begin: float, end: float) -> dict[int, float]:
    """The longest time without a processed record, of each partition, within [begin, end] on the monotonic clock."""
    gaps: dict[int, float] = {}
    for (partition,), rows in processed.group_by("partition"):
        moments = rows["at"].filter((rows["at"] >= begin) & (rows["at"] <= end)).to_numpy()
        gaps[int(partition)] = float(np.diff(np.concatenate([[begin], moments])).max())
    return gaps


def _is_settled(group: Members, partitions: int, members: Sequence[Member]) -> bool:
    owners = group.owners()
    return len(owners) == partitions and set(owners.values()) == {each.number for each in members}


def _done(member: Member) -> int:
    return sum(each["event"] == "processed" for each in member.events())


def _last_offset(member: Member) -> int:
    return max((each["offset"] for each in member.events() if each["event"] == "processed"), default=-1)


def _has_started(member: Member) -> bool:
    return any(each["event"] == "started" for each in member.events())


def _worked(group: Members, count: int) -> Reconciliation:
    return reconcile(count, range(count), group.processed()["offset"].to_numpy())


# -- claims ------------------------------------------------------------------------------------------------------------


def exactly_once(measured: Measured) -> Judgement:
    """Judge: no record lost or doubled under auto-commit."""
    trials = measured.trials("crash").filter(pl.col("policy") == "auto-commit")
    return always(
        per_repetition(trials, pl.col("is_exact") == 1), "Every record was worked on exactly once after a crash"
    )


def commit_first_never_doubles(measured: Measured) -> Judgement:
    """Judge: at most once."""
    trials = measured.trials("crash").filter(pl.col("policy") == "commit before work")
    return always(per_repetition(trials, pl.col("duplicated") == 0), "No record was worked on twice")


def commit_last_never_loses(measured: Measured) -> Judgement:
    """Judge: at least once."""
    trials = measured.trials("crash").filter(pl.col("policy").is_in(["commit after work", "auto-commit of stored"]))
    return always(per_repetition(trials, pl.col("lost") == 0), "No record was left out")


def idle_beyond_partitions(measured: Measured) -> Judgement:
    """Judge: idle members are those beyond the number of partitions, no more and no fewer."""
    trials = measured.trials("assignment")
    surplus = (pl.col("members") - pl.col("partitions")).clip(lower_bound=0)
    return always(per_repetition(trials, pl.col("idle_members") == surplus), "Exactly the surplus members were idle")


def even_thirds(measured: Measured) -> Judgement:
    """Judge: whether three consumers of one group each get 30 to 37 of 100."""
    trials = measured.trials("hundred").filter(pl.col("groups") == "one group")
    is_even = (pl.col("fewest") >= 30) & (pl.col("most") <= 37)
    return always(per_repetition(trials, is_even), "Each of the three consumers read 30 to 37 of the 100 messages")


def full_copies(measured: Measured) -> Judgement:
    """Judge: a group each means a full copy each."""
    trials = measured.trials("hundred").filter(pl.col("groups") == "a group each")
    return always(per_repetition(trials, pl.col("fewest") == pl.col("records")), "Each group read every message")


def mistakes_show(measured: Measured) -> Judgement:
    """Judge: a shared group id makes itself known."""
    trials = measured.trials("silent_mistakes").filter(pl.col("mistake") == "one group id for all")
    shows = (pl.col("share_read") == 1) | (pl.col("complaints") > 0)
    return always(per_repetition(trials, shows), "The consumer read all it wanted, or was told that it did not,")


def cooperative_spares(measured: Measured) -> Judgement:
    """Judge: the stall of partitions that keep their owner, cooperative against eager."""
    trials = measured.trials("rebalance")
    pairs = paired(
        trials, "stall_kept", pl.col("protocol") == "classic, cooperative", pl.col("protocol") == "classic, eager"
    )
    says = "Longest stall of a partition that kept its owner, cooperative against eager"
    return compare(ratio_interval(*pairs), "×", says, below=0.5)


def server_side_is_faster(measured: Measured) -> Judgement:
    """Judge: how much sooner a rebalance is over under KIP-848."""
    trials = measured.trials("rebalance")
    pairs = paired(
        trials,
        "rebalance_time",
        pl.col("protocol") == "consumer (KIP-848)",
        pl.col("protocol") == "classic, cooperative",
    )
    says = "Time until a new member has its partitions, KIP-848 minus cooperative"
    return compare(difference_interval(*pairs), "s", says, below=0)


def failover_takes_a_session(measured: Measured) -> Judgement:
    """Judge: fail-over time in units of the session time-out."""
    trials = measured.trials("failover")
    per = trials.group_by("repetition").agg(pl.col("in_sessions").median())["in_sessions"]
    interval = median_interval(per.to_numpy())
    return compare(interval, "× session time-out", "Time until another member reads", above=0.7, below=2.0)


def static_is_quiet(measured: Measured) -> Judgement:
    """Judge: no callback at the others when a static member restarts."""
    trials = measured.trials("restart").filter(pl.col("membership") == "static")
    return always(
        per_repetition(trials, pl.col("disturbances") == 0), "The other members noticed nothing of the restart"
    )


def share_uses_all(measured: Measured) -> Judgement:
    """Judge: every member of a share group works, though there are fewer partitions."""
    trials = measured.trials("sharing").filter(pl.col("kind") == "share group")
    return always(
        per_repetition(trials, pl.col("busy_members") == pl.col("members")), "Every member of the share group worked"
    )


def share_keeps_order(measured: Measured) -> Judgement:
    """Judge: records of a partition are finished in order."""
    trials = measured.trials("sharing").filter(pl.col("kind") == "share group")
    return always(
        per_repetition(trials, pl.col("reordered") == 0), "The records of each partition were finished in order"
    )


def share_loses_nothing(measured: Measured) -> Judgement:
    """Judge: what a dead member had taken is worked on by others."""
    trials = measured.trials("redelivery")
    return always(
        per_repetition(trials, pl.col("lost") == 0), "What the killed member had taken was worked on by others"
    )


# -- figures -----------------------------------------------------------------------------------------------------------

_COLOURS = MappingProxyType(dict(zip(PROTOCOLS, (RED, BLUE, GREEN), strict=True)))


def draw_crash(measured: Measured) -> Drawing:
    """Duplicates and losses under each policy."""
    trials = measured.trials("crash", with_void=True)
    figure, axes = figures.panels(2, height=2.6)
    for each, metric, colour in zip(axes, ("duplicated", "lost"), (ORANGE, RED), strict=True):
        groups = [trials.filter(pl.col("policy") == policy)[metric].to_list() for policy in POLICIES]
        figures.bars(each, list(POLICIES), groups, colour)
        each.set_title({"duplicated": "Worked on twice", "lost": "Never worked on"}[metric])
        each.set_xlabel("records")
    axes[1].set_yticklabels([])
    return figure


def draw_stalls(measured: Measured) -> Drawing:
    """Stall per partition under each protocol, kept and moved apart."""
    stalls = measured.samples("rebalance", "stall").with_columns(
        kind=pl.col("subject").str.split(" ").list.last(), partition=pl.col("subject").str.split(" ").list.first()
    )
    figure, axes = figures.panels(2, width=9.4, height=2.8)
    protocols = [each for each in PROTOCOLS if each in set(stalls["protocol"])]
    for axis, kind, title in zip(axes, ("kept", "moved"), ("keep their owner", "get a new owner"), strict=True):
        groups = [
            stalls.filter((pl.col("protocol") == each) & (pl.col("kind") == kind))["value"].to_list()
            for each in protocols
        ]
        figures.bars(axis, protocols, groups, [_COLOURS[each] for each in protocols])
        axis.set_title(f"Partitions that {title}")
        axis.set_xlabel("longest stall of a partition, seconds")
    axes[1].set_yticklabels([])
    return figure


def draw_groups(measured: Measured) -> Drawing:
    """The report's exercise, fail-over by session time-out, and more members than partitions."""
    figure, axes = figures.panels(3, width=12.0, height=2.8)
    read = measured.samples("hundred", "records")
    for offset, (groups, colour) in enumerate((("one group", BLUE), ("a group each", PURPLE))):
        chosen = read.filter(pl.col("groups") == groups)
        medians = chosen.group_by("subject").agg(pl.col("value").median()).sort("subject")
        places = np.arange(len(medians)) + 0.4 * offset
        axes[0].bar(places, medians["value"], width=0.36, color=colour, alpha=0.85, label=groups)
        for place, value in zip(places, medians["value"], strict=True):
            axes[0].text(place, value + 2, f"{value:g}", ha="center", fontsize=8)
    axes[0].set_xticks(np.arange(3) + 0.2, ["1", "2", "3"])
    axes[0].set_title("100 messages, three consumers")
    axes[0].set_xlabel("consumer")
    axes[0].set_ylabel("messages read")
    axes[0].set_ylim(0, 135)
    axes[0].legend(loc="upper center", ncols=2)
    taken = measured.trials("failover").with_columns(session_s=pl.col("session_ms") / 1000)
    figures.points_and_medians(axes[1], taken, "session_s", "failover_time", RED)
    longest = float(taken["session_s"].max())  # type: ignore[arg-type]
    axes[1].plot([0, longest], [0, longest], "--", color=GREY, linewidth=1, label="the time-out itself")
    axes[1].set_title("Fail-over after SIGKILL")
    axes[1].set_xlabel("session time-out, seconds")
    axes[1].set_ylabel("until another reads, seconds")
    axes[1].legend(loc="lower right")
    work = measured.trials("sharing")
    kinds = ["consumer group", "share group"]
    figures.bars(
        axes[2], kinds, [work.filter(pl.col("kind") == kind)["work_time"].to_list() for kind in kinds], [BLUE, GREEN]
    )
    members, partitions = work["members"][0], work["partitions"][0]
    axes[2].set_title(f"{members} members, {partitions} partitions")
    axes[2].set_xlabel("time for the same work, seconds")
    return figure


# -- the experiment ----------------------------------------------------------------------------------------------------


def _fits(levels: Levels) -> bool:
    return int(levels["members"]) <= 2 * int(levels["partitions"])


_SMOKE_POLICIES = ("auto-commit", "commit after work")
_RATE = fixed("rate", "records a second in each partition", 40.0)

CONSUMER_GROUPS = Experiment(
    name="consumer_groups",
    title="Consumer groups",
    demand="D1",
    question=(
        "How is work shared among the members of a group, what does a rebalance or a crash cost, "
        "is every message really consumed exactly once, and what do share groups change?"
    ),
    broker_settings=MappingProxyType(
        {
            "group.min.session.timeout.ms": "500",
            "group.consumer.min.heartbeat.interval.ms": "100",
            "group.consumer.heartbeat.interval.ms": str(HEARTBEAT_MS),
            "group.share.min.record.lock.duration.ms": "1000",
            "group.share.min.session.timeout.ms": "1000",
            "group.share.session.timeout.ms": "3000",
            "group.share.min.heartbeat.interval.ms": "100",
            "group.share.heartbeat.interval.ms": str(HEARTBEAT_MS),
        }
    ),
    scenes=(
        Scene(
            "assignment",
            "Members of one group join a topic; once nothing moves any more, records are sent under many keys and "
            "read.",
            assignment,
            (
                factor("members", "consumers in the group", (4,), (2, 8), (1, 2, 3, 4, 6, 8, 12)),
                factor("partitions", "of the topic", (3,), (1, 6), (1, 3, 6, 12)),
                factor("protocol", "of the group", ("classic, eager",), ("classic, eager",), tuple(PROTOCOLS)),
                fixed("records", "sent once all have joined", 600, 3_000),
            ),
            trial_s=1.35,
            keep=_fits,
            columns=("idle_members", "most_partitions", "least_partitions", "busiest_share", "join_time"),
        ),
        Scene(
            "hundred",
            "The report's exercise: 100 messages under random keys, three consumers; all in one group, or each in "
            "its own.",
            hundred,
            (
                factor(
                    "groups",
                    "how the consumers are grouped",
                    ("one group", "a group each"),
                    ("one group", "a group each"),
                ),
                fixed("members", "consumers", 3),
                fixed("partitions", "of the topic", 3),
                fixed("records", "messages", 100),
            ),
            trial_s=0.65,
            columns=("read_in_total", "fewest", "most"),
        ),
        Scene(
            "silent_mistakes",
            "A consumer that wants all of `gps_data` shares its group id with one that reads `gps_data` and "
            "`sensor_data`; "
            "or it writes the topic's name in capitals. Counted: what it got of what it wanted, and what told it so.",
            silent_mistakes,
            (
                factor(
                    "mistake",
                    "what is wrong",
                    (),
                    ("one group id for all", "topic name in another case"),
                ),
                fixed("records", "messages", 60),
                fixed("patience_s", "seconds to wait for them", 0.7, 1.0),
            ),
            trial_s=1.9,
            columns=("share_read", "complaints"),
        ),
        Scene(
            "crash",
            "A consumer process works through a partition, record by record, and is killed (SIGKILL) at a random "
            "moment; "
            "another one of the same group goes on. Each finished record was written down, so that records worked on "
            "twice or never can be named.",
            crash,
            (
                factor("policy", "when offsets are committed", _SMOKE_POLICIES, tuple(POLICIES)),
                fixed("records", "in the partition", 300),
                fixed("work_ms", "milliseconds of work a record", 1.0),
                fixed("batch", "records taken at once", 40),
                fixed("session_ms", "session.timeout.ms", 600),
            ),
            trial_s=1.5,
            allows_loss=True,
            columns=("duplicated", "lost", "is_exact"),
        ),
        Scene(
            "rebalance",
            "Two members read a steady stream; a third joins. Stall: the longest time in which no record of a "
            "partition was "
            "finished, from the third's start on. Giving partitions up costs every member `revoke_s`, as a sink's "
            "commit does.",
            rebalance,
            (
                factor("protocol", "of the group", ("consumer (KIP-848)",), tuple(PROTOCOLS)),
                fixed("partitions", "of the topic", 6),
                fixed("revoke_s", "seconds of work for each partition that is taken away", 0.15),
                fixed("steady_s", "seconds before and after", 0.4, 0.5),
                _RATE,
            ),
            trial_s=4.4,
            columns=("moved", "stall_kept", "stall_moved", "rebalance_time"),
        ),
        Scene(
            "failover",
            "One of three members is killed (SIGKILL). Measured: until another member has finished a record of "
            "each of its "
            "partitions.",
            failover,
            (
                factor("session_ms", "session.timeout.ms", (1_000,), (1_000, 2_000), (1_000, 3_000, 6_000, 10_000)),
                fixed("partitions", "of the topic", 3),
                _RATE,
            ),
            trial_s=3.3,
            columns=("failover_time", "in_sessions"),
        ),
        Scene(
            "restart",
            "One of three members is stopped and started again at once, well within the session time-out. Counted: "
            "assign and revoke callbacks at the two others.",
            restart,
            (
                factor("membership", "dynamic or static (KIP-345)", (), ("dynamic", "static")),
                fixed("partitions", "of the topic", 3),
                _RATE,
            ),
            trial_s=2.4,
            columns=("disturbances",),
        ),
        Scene(
            "sharing",
            "Four members, two partitions: as a consumer group and as a share group (KIP-932) doing the same work.",
            sharing,
            (
                factor("kind", "of the group", ("share group",), ("consumer group", "share group")),
                fixed("members", "in the group", 4),
                fixed("partitions", "of the topic", 2),
                fixed("records", "to work on", 200),
                fixed("work_ms", "milliseconds of work a record", 5.0),
                fixed("lock_ms", "share.record.lock.duration.ms", 10_000),
            ),
            trial_s=2.6,
            columns=("busy_members", "work_time", "reordered", "duplicated"),
        ),
        Scene(
            "redelivery",
            "The only member of a share group is killed (SIGKILL) while it holds records; two others come. "
            "Counted: records "
            "worked on twice, and how long those it held were locked.",
            redelivery,
            (
                fixed("records", "in the partition", 200),
                fixed("work_ms", "milliseconds of work a record", 5.0),
                fixed("lock_ms", "share.record.lock.duration.ms", 1_500),
            ),
            trial_s=3.7,
            columns=("redelivered", "lost", "wait_for_lock"),
        ),
    ),
    claims=(
        Claim(
            "auto-commit-is-exactly-once",
            "In a consumer group all messages are consumed exactly once; the risk of redundancy is completely "
            "minimised.",
            "the report, exercise 2 (its code commits automatically)",
            exactly_once,
        ),
        Claim(
            "commit-before-work-never-doubles",
            "Committing before the work gives at most once: no record is worked on twice.",
            "Apache Kafka documentation, “Message delivery semantics”",
            commit_first_never_doubles,
        ),
        Claim(
            "commit-after-work-never-loses",
            "Committing (or storing) offsets after the work gives at least once: no record is left out.",
            "Apache Kafka documentation, “Message delivery semantics”",
            commit_last_never_loses,
        ),
        Claim(
            "surplus-members-are-idle",
            "Members beyond the number of partitions get nothing; all others get something.",
            "Apache Kafka documentation, introduction to consumers",
            idle_beyond_partitions,
        ),
        Claim(
            "a-group-shares-evenly",
            "Three consumers of one group get a third of 100 messages each (30 to 37), as the report's 38 + 36 + "
            "26 suggests.",
            "the report, exercise 2, consumer_1 to consumer_3_messages.csv",
            even_thirds,
        ),
        Claim(
            "each-group-gets-a-copy",
            "Every group reads every message, whatever other groups read.",
            "Apache Kafka documentation, introduction to consumers",
            full_copies,
        ),
        Claim(
            "a-shared-group-id-shows",
            "Using one group id for consumers that want different things is noticed: data are complete or there is "
            "an error.",
            "the report's code: four consumers with group id data_consumers",
            mistakes_show,
        ),
        Claim(
            "cooperative-spares-what-stays",
            "Cooperative rebalancing stalls partitions that keep their owner less than half as long as eager "
            "rebalancing.",
            "KIP-429: Kafka Consumer Incremental Rebalance Protocol",
            cooperative_spares,
        ),
        Claim(
            "kip-848-is-faster",
            "With the new protocol a joining member gets its partitions sooner than with cooperative rebalancing, "
            "at the same heartbeat interval.",
            "KIP-848: The Next Generation of the Consumer Rebalance Protocol",
            server_side_is_faster,
        ),
        Claim(
            "failover-takes-a-session",
            "After a crash the partitions of the dead member stand still for about one session time-out (0.7 to 2 "
            "times).",
            "Apache Kafka documentation, session.timeout.ms",
            failover_takes_a_session,
        ),
        Claim(
            "static-restart-is-quiet",
            "A static member that restarts within the session time-out causes no rebalance.",
            "KIP-345: static membership",
            static_is_quiet,
        ),
        Claim(
            "share-group-uses-all-members",
            "A share group gives work to more members than there are partitions.",
            "KIP-932: Queues for Kafka",
            share_uses_all,
        ),
        Claim(
            "share-group-keeps-order",
            "Kafka keeps order per partition, so a share group finishes a partition's records in order too.",
            "folklore; KIP-932 says otherwise",
            share_keeps_order,
        ),
        Claim(
            "share-group-redelivers",
            "What a crashed member of a share group had taken is given to others: nothing is left out.",
            "KIP-932: Queues for Kafka, acquisition locks",
            share_loses_nothing,
        ),
    ),
    figures=(
        Figure(
            "crash", "Records worked on twice and never, after a SIGKILL in mid-work, by commit policy.", draw_crash
        ),
        Figure("stalls", "How long a partition stands still while a third member joins.", draw_stalls),
        Figure("groups", "The report's 100 messages; fail-over time; more members than partitions.", draw_groups),
    ),
    use_cases=(
        "A consumer group is the way to spread one stream's work over processes that must see each key in order: "
        "one group "
        "per purpose, as many partitions as the largest number of members that will ever be wanted, and a group id "
        "of its own "
        "for everything that needs all the data. It gives no exactly-once: commit after the work and make the work "
        "repeatable, "
        "or commit position and output in one step, as this project's sinks do. Use static membership for "
        "processes that are "
        "restarted by a supervisor, cooperative or the new protocol for members with expensive state, and a "
        "session time-out "
        "that is as short as the longest pause of the process allows, for that is the time a crash costs. Take a "
        "share group "
        "for tasks that are independent of each other and uneven in length; there order is given up and redelivery "
        "counted."
    ),
)
