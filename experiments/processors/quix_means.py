"""Quix Streams' version of the job, run by the Python of its own environment. Argument: the job, in JSON (systems.Job).

Its environment has an older confluent-kafka, so nothing of Streamgauge can be imported here.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from quixstreams import Application

NAMES = (("latitude", 10**9), ("longitude", 10**9), ("speed_mps", 10**6))


def begin(row: dict[str, Any]) -> list[int]:
    """The sums of a window's first row."""
    return add([0] * 7, row)


def add(sums: list[int], row: dict[str, Any]) -> list[int]:
    """count, then sum and number of each value, in whole units: the same in any order."""
    after = [*sums]
    after[0] += 1
    for place, (name, scale) in enumerate(NAMES):
        if row.get(name) is not None:
            after[1 + 2 * place] += round(row[name] * scale)
            after[2 + 2 * place] += 1
    return after


def mean(window: dict[str, Any], vehicle: str) -> dict[str, Any]:
    """A row of the means."""
    sums = window["value"]
    row = {"vehicle": vehicle, "window_start": window["start"] * 1000, "count": sums[0]}
    for place, (name, scale) in enumerate(NAMES):
        if sums[2 + 2 * place]:
            row[name] = sums[1 + 2 * place] / (sums[2 + 2 * place] * scale)
    return row


def is_speeding(row: dict[str, Any]) -> bool:
    """Whether a joined mean is above its vehicle's limit; nothing is held against what is not known."""
    return "speed_mps" in row and "speed_limit_mps" in row and bool(row["speed_mps"] > row["speed_limit_mps"])


def table(servers: str, topic: str) -> dict[str, dict[str, Any]]:
    """The compacted topic's latest row of each vehicle, read to its present end."""
    settings = {"bootstrap.servers": servers, "group.id": "unused", "enable.partition.eof": True}
    reader, rows = Consumer(settings), dict[str, dict[str, Any]]()
    reader.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    while True:
        message = reader.poll(10)
        if message is None or ((error := message.error()) and error.code() == KafkaError._PARTITION_EOF):
            reader.close()
            return rows
        if error:
            raise KafkaException(error)
        row = json.loads(message.value() or b"{}")
        rows[row.get("vehicle", "")] = row


def main(job: dict[str, Any]) -> None:
    """Run until told to stop."""
    app = Application(
        job["bootstrap_servers"],
        consumer_group=job["application"],
        auto_offset_reset="earliest",
        state_dir=job["state"],
        processing_guarantee=job["guarantee"],
        commit_interval=job["commit_interval_ms"] / 1000,
        consumer_poll_timeout=0.05,
        consumer_extra_config={"group.instance.id": "only", "fetch.wait.max.ms": 100},
        loglevel="ERROR",
    )
    positions = app.topic(
        job["positions"],
        value_deserializer="json",
        key_deserializer="str",
        timestamp_extractor=lambda value, *_: value["event_time"] // 1000,
    )
    late = app.get_producer()

    def put_aside(value: Any, key: Any, *_: Any) -> bool:
        late.produce(job["late"], json.dumps(value).encode(), key=str(key).encode())
        return False  # no warning in the log for each

    means = (
        app.dataframe(positions)
        .tumbling_window(2000, grace_ms=job["grace_ms"], on_late=put_aside)
        .reduce(add, begin)
        .final(closing_strategy="partition")
        .apply(lambda window, key, *_: mean(window, key), metadata=True)
    )
    means.to_topic(app.topic(job["means"], value_serializer="json", key_serializer="str"))
    vehicles = table(job["bootstrap_servers"], job["vehicles"])
    joined = means.apply(lambda row: vehicles.get(row["vehicle"], {}) | row)
    joined.filter(is_speeding).to_topic(app.topic(job["alerts"], value_serializer="json", key_serializer="str"))
    app.run()
    late.flush(10)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
