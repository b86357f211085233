"""Faults for brokers of one's own: kill, stop, pause, slow down; and the way back to a whole cluster.

Invariant: after heal() every broker runs and sees the others, whatever a trial has done to them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Protocol, Self

from streaming.cluster.kafka import DisposableCluster

# Brokers whose deaths are soon known, and who are soon taken back: a registration waits for the session of the one
# before it to end, a controller's successor to be sure of its end, a follower before it asks a new leader again. By
# default 9 s, 2 s, 2 s, 1 s, 1 s, 1 s.
SOON_MISSED: Final = MappingProxyType(
    {
        "broker.session.timeout.ms": "1200",
        "broker.heartbeat.interval.ms": "200",
        "controller.quorum.fetch.timeout.ms": "1000",
        "controller.quorum.election.timeout.ms": "500",
        "controller.quorum.election.backoff.max.ms": "300",
        "replica.fetch.backoff.ms": "200",
    }
)


@contextlib.contextmanager
def stuttering(
    pause: Callable[[], object], resume: Callable[[], object], *, stop_s: float, run_s: float
) -> Iterator[None]:
    """Pause something for `stop_s` after every `run_s`, until the block ends; it runs then."""
    is_over = threading.Event()

    def stutter() -> None:
        while not is_over.wait(run_s):
            pause()
            is_over.wait(stop_s)
            resume()

    thread = threading.Thread(target=stutter, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


class BrokerControl(Protocol):
    """Brokers that may be broken, and made whole again: processes of one's own, or a compose project's containers."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """All brokers' ids."""
        ...

    @property
    def running(self) -> tuple[int, ...]:
        """Those that are up and not paused."""
        ...

    def process_id(self, number: int) -> int:
        """Of a running broker."""
        ...

    def data_folder(self, number: int) -> Path:
        """Where a broker keeps its partitions: <topic>-<partition>/."""
        ...

    def log(self, number: int) -> Path:
        """The broker's own log."""
        ...

    def settings(self) -> dict[str, dict[str, str]]:
        """Every broker's settings."""
        ...

    def kill(self, number: int) -> None:
        """SIGKILL."""
        ...

    def stop(self, number: int) -> None:
        """Controlled shutdown."""
        ...

    def start(self, number: int) -> None:
        """Start again on the same data; returns when the broker is a member of the cluster."""
        ...

    def pause(self, number: int) -> None:
        """Connections stay open, nothing is answered."""
        ...

    def resume(self, number: int) -> None:
        """Let a paused broker go on."""
        ...

    def slow(self, number: int, *, stop_s: float, run_s: float) -> contextlib.AbstractContextManager[None]:
        """A broker that hangs for `stop_s` after every `run_s`."""
        ...

    def heal(self) -> None:
        """Resume and start what is down, and wait until every broker sees the others."""
        ...

    def close(self) -> None:
        """End brokers of one's own; leave others whole."""
        ...


@dataclass
class OwnBrokers:
    """A disposable cluster that remembers what was done to it. Broker numbers are 1, 2, 3."""

    cluster: DisposableCluster
    _down: set[int] = field(default_factory=set)
    _paused: set[int] = field(default_factory=set)

    @property
    def bootstrap_servers(self) -> str:
        """Where clients begin."""
        return self.cluster.bootstrap_servers

    @property
    def numbers(self) -> tuple[int, ...]:
        """All brokers' ids."""
        return tuple(broker.number for broker in self.cluster.brokers)

    @property
    def running(self) -> tuple[int, ...]:
        """Those that are up and not paused."""
        return tuple(number for number in self.numbers if number not in self._down | self._paused)

    def process_id(self, number: int) -> int:
        """Of a running broker."""
        return self.cluster.pid(number)

    def data_folder(self, number: int) -> Path:
        """Where a broker keeps its partitions: <topic>-<partition>/."""
        return Path(self.cluster.brokers[number - 1].settings["log.dirs"])

    def log(self, number: int) -> Path:
        """The broker's own log."""
        return self.cluster.brokers[number - 1].log

    def settings(self) -> dict[str, dict[str, str]]:
        """Every broker's settings, for the provenance."""
        return {broker.name: dict(broker.settings) for broker in self.cluster.brokers}

    def kill(self, number: int) -> None:
        """SIGKILL: no goodbye, what was not written is gone."""
        self._down.add(number)
        self._paused.discard(number)
        self.cluster.kill(number)

    def stop(self, number: int) -> None:
        """Controlled shutdown: leaders move away first."""
        self._down.add(number)
        self.cluster.stop(number)

    def start(self, number: int) -> None:
        """Start again on the same data; returns when the broker is a member of the cluster."""
        self.cluster.start(number)
        self._down.discard(number)

    def pause(self, number: int) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        self._paused.add(number)
        self.cluster.pause(number)

    def resume(self, number: int) -> None:
        """SIGCONT."""
        self.cluster.resume(number)
        self._paused.discard(number)

    @contextlib.contextmanager
    def slow(self, number: int, *, stop_s: float, run_s: float) -> Iterator[None]:
        """A broker that hangs for `stop_s` after every `run_s`, as in long garbage collections or on a starved host."""
        process_id = self.process_id(number)
        with stuttering(
            lambda: os.kill(process_id, signal.SIGSTOP),
            lambda: os.kill(process_id, signal.SIGCONT),
            stop_s=stop_s,
            run_s=run_s,
        ):
            yield

    def heal(self) -> None:
        """Resume and start what is down, and wait until every broker sees the others."""
        for number in sorted(self._paused):
            self.resume(number)
        if down := sorted(self._down):
            with ThreadPoolExecutor(len(down)) as pool:  # side by side: a start is mostly waiting for the others
                list(pool.map(self.start, down))
        self.cluster.wait_until_ready()

    def close(self) -> None:
        """End all brokers and delete their data."""
        self.cluster.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
