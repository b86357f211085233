"""What every step must keep: the same outputs, identities and state for any cut of the rows into batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streaming.errors import DataError
from streaming.events import MARK, POSITION_MEANS, POSITIONS, SCHEMAS, VEHICLES, polars_schema
from streaming.interfaces import Step
from streaming.topology import ROLES, STREAMS, RoleKind, StreamKind
from streaming.transformers.flows import step_for

EPOCH_US = 1_750_000_000_000_000
FLEET = pl.DataFrame(
    [
        {
            "vehicle": vehicle,
            "producer": "fleet",
            "epoch": 1,
            "sequence": number,
            "event_time": EPOCH_US,
            "model": "van",
            "depot": "north",
            "depot_latitude": 0.0,
            "depot_longitude": 180.0,
            "speed_limit_mps": 15.0,
            "range_limit_m": 50_000.0,
        }
        for number, vehicle in enumerate(("a", "b"))
    ],
    schema=polars_schema(VEHICLES),
)
TRANSFORMERS = [name for name, role in ROLES.items() if role.kind is RoleKind.TRANSFORMER]
_number = st.one_of(st.none(), st.floats(-20, 40), st.sampled_from([float("nan"), float("inf"), 1e300]))


@st.composite
def _positions(draw: st.DrawFn) -> pl.DataFrame:
    rows = draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "vehicle": st.sampled_from("abc"),
                    "producer": st.sampled_from(["sim", "replay"]),
                    "epoch": st.integers(1, 2),
                    "sequence": st.sampled_from([MARK, *range(6)]),
                    "event_time": st.integers(-8, 24).map(lambda half_s: EPOCH_US + half_s * 500_000),
                    "latitude": _number,
                    "longitude": st.one_of(st.none(), st.floats(-180, 180), st.sampled_from([179.9999, -179.9999])),
                    "speed_mps": _number,
                }
            ),
            max_size=40,
        )
    )
    frame = pl.DataFrame(rows, schema_overrides={"event_time": pl.Int64}, orient="row") if rows else pl.DataFrame()
    return _shaped(frame, POSITIONS)


@st.composite
def _means(draw: st.DrawFn) -> pl.DataFrame:
    rows = draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "vehicle": st.sampled_from("abc"),
                    "source": st.sampled_from(["sim", "replay"]),
                    "latitude": _number,
                    "longitude": st.sampled_from([179.9, -179.9, None]),
                    "speed_mps": st.one_of(_number, st.sampled_from([10.0, 10.5, 11.0])),
                }
            ),
            max_size=80,
        )
    )
    frame = pl.DataFrame(rows, orient="row") if rows else pl.DataFrame()
    return _shaped(
        frame.with_columns(producer=pl.lit("means-0"), sequence=pl.int_range(pl.len())) if rows else frame,
        POSITION_MEANS,
    )


def _shaped(frame: pl.DataFrame, schema: Any) -> pl.DataFrame:
    wanted = polars_schema(schema)
    have = [pl.col(name) if name in frame.columns else pl.lit(None).alias(name) for name in wanted.names()]
    return frame.select(have).cast(wanted) if len(frame) else pl.DataFrame(schema=wanted)


INPUTS: Mapping[str, Callable[[], st.SearchStrategy[pl.DataFrame]]] = {
    "means-transformer": _positions,
    "alerts-transformer": _means,
}


def _step(name: str) -> Step[Any]:
    return step_for(ROLES[name], vehicles=(FLEET, 2))


def _run(step: Step[Any], batches: list[pl.DataFrame], *, restart: bool) -> tuple[bytes, dict[str, pl.DataFrame]]:
    state, outputs = step.initial(3), []
    for batch in batches:
        before, given_bytes = state, step.dump(state)
        state, made = step.advance(state, batch)
        assert step.dump(before) == given_bytes, "advance() has changed the state it was given"
        outputs.append(made)
        state = step.load(step.dump(state)) if restart else state
    return step.dump(state), {name: pl.concat(made[name] for made in outputs) for name in outputs[0]}


@pytest.mark.parametrize("name", TRANSFORMERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_cutting_the_rows_into_other_batches_changes_neither_outputs_nor_state(name: str, data: st.DataObject) -> None:
    rows = data.draw(INPUTS[name]())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=6)))
    step = _step(name)
    whole, expected = _run(step, [rows], restart=False)
    edges = [0, *cuts, len(rows)]
    batches = [rows[start:end] for start, end in pairwise(edges)]
    snapshot, outputs = _run(step, batches, restart=data.draw(st.booleans()))
    assert snapshot == whole
    for stream, frame in expected.items():
        assert outputs[stream].equals(frame, null_equal=True), stream


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_step_emits_what_the_topology_says_in_the_streams_schema(name: str) -> None:
    role = ROLES[name]
    step = _step(name)
    _, outputs = step.advance(step.initial(0), pl.DataFrame(schema=polars_schema(SCHEMAS[role.reads[0]])))
    assert set(outputs) == {stream for stream in role.writes if STREAMS[stream].kind is not StreamKind.STATE}
    for stream, frame in outputs.items():
        assert frame.schema == polars_schema(SCHEMAS[stream])


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("damage", ["other version", "other step", "cut short", "no bytes"])
def test_a_snapshot_that_is_not_this_steps_is_refused(name: str, damage: str) -> None:
    step, other = _step(name), _step(next(other for other in TRANSFORMERS if other != name))
    good = step.dump(step.initial(0))
    bad = {
        "other version": good.replace(b'"version": 1', b'"version": 2'),
        "other step": other.dump(other.initial(0)),
        "cut short": good[: len(good) // 2],
        "no bytes": b"",
    }[damage]
    assert bad != good
    with pytest.raises(DataError):
        step.load(bad)
