"""What Dagster's work is done on: the lab's home, the sinks' tables as inputs, summaries and figures as outputs.

Invariant: the environment is read when a resource is set up for a run or a tick, never when this module is imported.
"""

import base64
import io
import os
from pathlib import Path
from typing import Any, Final

import dagster as dg
import polars as pl
from matplotlib.figure import Figure
from PIL import Image

from assets.keys import BROKER
from assets.store import Summary, summary_path, write_summary
from sinks.reader import scan
from streaming.durability import replacing
from streaming.home import Home

PREVIEW_ROWS: Final = 12
FIGURE_LIMIT_BYTES: Final = 200_000  # an image in an event lives in Dagster's database
_DOTS_PER_INCH: Final = (140, 120, 100, 80, 60)


@dg.resource(config_schema={"root": dg.Field(str, default_value="", description="empty: what the environment says")})
def lab_home(context: dg.InitResourceContext) -> Home:
    """The lab's home: `root`, or what STREAMGAUGE_HOME says, or .streamgauge in the project's root."""
    root = context.resource_config["root"]
    return Home(Path(root)) if root else Home.locate(os.environ)


class WarehouseTables(dg.IOManager):
    """Sinks' tables as lazy frames. They are written by the sinks, never by Dagster."""

    def __init__(self, home: Home) -> None:
        self.home = home

    def load_input(self, context: dg.InputContext) -> pl.LazyFrame:
        """The whole table that the asset's last name says."""
        return scan(self.home, BROKER, context.asset_key.path[-1])

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:  # noqa: ARG002
        """Refused: a table has one writer, its sink."""
        raise dg.DagsterInvariantViolationError(f"{context.asset_key.to_user_string()} is written by its sink only")


class Summaries(dg.IOManager):
    """Summaries as Parquet files, with their size, columns and first rows in Dagster."""

    def __init__(self, home: Home) -> None:
        self.home = home

    def handle_output(self, context: dg.OutputContext, obj: Summary) -> None:
        """Replace the summary's file."""
        path = write_summary(self.home, context.asset_key.path[-1], obj)
        context.add_output_metadata({**table_metadata(obj.rows), "dagster/uri": path.as_uri()})

    def load_input(self, context: dg.InputContext) -> pl.LazyFrame:
        """The summary's rows."""
        return pl.scan_parquet(summary_path(self.home, context.asset_key.path[-1]))


class Figures(dg.IOManager):
    """Figures as PNG files, shown in Dagster."""

    def __init__(self, home: Home) -> None:
        self.home = home

    def handle_output(self, context: dg.OutputContext, obj: Figure) -> None:
        """Replace the figure's file, and show it."""
        path = summary_path(self.home, context.asset_key.path[-1], "png")
        image = png(obj)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as scratch:
            scratch.write_bytes(image)
        context.add_output_metadata(
            {
                "figure": picture(path.stem, image),
                "size_bytes": len(image),
                "dagster/uri": path.as_uri(),
            }
        )

    def load_input(self, context: dg.InputContext) -> bytes:
        """The image."""
        return summary_path(self.home, context.asset_key.path[-1], "png").read_bytes()


@dg.io_manager(required_resource_keys={"home"})
def warehouse(context: dg.InitResourceContext) -> WarehouseTables:
    """See WarehouseTables."""
    return WarehouseTables(context.resources.home)


@dg.io_manager(required_resource_keys={"home"})
def summaries(context: dg.InitResourceContext) -> Summaries:
    """See Summaries."""
    return Summaries(context.resources.home)


@dg.io_manager(required_resource_keys={"home"})
def figures(context: dg.InitResourceContext) -> Figures:
    """See Figures."""
    return Figures(context.resources.home)


RESOURCES: Final = {"home": lab_home, "warehouse": warehouse, "summaries": summaries, "figures": figures}


def png(figure: Figure) -> bytes:
    """The figure as an image of 255 colours, as fine as the limit allows."""
    image = b""
    for dots in _DOTS_PER_INCH:
        drawn, reduced = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, format="png", dpi=dots)
        Image.open(drawn).convert("RGB").quantize(255).save(reduced, format="png", optimize=True)
        image = reduced.getvalue()
        if len(image) * 4 // 3 <= FIGURE_LIMIT_BYTES:
            break
    return image


def picture(name: str, image: bytes) -> dg.MetadataValue[Any]:
    """A PNG as Dagster shows it: in the event itself."""
    return dg.MetadataValue.md(f"![{name}](data:image/png;base64,{base64.b64encode(image).decode()})")


def table_metadata(rows: pl.DataFrame) -> dict[str, Any]:
    """A table's size, columns and first rows, as Dagster shows them."""
    columns = [dg.TableColumn(name, str(kind)) for name, kind in rows.schema.items()]
    return {
        "dagster/row_count": len(rows),
        "dagster/column_schema": dg.TableSchema(columns),
        "first_rows": dg.MetadataValue.md(as_markdown(rows.head(PREVIEW_ROWS))),
    }


def as_markdown(rows: pl.DataFrame) -> str:
    """A small table in markdown."""
    with pl.Config(
        tbl_formatting="ASCII_MARKDOWN",
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        tbl_cols=-1,
        tbl_rows=-1,
        tbl_width_chars=10_000,
        fmt_str_lengths=80,
        float_precision=2,
    ):
        return str(rows)
