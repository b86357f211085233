"""The simulated fleet: its truth follows from the seed, hangs together, and is kept apart from the receivers' error."""

from __future__ import annotations

import threading
from itertools import islice, pairwise

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from streaming.events import ORIGIN, POSITIONS, VEHICLES, polars_schema
from streaming.generators.fleet import DEPOTS, METRES_PER_DEGREE, Fleet, acceleration
from streaming.generators.pacing import ManualClock
from streaming.generators.positions import Measured, Positions
from streaming.generators.vehicles import Vehicles, recorded_reference_data, reference_data

HOUR_S = 3600


def metres_apart(a: pl.DataFrame, b: pl.DataFrame) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    north = (a["latitude"] - b["latitude"]).to_numpy() * METRES_PER_DEGREE
    east = (a["longitude"] - b["longitude"]).to_numpy() * METRES_PER_DEGREE * np.cos(np.radians(52.35))
    distance: np.ndarray[tuple[int], np.dtype[np.float64]] = np.hypot(north, east)
    return distance


def test_the_same_seed_gives_the_same_positions_however_they_are_cut() -> None:
    whole = Measured(Fleet(7, 13, 10.0)).advance(50)
    parts = Measured(Fleet(7, 13, 10.0))
    assert_frame_equal(whole, pl.concat([parts.advance(n) for n in (1, 19, 30)]))
    single = Measured(Fleet(7, 13, 10.0))
    assert_frame_equal(whole, pl.concat([single.rows(n, n + 1) for n in range(50 * 13)]))


def test_another_seed_gives_another_drive() -> None:
    assert not Measured(Fleet(7, 3)).advance(5).equals(Measured(Fleet(8, 3)).advance(5))


def test_the_truth_can_be_recomputed_in_any_order_even_of_legs_that_were_forgotten() -> None:
    fleet = Fleet(3, 4, 1.0)
    late, early = fleet.truth(4 * 9_000, 4 * 9_100), fleet.truth(0, 400)
    assert_frame_equal(early, Fleet(3, 4, 1.0).truth(0, 400))
    assert_frame_equal(late, Fleet(3, 4, 1.0).truth(4 * 9_000, 4 * 9_100))


def test_the_truth_of_a_vehicle_does_not_depend_on_the_size_of_the_fleet_or_the_rate() -> None:
    small = Fleet(5, 2, 1.0).truth(0, 2 * 600).filter(vehicle="vehicle-001")
    large = Fleet(5, 30, 2.0).truth(0, 30 * 1200).filter(vehicle="vehicle-001")
    assert_frame_equal(small, large.gather_every(2))


def test_what_is_measured_lies_within_the_receivers_error_of_the_truth() -> None:
    fleet = Fleet(1, 20, 1.0)
    rows = 20 * HOUR_S
    measured, truth = Measured(fleet).rows(0, rows), fleet.truth(0, rows)
    error_m = metres_apart(measured, truth)
    assert 0.5 < error_m.mean() < 3.5
    assert error_m.max() < 6.0
    assert (measured["speed_mps"] - truth["speed_mps"]).abs().max() < 0.5  # type: ignore[operator]


def test_speed_integrates_to_the_way_that_was_driven() -> None:
    truth = Fleet(2, 6, 10.0).truth(0, 6 * 10 * HOUR_S // 2)
    for (_,), drive in truth.group_by("vehicle"):
        hops = metres_apart(drive[1:], drive[:-1])
        speeds = drive["speed_mps"].to_numpy()
        by_speed = (speeds[1:] + speeds[:-1]) / 2 * np.diff(drive["time_s"].to_numpy())
        assert hops.sum() == pytest.approx(by_speed.sum(), rel=2e-3)
        assert np.abs(hops - by_speed).max() < 0.02


def test_measured_distance_is_the_driven_one_within_the_jitter() -> None:
    fleet = Fleet(2, 1, 10.0)
    rows = 10 * 600
    measured, truth = Measured(fleet).rows(0, rows), fleet.truth(0, rows)
    by_fixes = metres_apart(measured[1:], measured[:-1]).sum()
    by_truth = metres_apart(truth[1:], truth[:-1]).sum()
    assert by_fixes == pytest.approx(by_truth, rel=0.03)


def test_vehicles_have_momentum_stop_and_turn() -> None:
    fleet = Fleet(4, 10, 10.0)
    state = fleet.state(*fleet.places(0, 10 * 10 * 1800))
    assert np.abs(acceleration(state)).max() < 4.0
    assert (state.speed_mps >= 0).all()
    assert (state.speed_mps < 0.05).mean() > 0.01
    assert np.ptp(state.heading_deg) > 300


def test_a_days_drive_stays_around_the_depot() -> None:
    fleet = Fleet(4, 10, 0.1)
    state = fleet.state(*fleet.places(0, 10 * 8640))
    assert np.hypot(state.x_m, state.y_m).max() < 12_000


def test_sends_are_spread_evenly_over_a_tick_and_in_the_order_of_time() -> None:
    fleet = Fleet(1, 40, 10.0)
    time_s, vehicle = fleet.places(0, 80)
    assert (np.diff(time_s) >= 0).all()
    assert np.unique(np.round(time_s * 100).astype(int), return_counts=True)[1].tolist() == [8] * 10
    assert sorted(vehicle[:40].tolist()) == list(range(40))


@pytest.mark.parametrize(
    ("vehicles", "rate_hz"), [(1, 2.0), (5, 10.1), (7, 10.0), (40, 10.0), (3000, 10.0), (3, 1000.0)]
)
def test_slots_cut_a_tick_into_rows_without_gap(vehicles: int, rate_hz: float) -> None:
    fleet = Fleet(1, vehicles, rate_hz)
    bounds = [fleet.row_of_slot(slot) for slot in range(2 * fleet.slots + 1)]
    assert bounds[0] == 0
    assert bounds[fleet.slots] == vehicles
    assert bounds[-1] == 2 * vehicles
    assert all(later > earlier for earlier, later in pairwise(bounds))


def test_paced_positions_say_when_they_were_made_not_when_they_were_due() -> None:
    clock = ManualClock()
    generator = Positions(1, 2, 10.0, clock=clock)
    chunks = generator.chunks(0, threading.Event())
    first = next(chunks).rows
    clock.advance(0.73)
    late = next(chunks).rows
    assert first["event_time"].to_physical().to_list() == [clock.started_us]
    assert late.height > 10
    assert late["event_time"].to_physical().unique().to_list() == [clock.started_us + 730_000]
    assert dict(first.schema) == {name: kind for name, kind in polars_schema(POSITIONS).items() if name not in ORIGIN}


def test_at_full_speed_time_is_the_simulations_and_the_rate_is_kept_in_it() -> None:
    clock = ManualClock()
    rows = next(Positions(1, 4, 10.0, is_paced=False, clock=clock).chunks(0, threading.Event())).rows
    one = rows.filter(vehicle="vehicle-002")["event_time"].to_physical().to_numpy()
    assert np.abs(np.diff(one) - 100_000).max() <= 1
    assert abs(int(one[0]) - clock.started_us) < 100_000
    assert clock.now_s == 0


def test_a_restarted_fleet_drives_on_where_the_time_of_day_says() -> None:
    clock = ManualClock()
    generator = Positions(1, 1, 1.0, clock=clock)
    before = list(islice(generator.chunks(0, threading.Event()), 11))[-1].rows
    again = next(Positions(1, 1, 1.0, clock=clock).chunks(0, threading.Event())).rows
    assert metres_apart(before, again)[0] < 0.2


def test_reference_data_follow_from_the_seed_and_some_vehicles_misbehave() -> None:
    assert_frame_equal(reference_data(1, 20), reference_data(1, 20))
    reference, fleet = reference_data(1, 20), Fleet(1, 20, 1.0)
    state = fleet.state(*fleet.places(0, 20 * HOUR_S))
    limit = reference["speed_limit_mps"].to_numpy()[state.vehicle]
    reach = reference["range_limit_m"].to_numpy()[state.vehicle]
    speeds = np.unique(state.vehicle[state.speed_mps > limit])
    strays = np.unique(state.vehicle[np.hypot(state.x_m, state.y_m) > reach])
    assert 1 <= len(speeds) <= 5
    assert 1 <= len(strays) <= 5
    assert set(reference["depot"]) == {name for name, _, _ in DEPOTS}


def test_reference_data_are_published_once_then_the_generator_rests() -> None:
    stop = threading.Event()
    chunks = Vehicles(reference_data(1, 3), clock=ManualClock()).chunks(0, stop)
    rows = next(chunks).rows
    assert set(rows.columns) == {name for name in VEHICLES.names if name not in ORIGIN}
    assert next(chunks).rows.is_empty()
    stop.set()
    assert list(chunks) == []


def test_a_recorded_vehicle_gets_the_start_of_its_recording_as_depot() -> None:
    time = pl.Series([3, 1, 2]).cast(pl.Datetime("us", "UTC"))
    recorded = pl.DataFrame(
        {"vehicle": ["a", "a", "b"], "event_time": time, "latitude": [3.0, 1.0, None], "longitude": [3.0, 1.0, 2.0],
         "speed_mps": [10.0, 20.0, None]}
    )  # fmt: skip
    found = recorded_reference_data(recorded).sort("vehicle").rows(named=True)
    assert (found[0]["depot_latitude"], found[0]["depot_longitude"], found[0]["speed_limit_mps"]) == (1.0, 1.0, 18.0)
    assert found[1]["vehicle"] == "b"


def test_reference_data_are_sent_once_and_then_it_is_said_again_and_again_that_nothing_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streaming.generators.vehicles._REST_S", 0.0)
    stop = threading.Event()
    chunks = Vehicles(reference_data(1, 4)).chunks(0, stop)
    assert next(chunks).rows.height == 4
    assert all(next(chunks).rows.is_empty() for _ in range(3)), "what was not confirmed at first is asked for again"
    stop.set()
    assert list(chunks) == []
