"""Where summaries lie and how they are written: as a whole, so that a reader sees the earlier one or the later one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from assets.chains import NOTHING, Extent
from assets.keys import BROKER
from streaming.durability import replacing
from streaming.home import Home

_COVERS: Final = "streamgauge.covers"


@dataclass(frozen=True, slots=True)
class Summary:
    """A table made from sinks' tables; `covers`: how far of its source it has read, if it goes on from there."""

    rows: pl.DataFrame
    covers: Extent = NOTHING


def summary_path(home: Home, name: str, suffix: str = "parquet") -> Path:
    """The file of a summary."""
    return home.tables / BROKER / f"{name}.{suffix}"


def write_summary(home: Home, name: str, summary: Summary) -> Path:
    """Replace a summary's file; what it covers is in the same file, so both are old or both are new."""
    path = summary_path(home, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as scratch:
        summary.rows.write_parquet(scratch, metadata={_COVERS: json.dumps(summary.covers.dump())})
    return path


def read_summary(home: Home, name: str, schema: pl.Schema) -> Summary:
    """The summary as it was last written; an empty one when there is none, or when it had other columns."""
    path = summary_path(home, name)
    try:
        rows = pl.read_parquet(path)
        covers = Extent.load(json.loads(pl.read_parquet_metadata(path)[_COVERS]))
    except (OSError, KeyError, ValueError, TypeError, pl.exceptions.PolarsError):
        return Summary(pl.DataFrame(schema=schema))
    return Summary(rows, covers) if rows.schema == schema else Summary(pl.DataFrame(schema=schema))
