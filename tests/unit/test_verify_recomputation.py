"""The recomputation that verify trusts: written apart from the steps, and equal to them."""

from __future__ import annotations

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sinks.recomputation import (
    ALERT_VALUES,
    MEANS_VALUES,
    WINDOW,
    recompute_alerts,
    recompute_means,
    with_lateness,
    with_scores,
)
from streaming.events import ORIGIN, POSITION_MEANS, POSITIONS, VEHICLES, polars_schema
from streaming.transformers.alerts import AlertsStep
from streaming.transformers.windows import MeansStep

START_US = 1_750_000_000_000_000
_LENIENT = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
_coordinate = st.one_of(st.none(), st.floats(-95, 95), st.just(float("nan")))


def _positions(rows: list[dict[str, object]]) -> pl.DataFrame:
    schema = polars_schema(POSITIONS)
    frame = pl.DataFrame(rows, schema=schema | {"event_time": pl.Int64}).cast(schema)
    return frame.with_columns(sequence=pl.int_range(pl.len()), _offset=pl.int_range(pl.len()) * 2)


@_LENIENT
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "vehicle": st.sampled_from("ab"),
                "producer": st.sampled_from(["sim", "replay"]),
                "epoch": st.just(1),
                "event_time": st.integers(-8, 30).map(lambda half_s: START_US + half_s * 500_000),
                "latitude": _coordinate,
                "longitude": st.one_of(_coordinate, st.sampled_from([179.9, -179.9])),
                "speed_mps": st.one_of(st.none(), st.floats(-1, 60)),
            }
        ),
        min_size=1,
        max_size=60,
    )
)
def test_recomputed_means_and_lateness_equal_the_steps(rows: list[dict[str, object]]) -> None:
    positions = _positions(rows)
    step = MeansStep()
    _, made = step.advance(step.initial(0), positions)
    known = with_lateness(positions, len(positions) * 2)
    assert known.filter("is_late").select(ORIGIN).equals(made["late_positions"].select(ORIGIN))
    expected = recompute_means(known, made["late_positions"].select(ORIGIN)).filter("is_due")
    columns = [*WINDOW, *MEANS_VALUES]
    assert expected.select(columns).sort(WINDOW).equals(made["position_means"].select(columns).sort(WINDOW))


def test_windows_are_due_only_when_records_below_the_given_offset_have_closed_them() -> None:
    fix = {"vehicle": "a", "producer": "sim", "epoch": 1}
    positions = _positions([fix | {"event_time": START_US}, fix | {"event_time": START_US + 4_000_000}])
    none = pl.DataFrame(schema={name: polars_schema(POSITIONS)[name] for name in ORIGIN})
    for due, closed in ((2, 0), (3, 1)):
        assert recompute_means(with_lateness(positions, due), none)["is_due"].sum() == closed


@_LENIENT
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "vehicle": st.sampled_from("ab"),
                "source": st.sampled_from(["sim", "replay"]),
                "latitude": _coordinate,
                "longitude": _coordinate,
                "speed_mps": st.one_of(st.sampled_from([10.0, 11.0, 12.0]), st.sampled_from([None, 50.0])),
            }
        ),
        max_size=120,
    )
)
def test_recomputed_alerts_equal_the_steps(rows: list[dict[str, object]]) -> None:
    schema = polars_schema(POSITION_MEANS)
    means = pl.DataFrame(rows, schema=schema).with_columns(
        sequence=pl.int_range(pl.len()),
        window_start=(pl.int_range(pl.len()) * 2_000_000).cast(schema["window_start"]),
    )
    van = {"vehicle": "a", "model": "van", "depot": "north", "depot_latitude": 0.0, "depot_longitude": 0.0}
    limits = {"speed_limit_mps": 11.5, "range_limit_m": 5e6}
    vehicles = pl.DataFrame([van | limits], schema=polars_schema(VEHICLES))
    step = AlertsStep(vehicles, 1)
    made = step.advance(step.initial(0), means)[1]["alerts"]
    columns = [*WINDOW, "kind", *ALERT_VALUES]
    expected = recompute_alerts(with_scores(means), vehicles).select(columns)
    assert expected.sort("window_start", "kind").equals(made.select(columns).sort("window_start", "kind"))
