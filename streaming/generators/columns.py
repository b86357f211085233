"""Which column of a recording means what, and its cells as values in our units.

Invariant: convert() gives one row for each row it gets, in order; a row with a cell that can't be read carries the
reason for it instead of being guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from streaming.errors import UsageError

UTC_TIME: Final = pl.Datetime("us", "UTC")
REQUIRED: Final = ("event_time", "latitude", "longitude")
_UNKNOWN: Final = ["", "nan", "null", "none", "na", "n/a", "-"]

# The names a column may have, in lower case, letters and digits only; the first that a file has is taken.
_KNOWN: Final = {
    ours: names.split()
    for ours, names in {
        "vehicle": "vehicle vehicleid uid device deviceid unit unitid taxi taxiid bus busid imei",
        "event_time": "eventtime timestamp datetime timeutc utctime utc gpstime recordedat ts date+time time",
        "latitude": "latitude lat latitudedeg gpslatitude positionlat",
        "longitude": "longitude lng lon long longitudedeg gpslongitude positionlong",
        "altitude_m": "altitudem altitude alt elevation ele elevationm altitudeft",
        "speed_mps": "speedmps speedms speed velocity gpsspeed groundspeed speedkmh speedkph speedmph speedknots",
        "heading_deg": "headingdeg heading course bearing cog direction",
        "dilution": "dilution hdop horizontaldilution",
    }.items()
}
_FACTORS: Final = {  # of those whose name says another unit than ours
    "altitudeft": 0.3048,
    "speedkmh": 1 / 3.6,
    "speedkph": 1 / 3.6,
    "speedmph": 0.44704,
    "speedknots": 1852 / 3600,
}
_RANGES: Final = {"latitude": (-90.0, 90.0), "longitude": (-180.0, 180.0)}
_LATEST_US: Final = 7_258_118_400_000_000  # the year 2200
_ISO: Final = (
    r"(?i)^(?<date>\d{4}[-/.]\d{1,2}[-/.]\d{1,2})[t ]+(?<hour>\d{1,2}):(?<minute>\d{2})"
    r"(?::(?<second>\d{2})(?:[.,](?<fraction>\d{1,9}))?)? *"
    r"(?:z|utc|gmt|(?<sign>[+-])(?<hours>\d{2}):?(?<minutes>\d{2})?)?$"
)


@dataclass(frozen=True, slots=True)
class Columns:
    """A recording's columns: `names` as the file has them (made unique), and for each of ours, which of them and how.

    `vehicle` is what all rows are called when the file has no column for it.
    """

    names: list[str]
    sources: Mapping[str, tuple[str, ...]]
    factors: Mapping[str, float]
    vehicle: str
    has_decimal_comma: bool = False

    @classmethod
    def found(
        cls, path: Path, names: Sequence[str], mapping: Mapping[str, str], *, has_decimal_comma: bool = False
    ) -> Columns:
        """By mapping first, then by known names. UsageError when a required column cannot be found."""
        unique = _unique(names)
        known = {_plain(name): name for name in reversed(unique)}
        sources, factors = {}, {}
        for ours in _KNOWN:
            wanted = _mapped(path, ours, mapping[ours], unique) if ours in mapping else _guessed(ours, known)
            if wanted:
                sources[ours] = wanted
                factors[ours] = _FACTORS.get(_plain(wanted[0]), 1.0)
        _refuse_unknown(mapping)
        if missing := [ours for ours in REQUIRED if ours not in sources]:
            raise UsageError(
                f"{path} has no column that is known as {' or '.join(missing)}. Its columns: {', '.join(names)}. "
                f"Say which it is: --map {','.join(f'{ours}=…' for ours in missing)}"
            )
        return cls(unique, sources, factors, _stem(path), has_decimal_comma)

    @classmethod
    def numbered(
        cls, path: Path, first_row: Sequence[str], mapping: Mapping[str, str], *, has_decimal_comma: bool = False
    ) -> Columns:
        """For a file without a line of names: its columns are called 1, 2, 3, …."""
        names = [str(number) for number in range(1, len(first_row) + 1)]
        if any(ours not in mapping for ours in REQUIRED):
            raise UsageError(
                f"{path} does not begin with a line of column names but with {', '.join(first_row)}. Say by number "
                f"which column is which, e.g. --map vehicle=1,event_time=2,longitude=3,latitude=4"
            )
        return cls.found(path, names, mapping, has_decimal_comma=has_decimal_comma)

    @property
    def theirs(self) -> list[str]:
        """The file's columns that are used, in the file's order."""
        used = {name for names in self.sources.values() for name in names}
        return [name for name in self.names if name in used]

    def convert(self, frame: pl.DataFrame, line: pl.Series, text: pl.Series) -> pl.DataFrame:
        """Our columns in our units, with line, text, and the reason why the row can't be read (null: it can)."""
        values, reasons = [self._vehicle()], [self._no_vehicle()]
        for ours in _KNOWN:
            if ours == "vehicle":
                continue
            value, reason = self._time(frame) if ours == "event_time" else self._number(ours, frame)
            values.append(value.alias(ours))
            reasons.append(reason)
        return frame.select(
            *values, line.cast(pl.Int64).alias("line"), pl.coalesce(reasons).alias("reason"), text.alias("text")
        )

    def _vehicle(self) -> pl.Expr:
        if "vehicle" not in self.sources:
            return pl.lit(self.vehicle).alias("vehicle")
        return pl.col(self.sources["vehicle"][0]).cast(pl.String).str.strip_chars().alias("vehicle")

    def _no_vehicle(self) -> pl.Expr:
        name = self._vehicle()
        return _reason(name.is_null() | (name == ""), "vehicle: empty")

    def _number(self, ours: str, frame: pl.DataFrame) -> tuple[pl.Expr, pl.Expr]:
        if ours not in self.sources:
            return pl.lit(None, pl.Float64), pl.lit(None, pl.String)
        theirs = self.sources[ours][0]
        cell = _present(theirs, frame)
        if frame.schema[theirs] == pl.String and self.has_decimal_comma:
            cell = cell.str.replace(",", ".", literal=True)
        number = cell.cast(pl.Float64, strict=False)
        low, high = _RANGES.get(ours, (None, None))
        reason = _reason(cell.is_not_null() & ~number.is_finite().fill_null(value=False), f"{ours}: not a number")
        if low is not None:
            reason = pl.coalesce(reason, _reason(~number.is_between(low, high), f"{ours}: out of range"))
        return _in_our_terms(ours, number * self.factors[ours]), reason

    def _time(self, frame: pl.DataFrame) -> tuple[pl.Expr, pl.Expr]:
        theirs = self.sources["event_time"]
        if isinstance(frame.schema[theirs[0]], pl.Datetime):
            cell = time = pl.col(theirs[0]).dt.convert_time_zone("UTC").cast(UTC_TIME)
        elif frame.schema[theirs[0]].is_numeric():
            cell = _present(theirs[0], frame)
            time = _since_1970(cell.cast(pl.Float64))
        else:
            cell = pl.concat_str([_present(name, frame) for name in theirs], separator=" ")
            time = pl.coalesce(_since_1970(cell.cast(pl.Float64, strict=False)), _from_iso(cell))
        return time, pl.coalesce(
            _reason(cell.is_null(), "event_time: empty"),
            _reason(time.is_null(), "event_time: neither ISO 8601 nor a number since 1970"),
            _reason(~time.to_physical().is_between(0, _LATEST_US), "event_time: not between 1970 and 2200"),
        )


def is_header(cells: Sequence[str]) -> bool:
    """Whether a first row names columns: none of its cells is a number."""
    return not any(re.fullmatch(r"[+-]?\d+([.,]\d*)?([eE][+-]?\d+)?", cell) for cell in cells)


def _reason(is_bad: pl.Expr, says: str) -> pl.Expr:
    return pl.when(is_bad).then(pl.lit(says))


def _present(name: str, frame: pl.DataFrame) -> pl.Expr:
    """The cell, null where it is empty or says that it is unknown."""
    cell = pl.col(name)
    kind = frame.schema[name]
    if kind.is_float():
        return cell.fill_nan(None)
    if kind == pl.String:
        cell = cell.str.strip_chars()
        return pl.when(~cell.str.to_lowercase().is_in(_UNKNOWN)).then(cell)
    return cell


def _in_our_terms(ours: str, number: pl.Expr) -> pl.Expr:
    if ours == "heading_deg":
        return pl.when(number >= 0).then(number % 360.0)
    return pl.when(number >= 0).then(number) if ours == "speed_mps" else number


def _since_1970(number: pl.Expr) -> pl.Expr:
    """Seconds, ms, µs or ns, by size: in seconds 1e11 is the year 5138, in milliseconds it is 1973."""
    size = number.abs()
    factor = pl.when(size < 1e11).then(1e6).when(size < 1e14).then(1e3).when(size < 1e17).then(1.0).otherwise(1e-3)
    micros = (number * factor).round()
    return pl.when(micros.is_between(-9e15, 9e15)).then(micros).cast(pl.Int64).cast(UTC_TIME)


def _from_iso(cell: pl.Expr) -> pl.Expr:
    part = cell.str.strip_chars().str.extract_groups(_ISO).struct.field
    day = part("date").str.replace_all(r"[/.]", "-")
    clock = pl.concat_str([part("hour"), part("minute"), part("second").fill_null("00")], separator=":")
    naive = pl.concat_str([day, clock], separator=" ").str.to_datetime(
        "%Y-%m-%d %H:%M:%S", time_unit="us", strict=False
    )
    fraction = (part("fraction").fill_null("0") + "000000").str.slice(0, 6).cast(pl.Int64)
    ahead_min = part("hours").cast(pl.Int64) * 60 + part("minutes").fill_null("0").cast(pl.Int64)
    ahead_us = (ahead_min * 60_000_000 * pl.when(part("sign") == "-").then(-1).otherwise(1)).fill_null(0)
    return (naive.cast(pl.Int64) + fraction - ahead_us).cast(UTC_TIME)


def _plain(name: str) -> str:
    return "+".join(re.sub(r"[^a-z0-9]", "", part) for part in name.lower().split("+"))


def _unique(names: Sequence[str]) -> list[str]:
    """Names as they are, but a repeated one with its place."""
    return [name if names.index(name) == place else f"{name} #{place + 1}" for place, name in enumerate(names)]


def _guessed(ours: str, known: Mapping[str, str]) -> tuple[str, ...]:
    candidates = (tuple(known.get(part, "") for part in name.split("+")) for name in _KNOWN[ours])
    return next((found for found in candidates if all(found)), ())


def _mapped(path: Path, ours: str, theirs: str, names: Sequence[str]) -> tuple[str, ...]:
    parts = [theirs] if theirs in names else theirs.split("+")
    for part in parts:
        if part not in names:
            raise UsageError(f"{path} has no column {part!r} for {ours}. Its columns: {', '.join(names)}")
    return tuple(parts)


def _refuse_unknown(mapping: Mapping[str, str]) -> None:
    if unknown := sorted(set(mapping) - set(_KNOWN)):
        raise UsageError(f"--map {', '.join(unknown)}: no column of positions; those are {', '.join(_KNOWN)}")


def _stem(path: Path) -> str:
    return re.sub(r"(?i)(\.(csv|txt|tsv|gpx|parquet|pq))?(\.gz)?$", "", path.name) or path.name
