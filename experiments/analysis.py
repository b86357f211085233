"""A run's analysis: each metric of each design as median and interval, made from the measurements on disk.

Invariant: pure polars on a table; it can be made again at any time without a broker.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import polars as pl

from experiments.experiment import Experiment, Scene
from experiments.measurements import Measured, NotMeasured
from experiments.run import Run
from experiments.statistics import median_interval
from streaming.durability import replacing

TABLE: Final = "analysis.parquet"
SCHEMA: Final = pl.Schema(
    {
        "run_id": pl.String,
        "scene": pl.String,
        "factors": pl.String,  # JSON object: the level of each factor
        "metric": pl.String,
        "unit": pl.String,
        "median": pl.Float64,
        "low": pl.Float64,  # of the 95 % interval
        "high": pl.Float64,
        "repetitions": pl.Int64,
    }
)


def summarise(experiment: Experiment, run_id: str, measured: Measured) -> pl.DataFrame:
    """One row a metric and design, over the sound trials; metrics in their scene's order, the others behind them."""
    parts = [_scene(scene, measured) for scene in experiment.scenes]
    rows = pl.concat([SCHEMA.to_frame().drop("run_id"), *parts])
    return rows.select(pl.lit(run_id).alias("run_id"), pl.all())


def write(experiment: Experiment, run: Run) -> Path:
    """Make the run's analysis table anew and return its path."""
    path = run.folder / TABLE
    with replacing(path) as scratch:
        summarise(experiment, run.run_id, run.measured).write_parquet(scratch)
    return path


def _scene(scene: Scene, measured: Measured) -> pl.DataFrame:
    try:
        sound = measured.sound(scene.name, with_void=scene.allows_loss)
    except NotMeasured:
        return SCHEMA.to_frame().drop("run_id")
    keys = ["scene", "factors", "metric"]
    groups = sound.filter(pl.col("subject").is_null() & pl.col("value").is_not_null())
    rows = [
        dict(zip(keys, key, strict=True)) | _summary(group) for key, group in groups.group_by(keys, maintain_order=True)
    ]
    order = {metric: place for place, metric in enumerate(scene.columns)}
    rows.sort(key=lambda row: (str(row["factors"]), order.get(str(row["metric"]), len(order))))
    return pl.DataFrame(rows, schema={name: SCHEMA[name] for name in SCHEMA.names() if name != "run_id"})


def _summary(group: pl.DataFrame) -> dict[str, object]:
    interval = median_interval(group["value"].to_numpy())
    return {
        "unit": group["unit"][0],
        "median": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "repetitions": interval.n,
    }
