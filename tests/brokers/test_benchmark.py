"""The benchmark itself, small, on real brokers: every contender comes to its end and nothing is void."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.bench.results import CONTENDERS
from experiments.bench.rounds import BARE, Bench
from streaming.cluster.kafka import DisposableCluster
from streaming.errors import UsageError
from streaming.transports.kafka import KafkaTransport

RECORDS = 30_000  # more than one poll takes in, for the clock begins with the first


@pytest.mark.brokers
def test_every_contender_is_measured_and_its_topics_are_deleted(kafka: DisposableCluster, tmp_path: Path) -> None:
    bench = Bench(kafka.bootstrap_servers, tmp_path, RECORDS, 1, name="smoke", warm_up_records=0)
    runs = list(bench.run())
    assert [problem for run in runs for problem in run.problems] == []
    assert {run.contender for run in runs} == {each.name for each in CONTENDERS}
    assert all(run.rate_hz > 0 and run.peak_mb > 0 for run in runs)
    assert list(tmp_path.iterdir()) == []
    for prefix in ("smoke-1-", BARE + "smoke-1-"):
        with pytest.raises(UsageError):
            KafkaTransport(kafka.bootstrap_servers, prefix=prefix).identity("positions")
