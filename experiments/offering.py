"""An open-loop load generator in a process of its own: `python -m experiments.offering OFFERING` (JSON, see Offering).

It takes one order a line on its standard input: how many records, how many a second, and when the first falls due.
Record k is due at `at` + k / rate, whatever became of those before; none is skipped, none is early. It answers with a
line when all are confirmed: how late it was itself at worst, and when the last confirmation had come.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from confluent_kafka import KafkaError, Message, Producer

from streaming.cluster import tether

BARE, APPLICATION, NOTHING = "bare", "application", "nothing"
TICK_S: Final = 0.002
AT_ONCE: Final = 2_000  # records given out before the clock is looked at again
PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Offering:
    """What offers, and from which file.

    `bare` calls produce() with the file's lines; `application` encodes the rows of the file (Parquet) and publishes
    them as the application does; `nothing` only keeps the schedule, which tells the generator's own limit. Bare record
    n goes to partition n modulo `partitions`; the application's goes where its key says.
    """

    kind: str
    file: str
    bootstrap_servers: str
    partitions: int
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Offered:
    """What became of an order. Times in seconds after the first record was due."""

    records: int
    failed: int
    behind_s: float  # how late a record was given to the client, at worst
    took_s: float  # until the last confirmation
    cpu: float  # of one core, meanwhile


# -- from the trial's side ---------------------------------------------------------------------------------------------


class Generator:
    """The process, from outside; it ends with close(), and with this process at the latest.

    It takes orders as soon as it is made, and carries them out once it is ready, which takes it half a second.
    """

    def __init__(self, offering: Offering) -> None:
        words = [sys.executable, "-m", "experiments.offering", json.dumps(asdict(offering))]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            tether.tethered(words), env=tether.environment(), stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
        self._is_ready = False

    def wait_ready(self) -> Self:
        """Return when an order would be carried out at once."""
        if not self._is_ready:
            self._line()
            self._is_ready = True
        return self

    def order(self, topic: str, first: int, records: int, rate: float, at: float) -> None:
        """Offer records `first` … of the file (from its beginning again at its end); rate 0: as fast as it goes."""
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        order = {"topic": topic, "first": first, "records": records, "rate": rate, "at": at}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Offered:
        """Wait for the order's end."""
        self.wait_ready()
        return Offered(**json.loads(self._line()))

    def close(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None  # noqa: S101
        line = self._process.stdout.readline()
        if not line:
            _, said = self._process.communicate()
            raise RuntimeError(f"the load generator ended: {said.strip()[-300:]}")
        return line


# -- the process -------------------------------------------------------------------------------------------------------


class _Bare:
    """produce() in a loop."""

    def __init__(self, offering: Offering) -> None:
        self.failed = 0
        self._partitions = offering.partitions
        self._values = Path(offering.file).read_bytes().splitlines()
        self._producer = Producer({**offering.settings, "delivery.report.only.error": True, "on_delivery": self._note})

    def put(self, topic: str, first: int, end: int) -> None:
        """Give records to the client, waiting for room."""
        values, size, partitions, produce = self._values, len(self._values), self._partitions, self._producer.produce
        for number in range(first, end):
            while True:
                try:
                    produce(topic, values[number % size], partition=number % partitions)
                    break
                except BufferError:
                    self._producer.poll(0.01)
        self._producer.poll(0)

    def flush(self) -> None:
        """Wait for every confirmation."""
        if left := self._producer.flush(PATIENCE_S):
            self.failed += left

    def _note(self, _: KafkaError | None, __: Message) -> None:
        self.failed += 1


class _Application:
    """Rows → codec → the application's publisher."""

    def __init__(self, offering: Offering) -> None:
        import polars as pl  # noqa: PLC0415 - heavy, and the bare generator needs none of it

        from streaming.codecs.json import JsonCodec  # noqa: PLC0415
        from streaming.events import POSITIONS  # noqa: PLC0415
        from streaming.transports.kafka import KafkaTransport  # noqa: PLC0415

        self.failed = 0
        self._table = pl.read_parquet(offering.file)
        self._codec = JsonCodec(POSITIONS)
        self._publisher = KafkaTransport(offering.bootstrap_servers).publisher("application")

    def put(self, topic: str, first: int, end: int) -> None:
        """Encode and publish."""
        import polars as pl  # noqa: PLC0415

        from streaming.batch import Outgoing  # noqa: PLC0415

        size = len(self._table)
        while first < end:
            start = first % size
            rows = self._table[start : min(size, start + end - first)]
            keys = rows["vehicle"].cast(pl.Binary).to_list()
            self._publisher.publish(Outgoing(topic, self._codec.encode(rows), keys))
            first += len(rows)

    def flush(self) -> None:
        """Wait for every confirmation; OutcomeUnknown when one has failed."""
        if not self._publisher.flush(PATIENCE_S):
            self.failed += self._publisher.outstanding


class _Nothing:
    """Takes records and does nothing with them."""

    failed = 0

    def __init__(self, _: Offering) -> None:
        pass

    def put(self, _: str, first: int, end: int) -> None:
        """Count to `end`, as the bare one does."""
        for __ in range(first, end):
            pass

    def flush(self) -> None:
        """Nothing to wait for."""


_KINDS: Final[dict[str, Callable[[Offering], _Bare | _Application | _Nothing]]] = {
    BARE: _Bare,
    APPLICATION: _Application,
    NOTHING: _Nothing,
}


def offer(to: _Bare | _Application | _Nothing, topic: str, first: int, records: int, rate: float, at: float) -> Offered:
    """Carry out one order."""
    time.sleep(max(0.0, at - time.monotonic()))
    failed, cpu, behind, place = to.failed, time.process_time(), 0.0, 0
    while place < records:
        end = min(records, place + AT_ONCE)
        if rate:
            end = min(end, int(rate * (time.monotonic() - at)) + 1)
        to.put(topic, first + place, first + end)
        place = end
        if rate:
            behind = max(behind, time.monotonic() - at - (place - 1) / rate)
        if rate and (early := place / rate - (time.monotonic() - at)) > 0:
            time.sleep(max(early, TICK_S))
    to.flush()
    took = time.monotonic() - at
    return Offered(records, to.failed - failed, behind, took, (time.process_time() - cpu) / took)


def main() -> None:
    """Take orders until the input ends."""
    offering = Offering(**json.loads(sys.argv[1]))
    to = _KINDS[offering.kind](offering)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(offer(to, **json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
