"""All that Dagster knows of the lab, on one screen.

The streams flow outside, in supervised processes; Dagster sees what landed, checks it, and makes summaries of it.
"""

from __future__ import annotations

import os

import dagster as dg

from assets.quality import quality
from assets.tracks import tracks
from assets.vehicle_hours import vehicle_hours
from orchestration import experiments, housekeeping, profiling, soaking
from orchestration.checks import all_checks
from orchestration.jobs import check_sinks_of, forget_old_runs, refresh
from orchestration.resources import RESOURCES
from orchestration.schedules import hourly_forgetting, hourly_full_check_of
from orchestration.sensors import flowing, landed
from orchestration.specs import external_assets, shown_brokers


@dg.definitions
def defs() -> dg.Definitions:
    """The code location `streamgauge`: Kafka's part of the lab always, other brokers' where this lab has them."""
    brokers = shown_brokers(os.environ)
    check_sinks = check_sinks_of(brokers)
    return dg.Definitions(
        assets=[
            *external_assets(brokers),
            vehicle_hours,
            tracks,
            quality,
            *experiments.ASSETS,
            *profiling.ASSETS,
            *soaking.ASSETS,
        ],
        asset_checks=all_checks(brokers),
        jobs=[
            refresh,
            check_sinks,
            forget_old_runs,
            *experiments.JOBS,
            *housekeeping.JOBS,
            *profiling.JOBS,
            *soaking.JOBS,
        ],
        schedules=[
            hourly_full_check_of(check_sinks),
            hourly_forgetting,
            *experiments.SCHEDULES,
            *housekeeping.SCHEDULES,
            *profiling.SCHEDULES,
        ],
        sensors=[landed, flowing],
        resources=RESOURCES,
    )
