"""Replication factor and partition count: what they cost, and which failures they survive."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import numpy as np
import polars as pl
import psutil
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from matplotlib.figure import Figure as Drawing

from experiments import figures
from experiments.experiment import Experiment, Figure, Needs, Scene, factor, fixed
from experiments.faults import SOON_MISSED
from experiments.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED
from experiments.findings import Claim, Judgement, always, compare, paired, per_repetition
from experiments.lab import noting, produce
from experiments.ledger import reconcile
from experiments.measurements import VOID, Levels, Measured
from experiments.statistics import difference_interval, median_interval, ratio_interval
from experiments.trial import Trial

MIB = 1024**2

ANY = -1  # the partition that the partitioner chooses

# -- trials ------------------------------------------------------------------------------------------------------------


def cost(trial: Trial) -> None:
    """Send as fast as the client can; then a few one by one. Rate, and the wait for one acknowledgement."""
    lab, count = trial.lab, trial.count("records")
    topic = lab.topic("cost", trial.count("partitions"), trial.count("replication"))
    messages = lab.workload.messages(count)
    settings = {
        "acks": trial.text("acks"),
        "linger.ms": 5,
        "compression.type": "lz4",
        "queue.buffering.max.messages": 500_000,
    }
    producer = Producer(lab.client(f"acks={trial.text('acks')}", settings))
    failures: list[KafkaError] = []
    for partition in range(trial.count("partitions")):  # followers begin to fetch when there is a partition, not before
        _await(producer, topic, messages.values[0], partition)
    began = time.monotonic()
    for key, value in zip(messages.keys, messages.values, strict=True):
        produce(
            producer,
            topic,
            value=value,
            key=key,
            on_delivery=lambda error, _: failures.append(error) if error else None,
        )
    producer.flush(trial.remaining_s)
    trial.record("rate", count / (time.monotonic() - began), "records/s")
    prompt = Producer(lab.client("one by one", settings | {"linger.ms": 0}))
    waits = [_await(prompt, topic, messages.values[0]) for _ in range(trial.count("singles"))][5:]
    trial.record("wait_p50", 1000 * float(np.median(waits)), "ms")
    if failures:
        raise KafkaException(failures[0])
    sent = count + trial.count("singles") + trial.count("partitions")
    missing = sent - len(lab.read(topic, sealed=True))
    trial.record("missing", missing, "records")
    if missing:
        trial.record(VOID, 1, "", note=f"{missing} records are missing")


def survival(trial: Trial) -> None:
    """Confirm some records and kill brokers, the leader first: are the old ones readable, are new ones taken?"""
    lab, count = trial.lab, trial.count("records")
    settings = {"min_insync_replicas": trial.text("min_insync")}
    topic = lab.topic("survival", 1, trial.count("replication"), **settings)
    messages = lab.workload.messages(count)
    confirmed = lab.send(topic, messages.keys, messages.values)
    leader, replicas, _ = lab.describe(topic)[0]
    others = [
        *(each for each in replicas if each != leader),
        *(each for each in lab.control.numbers if each not in replicas),
    ]
    victims = [leader, *others][: trial.count("deaths")]
    for victim in victims:
        lab.control.kill(victim)
    # The others need a moment to miss them, and a controller to do so: patience counts from then on.
    has_quorum = 2 * len(lab.control.running) > len(lab.control.numbers)
    notice_s = trial.number("noticed_s" if has_quorum else "unnoticed_s")
    trial.within(lambda: lab.broker_count == len(lab.control.running), notice_s)
    began = time.monotonic()
    outcome = _try_write(trial, topic, messages.values[0])
    trial.record("is_written", outcome == "written", "", note=outcome)
    trial.record("write_pause", time.monotonic() - began, "s")
    trial.record("is_readable", trial.within(lambda: lab.describe(topic)[0][0] in lab.control.running, 1.0), "")
    lab.control.heal()
    # In sync, not only led: until then the leader does not know what is committed, and shows a reader less.
    trial.wait_until(lambda: len(lab.describe(topic)[0][2]) == trial.count("replication"), "all copies in sync")
    read = lab.workload.sequences(lab.read(topic, sealed=True).values)
    trial.account(reconcile(count, confirmed, read[:count]))


def lagging(trial: Trial) -> None:
    """The followers hang for a moment; what was confirmed meanwhile, and then the leader's death: is it still there?"""
    lab, count = trial.lab, trial.count("records")
    topic = lab.topic("lagging", 1, 3, min_insync_replicas="2")
    leader, replicas, _ = lab.describe(topic)[0]
    followers = [each for each in replicas if each != leader]
    confirmed: list[int] = []
    settings = {"acks": trial.text("acks"), "linger.ms": 0, "message.timeout.ms": 20_000, "socket.timeout.ms": 3_000}
    producer = Producer(lab.client(f"acks={trial.text('acks')}", settings))
    _await(producer, topic, lab.workload.messages(1).values[0])
    for follower in followers:
        lab.control.pause(follower)
    for number, value in enumerate(lab.workload.messages(count, first=1).values, start=1):
        producer.produce(topic, value=value, on_delivery=noting(confirmed, number))
    trial.within(lambda: producer.poll(0.05) is not None and len(confirmed) == count, 0.7)
    trial.record("confirmed_by_leader_alone", len(confirmed), "records")
    lab.control.kill(leader)
    for follower in followers:
        lab.control.resume(follower)
    trial.wait_until(lambda: producer.flush(0.5) == 0, "all records confirmed or given up")
    lab.control.heal()
    read = lab.workload.sequences(lab.read(topic, sealed=True).values)
    trial.account(reconcile(count + 1, confirmed, read))


def unclean(trial: Trial) -> None:
    """A follower that lags is all that is left: with unclean election it leads, and what it had not copied is gone."""
    lab, count = trial.lab, trial.count("records")
    election = trial.text("unclean_election")
    topic = lab.topic("unclean", 1, 2, min_insync_replicas="1", unclean_leader_election_enable=election)
    messages = lab.workload.messages(count)
    half = count // 2
    first = lab.send(topic, messages.keys[:half], messages.values[:half])
    leader, replicas, _ = lab.describe(topic)[0]
    follower = next(each for each in replicas if each != leader)
    lab.control.pause(follower)  # not killed: going on takes it a moment, starting seconds
    trial.wait_until(lambda: lab.describe(topic)[0][2] == (leader,), "the follower to leave the in-sync replicas")
    second = lab.send(topic, messages.keys[half:], messages.values[half:]) + half
    lab.control.kill(leader)
    lab.control.resume(follower)
    began = time.monotonic()
    patience = trial.number("patience_s")
    is_led = trial.within(lambda: lab.describe(topic)[0][0] == follower, patience)
    trial.record("is_available", is_led, "")
    trial.record("without_leader", min(time.monotonic() - began, patience), "s")
    lab.control.start(leader)
    trial.wait_until(
        lambda: lab.describe(topic)[0][0] >= 0 and len(lab.describe(topic)[0][2]) == 2, "both copies in sync"
    )
    read = lab.workload.sequences(lab.read(topic, sealed=True).values)
    trial.account(reconcile(count, np.concatenate([first, second]), read))


def footprint(trial: Trial) -> None:
    """Make many partitions and put a record in each: what do they cost the brokers in files, memory and time?"""
    lab, partitions = trial.lab, trial.count("partitions")
    replication = trial.count("replication")
    before = _usage(trial)
    began = time.monotonic()
    topic = lab.topic("many", partitions, replication)
    trial.record("creation_time", time.monotonic() - began, "s")
    producer = lab.producer("everywhere")
    value = lab.workload.messages(1).values[0]
    for partition in range(partitions):
        produce(producer, topic, value=value, partition=partition)
    producer.flush(trial.remaining_s)
    after = _usage(trial)
    copies = partitions * replication
    trial.record("open_files", (after["files"] - before["files"]) / copies, "files a copy")
    trial.record("memory_mapped", (after["maps"] - before["maps"]) / copies, "maps a copy")
    trial.record("disk", (after["disk"] - before["disk"]) / copies / 1024, "KiB a copy")
    leader, _, _ = lab.describe(topic)[0]
    led = [number for number, (at, _, _) in lab.describe(topic).items() if at == leader]
    began = time.monotonic()
    lab.control.stop(leader)
    trial.wait_until(lambda: all(lab.describe(topic)[n][0] not in (leader, -1) for n in led), "new leaders", 30.0)
    trial.record("leaders_moved", time.monotonic() - began, "s")


# -- what the trials share ---------------------------------------------------------------------------------------------


def _await(producer: Producer, topic: str, value: bytes, partition: int = ANY) -> float:
    """Send one record and return how long its acknowledgement took, in seconds."""
    began = time.monotonic()
    producer.produce(topic, value=value, partition=partition)
    producer.flush(20)
    return time.monotonic() - began


def _try_write(trial: Trial, topic: str, value: bytes) -> str:
    """Send one record with a patience of `patience_s`: "written", or the name of the error."""
    outcome: list[str] = []

    def heard(error: KafkaError | None, _: Message) -> None:
        outcome.append("written" if error is None else error.name())

    patience_ms = int(1000 * trial.number("patience_s"))
    settings = {"acks": "all", "message.timeout.ms": patience_ms, "socket.timeout.ms": 2_000}
    producer = Producer(trial.lab.client("survivor", settings))
    producer.produce(topic, value=value, on_delivery=heard)
    trial.wait_until(lambda: producer.poll(0.1) is not None and outcome, "an answer", 3 * trial.number("patience_s"))
    return outcome[0]


def _disk(folder: Path) -> int:
    """Bytes that the folder's files really occupy: Kafka's index files are long and mostly holes."""
    size = 0
    with contextlib.suppress(FileNotFoundError):  # of a topic of the trial before, which goes just now
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # the broker writes some files aside and renames them
                size += path.stat().st_blocks * 512
    return size


def _usage(trial: Trial) -> dict[str, float]:
    """Open files, memory maps and disk of all brokers."""
    brokers = trial.lab.control
    processes = [psutil.Process(brokers.process_id(number)) for number in brokers.numbers]
    disk = sum(_disk(folder) for number in brokers.numbers for folder in brokers.data_folder(number).glob("lab-*"))
    return {
        "files": sum(each.num_fds() for each in processes),
        "maps": sum(len(each.memory_maps(grouped=False)) for each in processes),
        "disk": disk,
    }


# -- claims ------------------------------------------------------------------------------------------------------------

_FULL = (pl.col("replication") == 3) & (pl.col("acks") == "all")


def copies_cost_less_than_half(measured: Measured) -> Judgement:
    """Judge: rate with three copies against one, under acks=all and the same partitions."""
    trials = measured.trials("cost").filter(pl.col("acks") == "all")
    pairs = paired(trials, "rate", pl.col("replication") == 3, pl.col("replication") == 1)
    return compare(ratio_interval(*pairs), "×", "Rate with three copies against one, acks=all", above=0.5)


def leader_alone_is_sooner(measured: Measured) -> Judgement:
    """Judge: the wait for one acknowledgement, all against the leader alone."""
    trials = measured.trials("cost").filter(pl.col("replication") == 3)
    pairs = paired(trials, "wait_p50", pl.col("acks") == "all", pl.col("acks") == "1")
    return compare(difference_interval(*pairs), "ms", "Wait for one acknowledgement, acks=all minus acks=1", above=0)


def partitions_bring_rate(measured: Measured) -> Judgement:
    """Judge: rate of many partitions against one."""
    trials = measured.trials("cost").filter(_FULL)
    most = pl.col("partitions") == trials["partitions"].max()
    pairs = paired(trials, "rate", most, pl.col("partitions") == 1)
    return compare(ratio_interval(*pairs), "×", "Rate into many partitions against one", above=1.1)


def _lost_nothing(measured: Measured, acks: str) -> Judgement:
    trials = measured.trials("lagging").filter(pl.col("acks") == acks)
    says = f"Everything confirmed under acks={acks} survived the leader's death"
    return always(per_repetition(trials, pl.col("lost") == 0), says)


def leader_confirmed_survives(measured: Measured) -> Judgement:
    """Judge: acks=1."""
    return _lost_nothing(measured, "1")


def all_confirmed_survives(measured: Measured) -> Judgement:
    """Judge: acks=all."""
    return _lost_nothing(measured, "all")


def _survival(measured: Measured, replication: int, min_insync: int, deaths: int) -> pl.DataFrame:
    chosen = (
        (pl.col("replication") == replication) & (pl.col("min_insync") == min_insync) & (pl.col("deaths") == deaths)
    )
    return measured.trials("survival").filter(chosen)


def one_death_is_survived(measured: Measured) -> Judgement:
    """Judge: three copies, two in sync required, one broker dead."""
    trials = _survival(measured, 3, 2, 1)
    return always(
        per_repetition(trials, pl.col("is_written") == 1), "With one of three brokers dead a record was taken"
    )


def all_but_one_may_die(measured: Measured) -> Judgement:
    """Judge: three copies, two brokers dead."""
    trials = _survival(measured, 3, 1, 2)
    says = "With two of three brokers dead the partition took a record"
    return always(per_repetition(trials, pl.col("is_written") == 1), says)


def two_copies_both_required(measured: Measured) -> Judgement:
    """Judge: two copies, both required, one broker dead."""
    trials = _survival(measured, 2, 2, 1)
    return always(per_repetition(trials, pl.col("is_written") == 1), "With one of two copies gone a record was taken")


def nothing_lost_by_kills(measured: Measured) -> Judgement:
    """Judge: what was confirmed by all is there once the brokers are back."""
    trials = measured.trials("survival", with_void=True)
    return always(
        per_repetition(trials, pl.col("lost") == 0), "Every confirmed record was there once the brokers were back"
    )


def unclean_keeps_confirmed(measured: Measured) -> Judgement:
    """Judge: nothing confirmed is lost by an unclean election."""
    trials = measured.trials("unclean").filter(pl.col("unclean_election") == "true")
    return always(per_repetition(trials, pl.col("lost") == 0), "Everything confirmed survived an unclean election")


def clean_keeps_confirmed(measured: Measured) -> Judgement:
    """Judge: without unclean election the partition waits, and keeps all."""
    trials = measured.trials("unclean").filter(pl.col("unclean_election") == "false")
    waits = (pl.col("lost") == 0) & (pl.col("is_available") == 0)
    return always(
        per_repetition(trials, waits), "Without unclean election the partition waited for its leader and lost nothing"
    )


def two_maps_a_copy(measured: Measured) -> Judgement:
    """Judge: memory maps per copy of a partition."""
    trials = measured.trials("footprint")
    per = trials.group_by("repetition").agg(pl.col("memory_mapped").median())["memory_mapped"]
    return compare(median_interval(per.to_numpy()), "maps", "Memory maps a copy of a partition", above=1.8)


# -- figures -----------------------------------------------------------------------------------------------------------


def draw_cost(measured: Measured) -> Drawing:
    """Rate and wait by copies, acknowledgements and partitions."""
    trials = measured.trials("cost")
    designs = (
        trials.select("replication", "acks", "partitions").unique().sort("partitions", "replication", "acks").rows()
    )
    labels = [f"{copies} {'copy' if copies == 1 else 'copies'}, acks={acks}, {n} part." for copies, acks, n in designs]
    colours = [{1: BLUE, 3: GREEN}.get(copies, ORANGE) for copies, _, _ in designs]
    figure, axes = figures.panels(2, width=10.0, height=0.9 + 0.34 * len(designs))
    for axis, metric, title in zip(axes, ("rate", "wait_p50"), ("Sending rate", "One acknowledgement"), strict=True):
        groups = [
            trials.filter((pl.col("replication") == c) & (pl.col("acks") == a) & (pl.col("partitions") == n))[
                metric
            ].to_list()
            for c, a, n in designs
        ]
        figures.bars(axis, labels, groups, colours, form="{:,.0f}" if metric == "rate" else "{:.2g}")
        axis.set_title(title)
        axis.set_xlabel({"rate": "records a second", "wait_p50": "median wait, ms"}[metric])
    figures.rates(axes[0], "x")
    axes[1].set_yticklabels([])
    return figure


def draw_survival(measured: Measured) -> Drawing:
    """Who still writes after which deaths; what is lost."""
    trials = measured.trials("survival", with_void=True)
    designs = (
        trials.select("replication", "min_insync", "deaths").unique().sort("replication", "min_insync", "deaths").rows()
    )
    labels = [f"{c} {'copy' if c == 1 else 'copies'}, {m} required, {d} dead" for c, m, d in designs]
    figure, axes = figures.panels(2, width=10.5, height=max(2.6, 0.9 + 0.34 * len(designs)))
    groups = [
        (
            100
            * trials.filter((pl.col("replication") == c) & (pl.col("min_insync") == m) & (pl.col("deaths") == d))[
                "is_written"
            ]
        ).to_list()
        for c, m, d in designs
    ]
    figures.bars(axes[0], labels, groups, [GREEN if sum(group) else RED for group in groups], form="{:.0f} %")
    axes[0].set_title("Took a new record within the time allowed")
    axes[0].set_xlabel("% of repetitions")
    lagging_trials, election = measured.trials("lagging"), measured.trials("unclean")
    losses = {
        f"leader dies, acks={a}": lagging_trials.filter(pl.col("acks") == a)["lost"].to_list() for a in ("1", "all")
    }
    for setting in ("true", "false"):
        losses[f"unclean election: {setting}"] = election.filter(pl.col("unclean_election") == setting)[
            "lost"
        ].to_list()
    figures.bars(axes[1], list(losses), list(losses.values()), RED, form="{:.0f}")
    axes[1].set_title("Confirmed records lost")
    axes[1].set_xlabel("records")
    return figure


def draw_footprint(measured: Measured) -> Drawing:
    """Files, maps and disk of a copy; time to make many partitions and to move their leaders."""
    trials = measured.trials("footprint")
    figure, axes = figures.panels(2, height=2.8)
    groups = [trials[metric].to_list() for metric in ("open_files", "memory_mapped")]
    figures.bars(axes[0], ["open files", "memory maps"], groups, [BLUE, PURPLE])
    axes[0].set_title("A copy of a partition costs its broker")
    for metric, colour, label in (
        ("creation_time", ORANGE, "to create"),
        ("leaders_moved", RED, "to move the leaders"),
    ):
        figures.points_and_medians(axes[1], trials, "partitions", metric, colour, label)
    axes[1].set_xlabel("partitions")
    axes[1].set_ylabel("seconds")
    axes[1].set_ylim(bottom=0)
    axes[1].axhline(0, color=GREY, linewidth=0.6)
    axes[1].set_title("Time by number of partitions")
    axes[1].legend()
    return figure


# -- the experiment ----------------------------------------------------------------------------------------------------


# Copies, required, dead: a fraction of the matrix, for every trial restarts brokers.
_SURVIVALS = ((2, 2, 1), (3, 2, 1), (3, 1, 2))


def _is_telling(levels: Levels) -> bool:
    return (levels["replication"], levels["min_insync"], levels["deaths"]) in _SURVIVALS


def _is_on_an_axis(levels: Levels) -> bool:
    if int(levels["partitions"]) > 1:
        return levels["replication"] == 3 and levels["acks"] == "all"
    return levels["replication"] != 1 or levels["acks"] == "all"  # with one copy the leader alone is all


REPLICATION = Experiment(
    name="replication",
    title="Replication factors and partition counts",
    demand="D4",
    question=(
        "What do copies, acknowledgements and partitions cost in rate, wait, files and memory, which failures do "
        "they survive, "
        "and when are confirmed records lost all the same?"
    ),
    broker_settings=SOON_MISSED,
    scenes=(
        Scene(
            "cost",
            "Positions are sent as fast as the client can, into topics of different replication and number of "
            "partitions, each of which has taken a record before; then "
            "`singles` records one by one, each waiting for its acknowledgement. A trial in which a record is "
            "missing is void.",
            cost,
            (
                factor("replication", "copies of each partition", (1, 3), (1, 3), (1, 2, 3)),
                factor("acks", "acknowledgements the sender waits for", ("1", "all"), ("1", "all"), ("0", "1", "all")),
                factor("partitions", "of the topic", (1, 12), (1, 12), (1, 6, 12, 48)),
                fixed("records", "sent", 4_000, 60_000, 500_000),
                fixed("singles", "sent one by one", 25, 105),
            ),
            keep=_is_on_an_axis,
            trial_s=2.0,
            columns=("rate", "wait_p50"),
        ),
        Scene(
            "survival",
            "Records are confirmed under acks=all; brokers are killed (SIGKILL), the leader first. Once the others "
            "know of the deaths (`noticed_s` at most; without a quorum of controllers they never do: "
            "`unnoticed_s`, twice a broker's session): is a new record taken "
            "within `patience_s`, has the partition a living leader? Then all brokers return, and "
            "everything confirmed is looked for. "
            "The three brokers are the controllers too, so two deaths also cost the cluster its quorum.",
            survival,
            (
                factor("replication", "copies", (3,), (2, 3)),
                factor("min_insync", "min.insync.replicas", (2,), (1, 2)),
                factor("deaths", "brokers killed", (1,), (1, 2)),
                fixed("records", "confirmed before", 200, 500),
                fixed("noticed_s", "at most until the others know of the deaths", 15.0),
                fixed("unnoticed_s", "the same without a quorum of controllers", 2.4),
                fixed("patience_s", "for a new record from then on", 2.0, 2.0, 8.0),
            ),
            keep=_is_telling,
            trial_s=7.6,
            timeout_s=120.0,
            needs=Needs(broker_control=True, brokers=3),
            columns=("is_written", "write_pause", "is_readable", "lost"),
        ),
        Scene(
            "lagging",
            "Both followers hang (SIGSTOP) while records are sent; 0.7 s later the leader is killed and the "
            "followers go on. "
            "Counted: what had been confirmed by then, and what of it is gone.",
            lagging,
            (
                factor("acks", "acknowledgements the sender waits for", ("1",), ("1", "all")),
                fixed("records", "sent", 100, 500),
            ),
            trial_s=4.6,
            timeout_s=90.0,
            needs=Needs(broker_control=True, brokers=3),
            allows_loss=True,
            columns=("confirmed_by_leader_alone", "lost", "duplicated"),
        ),
        Scene(
            "unclean",
            "Two copies. The follower hangs (SIGSTOP) until it is out of sync; more is confirmed by the leader; the "
            "leader is killed; the follower goes on. Does it lead, "
            "and what is left when the old leader is back?",
            unclean,
            (
                factor("unclean_election", "unclean.leader.election.enable", (), ("true", "false")),
                fixed("records", "confirmed", 200, 500),
                fixed("patience_s", "for a leader", 2.0, 2.0, 5.0),
            ),
            trial_s=5.8,
            timeout_s=120.0,
            needs=Needs(broker_control=True, brokers=3),
            allows_loss=True,
            columns=("is_available", "without_leader", "lost"),
        ),
        Scene(
            "footprint",
            "A topic of many partitions is made and a record put into each; files, memory maps and disk of the "
            "brokers before and "
            "after; then one broker is shut down in order, and its leaders move.",
            footprint,
            (
                factor("partitions", "of the topic", (30,), (60,), (50, 300, 1_000)),
                fixed("replication", "copies", 3),
            ),
            trial_s=3.2,
            timeout_s=180.0,
            needs=Needs(broker_control=True, brokers=3),
            columns=("open_files", "memory_mapped", "disk", "creation_time", "leaders_moved"),
        ),
    ),
    claims=(
        Claim(
            "copies-cost-less-than-half",
            "Three copies under acks=all leave more than half of the rate of a single copy.",
            "LinkedIn Engineering 2014: 421,823 of 821,557 records a second with three copies, synchronous",
            copies_cost_less_than_half,
        ),
        Claim(
            "acks-1-answers-sooner",
            "With three copies, acks=1 answers sooner than acks=all.",
            "Apache Kafka documentation, acks",
            leader_alone_is_sooner,
        ),
        Claim(
            "partitions-bring-rate",
            "More partitions mean a higher rate of one producer (at least a tenth more with twelve than with one).",
            "folklore: “partitions are the unit of parallelism”",
            partitions_bring_rate,
        ),
        Claim(
            "acks-1-survives",
            "What was confirmed under acks=1 survives the death of the leader, for there are two more copies.",
            "folklore; the documentation warns of it",
            leader_confirmed_survives,
        ),
        Claim(
            "acks-all-survives",
            "What was confirmed under acks=all with min.insync.replicas=2 survives the death of the leader.",
            "Apache Kafka documentation, acks and min.insync.replicas",
            all_confirmed_survives,
        ),
        Claim(
            "three-copies-survive-one",
            "Three copies of which two are required take writes while one broker is dead.",
            "Apache Kafka documentation, min.insync.replicas",
            one_death_is_survived,
        ),
        Claim(
            "n-copies-survive-all-but-one",
            "With replication factor N up to N-1 brokers may fail, and the topic still takes records.",
            "Apache Kafka documentation: “we will tolerate up to N-1 server failures”; here controllers die as well",
            all_but_one_may_die,
        ),
        Claim(
            "two-copies-both-required",
            "Two copies, both required, take writes while one broker is dead.",
            "folklore: replication means availability",
            two_copies_both_required,
        ),
        Claim(
            "kills-lose-nothing-confirmed",
            "SIGKILL of one or two brokers loses nothing that all in-sync copies had confirmed.",
            "Apache Kafka documentation, replication; brokers don't fsync, but the page cache outlives the process",
            nothing_lost_by_kills,
        ),
        Claim(
            "unclean-election-keeps-confirmed",
            "Unclean election costs order at most: what was confirmed under acks=all stays.",
            "folklore; the documentation of unclean.leader.election.enable says “may result in data loss”",
            unclean_keeps_confirmed,
        ),
        Claim(
            "clean-election-waits",
            "Without unclean election the partition has no leader until one that is in sync returns, and nothing "
            "is lost.",
            "Apache Kafka documentation, unclean.leader.election.enable",
            clean_keeps_confirmed,
        ),
        Claim(
            "two-maps-a-copy",
            "Every copy of a partition costs its broker at least two memory maps.",
            "Apache Kafka documentation, operations: “each partition requires minimum 2 map areas”",
            two_maps_a_copy,
        ),
    ),
    figures=(
        Figure("cost", "What copies, acknowledgements and partitions cost.", draw_cost),
        Figure("survival", "Who still takes records after which deaths, and what was lost.", draw_survival),
        Figure("footprint", "What partitions cost the brokers.", draw_footprint),
    ),
    use_cases=(
        "Three copies, two required, acks=all is the setting for data that must not be lost and must be written "
        "while a broker is "
        "being restarted: it is the application's own. Two copies are for data that may wait but not vanish (both "
        "required) or may "
        "vanish but not wait (one required), never for both. acks=1 suits measurements that are superseded soon. "
        "Leave unclean "
        "election off wherever somebody counts; turn it on for streams whose latest value is all that matters. "
        "Choose partitions by "
        "the number of consumers that must work side by side, not in the hope of a higher rate of one sender; "
        "every copy costs files "
        "and memory maps on its broker and time at every change of leaders. And three brokers that are also "
        "controllers survive one "
        "death, whatever the replication factor."
    ),
)
