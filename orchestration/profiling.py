"""Profiles in Dagster: an asset and a job for each role, partitioned by broker, a nightly and a weekly schedule.

Invariant: a profile runs on brokers of its own, in the pool that experiments queue in, and its results are in its run's
folder before Dagster is told of them. Both schedules are off until somebody switches them on.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import dagster as dg
import polars as pl
from pydantic import Field

from experiments.profiles import calls, history, patterns, results, runs, scalene_report, timing
from experiments.profiles.history import Judgement
from experiments.profiles.runner import Request, brokers, profile
from experiments.profiles.runs import Load, Profiler, Run, Status, Workload
from experiments.profiles.stage import BROKERS
from orchestration import pages, services
from orchestration.resources import as_markdown, picture
from streaming.home import Home
from streaming.lab import Lab
from streaming.topology import ROLES, Role

GROUP: Final = "profiles"
POOL: Final = "brokers"
CHECK: Final = "no_regression"
HISTORY: Final = dg.AssetKey([GROUP, "history"])
ALL: Final = "profile_all"
NIGHTLY: Final = "nightly_profiles"
WEEKLY: Final = "weekly_profiles"
SHOWN: Final = 12
FIGURE_LIMIT_BYTES: Final = 300_000
by_broker: Final = dg.StaticPartitionsDefinition(list(BROKERS))


class ProfileConfig(dg.Config):
    """What a role is given while it is profiled, and how often its loop is timed."""

    messages: int = Field(default=100_000, ge=1, le=10_000_000, description="Records a run.")
    load: Load = Field(default=Load.BACKLOG, description="All at once, steady, or in bursts (not for generators).")
    rate_hz: float = Field(default=200.0, gt=0, description="Records a second of a load that is no backlog.")
    codec: str = Field(default="json", description="json or avro.")
    vehicles: int = Field(default=20, ge=1, description="Simulated vehicles.")
    seed: int = Field(default=1, description="Of the simulation.")
    bootstrap_servers: str = Field(default="", description="A Kafka cluster to use; empty: brokers are started.")
    timing_runs: int = Field(
        default=3, ge=1, le=100, description="Unprofiled runs that time the loop; 10 for an interval."
    )

    @property
    def workload(self) -> Workload:
        """As the runner wants it."""
        return Workload(
            messages=self.messages,
            load=Load(self.load),
            rate_hz=self.rate_hz,
            codec=self.codec,
            vehicles=self.vehicles,
            seed=self.seed,
        )


def profile_key(role: Role) -> dg.AssetKey:
    """The asset of a role's profile."""
    return dg.AssetKey([GROUP, role.name.replace("-", "_")])


def job_name(role: Role) -> str:
    """The job that profiles one role."""
    return f"profile_{role.name.replace('-', '_')}"


def _asset(role: Role) -> dg.AssetsDefinition:
    @dg.asset(
        key=profile_key(role),
        group_name=GROUP,
        kinds={"python", "kafka"},
        owners=["team:performance"],
        partitions_def=by_broker,
        pool=POOL,
        description=f"{role.name} under scalene and cProfile, its loop timed: it {role.says}.",
        check_specs=[
            dg.AssetCheckSpec(
                CHECK,
                asset=profile_key(role),
                description="Processor time a record is not above the 95 % interval of the last runs of this workload.",
            )
        ],
    )
    def profiled(
        context: dg.AssetExecutionContext, config: ProfileConfig, home: dg.ResourceParam[Home]
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster reads the annotation, and not a subscripted one
        earlier = runs.listed(home)
        found = list(_profiles(context, home, role, config))
        failed = [each for each in found if each.status is not Status.COMPLETE]
        if failed:
            raise dg.Failure(f"{failed[0].name} {failed[0].status}: {failed[0].reason}", allow_retries=False)
        undisturbed = [each for each in found if each.profiler is Profiler.NONE]
        judgement = history.judged(undisturbed, earlier)
        history.keep_verdict(home, undisturbed, judgement)
        return dg.MaterializeResult(
            metadata={**_metadata(home, found), **_cost(judgement), "judgement": judgement.says},
            check_results=[regression_check(judgement)],
        )

    return profiled


def regression_check(judgement: Judgement) -> dg.AssetCheckResult:
    """Failed, as a warning, when the role has become dearer, and when nothing was measured: it shows no number then."""
    return dg.AssetCheckResult(
        check_name=CHECK,
        passed=judgement.now_us is not None and not judgement.is_worse,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"says": judgement.says, **_cost(judgement)},
    )


def _cost(judgement: Judgement) -> dict[str, float]:
    return {} if judgement.now_us is None else {"cpu_us_per_record": judgement.now_us}


def _profiles(context: dg.AssetExecutionContext, home: Home, role: Role, config: ProfileConfig) -> Iterator[Run]:
    """Under scalene, under cProfile, then undisturbed as often as configured: on one cluster, started for it."""
    profilers = [Profiler.SCALENE, Profiler.CPROFILE, *[Profiler.NONE] * config.timing_runs]
    with brokers(config.bootstrap_servers or None, broker=context.partition_key) as at:
        for profiler in profilers:
            request = Request(
                role.name, context.partition_key, profiler, config.workload, f"dagster {context.run.run_id}"
            )
            yield profile(home, request, at, say=context.log.info)


def _metadata(home: Home, found: Sequence[Run]) -> dict[str, Any]:
    by_profiler = {each.profiler: runs.folder_of(home, each) for each in found}
    undisturbed = [each for each in found if each.profiler is Profiler.NONE]
    metadata: dict[str, Any] = {
        "records": found[0].records,
        "run_folders": {str(profiler): str(folder) for profiler, folder in by_profiler.items()},
        "loop_timings": table(timing.table(timing.timings(home, undisturbed))),
        "contention": ", ".join(found[0].provenance.get("contention", [])) or "none seen",
    }
    for profiler, folder in by_profiler.items():
        metadata |= _of_profiler(profiler, folder)
    if services.is_up(home) and (by_profiler[Profiler.SCALENE] / scalene_report.HTML).exists():
        page = pages.address(Lab.load(home).pages_port, by_profiler[Profiler.SCALENE].name)
        metadata["report_page"] = dg.MetadataValue.url(page)  # served while the lab is up
    return metadata


def _of_profiler(profiler: Profiler, folder: Path) -> dict[str, Any]:
    """Tables and figure of one profiler's run."""
    metadata: dict[str, Any] = {}
    if (activities := results.read(folder, results.ACTIVITIES)) is not None and len(activities):
        metadata[f"{profiler}_says"] = patterns.verdict(activities).says
        metadata[f"{profiler}_activities"] = table(activities.head(SHOWN))
    if (lines := results.read(folder, results.LINES)) is not None:
        metadata["hot_lines"] = table(
            patterns.working(lines).select("file", "line", "source", "cpu", "python", "native", "peak_mb").head(SHOWN)
        )
    if (found := results.read(folder, results.CALLS)) is not None:
        for order in calls.ORDERS:
            metadata[f"top_{order}"] = table(
                calls.top(found, order).select("function", "file", "thread", *calls.ORDERS)
            )
    if (folder / results.FIGURE).exists():
        metadata[f"{profiler}_figure"] = image(folder / results.FIGURE)
    if (page := folder / scalene_report.HTML).exists():
        metadata["report"] = dg.MetadataValue.path(str(page))
        metadata["open_report"] = f"streamgauge profile view {folder.name} --html"
    return metadata


def table(rows: pl.DataFrame) -> dg.MetadataValue[Any]:
    """A small table as Dagster shows it."""
    return dg.MetadataValue.md(as_markdown(rows))


def image(path: Path) -> dg.MetadataValue[Any]:
    """The picture itself if it is small enough for Dagster's database, else where it lies."""
    content = path.read_bytes()
    if len(content) > FIGURE_LIMIT_BYTES:
        return dg.MetadataValue.path(str(path))
    return picture(path.stem, content)


@dg.asset(
    key=HISTORY,
    group_name=GROUP,
    kinds={"polars"},
    owners=["team:performance"],
    deps=[profile_key(role) for role in ROLES.values()],
    description="Processor time a record of every undisturbed profile run that is kept.",
)
def profile_history(home: dg.ResourceParam[Home]) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster reads the annotation, and not a subscripted one
    """All runs, by role."""
    found = history.costs(runs.listed(home))
    path = home.tables / GROUP / "history.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    found.write_parquet(path)
    by_role = found.group_by("role", maintain_order=True).agg(
        pl.len().alias("runs"), pl.col("cpu_us_per_record").median().alias("median"), pl.col("cpu_us_per_record").last()
    )
    return dg.MaterializeResult(
        metadata={"dagster/row_count": len(found), "by_role": table(by_role), "dagster/uri": path.as_uri()}
    )


PROFILES: Final = [_asset(role) for role in ROLES.values()]
ASSETS: Final = [*PROFILES, profile_history]


def _job(name: str, roles: Sequence[Role], says: str) -> Any:
    return dg.define_asset_job(
        name,
        selection=dg.AssetSelection.assets(*(profile_key(role) for role in roles), HISTORY),
        description=says,
        executor_def=dg.in_process_executor,
    )


profile_all: Final = _job(ALL, list(ROLES.values()), "Profiles every role, one after the other.")
refresh_profile_history: Final = dg.define_asset_job(
    "refresh_profile_history",
    selection=dg.AssetSelection.assets(HISTORY),
    executor_def=dg.in_process_executor,
    description="Makes the table of all profile runs anew.",
)
JOBS: Final = [
    *(_job(job_name(role), [role], f"Profiles {role.name}: {role.says}.") for role in ROLES.values()),
    profile_all,
    refresh_profile_history,
]


def run_config(roles: Iterable[Role] = ROLES.values(), **settings: Any) -> dict[str, Any]:
    """The same settings for each role's profile."""
    config = ProfileConfig(**settings)
    words = {**config.model_dump(mode="json"), "load": Load(config.load).name}  # Dagster goes by an enum's name
    return {"ops": {profile_key(role).to_python_identifier(): {"config": words} for role in roles}}


def night(
    name: str,
    cron: str,
    says: str,
    *,
    job: Any = profile_all,
    roles: Sequence[Role] = tuple(ROLES.values()),
    on: Sequence[str] = BROKERS,
    **settings: Any,
) -> dg.ScheduleDefinition:
    """A schedule, off until switched on: each time a run of `job` (of these roles) for each broker."""

    def requests(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        at = context.scheduled_execution_time.isoformat()
        for broker in on:
            yield dg.RunRequest(f"{at} {broker}", partition_key=broker, run_config=run_config(roles, **settings))

    return dg.ScheduleDefinition(
        name=name,
        job=job,
        cron_schedule=cron,
        execution_timezone="UTC",
        execution_fn=requests,
        description=f"{says} Off until switched on: streamgauge schedule on {name}.",
    )


SCHEDULES: Final = [
    night(NIGHTLY, "20 2 * * *", "Every role at twenty past two: short.", messages=50_000, timing_runs=3),
    night(WEEKLY, "20 3 * * 0", "Every role on Sundays, ten timed runs each.", messages=500_000, timing_runs=10),
]
