"""Keeping house by the clock: jobs that merge small files and let go of what is old, and their schedules, in UTC.

Invariant: the work itself is in keeping.py; a job may run at any time, beside running sinks and beside another of it.
"""

from datetime import timedelta
from typing import Final

import dagster as dg
from pydantic import Field

from orchestration.keeping import merge_home, prune_home
from sinks.prune import KEEP
from streaming.home import Home


class PruneConfig(dg.Config):
    """What is old, and whether anything goes."""

    keep_days: float = Field(default=KEEP.days, description="What is older goes.")
    dry_run: bool = Field(default=False, description="Only say what would go.")


@dg.op
def merge_all(context: dg.OpExecutionContext, home: dg.ResourceParam[Home]) -> int:
    """Merge every table's settled small files. Returns how many files are fewer."""
    merged = merge_home(home, progress=context.log.info)
    fewer = sum(each.parts - 1 for each in merged)
    context.add_output_metadata(
        {"merges": len(merged), "fewer_files": fewer, "rows": sum(each.rows for each in merged)}
    )
    return fewer


@dg.op
def prune_all(context: dg.OpExecutionContext, config: PruneConfig, home: dg.ResourceParam[Home]) -> int:
    """Let go of what is older than is kept. Returns how many bytes that gives back."""
    house = prune_home(home, timedelta(days=config.keep_days), dry_run=config.dry_run, progress=context.log.info)
    context.add_output_metadata(
        {
            "pruned_rows": sum(each.rows for each in house.slots),
            "pruned_files": sum(each.files for each in house.slots),
            "leavings": len(house.leavings),
            "folded_bytes": house.folded_bytes,
            "busy": house.busy,
            "dry_run": config.dry_run,
        }
    )
    return house.size_bytes


@dg.job(executor_def=dg.in_process_executor, description="Merges small files of every table; nobody sees a row twice.")
def merge_small_files() -> None:
    """See merge_all."""
    merge_all()


@dg.job(
    name="prune",
    executor_def=dg.in_process_executor,
    description="Lets go of what is older than 30 days: oldest slots, quarantine, results, leavings of dead processes.",
)
def prune_old() -> None:
    """See prune_all."""
    prune_all()


def _schedule(name: str, job: dg.JobDefinition, cron: str, says: str) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        name=name,
        job=job,
        cron_schedule=cron,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=says,
    )


merge_schedule: Final = _schedule(
    "hourly_merging", merge_small_files, "22 * * * *", "Keeps the number of files bounded."
)
prune_schedule: Final = _schedule("daily_pruning", prune_old, "52 3 * * *", "Keeps the lab's home bounded.")
JOBS: Final = (merge_small_files, prune_old)
SCHEDULES: Final = (merge_schedule, prune_schedule)
