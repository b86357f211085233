"""How the streams and tables of one broker are called in Dagster, for the rooms that must agree on it."""

from __future__ import annotations

from typing import Final

BROKER: Final = "kafka"


def stream_key(name: str, broker: str = BROKER) -> list[str]:
    """The asset of a topic."""
    return [in_keys(broker), "streams", name]


def table_key(name: str, broker: str = BROKER) -> list[str]:
    """The asset of a sink's table."""
    return [in_keys(broker), "tables", name]


def in_keys(broker: str) -> str:
    """A broker's name as keys and steps can have it."""
    return broker.replace("-", "_")


def summary_key(name: str) -> list[str]:
    """The asset of a table or figure made from sinks' tables."""
    return [BROKER, "summaries", name]
