"""Keys: where records go, what stays in order, what becomes hot, and what breaks when partitions are added."""

from __future__ import annotations

import json
import subprocess
import time

import numpy as np
import polars as pl
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import NewPartitions  # type: ignore[attr-defined]  # its stubs re-export nothing
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray

from experiments import figures
from experiments.experiment import Experiment, Figure, Scene, factor, fixed
from experiments.figures import BLUE, GREEN, GREY, ORANGE, RED
from experiments.findings import Claim, Judgement, always, compare, paired, per_repetition
from experiments.lab import answer, produce
from experiments.ledger import reconcile
from experiments.measurements import Measured
from experiments.statistics import median_interval, ratio_interval
from experiments.trial import Trial
from streaming.cluster.kafka import java

Keys = list[bytes | None]
KINDS = ("none", "random", "vehicle", "vehicle and trip", "skewed vehicle")
TICK_S = 0.05


# -- what the keys are -----------------------------------------------------------------------------------------------


def names(trial: Trial) -> list[bytes]:
    """This repetition's fleet: every repetition has vehicles of other names, as every customer's fleet has."""
    fleet = int(trial.random("fleet").integers(16**6))
    return [b"%06x-vehicle-%03d" % (fleet, number) for number in range(trial.count("vehicles"))]


def choose(trial: Trial, kind: str, count: int) -> tuple[Keys, NDArray[np.int64]]:
    """A key for each record, and the vehicle that the record is about."""
    fleet, random = names(trial), trial.random(kind)
    vehicle = np.arange(count) % len(fleet)
    if kind == "skewed vehicle":
        vehicle = zipf(len(fleet), trial.number("exponent"), count, random)
    if kind == "none":
        return [None] * count, vehicle
    if kind == "random":
        return [random.bytes(16) for _ in range(count)], vehicle
    if kind == "vehicle and trip":  # ten records a trip
        return [b"%s/%d" % (fleet[v], n // (10 * len(fleet))) for n, v in enumerate(vehicle)], vehicle
    return [fleet[v] for v in vehicle], vehicle


def zipf(vehicles: int, exponent: float, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Vehicles drawn so that the k-th most talkative sends in proportion to k^-exponent."""
    weights = np.arange(1, vehicles + 1) ** -exponent
    return random.permutation(vehicles)[random.choice(vehicles, size=count, p=weights / weights.sum())]


# -- trials ------------------------------------------------------------------------------------------------------------


def distribution(trial: Trial) -> None:
    """Send under one kind of key; count per partition; read with one consumer and look at each vehicle's order."""
    count, partitions = trial.count("records"), trial.count("partitions")
    keys, vehicle = choose(trial, trial.text("key"), count)
    topic = trial.lab.topic("distribution", partitions)
    values = trial.lab.workload.messages(count).values
    # Idempotent, as the application's: without it a batch that a new leader sends back comes after those behind it.
    confirmed = trial.lab.send(topic, keys, values, partitioner=trial.text("partitioner"), enable_idempotence=True)
    read = trial.lab.read(topic)
    sequences = trial.lab.workload.sequences(read.values)
    trial.account(reconcile(count, confirmed, sequences, lanes=vehicle[sequences]))
    sizes = np.bincount(read.partitions, minlength=partitions)
    for partition, size in enumerate(sizes):
        trial.sample("share", size / count, "of all records", f"{partition}")
    trial.record("fullest", sizes.max() * partitions / count, "× fair share")
    spread = pl.DataFrame({"vehicle": vehicle[sequences], "partition": read.partitions})
    homes = spread.group_by("vehicle").agg(pl.col("partition").n_unique())["partition"]
    trial.record("split_vehicles", float((homes > 1).mean()), "of all vehicles")  # type: ignore[arg-type]


def hot_partition(trial: Trial) -> None:
    """Three consumers of limited capacity read what is sent at 75 % of their joint capacity; watch each one's lag."""
    lab, capacity, partitions = trial.lab, trial.number("capacity"), 6
    topic = lab.topic("hot", partitions)
    rate = 0.75 * 3 * capacity
    keys, vehicle = choose(trial, trial.text("key"), int(rate * trial.number("seconds")))
    values = lab.workload.messages(len(keys)).values
    producer = lab.producer("paced", partitioner="murmur2_random")
    readers = [lab.consumer("worker", lab.group("hot")) for _ in range(3)]
    for member, reader in enumerate(readers):
        lab.keep(reader.close)
        reader.assign([TopicPartition(topic, number, 0) for number in (member, member + 3)])
    home = _homes(trial, producer, readers, topic)
    sent, read = np.zeros(partitions, dtype=np.int64), np.zeros(partitions, dtype=np.int64)
    credit = np.zeros(3)
    began = last = time.monotonic()
    place = 0
    while place < len(keys):
        now = time.monotonic()
        due = min(len(keys), int(rate * (now - began)))
        for number in range(place, due):
            produce(producer, topic, value=values[number], key=keys[number])
        sent += np.bincount(home[vehicle[place:due]], minlength=partitions)
        # Time in which a consumer had nothing to do is lost to it, but for a tenth of a second.
        credit = np.minimum(credit + capacity * (now - last), 0.1 * capacity)
        for member, reader in enumerate(readers):
            messages = reader.consume(int(credit[member]), timeout=0) if credit[member] >= 1 else []
            credit[member] -= len(messages)
            for message in messages:
                if not message.error():
                    read[message.partition()] += 1
        for partition in range(partitions):
            trial.sample("lag", float(sent[partition] - read[partition]), "records", f"{partition}", at_s=now - began)
        place, last = due, now
        producer.poll(0)
        time.sleep(min(TICK_S, trial.remaining_s))
    producer.flush(trial.remaining_s)
    lags = sent - read
    hottest = int(sent.argmax())
    trial.record("hottest_lag", float(lags[hottest]), "records")
    trial.record("neighbour_lag", float(lags[(hottest + 3) % partitions]), "records")
    trial.record("other_lag", float(np.median(np.delete(lags, hottest))), "records")
    trial.record("hottest_share", float(sent.max() / sent.sum()), "of all records")


def _homes(trial: Trial, producer: Producer, readers: list[Consumer], topic: str) -> NDArray[np.int64]:
    """Send and read one record per vehicle: says which partition each vehicle has, and wakes every reader."""
    fleet = names(trial)
    home = np.full(len(fleet), -1)

    def seen(reader: Consumer) -> bool:
        for message in reader.consume(len(fleet), timeout=0.05):
            if not message.error():
                home[int(message.value() or b"0")] = message.partition()
        return bool((home >= 0).all())

    for number, key in enumerate(fleet):
        producer.produce(topic, value=b"%d" % number, key=key)
    producer.flush(trial.remaining_s)
    trial.wait_until(lambda: any([seen(reader) for reader in readers]), "a record of every vehicle")  # noqa: C419
    return home


def sticky(trial: Trial) -> None:
    """Send records without key at a steady rate, and see how many share a batch."""
    lab, rate, seconds = trial.lab, trial.number("rate"), trial.number("seconds")
    topic = lab.topic("sticky", trial.count("partitions"))
    total = int(rate * seconds)
    values = lab.workload.messages(total).values
    batches = {"cnt": 0, "sum": 0}
    latencies: list[float] = []

    def heed(text: str) -> None:
        window = json.loads(text)["topics"].get(topic, {}).get("batchcnt", {})
        for each in batches:
            batches[each] += window.get(each, 0)

    def confirm(error: object, message: Message) -> None:
        if error is None:
            latencies.append(message.latency() or 0.0)

    producer = lab.producer(
        "keyless",
        sticky_partitioning_linger_ms=trial.count("sticky_ms"),
        linger_ms=trial.count("linger_ms"),
        statistics_interval_ms=200,
        stats_cb=heed,
    )
    began, place = time.monotonic(), 0
    while place < total:
        due = min(total, int(rate * (time.monotonic() - began)))
        for number in range(place, due):
            produce(producer, topic, value=values[number], on_delivery=confirm)
        place = due
        producer.poll(0.001)
    producer.flush(trial.remaining_s)
    trial.wait_until(
        lambda: producer.poll(0.05) is not None and batches["sum"] >= total, "the client's statistics", 3.0
    )
    trial.record("batch_size", batches["sum"] / batches["cnt"], "records a batch")
    trial.record("latency_p50", 1000 * float(np.median(latencies)), "ms")


def disagreement(trial: Trial) -> None:
    """The same keys from Java's producer, from Python's as it comes, and from Python's with Java's partitioner."""
    lab, fleet = trial.lab, names(trial)
    places = {"java": _java_places(trial, fleet)}
    for label, partitioner in (("python", "consistent_random"), ("python_murmur2", "murmur2_random")):
        topic = lab.topic(label, trial.count("partitions"))
        lab.send(topic, list(fleet), fleet, partitioner=partitioner)
        places[label] = _places(trial, topic)
    for label in ("python", "python_murmur2"):
        same = [places[label][key] == places["java"][key] for key in fleet]
        trial.record(f"{label}_agrees", float(np.mean(same)), "of all keys")


def growth(trial: Trial) -> None:
    """Send for every vehicle, add partitions, send again: how many vehicles have records in two partitions now?"""
    lab, fleet, grown = trial.lab, names(trial), trial.count("grown_to")
    topic = lab.topic("growth", trial.count("partitions"))
    lab.send(topic, list(fleet), fleet, partitioner="murmur2_random")
    answer(lab.admin.create_partitions([NewPartitions(topic, grown)])[topic])
    trial.wait_until(lambda: _have_leaders(trial, topic, grown), "leaders of the added partitions")
    lab.send(topic, list(fleet), fleet, partitioner="murmur2_random")
    read = lab.read(topic)
    homes = pl.DataFrame({"key": read.keys, "partition": read.partitions}).group_by("key").n_unique()["partition"]
    trial.record("moved", float((homes > 1).mean()), "of all vehicles")  # type: ignore[arg-type]


def _java_places(trial: Trial, fleet: list[bytes]) -> dict[bytes, int]:
    topic = trial.lab.topic("java", trial.count("partitions"))
    options = ["--bootstrap-server", trial.lab.bootstrap_servers, "--topic", topic]
    options += ["--reader-property", "parse.key=true", "--reader-property", "key.separator=|"]
    lines = b"".join(b"%s|%s\n" % (key, key) for key in fleet)
    command = [*java(128), "org.apache.kafka.tools.ConsoleProducer", *options]
    done = subprocess.run(command, input=lines, capture_output=True, check=False, timeout=trial.remaining_s)
    if done.returncode:
        raise RuntimeError(f"Java's console producer: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return _places(trial, topic)


def _places(trial: Trial, topic: str) -> dict[bytes, int]:
    read = trial.lab.read(topic)
    return {key: int(partition) for key, partition in zip(read.keys, read.partitions, strict=True) if key is not None}


def _have_leaders(trial: Trial, topic: str, partitions: int) -> bool:
    found = trial.lab.describe(topic)
    return len(found) == partitions and all(leader >= 0 for leader, _, _ in found.values())


# -- claims ------------------------------------------------------------------------------------------------------------


def vehicle_order(measured: Measured) -> Judgement:
    """Judge: no record of any vehicle after a later one of the same vehicle."""
    trials = measured.trials("distribution").filter(pl.col("key") == "vehicle")
    return always(
        per_repetition(trials, pl.col("reordered") == 0), "With the vehicle as key each vehicle's order was kept"
    )


def keyless_order(measured: Measured) -> Judgement:
    """Judge: the same, without a key."""
    trials = measured.trials("distribution").filter((pl.col("key") == "none") & (pl.col("partitions") > 1))
    return always(per_repetition(trials, pl.col("reordered") == 0), "Without a key each vehicle's order was kept")


def even_spread(measured: Measured) -> Judgement:
    """Judge: the fullest partition against its fair share."""
    trials = measured.trials("distribution").filter((pl.col("key") == "vehicle") & (pl.col("partitions") > 1))
    fullest = trials.group_by("repetition").agg(pl.col("fullest").max())["fullest"]
    return compare(
        median_interval(fullest.to_numpy()), "× fair share", "The fullest partition under the vehicle's name", below=1.1
    )


def skew_hurts_one(measured: Measured) -> Judgement:
    """Judge: the lag of the hottest partition against the same partition's without skew."""
    trials = measured.trials("hot_partition").with_columns(hottest_lag=pl.col("hottest_lag").clip(lower_bound=1))
    pairs = paired(trials, "hottest_lag", pl.col("key") == "skewed vehicle", pl.col("key") == "vehicle")
    return compare(ratio_interval(*pairs), "×", "Largest lag under a skewed key against an even one", above=3)


def others_keep_up(measured: Measured) -> Judgement:
    """Judge: whether the median partition has a lag when another one is hot."""
    trials = measured.trials("hot_partition").filter(pl.col("key") == "skewed vehicle")
    quiet = trials.with_columns(relative=pl.col("other_lag") / pl.col("hottest_lag").clip(lower_bound=1))
    return compare(
        median_interval(quiet["relative"].to_numpy()), "of the hottest one's", "The median partition's lag", below=0.2
    )


def neighbour_keeps_up(measured: Measured) -> Judgement:
    """Judge: the lag of the partition that shares its consumer with the hottest one."""
    trials = measured.trials("hot_partition").filter(pl.col("key") == "skewed vehicle")
    quiet = trials.with_columns(relative=pl.col("neighbour_lag") / pl.col("hottest_lag").clip(lower_bound=1))
    interval = median_interval(quiet["relative"].to_numpy())
    return compare(interval, "of the hottest one's", "The lag of the partition read by the same consumer", below=0.05)


def sticky_batches(measured: Measured) -> Judgement:
    """Judge: batch size with stickiness against without."""
    pairs = paired(measured.trials("sticky"), "batch_size", pl.col("sticky_ms") == 10, pl.col("sticky_ms") == 0)
    return compare(ratio_interval(*pairs), "×", "Records a batch, sticky against random", above=2)


def clients_agree(measured: Measured) -> Judgement:
    """Judge: Java and Python as they come."""
    trials = measured.trials("disagreement")
    return always(
        per_repetition(trials, pl.col("python_agrees") == 1), "Java and Python agreed on every key's partition"
    )


def murmur2_agrees(measured: Measured) -> Judgement:
    """Judge: Java and Python with the same partitioner."""
    trials = measured.trials("disagreement")
    says = "Java and Python with partitioner=murmur2_random agreed on every key's partition"
    return always(per_repetition(trials, pl.col("python_murmur2_agrees") == 1), says)


def one_more_moves_few(measured: Measured) -> Judgement:
    """Judge: the share of keys that move when one partition is added, against 1/7 of a consistent hash."""
    trials = measured.trials("growth").filter(pl.col("grown_to") == pl.col("partitions") + 1)
    interval = median_interval(trials["moved"].to_numpy())
    return compare(interval, "of all keys", "Moved by a seventh partition", below=0.3)


def doubling_moves_half(measured: Measured) -> Judgement:
    """Judge: the share of keys that move when the partitions are doubled."""
    trials = measured.trials("growth").filter(pl.col("grown_to") == 2 * pl.col("partitions"))
    interval = median_interval(trials["moved"].to_numpy())
    return compare(interval, "of all keys", "Moved by doubling", above=0.4, below=0.6)


# -- figures -----------------------------------------------------------------------------------------------------------


def draw_distribution(measured: Measured) -> Drawing:
    """Share of each partition under each kind of key."""
    shares = measured.samples("distribution", "share")
    partitions = int(shares["partitions"].max())  # type: ignore[arg-type]
    shares = shares.filter(pl.col("partitions") == partitions)
    figure, axes = figures.panels(len(KINDS), width=11.5, height=2.9, sharey=True)
    for each, kind in zip(axes, KINDS, strict=True):
        chosen = shares.filter(pl.col("key") == kind)
        medians = chosen.group_by(pl.col("subject").cast(int)).agg(pl.col("value").median()).sort("subject")
        each.bar(medians["subject"], medians["value"], color=RED if kind == "skewed vehicle" else BLUE, alpha=0.85)
        each.plot(chosen["subject"].cast(int), chosen["value"], "o", color=figures.INK, alpha=0.4, markersize=2.4)
        each.axhline(1 / partitions, color=GREY, linestyle="--", linewidth=1)
        each.set_title(f"key: {kind}")
        each.set_xlabel("partition")
    axes[0].set_ylabel("share of all records")
    axes[0].annotate("fair share", (0, 1 / partitions), (0, 4), textcoords="offset points", fontsize=7.5, color=GREY)
    return figure


def draw_lag(measured: Measured) -> Drawing:
    """Lag of each partition over time, even and skewed."""
    lags = measured.samples("hot_partition", "lag")
    figure, axes = figures.panels(2, sharey=True)
    for each, kind in zip(axes, ("vehicle", "skewed vehicle"), strict=True):
        chosen = lags.filter(pl.col("key") == kind)
        for (trial,), one in chosen.group_by("trial"):
            last = one.group_by("subject").agg(pl.col("value").last()).sort("value")["subject"]
            for subject in last:
                line, is_hot = one.filter(pl.col("subject") == subject), subject == last[-1]
                label = {True: "fullest partition", False: "the other five"}[is_hot]
                is_first = trial == chosen["trial"][0] and subject in (last[-1], last[0])
                colour = RED if is_hot else BLUE
                each.plot(
                    line["at_s"], line["value"], color=colour, alpha=0.8 if is_hot else 0.35,
                    linewidth=1.6 if is_hot else 0.9, label=label if is_first else None,
                )  # fmt: skip
        each.set_title(f"key: {kind}")
        each.set_xlabel("seconds")
    axes[0].set_ylabel("lag, records")
    axes[0].legend(loc="upper left")
    return figure


def draw_moves(measured: Measured) -> Drawing:
    """Agreement between clients, keys moved by added partitions, batch size by stickiness."""
    figure, axes = figures.panels(3, width=11.5, height=2.8)
    agree = measured.trials("disagreement")
    labels = ["as it comes", "murmur2_random"]
    groups = [(100 * agree["python_agrees"]).to_list(), (100 * agree["python_murmur2_agrees"]).to_list()]
    figures.bars(axes[0], labels, groups, [RED, GREEN])
    axes[0].set_title("Python's keys where Java's are")
    axes[0].set_xlabel("% of keys")
    moved = measured.trials("growth").sort("grown_to")
    grown = moved["grown_to"].unique(maintain_order=True).to_list()
    start = moved["partitions"][0]
    groups = [(100 * moved.filter(pl.col("grown_to") == each)["moved"]).to_list() for each in grown]
    figures.bars(axes[1], [f"{start} → {each}" for each in grown], groups, ORANGE)
    axes[1].set_title("Moved by added partitions")
    axes[1].set_xlabel("% of keys")
    batches = measured.trials("sticky").sort("sticky_ms")
    waits = batches["sticky_ms"].unique(maintain_order=True).to_list()
    groups = [batches.filter(pl.col("sticky_ms") == each)["batch_size"].to_list() for each in waits]
    figures.bars(axes[2], [f"{each} ms" if each else "random" for each in waits], groups, BLUE)
    axes[2].set_title("Batches without key")
    axes[2].set_xlabel("records a batch, by time of stickiness")
    return figure


# -- the experiment ----------------------------------------------------------------------------------------------------

_VEHICLES = fixed("vehicles", "vehicles of the fleet", 200)
_PARTITIONS = fixed("partitions", "of the topic", 6)
_EXPONENT = fixed("exponent", "of Zipf's law for the skewed key", 1.3)


KEYS = Experiment(
    name="keys",
    title="What a key has to look like",
    demand="D9",
    question=(
        "What decides which partition a record goes to, what does that do to order and load, "
        "and what breaks when the number of partitions or the client changes?"
    ),
    scenes=(
        Scene(
            "distribution",
            "Positions are sent under one kind of key and read back by a single consumer of all partitions. Counted: "
            "records per partition, vehicles whose records lie in more than one partition, and records that came after "
            "a later record of the same vehicle.",
            distribution,
            (
                factor("key", "what is used as key", KINDS, KINDS),
                factor("partitions", "of the topic", (6,), (6,), (1, 6, 12, 48)),
                factor("partitioner", "of the client", ("murmur2_random",), ("murmur2_random",)),
                fixed("records", "sent in a trial", 3_000, 10_000, 100_000),
                _VEHICLES,
                _EXPONENT,
            ),
            trial_s=1.2,
            columns=("fullest", "split_vehicles", "reordered", "lost", "duplicated"),
        ),
        Scene(
            "hot_partition",
            "Three consumers, each of which can work off `capacity` records a second, read two partitions each. "
            "Records "
            "come at 75 % of what the three can do together. The lag of each partition is sampled 20 times a second.",
            hot_partition,
            (
                factor("key", "what is used as key", ("vehicle", "skewed vehicle"), ("vehicle", "skewed vehicle")),
                fixed("capacity", "records a second of one consumer", 500, 1_000),
                fixed("seconds", "of load", 2.0, 2.5, 30.0),
                _VEHICLES,
                _EXPONENT,
            ),
            trial_s=3.0,
            allows_loss=True,  # the trial ends with a backlog on purpose
            columns=("hottest_share", "hottest_lag", "neighbour_lag", "other_lag"),
        ),
        Scene(
            "sticky",
            "Records without key are sent at a steady rate; the client's own statistics say how many share a batch. "
            "librdkafka keeps to one partition for `sticky_ms` (0: a random one for every record).",
            sticky,
            (
                factor("sticky_ms", "sticky.partitioning.linger.ms", (0, 10), (0, 10), (0, 10, 100)),
                fixed("partitions", "of the topic", 12),
                fixed("linger_ms", "linger.ms", 10),
                fixed("rate", "records a second", 2_000.0, 5_000.0),
                fixed("seconds", "of load", 1.0, 1.0, 10.0),
            ),
            trial_s=1.5,
            columns=("batch_size", "latency_p50"),
        ),
        Scene(
            "disagreement",
            "One record per vehicle is sent by Kafka's own Java console producer, by confluent-kafka with its default "
            "partitioner (consistent_random, CRC32) and by confluent-kafka with Java's (murmur2_random). Compared: the "
            "partition of each key.",
            disagreement,
            (_PARTITIONS, _VEHICLES),
            trial_s=1.6,
            columns=("python_agrees", "python_murmur2_agrees"),
        ),
        Scene(
            "growth",
            "Every vehicle sends a record, partitions are added to the topic, every vehicle sends again. Counted: "
            "vehicles that have records in two partitions.",
            growth,
            (factor("grown_to", "partitions afterwards", (7, 12), (7, 12), (7, 8, 12, 24)), _PARTITIONS, _VEHICLES),
            trial_s=0.45,
            columns=("moved",),
        ),
    ),
    claims=(
        Claim(
            "entity-key-keeps-order",
            "With the entity as key, the records of each entity are read in the order in which they were sent.",
            "Apache Kafka documentation, introduction: “events with the same event key are written to the same "
            "partition” "
            "and are read “in exactly the same order as they were written”",
            vehicle_order,
        ),
        Claim(
            "order-without-key",
            "Kafka keeps the order of messages, so a single consumer sees each vehicle's records in order, key or not.",
            "folklore; the documentation promises order per partition only",
            keyless_order,
        ),
        Claim(
            "entity-key-spreads-evenly",
            "A good entity key with many values (here 200) spreads records evenly: no partition gets more than 10 "
            "% above "
            "its fair share.",
            "folklore: “choose a key with high cardinality and the load is balanced”",
            even_spread,
        ),
        Claim(
            "skew-makes-one-hot",
            "A skewed key makes one partition's lag grow although the consumers together have capacity to spare.",
            "Confluent, “hot partitions”; folklore",
            skew_hurts_one,
        ),
        Claim(
            "hot-partition-spares-others",
            "Partitions beside a hot one keep up: the median partition's lag stays below a fifth of the hottest one's.",
            "folklore: partitions are independent of each other",
            others_keep_up,
        ),
        Claim(
            "hot-partition-hurts-only-itself",
            "A hot partition delays its own records only: the other partition of the same consumer has less than a "
            "twentieth of its lag.",
            "folklore: partitions are independent of each other",
            neighbour_keeps_up,
        ),
        Claim(
            "sticky-makes-larger-batches",
            "For records without key, sticky partitioning makes batches at least twice as large as a random partition "
            "for every record.",
            "KIP-480: Sticky Partitioner",
            sticky_batches,
        ),
        Claim(
            "same-key-same-partition-from-any-client",
            "The same key goes to the same partition, whichever client sends it.",
            "folklore; Java hashes with murmur2, librdkafka's default with CRC32",
            clients_agree,
        ),
        Claim(
            "murmur2-agrees-with-java",
            "librdkafka's partitioner=murmur2_random puts every key where the Java producer does.",
            "librdkafka, CONFIGURATION.md: murmur2_random is “Java Producer compatible”",
            murmur2_agrees,
        ),
        Claim(
            "one-more-partition-moves-few-keys",
            "Adding a seventh partition moves few keys (under 30 %), as with consistent hashing.",
            "folklore, encouraged by the partitioner's name “consistent”",
            one_more_moves_few,
        ),
        Claim(
            "doubling-moves-half",
            "Doubling the number of partitions moves about half of the keys (40 to 60 %).",
            "arithmetic: hash modulo 6 and modulo 12 agree for half of all hashes",
            doubling_moves_half,
        ),
    ),
    figures=(
        Figure(
            "distribution",
            "Share of each partition under five kinds of key; dashed: the fair share.",
            draw_distribution,
        ),
        Figure("lag", "Lag of each partition while three consumers work at 75 % of their joint capacity.", draw_lag),
        Figure("clients", "Agreement with Java's producer, keys moved by added partitions, batch size.", draw_moves),
    ),
    use_cases=(
        "Use the entity whose order matters as key, and nothing finer: a vehicle, an account, an order. Take no "
        "key where "
        "order does not matter (logs, metrics that carry their own time): the sticky partitioner then gives the "
        "largest "
        "batches and an even load. Measure the skew of a key before it is chosen, because consumers cannot be "
        "added to a "
        "hot partition; split a hot entity by a second part of the key only if its parts may overtake each other. "
        "Set the "
        "partitioner explicitly where Java and librdkafka clients write to one topic, else a join finds half its "
        "partners. "
        "Choose the number of partitions for the years to come: adding some later moves most keys, so windows and "
        "joins "
        "see an entity in two places. A topic that must grow is better written anew under another name."
    ),
)
