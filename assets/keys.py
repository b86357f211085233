"""How the streams and tables of one broker are called in Dagster, for the rooms that must agree on it."""

from __future__ import annotations

from typing import Final

BROKER: Final = "kafka"


def stream_key(name: str) -> list[str]:
    """The asset of a topic."""
    return [BROKER, "streams", name]


def table_key(name: str) -> list[str]:
    """The asset of a sink's table."""
    return [BROKER, "tables", name]


def summary_key(name: str) -> list[str]:
    """The asset of a table or figure made from sinks' tables."""
    return [BROKER, "summaries", name]
