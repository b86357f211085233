"""The lab's code location as it is, with short nights beside: schedules of real jobs that a test has time for.

A night that a person would switch on takes minutes to half an hour; these do the same work, less of it.
"""

from __future__ import annotations

from typing import Any, Final

import dagster as dg

from orchestration import definitions, experiments, profiling
from streaming.lab import KAFKA
from streaming.topology import role

MEASUREMENTS: Final = "experiments__keys__measurements"
BRIEF: Final[dict[str, Any]] = {"preset": "smoke", "scenes": ["growth"]}
SHORT_NIGHT: Final = "short_night"
PROFILED: Final = role("positions-generator")
SHORT_PROFILES: Final = "short_profiles"


def _at_two(name: str, job: Any, run_config: dict[str, Any]) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        name=name, job=job, cron_schedule="0 2 * * *", execution_timezone="UTC", run_config=run_config
    )


@dg.definitions
def defs() -> dg.Definitions:
    """All that the lab has, and the short nights."""
    keys = next(job for job in experiments.JOBS if job.name == "experiment_keys")
    short = _at_two(SHORT_NIGHT, keys, {"ops": {MEASUREMENTS: {"config": BRIEF}}})
    profiles = profiling.night(
        SHORT_PROFILES,
        "0 2 * * *",
        "One role on one broker.",
        job=next(job for job in profiling.JOBS if job.name == profiling.job_name(PROFILED)),
        roles=[PROFILED],
        on=[KAFKA],
        messages=2_000,
        timing_runs=1,
    )
    return dg.Definitions.merge(definitions.defs(), dg.Definitions(schedules=[short, profiles]))
