"""Means to alerts: AlertsStep joins each mean with its vehicle and judges it: speeding, geofence, anomaly.

Invariant: one alert for each (window, kind) that is over its limit, in the order of the means and then of KINDS,
numbered on; so what an alert says and what it is called do not depend on how the means were cut into batches. The
vehicles table does not change during a step's life; the alert names its version.

The state is one row of statistics for each (source, vehicle) ever seen: some 30 bytes and two names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import polars as pl

from streaming.events import ALERTS, MARK, polars_schema
from streaming.transformers.anomalies import SPEEDS, THRESHOLD, scored
from streaming.transformers.enrichment import enriched
from streaming.transformers.snapshots import dump_state, load_state

KINDS: Final = {  # kind → (what is measured, what it is held against)
    "speeding": (pl.col("speed_mps"), pl.col("speed_limit_mps")),
    "geofence": (pl.col("depot_distance_m"), pl.col("range_limit_m")),
    "anomaly": (pl.col("score"), pl.lit(THRESHOLD)),
}
_ALERTS: Final = polars_schema(ALERTS)


@dataclass(frozen=True, slots=True)
class AlertsState:
    """One partition's memory: how many alerts were emitted, and the speed statistics, sorted by source and vehicle."""

    partition: int
    emitted: int
    statistics: pl.DataFrame


class AlertsStep:
    """position_means of one partition to alerts; see the module. A streaming.interfaces.Step.

    `vehicles`: one row a vehicle, columns of the vehicles stream; `version` says which state of that stream it is.
    """

    def __init__(self, vehicles: pl.DataFrame, version: int) -> None:
        self._vehicles = vehicles
        self._version = version

    def initial(self, partition: int) -> AlertsState:
        """No vehicle seen."""
        return AlertsState(partition, 0, pl.DataFrame(schema=SPEEDS))

    def advance(self, state: AlertsState, rows: pl.DataFrame) -> tuple[AlertsState, Mapping[str, pl.DataFrame]]:
        """`rows` in offset order. Emits the alerts they raise."""
        means = rows.filter(pl.col("sequence") != MARK)
        scores, statistics = scored(means, state.statistics)
        alerts = self._numbered(self._judged(enriched(means, self._vehicles).with_columns(scores)), state)
        return AlertsState(state.partition, state.emitted + len(alerts), statistics), {"alerts": alerts}

    def _judged(self, means: pl.DataFrame) -> pl.DataFrame:
        """One row for each mean and kind over the limit, in order."""
        placed = means.with_row_index("row")
        found = [
            placed.with_columns(kind=pl.lit(kind), value=value, limit=limit, rank=pl.lit(rank)).filter(
                pl.col("value").is_finite(), pl.col("limit").is_finite(), pl.col("value") > pl.col("limit")
            )
            for rank, (kind, (value, limit)) in enumerate(KINDS.items())
        ]
        return pl.concat(found).sort("row", "rank")

    def _numbered(self, alerts: pl.DataFrame, state: AlertsState) -> pl.DataFrame:
        """The rows of alerts, each with its lasting identity."""
        return alerts.with_columns(
            producer=pl.lit(f"alerts-{state.partition}"),
            epoch=pl.lit(0, pl.Int64),
            sequence=pl.int_range(pl.len(), dtype=pl.Int64) + state.emitted,
            vehicles_version=pl.lit(self._version, pl.Int64),
        ).select(_ALERTS.names())

    def dump(self, state: AlertsState) -> bytes:
        """See snapshots."""
        return dump_state("alerts", 1, {"partition": state.partition, "emitted": state.emitted}, (state.statistics,))

    def load(self, snapshot: bytes) -> AlertsState:
        """DataError when it is not a snapshot of this step and version."""
        numbers, (statistics,) = load_state("alerts", 1, snapshot, (SPEEDS,))
        return AlertsState(numbers["partition"], numbers["emitted"], statistics)
