"""When jobs run by the clock, in UTC."""

from __future__ import annotations

from typing import Final

import dagster as dg

from orchestration.jobs import AssetJob, forget_old_runs


def hourly_full_check_of(job: AssetJob) -> dg.ScheduleDefinition:
    """Has the checks of all tables run every hour."""
    return dg.ScheduleDefinition(
        name="hourly_full_check",
        job=job,
        cron_schedule="7 * * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Checks every table from its first slot on: about a second a million rows.",
    )


hourly_forgetting: Final = dg.ScheduleDefinition(
    name="hourly_forgetting",
    job=forget_old_runs,
    cron_schedule="37 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Keeps Dagster's storage bounded.",
)
