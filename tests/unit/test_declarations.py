"""What a package may declare: whatever does not fit is refused by the package's name, before anything runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from streaming.declarations import Declaration, Role, RoleKind, Stream, StreamKind, check, made, sink
from streaming.errors import UsageError
from streaming.events import MARK, POSITIONS, polars_schema
from streaming.home import PROJECT_ROOT
from streaming.topology import ROLES, STREAMS

WHOLE = Declaration(tuple(STREAMS.values()), tuple(ROLES.values()))
SOURCE = Stream("mine", StreamKind.SOURCE, "of my own", 3, carries=POSITIONS)
DERIVED = Stream("made_of_mine", StreamKind.DERIVED, "made of it", 3, carries=POSITIONS)
STATE = Stream("mine_state", StreamKind.STATE, "memory", 3)
GENERATOR = Role("mine-generator", RoleKind.GENERATOR, "makes it", writes=("mine",), made_by="json:loads")
TRANSFORMER = Role(
    "mine-transformer", RoleKind.TRANSFORMER, "x", ("mine",), ("made_of_mine", "mine_state"), made_by="json:loads"
)
FITTING = Declaration((SOURCE, DERIVED, STATE), (GENERATOR, TRANSFORMER, sink("mine", "csv"), sink("alerts", "csv")))


def _with(*, stream: Stream | None = None, role: Role | None = None) -> Declaration:
    """The fitting declaration with one part replaced: by name for a stream, by kind for a role."""
    streams = tuple(stream if stream and each.kind is stream.kind else each for each in FITTING.streams)
    roles = tuple(role if role and each.kind is role.kind else each for each in FITTING.roles[:3])
    return Declaration(streams, roles)


def test_what_fits_is_taken() -> None:
    check("mine", WHOLE, _with())


@pytest.mark.parametrize(
    ("added", "says"),
    [
        (FITTING, "alerts-csv is there already"),
        (_with(stream=replace(SOURCE, name="Mine")), "Mine: small letters"),
        (_with(stream=replace(SOURCE, carries=None)), "mine carries no schema"),
        (_with(stream=replace(SOURCE, key="colour")), "mine has no column colour"),
        (_with(stream=replace(SOURCE, carries=POSITIONS.remove(3))), "mine has no column sequence"),
        (_with(stream=replace(STATE, partitions=2)), "mine_state needs as many partitions as mine"),
        (_with(role=replace(GENERATOR, made_by=None)), "mine-generator: made_by says who makes it"),
        (_with(role=replace(GENERATOR, name="mine-maker")), "mine-maker: its name ends in -generator"),
        (_with(role=replace(GENERATOR, writes=("made_of_mine",))), "a generator writes one source stream"),
        (_with(role=replace(TRANSFORMER, reads=("nothing",))), "there is no stream nothing"),
        (_with(role=replace(TRANSFORMER, writes=("mine_state",))), "a transformer reads one stream and writes"),
        (_with(role=replace(TRANSFORMER, looks_up=("vehicles",))), "own roles look nothing up"),
        (_with(role=replace(sink("mine", "csv"), format="xml")), "a sink is made by sink"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_packages_name(added: Declaration, says: str) -> None:
    with pytest.raises(UsageError, match="the declaration of 'mine' does not fit") as caught:
        check("mine", WHOLE, added)
    assert says in str(caught.value)


def test_a_column_without_a_description_is_refused() -> None:
    plain = POSITIONS.set(5, POSITIONS.field(5).remove_metadata())
    with pytest.raises(UsageError, match="no description of latitude"):
        check("mine", WHOLE, _with(stream=replace(SOURCE, carries=plain)))


@pytest.mark.parametrize("reference", ["no_such_module:x", "json:no_such_name"])
def test_a_maker_that_is_not_there_is_wrong_use(reference: str) -> None:
    with pytest.raises(UsageError, match="can't be loaded"):
        made(reference)


@pytest.fixture(scope="module")
def frost() -> Iterator[Any]:
    """The example's transformer, from the docs."""
    folder = str(PROJECT_ROOT / "docs" / "examples" / "own_stream")
    sys.path.insert(0, folder)
    yield importlib.import_module("depot_weather.transformer")
    sys.path.remove(folder)


def _readings(values: list[tuple[str, int, int]]) -> pl.DataFrame:
    from depot_weather.declaration import WEATHER  # type: ignore[import-not-found]  # noqa: PLC0415

    rows = [(depot, "p", 0, sequence, at, float(celsius)) for at, (depot, sequence, celsius) in enumerate(values)]
    frame = pl.DataFrame(rows, schema=WEATHER.names, orient="row") if rows else pl.DataFrame()
    wanted = polars_schema(WEATHER)
    return frame.cast(wanted) if rows else pl.DataFrame(schema=wanted)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([MARK, 0, 1]), st.integers(-2, 2)), max_size=30),
    cut=st.integers(0, 30),
)
@example(values=[("a", 0, -1), ("a", 0, -1)], cut=1)  # once differed in the bits behind the last truth value
def test_the_examples_step_does_not_care_how_its_rows_are_cut(
    frost: Any, values: list[tuple[str, int, int]], cut: int
) -> None:
    rows, step = _readings(values), frost.FrostStep()
    whole, expected = step.advance(step.initial(1), rows)
    middle, first = step.advance(step.initial(1), rows[:cut])
    end, second = step.advance(step.load(step.dump(middle)), rows[cut:])
    assert step.dump(end) == step.dump(whole)
    assert pl.concat([first["frosts"], second["frosts"]]).equals(expected["frosts"])
