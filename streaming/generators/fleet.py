"""The simulated fleet's truth: where each vehicle is at any moment, and how fast, from a seed alone.

A vehicle drives leg after leg of LEG_S seconds along roads made of arcs. Within a leg its speed goes smoothly from the
speed it arrived with to a cruising speed and on to the speed it leaves with, so it has momentum; the way is the exact
integral of the speed. It stops at some junctions, turns there, parks now and then, and turns home when it is far out.

Invariant: everything is a pure function of (seed, vehicle, time); the same seed gives the same truth on each machine
whose floating point follows IEEE 754, whatever was asked for before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Words = NDArray[np.uint64]

LEG_S: Final = 60.0
RAMP_S: Final = 12.0  # how long a change of speed takes
BURST_S: Final = 5.0  # how long a vehicle reports a fault ten times a second
SENDS_HZ: Final = 50.0  # about how many instants a second the sends of a tick are spread over
METRES_PER_DEGREE: Final = 111_320.0
LEGS_KEPT: Final = 64

DEPOTS: Final = (
    ("North", 52.4010, 4.8950),
    ("Harbour", 52.3890, 4.8210),
    ("Airport", 52.3120, 4.7680),
    ("South", 52.3010, 4.9420),
)
_LEG: Final = np.dtype(
    [
        (name, np.float64)
        for name in (
            *("x", "y", "heading", "curvature", "arrives", "cruises", "leaves", "road"),  # metres, radians, m/s
            *("trip", "trip_began_s", "trip_road", "warmth", "warmth_after", "fault_s", "fault_code"),
        )
    ]
)
_CHANCES: Final = 11  # random numbers that make a leg
_NO_FAULT: Final = np.inf
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)


def mixed(words: Words) -> Words:
    """The finaliser of splitmix64: neighbouring words become unrelated ones."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def hashed(seed: int, *coordinates: NDArray[np.int64] | int) -> Words:
    """A random word for each tuple of whole numbers, the same whenever it is asked for."""
    words = mixed(np.array([seed % 2**64], dtype=np.uint64) + _GOLDEN)
    for coordinate in coordinates:
        words = mixed(words ^ (np.atleast_1d(np.asarray(coordinate)).astype(np.uint64) * _GOLDEN + _GOLDEN))
    return words


def uniform(seed: int, *coordinates: NDArray[np.int64] | int) -> Floats:
    """hashed() as numbers in [0, 1)."""
    return _fraction(hashed(seed, *coordinates))


def _fraction(words: Words) -> Floats:
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True, slots=True)
class State:
    """The truth at some (time, vehicle) pairs; arrays of one length. x and y are metres east and north of the depot."""

    time_s: Floats
    own_s: Floats  # the vehicle's own clock, on which its legs begin
    vehicle: Integers
    x_m: Floats
    y_m: Floats
    altitude_m: Floats
    speed_mps: Floats
    heading_deg: Floats
    way_s: Floats  # seconds into the leg
    way_m: Floats  # metres into the leg
    leg: NDArray[np.void]  # the leg's record, fields as in _LEG


@dataclass(frozen=True, slots=True)
class Character:
    """What a vehicle is like; arrays by vehicle. Some drive faster than their limit, some stray beyond their range."""

    depot: Integers  # index into DEPOTS
    usual_speed_mps: Floats
    roams_m: Floats  # turns home beyond this
    speed_limit_mps: Floats
    range_limit_m: Floats

    @classmethod
    def of(cls, seed: int, vehicles: int) -> Character:
        """Drawn from the seed, but which vehicles misbehave is fixed, so that even a small fleet has some."""
        number = np.arange(vehicles)
        usual = 12.0 + 8.0 * uniform(seed, 101, number)
        roams = 1_500.0 + 1_500.0 * uniform(seed, 102, number)
        speeds, strays = number % 7 == 2, number % 9 == 4
        limit = usual * np.where(speeds, 0.8, 1.1)
        reach = roams * np.where(strays, 0.9, 3.0)
        return cls(number % len(DEPOTS), usual, roams, limit.round(1), reach.round(-2))


class Fleet:
    """A fleet of `vehicles` that report `rate_hz` times a second each, from simulated second `begin_s` on.

    Rows are numbered 0, 1, 2, …: row n belongs to tick n // vehicles; within a tick the vehicles report one after the
    other, spread over `slots` instants, always in the same order. So a sequence number tells which truth it was.
    """

    def __init__(self, seed: int, vehicles: int, rate_hz: float = 10.0, begin_s: float = 0.0) -> None:
        self.seed, self.vehicles, self.rate_hz, self.begin_s = seed, vehicles, rate_hz, begin_s
        self.names = vehicle_names(vehicles)
        self.character = Character.of(seed, vehicles)
        self.slots = max(1, min(vehicles, round(SENDS_HZ / rate_hz)))
        slot = np.arange(vehicles) % self.slots
        self._order = np.argsort(slot, kind="stable")
        self._phase = slot / self.slots
        self._before = np.searchsorted(slot[self._order], np.arange(self.slots))  # rows of a tick before each slot
        self._late_s = LEG_S * uniform(seed, 103, np.arange(vehicles))  # so that not all stop at once
        self._legs = _Legs(seed, self.character)
        depots = np.array([place[1:] for place in DEPOTS])[self.character.depot]
        self._latitude, self._longitude = depots[:, 0], depots[:, 1]
        self._metres_east = METRES_PER_DEGREE * np.cos(np.radians(self._latitude))

    def row_of_slot(self, slot: int) -> int:
        """The first row that is due in this slot; slots are counted on over ticks."""
        return slot // self.slots * self.vehicles + int(self._before[slot % self.slots])

    def places(self, first_row: int, end_row: int) -> tuple[Floats, Integers]:
        """Simulated second and vehicle of these rows."""
        rows = np.arange(first_row, end_row)
        vehicle = self._order[rows % self.vehicles]
        return self.begin_s + (rows // self.vehicles + self._phase[vehicle]) / self.rate_hz, vehicle

    def state(self, time_s: Floats, vehicle: Integers) -> State:
        """The truth at these moments; time_s is at least 0."""
        shifted = time_s + self._late_s[vehicle]
        number = (shifted // LEG_S).astype(np.int64)
        leg = self._legs.take(number, vehicle)
        way_s = shifted - number * LEG_S
        speed, way_m = _motion(leg, way_s)
        bend = leg["curvature"] * way_m / 2
        course = leg["heading"] + bend
        chord = way_m * np.sinc(bend / np.pi)
        x, y = leg["x"] + chord * np.sin(course), leg["y"] + chord * np.cos(course)
        altitude = 12.0 + 8.0 * np.sin(x / 900.0) + 6.0 * np.cos(y / 700.0)
        heading = np.degrees(course + bend) % 360.0
        return State(time_s, shifted, vehicle, x, y, altitude, speed, heading, way_s, way_m, leg)

    def degrees(self, vehicle: Integers, x_m: Floats, y_m: Floats) -> tuple[Floats, Floats]:
        """Latitude and longitude of places given in metres east and north of the vehicle's depot."""
        latitude = self._latitude[vehicle] + y_m / METRES_PER_DEGREE
        return latitude, self._longitude[vehicle] + x_m / self._metres_east[vehicle]

    def truth(self, first_row: int, end_row: int) -> pl.DataFrame:
        """What rows [first_row, end_row) would say without the receiver's error, with the simulated second."""
        state = self.state(*self.places(first_row, end_row))
        latitude, longitude = self.degrees(state.vehicle, state.x_m, state.y_m)
        return pl.DataFrame(
            {
                "vehicle": self.names.gather(state.vehicle),
                "time_s": state.time_s,
                "latitude": latitude,
                "longitude": longitude,
                "altitude_m": state.altitude_m,
                "speed_mps": state.speed_mps,
                "heading_deg": state.heading_deg,
            }
        )


def vehicle_names(vehicles: int) -> pl.Series:
    """The fleet's names: vehicle-001, vehicle-002 and so on."""
    width = max(3, len(str(vehicles)))
    return pl.Series("vehicle", [f"vehicle-{number:0{width}d}" for number in range(1, vehicles + 1)], dtype=pl.String)


class _Legs:
    """The legs of all vehicles, made one after the other; older ones are forgotten and made again when asked for."""

    def __init__(self, seed: int, character: Character) -> None:
        self._character = character
        self._number = np.arange(len(character.depot))
        self._keys = np.stack([hashed(seed, what, self._number) for what in range(_CHANCES)])
        self._made: dict[int, NDArray[np.void]] = {}

    def take(self, number: Integers, vehicle: Integers) -> NDArray[np.void]:
        """The leg record for each (leg number, vehicle)."""
        if not len(number):
            return np.empty(0, dtype=_LEG)
        first, last = int(number.min()), int(number.max())
        legs = np.concatenate([self._leg(each) for each in range(first, last + 1)])
        return np.asarray(legs[(number - first) * len(self._number) + vehicle])

    def _leg(self, number: int) -> NDArray[np.void]:
        if number not in self._made:
            if number < max(self._made, default=-1):
                self._made.clear()
            for missing in range(max(self._made, default=-1) + 1, number + 1):
                self._made[missing] = self._following(self._made.get(missing - 1), missing)
                self._made.pop(missing - LEGS_KEPT, None)
        return self._made[number]

    def _following(self, before: NDArray[np.void] | None, number: int) -> NDArray[np.void]:
        leg = np.zeros(len(self._number), dtype=_LEG)
        chance = _fraction(mixed(self._keys ^ (np.full(1, number, np.uint64) * _GOLDEN)))
        if before is None:
            leg["heading"] = 2 * np.pi * chance[0]
        else:
            self._continue(leg, before, chance)
        is_parked = self._set_speeds(leg, chance, is_first=before is None)
        self._steer(leg, chance)
        begins = ~is_parked & (
            (before is None) | (leg["trip"] == 0) | (before is not None and (before["cruises"] == 0))
        )
        leg["trip"] += begins
        leg["trip_began_s"] = np.where(begins, number * LEG_S, leg["trip_began_s"])
        leg["trip_road"] = np.where(begins, leg["road"], leg["trip_road"])
        leg["warmth_after"] = 0.6 * leg["warmth"] + 0.4 * _length(leg) / LEG_S
        has_fault = ~is_parked & (chance[8] < 0.04)
        leg["fault_s"] = np.where(has_fault, 5.0 + 45.0 * chance[9], _NO_FAULT)
        leg["fault_code"] = np.floor(4 * chance[10])
        return leg

    def _continue(self, leg: NDArray[np.void], before: NDArray[np.void], chance: Floats) -> None:
        """Where the leg before ended: place, speed, direction (turned at a junction where it stopped) and trip."""
        length = _length(before)
        bend = before["curvature"] * length / 2
        course = before["heading"] + bend
        chord = length * np.sinc(bend / np.pi)
        leg["x"], leg["y"] = before["x"] + chord * np.sin(course), before["y"] + chord * np.cos(course)
        quarters = np.round(2 * chance[0] - 1)  # left, straight on, right
        leg["heading"] = course + bend + np.where(before["leaves"] == 0, quarters * np.pi / 2, 0.0)
        leg["arrives"], leg["road"], leg["warmth"] = before["leaves"], before["road"] + length, before["warmth_after"]
        for kept in ("trip", "trip_began_s", "trip_road"):
            leg[kept] = before[kept]

    def _set_speeds(self, leg: NDArray[np.void], chance: Floats, *, is_first: bool) -> NDArray[np.bool_]:
        """Choose the cruising speed and the speed at the end; True where the vehicle stays parked."""
        arrives: Floats = leg["arrives"]
        is_parked: NDArray[np.bool_] = (arrives == 0) & (chance[1] < 0.15) & (not is_first)
        cruises = self._character.usual_speed_mps * (0.6 + 0.4 * chance[2])
        leaves = np.where(chance[3] < 0.35, 0.0, cruises * (0.5 + 0.5 * chance[4]))
        leg["cruises"] = np.where(is_parked, 0.0, cruises)
        leg["leaves"] = np.where(is_parked, 0.0, leaves)
        return is_parked

    def _steer(self, leg: NDArray[np.void], chance: Floats) -> None:
        """Bend the leg's road: at random near the depot, homewards far out."""
        homewards = (np.arctan2(-leg["x"], -leg["y"]) - leg["heading"] + np.pi) % (2 * np.pi) - np.pi
        is_far = np.hypot(leg["x"], leg["y"]) > self._character.roams_m
        turn = np.where(is_far, np.clip(homewards, -2.0, 2.0), 2.4 * chance[5] - 1.2)
        length = _length(leg)
        leg["curvature"] = np.divide(turn, length, out=np.zeros_like(turn), where=length > 0)


def _length(leg: NDArray[np.void]) -> Floats:
    """Metres of a whole leg."""
    return np.asarray(leg["cruises"] * (LEG_S - RAMP_S) + (leg["arrives"] + leg["leaves"]) * RAMP_S / 2)


def _motion(leg: NDArray[np.void], way_s: Floats) -> tuple[Floats, Floats]:
    """Speed (m/s) and way (m) after `way_s` seconds of a leg: the way is the integral of the speed."""
    after_s = way_s - (LEG_S - RAMP_S)
    first, last = np.minimum(way_s / RAMP_S, 1.0) * np.pi, np.maximum(after_s / RAMP_S, 0.0) * np.pi
    gained, lost = leg["cruises"] - leg["arrives"], leg["leaves"] - leg["cruises"]
    speed = leg["arrives"] + gained * (1 - np.cos(first)) / 2 + lost * (1 - np.cos(last)) / 2
    half = RAMP_S / (2 * np.pi)
    way = leg["arrives"] * way_s
    way += gained * (half * (first - np.sin(first)) + np.maximum(way_s - RAMP_S, 0.0))
    way += lost * half * (last - np.sin(last))
    return speed, way


def acceleration(state: State) -> Floats:
    """Metres per second squared along the road."""
    leg = state.leg
    first = np.minimum(state.way_s / RAMP_S, 1.0) * np.pi
    last = np.maximum((state.way_s - (LEG_S - RAMP_S)) / RAMP_S, 0.0) * np.pi
    gained, lost = leg["cruises"] - leg["arrives"], leg["leaves"] - leg["cruises"]
    per_s: Floats = (gained * np.sin(first) + lost * np.sin(last)) * np.pi / (2 * RAMP_S)
    return per_s
