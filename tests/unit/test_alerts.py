"""AlertsStep: what is judged, against what, and what an alert says."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from streaming.errors import UsageError
from streaming.events import POSITION_MEANS, VEHICLES, polars_schema
from streaming.topology import ROLES
from streaming.transformers.alerts import AlertsStep
from streaming.transformers.flows import step_for

VAN = {
    "vehicle": "a",
    "model": "van",
    "depot": "north",
    "depot_latitude": 50.0,
    "depot_longitude": 8.0,
    "speed_limit_mps": 20.0,
    "range_limit_m": 1000.0,
}


def _mean(**other: Any) -> dict[str, Any]:
    mean = {"vehicle": "a", "source": "sim", "sequence": 0, "latitude": 50.0, "longitude": 8.0, "speed_mps": 10.0}
    return mean | other


def _alerts(*means: dict[str, Any], van: dict[str, Any] = VAN) -> pl.DataFrame:
    step = AlertsStep(pl.DataFrame([van], schema=polars_schema(VEHICLES)), 7)
    frame = pl.DataFrame(means, schema=polars_schema(POSITION_MEANS))
    return step.advance(step.initial(2), frame)[1]["alerts"]


def test_a_mean_within_its_limits_raises_nothing() -> None:
    assert _alerts(_mean(speed_mps=20.0)).is_empty()


def test_a_mean_over_two_limits_raises_two_alerts_in_order() -> None:
    alerts = _alerts(_mean(), _mean(speed_mps=20.5, latitude=50.01))
    assert alerts.select(
        "producer", "epoch", "sequence", "kind", "limit", "model", "depot", "vehicles_version"
    ).rows() == [
        ("alerts-2", 0, 0, "speeding", 20.0, "van", "north", 7),
        ("alerts-2", 0, 1, "geofence", 1000.0, "van", "north", 7),
    ]
    assert alerts["value"].to_list() == [20.5, pytest.approx(1111.95, abs=0.01)]


def test_an_unknown_vehicle_is_judged_by_its_own_speeds_alone() -> None:
    alerts = _alerts(*[_mean(vehicle="x")] * 15, _mean(vehicle="x", speed_mps=99.0))
    assert alerts.select("vehicle", "kind", "model", "depot").rows() == [("x", "anomaly", None, None)]


def test_a_limit_that_is_no_number_judges_nothing() -> None:
    assert _alerts(_mean(), van=VAN | {"depot_latitude": float("nan"), "speed_limit_mps": float("nan")}).is_empty()


def test_a_role_without_a_step_and_a_look_up_without_its_table_are_refused() -> None:
    with pytest.raises(UsageError, match="no step"):
        step_for(ROLES["positions-parquet"])
    with pytest.raises(UsageError, match="read the table first"):
        step_for(ROLES["alerts-transformer"])
