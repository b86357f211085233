"""Ten messages a second and vehicle, proven from what the brokers hold: the one test that measures time."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from streaming.cluster.kafka import DisposableCluster
from streaming.codecs.json import JsonCodec
from streaming.events import MARK, SCHEMAS
from streaming.generators.ledger import Ledger, read_ledgers
from streaming.generators.positions import Positions
from streaming.generators.run import produce
from streaming.service import Limits
from streaming.topology import STREAMS
from streaming.transports.kafka import KafkaTransport

VEHICLES, RATE_HZ, EACH = 5, 10.1, 60
WARM_UP_US = 1_000_000


def fitted_rate_hz(event_time_us: pl.Series) -> float:
    """Messages a second: the slope of the line through (time, number), which one late message hardly moves."""
    seconds = (event_time_us - event_time_us[0]).to_numpy() / 1e6
    return float(1 / np.polyfit(np.arange(len(seconds)), seconds, 1)[0])


@pytest.mark.brokers
def test_every_vehicle_sends_at_least_ten_positions_a_second(
    kafka: DisposableCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transport = KafkaTransport(kafka.bootstrap_servers, prefix="ten-hertz-")
    transport.create([STREAMS["positions"]], replication=3)
    codec, publisher = JsonCodec(SCHEMAS["positions"]), transport.publisher("fleet")
    with Ledger.open(tmp_path, "fleet", "positions") as ledger:
        generator = Positions(1, VEHICLES, RATE_HZ)
        sent = produce(
            generator, publisher, codec, ledger, stop=threading.Event(), limits=Limits(messages=VEHICLES * EACH)
        )
    publisher.close()

    rows = pl.concat([codec.decode(batch.values).table for batch in transport.read_all("positions")])
    events = rows.filter(pl.col("sequence") != MARK).with_columns(pl.col("event_time").to_physical())
    (account,) = read_ledgers(tmp_path)
    assert sorted(events["sequence"]) == list(range(sent.attempted))
    assert account.confirmed.ranges == [(0, sent.attempted)]
    assert rows.filter(sequence=MARK).height == STREAMS["positions"].partitions
    assert events["vehicle"].n_unique() == VEHICLES

    with capsys.disabled():
        print(f"\nworst delay {sent.worst_delay_s * 1e3:.1f} ms")
        for (vehicle,), drive in events.sort("sequence").group_by("vehicle", maintain_order=True):
            steps_ms = drive["event_time"].diff().drop_nulls().to_numpy() / 1e3
            settled = drive["event_time"].filter(drive["event_time"] >= drive["event_time"][0] + WARM_UP_US)
            rate_hz = fitted_rate_hz(settled)
            print(
                f"{vehicle}: {drive.height} positions, {rate_hz:.3f} Hz, jitter {steps_ms.std():.2f} ms, "
                f"steps {steps_ms.min():.1f} to {steps_ms.max():.1f} ms"
            )
            assert rate_hz >= 10.0
            assert drive.height == EACH
