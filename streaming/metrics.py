"""A role's counters for Prometheus: read from its Progress when somebody asks, so they cost the hot path nothing.

Invariant: what is exported is what the role writes of itself (progress.py); nothing is counted twice or elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streaming.progress import Progress

PREFIX: Final = "streamgauge_"


class RoleMetrics(Collector):
    """One role's counters. Names carry their unit; the label `role` says whose they are."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def collect(self) -> Iterator[Metric]:
        """The counters as they are now."""
        now = self._progress.as_dict()
        yield self._counter("records", "taken in, again if read again", now["records"])
        yield self._counter("committed", "records that are durable", now["committed"])
        yield self._counter(
            "rejected", "records that could not be decoded (sinks put them in quarantine)", now["rejected"]
        )
        yield self._counter("retries", "commits that did not happen; what they held is read again", now["retried"])
        yield self._counter("waited_seconds", "spent waiting for somebody else", now["waited_s"])
        yield self._counter("worked_seconds", "spent otherwise", now["worked_s"])
        yield self._counter("commits", "made; records / commits is the batch", self._progress.commits_made)
        yield self._counter(
            "commit_seconds", "spent in commits; divided by commits, one's mean", self._progress.commit_s
        )
        yield self._gauge("started_timestamp_seconds", "when this process began", now["started_at"])
        if now["last_commit_at"] is not None:
            yield self._gauge(
                "last_commit_timestamp_seconds", "when something last became durable", now["last_commit_at"]
            )

    def _counter(self, name: str, says: str, value: float) -> Metric:
        family = CounterMetricFamily(PREFIX + name, says, labels=["role"])
        family.add_metric([self._progress.role], value)
        return family

    def _gauge(self, name: str, says: str, value: float) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, says, labels=["role"])
        family.add_metric([self._progress.role], value)
        return family


def serve(progress: Progress, port: int, *, address: str = "0.0.0.0") -> int:  # noqa: S104 - a container's own network
    """Answer scrapes on `port` (0: any free one) from a thread beside the role; the port."""
    registry = CollectorRegistry()
    registry.register(RoleMetrics(progress))
    server, _ = start_http_server(port, addr=address, registry=registry)
    return int(server.server_port)
