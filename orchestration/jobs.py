"""What Dagster runs: small jobs, each in one process.

`refresh` makes the summaries; `check_sinks` checks everything from the first slot (what is new is checked by the sensor
that reports it); `forget_old_runs` keeps Dagster's own storage bounded.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import dagster as dg

from assets.keys import table_key
from orchestration.checks import CheckConfig, check_op
from orchestration.specs import SINKS

AssetJob = Any  # Dagster gives define_asset_job()'s answer no public name
REFRESH: Final = "refresh"
CHECK_SINKS: Final = "check_sinks"
KEPT: Final = timedelta(days=2)
AT_ONCE: Final = 500

refresh: Final = dg.define_asset_job(
    REFRESH,
    selection=dg.AssetSelection.groups("summaries"),
    description="Makes the summaries anew from what has landed.",
    executor_def=dg.in_process_executor,
)


def check_sinks_of(brokers: Iterable[str]) -> AssetJob:
    """The job that checks every table of these brokers from its first slot on."""
    tables = [(role, broker) for broker in brokers for role in SINKS]
    return dg.define_asset_job(
        CHECK_SINKS,
        selection=dg.AssetSelection.checks_for_assets(*(table_key(str(role.table), at) for role, at in tables)),
        config=dg.RunConfig(ops={check_op(role, at): CheckConfig(full=True) for role, at in tables}),
        description="Checks every table from its first slot on.",
        executor_def=dg.in_process_executor,
    )


@dg.op
def forget_runs(context: dg.OpExecutionContext) -> int:
    """Delete finished runs older than two days, a few hundred at a time; what they made stays. Returns how many."""
    finished = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED],
        created_before=datetime.now(UTC) - KEPT,
    )
    old = context.instance.get_run_records(filters=finished, limit=AT_ONCE, ascending=True)
    for record in old:
        context.instance.delete_run(record.dagster_run.run_id)
    context.log.info("%d runs forgotten", len(old))
    return len(old)


@dg.job(executor_def=dg.in_process_executor, description="Deletes Dagster's runs of more than two days ago.")
def forget_old_runs() -> None:
    """See forget_runs."""
    forget_runs()
