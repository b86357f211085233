"""A consumer in a process of its own, made to be killed: it reads a topic and writes down what it did, line by line.

Run as `python -m experiments.member CONFIGURATION` (JSON, see experiments.members.Role). SIGTERM makes it leave the
group. Invariant: a line is with the operating system before the next step is taken, so SIGKILL loses no line. Started
dozens of times, so it imports nothing heavy.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, ShareConsumer, TopicPartition

POLL_S = 0.05


class Member:
    """One run of the process."""

    def __init__(self, role: dict[str, Any]) -> None:
        self.role = role
        self.log = os.open(role["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.is_over = False
        signal.signal(signal.SIGTERM, self._leave)

    def note(self, event: str, **values: Any) -> None:
        """Append a line with the machine's monotonic clock, which all processes share."""
        line = json.dumps({"event": event, "at": time.monotonic(), **values}) + "\n"
        os.write(self.log, line.encode())

    def work(self, message: Message) -> None:
        """What an application would do with the record; written down when it is done."""
        if self.role["work_s"]:
            time.sleep(self.role["work_s"])
        self.note("processed", partition=message.partition(), offset=message.offset())

    def run(self) -> None:
        """Read until told to leave."""
        self.note("started", process=os.getpid())
        if self.role["is_share"]:
            self._share()
        else:
            self._group()
        self.note("left")

    def _group(self) -> None:
        consumer = Consumer(self.role["settings"])
        consumer.subscribe([self.role["topic"]], self._assigned, self._revoked, on_lost=self._lost)
        while not self.is_over:
            messages = [each for each in consumer.consume(self.role["batch"], POLL_S) if self._is_record(each)]
            if self.role["commit"] == "before" and messages:
                self._commit(consumer, messages)
            for message in messages:
                self.work(message)
                if self.role["commit"] == "stored":
                    consumer.store_offsets(message)
            if self.role["commit"] == "after" and messages:
                self._commit(consumer, messages)
        consumer.close()

    def _share(self) -> None:
        consumer = ShareConsumer(self.role["settings"])
        consumer.subscribe([self.role["topic"]])
        while not self.is_over:
            for message in consumer.poll(POLL_S):
                if self._is_record(message):
                    self.work(message)
                    consumer.acknowledge(message)
            consumer.commit_sync(5)
        consumer.close()

    def _commit(self, consumer: Consumer, messages: list[Message]) -> None:
        ends = {(each.topic(), each.partition()): (each.offset() or 0) + 1 for each in messages}
        offsets = [TopicPartition(topic or "", partition or 0, end) for (topic, partition), end in ends.items()]
        try:
            consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:  # a rebalance took the partition away: the next owner reads these again
            self.note("refused", reason=str(error))

    def _is_record(self, message: Message) -> bool:
        error = message.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            self.note("error", reason=str(error))
        return error is None

    def _assigned(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self.note("assigned", partitions=[each.partition for each in partitions])

    def _revoked(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        if self.role["revoke_s"] and partitions:
            time.sleep(self.role["revoke_s"] * len(partitions))
        self.note("revoked", partitions=[each.partition for each in partitions])

    def _lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self.note("lost", partitions=[each.partition for each in partitions])

    def _leave(self, *_: object) -> None:
        self.is_over = True


if __name__ == "__main__":
    Member(json.loads(sys.argv[1])).run()
