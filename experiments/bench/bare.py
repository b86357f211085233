"""The reference: consume() in a loop and nothing else, `python -m experiments.bench.bare JOB` (see rounds.Job).

It has the settings of the application's own consumer, and keeps no message.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from experiments.bench.stopwatch import Stopwatch

POLL_RECORDS = 20_000
POLL_S = 0.1
SILENCE_S = 30.0


def consume(job: dict[str, Any]) -> Stopwatch:
    """Read the topic's `records` records; ends with an error when the positions are not the topic's ends then."""
    clock = Stopwatch()
    consumer = Consumer(
        {**job["settings"], "bootstrap.servers": job["bootstrap_servers"], "group.id": job["prefix"] + "bare"}
    )
    consumer.subscribe([job["topic"]], on_assign=_from_the_beginning)
    deadline = time.monotonic() + SILENCE_S
    while clock.done < job["records"]:
        taken = len(consumer.consume(POLL_RECORDS, POLL_S))
        if taken:
            clock.takes(taken)
            clock.finishes(taken)
            deadline = time.monotonic() + SILENCE_S
        elif time.monotonic() > deadline:
            sys.exit(f"silent after {clock.done} records")
    # An error is a message too: were there any, the count would be reached before the ends are.
    asked = [TopicPartition(job["topic"], int(partition)) for partition in job["ends"]]
    found = {str(each.partition): each.offset for each in consumer.position(asked)}
    if {partition: max(offset, 0) for partition, offset in found.items()} != job["ends"]:
        sys.exit(f"read up to {found}, the topic ends at {job['ends']}")
    consumer.close()
    return clock


def _from_the_beginning(consumer: Consumer, partitions: list[TopicPartition]) -> None:
    consumer.incremental_assign([TopicPartition(each.topic, each.partition, 0) for each in partitions])


if __name__ == "__main__":
    consume(json.loads(sys.argv[1])).report()
