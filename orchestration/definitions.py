"""All that Dagster knows of the lab, on one screen.

The streams flow outside, in supervised processes; Dagster sees what landed, checks it, and makes summaries of it.
"""

from __future__ import annotations

import dagster as dg

from assets.quality import quality
from assets.tracks import tracks
from assets.vehicle_hours import vehicle_hours
from orchestration.checks import all_checks
from orchestration.jobs import check_sinks, forget_old_runs, refresh
from orchestration.resources import RESOURCES
from orchestration.schedules import hourly_forgetting, hourly_full_check
from orchestration.sensors import flowing, landed
from orchestration.specs import external_assets


@dg.definitions
def defs() -> dg.Definitions:
    """The code location `streamgauge`."""
    return dg.Definitions(
        assets=[*external_assets(), vehicle_hours, tracks, quality],
        asset_checks=all_checks(),
        jobs=[refresh, check_sinks, forget_old_runs],
        schedules=[hourly_full_check, hourly_forgetting],
        sensors=[landed, flowing],
        resources=RESOURCES,
    )
