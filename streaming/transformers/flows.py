"""Which step runs between which streams; what a step reads and writes is in the topology alone."""

from __future__ import annotations

from typing import Any

import polars as pl

from streaming.declarations import made
from streaming.errors import UsageError
from streaming.interfaces import Step
from streaming.topology import Role
from streaming.transformers.alerts import AlertsStep
from streaming.transformers.enrichment import reference_table
from streaming.transformers.windows import MeansStep

__all__ = ["reference_table", "step_for"]


def step_for(role: Role, *, vehicles: tuple[pl.DataFrame, int] | None = None) -> Step[Any]:
    """The step of a transformer; `vehicles` is reference_table()'s answer, for roles that look it up.

    UsageError when the role has no step, or needs the vehicles and was not given them.
    """
    if role.made_by:
        own: Step[Any] = made(role.made_by)
        return own
    if "position_means" in role.writes:
        return MeansStep()
    if "alerts" in role.writes:
        if vehicles is None:
            raise UsageError(f"{role.name} looks up the vehicles: read the table first")
        return AlertsStep(*vehicles)
    raise UsageError(f"{role.name} is a {role.kind}, it has no step")
