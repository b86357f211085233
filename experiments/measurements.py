"""What a run measured, as one tidy table: a row says which trial of which scene gave which value, and when.

Invariant: a row is on disk before the next one is taken (JSON lines), so a run that is killed keeps what it had; seal()
turns the lines into Parquet. A trial that failed is a row with its reason, never a gap.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import polars as pl

from streaming.errors import StreamgaugeError

Level = int | float | str | bool
Levels = Mapping[str, Level]

LINES: Final = "measurements.jsonl"
TABLE: Final = "measurements.parquet"
FAILED: Final = "trial_failed"  # 1 for a trial that did not come to its end, with the reason as its note
VOID: Final = "trial_void"  # 1 for a trial whose numbers must not be used, with the reason as its note
SKIPPED: Final = "scene_skipped"  # 1 for a scene that could not run here, with the reason as its note

SCHEMA: Final = pl.Schema(
    {  # type: ignore[arg-type]
        "run_id": pl.String,
        "experiment": pl.String,
        "scene": pl.String,
        "trial": pl.Int64,  # place in the plan, which is the order of execution
        "repetition": pl.Int64,
        "factors": pl.String,  # JSON object: the level of each factor
        "metric": pl.String,
        "subject": pl.String,  # null: one value a trial; otherwise what the value belongs to, e.g. "partition 3"
        "value": pl.Float64,
        "unit": pl.String,
        "at_s": pl.Float64,  # seconds since the trial began
        "time": pl.Datetime("us", "UTC"),
        "note": pl.String,
    }
)


class NotMeasured(StreamgaugeError):
    """A judge or a figure asks for something this run has no sound trial of."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which trial a value belongs to."""

    scene: str
    trial: int
    repetition: int
    levels: Levels


class Recorder:
    """Appends measurements to the run's folder; one writer a folder."""

    def __init__(self, folder: Path, run_id: str, experiment: str) -> None:
        self._file = (folder / LINES).open("a", encoding="utf-8")
        self._common = {"run_id": run_id, "experiment": experiment}

    def write(
        self,
        place: Place,
        metric: str,
        value: float,
        unit: str,
        *,
        subject: str | None = None,
        at_s: float = 0.0,
        note: str | None = None,
    ) -> None:
        """Append one value; it has left this process when the call returns."""
        row = self._common | {
            "scene": place.scene,
            "trial": place.trial,
            "repetition": place.repetition,
            "factors": json.dumps(dict(place.levels)),
            "metric": metric,
            "subject": subject,
            "value": float(value) if math.isfinite(value) else None,
            "unit": unit,
            "at_s": at_s,
            "time": datetime.now(UTC).isoformat(),
            "note": note,
        }
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Nothing more will come."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def seal(folder: Path) -> pl.DataFrame:
    """Turn the folder's lines into its Parquet table; repeating it changes nothing."""
    frame = read(folder)
    scratch = folder / f".{TABLE}"
    frame.write_parquet(scratch)
    scratch.replace(folder / TABLE)
    (folder / LINES).unlink(missing_ok=True)
    return frame


def read(folder: Path) -> pl.DataFrame:
    """The folder's measurements, sealed or still being written (a torn last line is dropped)."""
    if (folder / TABLE).exists():
        return pl.read_parquet(folder / TABLE)
    if not (folder / LINES).exists():
        return SCHEMA.to_frame()
    text = (folder / LINES).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    raw = pl.DataFrame(rows, schema={**SCHEMA, "time": pl.String})
    return raw.with_columns(pl.col("time").str.to_datetime(time_unit="us", time_zone="UTC")).cast(SCHEMA)


@dataclass(frozen=True, slots=True)
class Measured:
    """A run's measurements, in the shapes that judges and figures want."""

    frame: pl.DataFrame

    def trials(self, scene: str, *, with_void: bool = False) -> pl.DataFrame:
        """One row a sound trial: trial, repetition, each factor, each metric. NotMeasured if there is none."""
        rows = self._of(scene, with_void=with_void).filter(pl.col("subject").is_null())
        keys = ["trial", "repetition", "factors"]
        wide = rows.pivot("metric", index=keys, values="value", aggregate_function="last")
        return self._unnest(wide, scene)

    def samples(self, scene: str, metric: str) -> pl.DataFrame:
        """One row a value of a part or moment of a trial: repetition, factors, subject, at_s, value, unit."""
        rows = self._of(scene).filter((pl.col("metric") == metric) & pl.col("subject").is_not_null())
        columns = ["trial", "repetition", "factors", "subject", "at_s", "value", "unit"]
        return self._unnest(rows.select(columns), scene)

    def sound(self, scene: str, *, with_void: bool = False) -> pl.DataFrame:
        """The rows of a scene's sound trials, as measured. NotMeasured if there is none."""
        rows = self._of(scene, with_void=with_void)
        if rows.is_empty():
            raise NotMeasured(f"no sound trial of {scene}")
        return rows

    def troubles(self) -> pl.DataFrame:
        """Trials that failed, were void or were skipped: scene, trial, repetition, factors, metric, note."""
        troubled = pl.col("metric").is_in([FAILED, VOID, SKIPPED]) & (pl.col("value") > 0)
        return self.frame.filter(troubled).select("scene", "trial", "repetition", "factors", "metric", "note")

    def units(self, scene: str) -> dict[str, str]:
        """The unit of each metric of a scene."""
        pairs = self.frame.filter(pl.col("scene") == scene).select("metric", "unit").unique(maintain_order=True)
        return dict(pairs.iter_rows())

    def _of(self, scene: str, *, with_void: bool = False) -> pl.DataFrame:
        bad = [FAILED, SKIPPED] if with_void else [FAILED, SKIPPED, VOID]
        rows = self.frame.filter(pl.col("scene") == scene)
        unsound = rows.filter(pl.col("metric").is_in(bad) & (pl.col("value") > 0))["trial"].unique()
        return rows.filter(~pl.col("trial").is_in(unsound.implode()) & ~pl.col("metric").is_in([FAILED, SKIPPED, VOID]))

    @staticmethod
    def _unnest(wide: pl.DataFrame, scene: str) -> pl.DataFrame:
        if wide.is_empty():
            raise NotMeasured(f"no sound trial of {scene}")
        levels = pl.DataFrame([json.loads(text) for text in wide["factors"]], infer_schema_length=None)
        return pl.concat(
            [wide.select("trial", "repetition"), levels, wide.drop("trial", "repetition", "factors")], how="horizontal"
        )
