"""Experiments in Dagster: each a chain of assets, measurements → analysis → findings, with a job and a schedule.

Invariant: trials run in a process group of their own, one experiment at a time (the pool, and the engine's file lock
for runs from the command line); analysis and findings are made from tables on disk and need no broker.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import dagster as dg
import polars as pl
from PIL import Image
from pydantic import Field, create_model

from experiments import analysis as analyses
from experiments.deep_dives import DEEP_DIVES
from experiments.experiment import Experiment, Factor, Preset
from experiments.launch import Request, expected_s, find
from experiments.measurements import FAILED, SKIPPED, VOID, Level
from experiments.measurements import TABLE as MEASUREMENTS
from experiments.pages import findings_table
from experiments.run import FINDINGS, Run, analyse, find_runs
from orchestration.measuring import measure
from orchestration.resources import FIGURE_LIMIT_BYTES, as_markdown, picture, table_metadata
from streaming.home import Home

GROUP: Final = "experiments"
POOL: Final = "brokers"  # its limit of one, in the instance's settings, keeps runs that load the machine apart
SUITE: Final = "experiment_suite"
LONGEST_S: Final = 6 * 3600
_WIDTHS: Final = (1400, 1100, 900, 700, 500)


class Amount(StrEnum):
    """How much is spent."""

    smoke = "smoke"
    standard = "standard"
    thorough = "thorough"


class Settings(dg.Config):
    """What can be chosen about any experiment."""

    preset: Amount = Field(
        default=Amount.standard, description="smoke: seconds, decides nothing; standard: minutes; thorough: an evening."
    )
    seed: int = Field(default=1, description="Of the order of trials and of what is drawn at random.")
    repetitions: int | None = Field(default=None, ge=1, description="Of each trial; fewer than 5 decide nothing.")
    bootstrap_servers: str = Field(
        default="", description="An existing cluster; what would break it is skipped. Empty: three brokers of its own."
    )
    recording: str = Field(default="", description="A file to send (CSV, Parquet, GPX). Empty: the simulated fleet.")
    beside: bool = Field(default=False, description="Let the live application run on; the findings say so.")


class RunChoice(dg.Config):
    """Which run a table is made of."""

    run: str = Field(default="", description="A run's id. Empty: the one that was materialised last.")


def settings_of(experiment: Experiment) -> type[Settings]:
    """The launchpad's form for an experiment: what any has, its scenes, and levels for each of its factors."""
    factors = {each.name: each for scene in experiment.scenes for each in scene.factors}
    # A factor may have a name that a model can't have for an attribute, such as keys: the form shows the alias.
    fields: dict[str, Any] = {f"{name}_": (list[_kind(each)], _field(each)) for name, each in factors.items()}  # type: ignore[misc]
    levels = create_model(f"{experiment.name}_factors", __base__=dg.Config, **fields)
    names = ", ".join(scene.name for scene in experiment.scenes)
    return create_model(
        f"{experiment.name}_settings",
        __base__=Settings,
        scenes=(list[str], Field(default=[], description=f"Only these. Empty: all of {names}.")),
        factors=(levels, Field(default=levels(), description="Levels instead of the preset's.")),
    )


def _kind(factor: Factor) -> type[Level]:
    return type(factor.levels.standard[0] if factor.levels.standard else factor.levels.smoke[0])


def _field(factor: Factor) -> Any:
    standard = ", ".join(map(str, factor.levels.standard))
    return Field(
        default=[], alias=factor.name, description=f"{factor.says}. Empty: as the preset says (standard: {standard})."
    )


def request_of(experiment: Experiment, settings: Settings) -> Request:
    """What is to be run, from the launchpad's form."""
    chosen: Mapping[str, Any] = settings.model_dump(by_alias=True)
    return Request(
        experiment=experiment.name,
        preset=Preset(Amount(chosen["preset"]).value),
        seed=settings.seed,
        factors={name: levels for name, levels in chosen["factors"].items() if levels},
        repetitions=settings.repetitions,
        scenes=chosen["scenes"],
        bootstrap_servers=settings.bootstrap_servers or None,
        recording=settings.recording or None,
        pauses=not settings.beside,
        wait_s=LONGEST_S,  # behind a run from the command line; Dagster's own queue in the pool
    )


def key_of(experiment: Experiment, table: str) -> dg.AssetKey:
    """The asset of an experiment's table: measurements, analysis or findings."""
    return dg.AssetKey([GROUP, experiment.name, table])


def chain(experiment: Experiment) -> list[dg.AssetsDefinition]:
    """The experiment's three assets."""
    return [_measurements(experiment), _analysis(experiment), _findings(experiment)]


def _measurements(experiment: Experiment) -> dg.AssetsDefinition:
    key = key_of(experiment, "measurements")
    form = settings_of(experiment)

    @dg.asset(
        key=key,
        group_name=GROUP,
        kinds={"kafka", "parquet"},
        owners=["team:streaming"],
        pool=POOL,
        description=f"{experiment.question} Tried on real brokers, {experiment.expected_s(Preset.STANDARD):.0f} s.",
        check_specs=[
            dg.AssetCheckSpec("every_trial_done", asset=key, description="No trial has failed or run out of time."),
            dg.AssetCheckSpec(
                "nothing_lost", asset=key, description="No trial is void: none lost messages it should keep."
            ),
        ],
    )
    def measurements(
        context: dg.AssetExecutionContext,
        config: form,  # type: ignore[valid-type]
        home: dg.ResourceParam[Home],
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        request = request_of(experiment, config)
        context.log.info("%s, %s: about %.0f s", experiment.name, request.preset, expected_s(request))
        done = measure(request, home, context.log.info)
        return dg.MaterializeResult(metadata=_of_measurements(done), check_results=_trial_checks(done))

    return measurements


def _analysis(experiment: Experiment) -> dg.AssetsDefinition:
    @dg.asset(
        key=key_of(experiment, "analysis"),
        deps=[key_of(experiment, "measurements")],
        group_name=GROUP,
        kinds={"polars", "parquet"},
        owners=["team:streaming"],
        description="Median and 95 % interval of each metric of each design; made again without brokers.",
    )
    def analysis(
        context: dg.AssetExecutionContext, config: RunChoice, home: dg.ResourceParam[Home]
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        run = _chosen(context, home, experiment, config.run)
        path = analyses.write(experiment, run)
        rows = pl.read_parquet(path)
        metadata = {"run": run.run_id, "dagster/uri": path.as_uri(), **table_metadata(rows.drop("run_id"))}
        return dg.MaterializeResult(metadata=metadata)

    return analysis


def _findings(experiment: Experiment) -> dg.AssetsDefinition:
    key = key_of(experiment, "findings")

    @dg.asset(
        key=key,
        deps=[key_of(experiment, "analysis")],
        group_name=GROUP,
        kinds={"polars", "matplotlib"},
        owners=["team:streaming"],
        description="Each claim as holds, refuted or unknown, with its numbers and source; the figures.",
        check_specs=[
            dg.AssetCheckSpec(
                "verdicts_as_before", asset=key, description="As in the last run of the same preset and levels."
            )
        ],
    )
    def findings(
        context: dg.AssetExecutionContext, config: RunChoice, home: dg.ResourceParam[Home]
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        run = analyse(experiment, _chosen(context, home, experiment, config.run).folder)
        return dg.MaterializeResult(metadata=_of_findings(run), check_results=[verdicts_as_before(home, run)])

    return findings


def _chosen(context: dg.AssetExecutionContext, home: Home, experiment: Experiment, run_id: str) -> Run:
    """The run that was asked for, or the one that Dagster measured last, or (measured elsewhere) the newest."""
    event = context.instance.get_latest_materialization_event(key_of(experiment, "measurements"))
    if not run_id and event and event.asset_materialization:
        run_id = str(event.asset_materialization.metadata["run"].value)
    return find(home, run_id or experiment.name, experiment.name)


def _of_measurements(run: Run) -> dict[str, Any]:
    stamp, rows = run.provenance, run.measurements
    return {
        "run": run.run_id,
        "dagster/uri": (run.folder / MEASUREMENTS).as_uri(),
        **_origin(stamp),
        "trials": stamp["trials"],
        "failed": rows.filter(pl.col("metric") == FAILED)["value"].sum(),
        "void": rows.filter(pl.col("metric") == VOID)["value"].sum(),
        **table_metadata(rows.select("scene", "trial", "repetition", "metric", "subject", "value", "unit", "note")),
        "settings": dg.MetadataValue.json(stamp["settings"]),
        "machine": dg.MetadataValue.json(stamp["machine"]),
        "versions": dg.MetadataValue.json(stamp["versions"]),
    }


def _origin(stamp: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "preset": stamp["preset"],
        "seed": stamp["seed"],
        "levels": dg.MetadataValue.json(stamp["overrides"]),
        "code": stamp["code"],
        "workload": stamp["workload"],
        "contention": "; ".join(stamp["contention"]) or "none seen",
        "paused": ", ".join(stamp.get("paused", [])) or "nothing",
    }


def _trial_checks(run: Run) -> list[dg.AssetCheckResult]:
    troubles = run.measured.troubles()
    failed, void, skipped = (troubles.filter(pl.col("metric") == kind) for kind in (FAILED, VOID, SKIPPED))
    return [
        dg.AssetCheckResult(
            passed=failed.is_empty(),
            check_name="every_trial_done",
            metadata={"failed": _listed(failed), "scenes_skipped": _listed(skipped)},
        ),
        dg.AssetCheckResult(passed=void.is_empty(), check_name="nothing_lost", metadata={"void": _listed(void)}),
    ]


def _listed(troubles: pl.DataFrame) -> dg.MetadataValue[Any]:
    if troubles.is_empty():
        return dg.MetadataValue.text("none")
    return dg.MetadataValue.md(as_markdown(troubles.select("scene", "factors", "note")))


def _of_findings(run: Run) -> dict[str, Any]:
    stamp, rows = run.provenance, run.findings
    verdicts = dict(rows["verdict"].value_counts().iter_rows())
    estimates = rows.filter(pl.col("estimate").is_not_null())
    return {
        "run": run.run_id,
        "dagster/uri": (run.folder / FINDINGS).as_uri(),
        **{verdict: verdicts.get(verdict, 0) for verdict in ("holds", "refuted", "unknown")},
        "findings": dg.MetadataValue.md(findings_table(rows)),
        **{path.stem: _picture(path) for path in run.figures},
        **_origin(stamp),
        "status": stamp["status"],
        "settings": dg.MetadataValue.json(stamp["settings"]),
        **{f"estimate of {row['claim']}": row["estimate"] for row in estimates.iter_rows(named=True)},
    }


def verdicts_as_before(home: Home, run: Run) -> dg.AssetCheckResult:
    """Compare with the last complete run before this one that asked the same: preset, levels and repetitions."""
    before = [each for each in find_runs(home, run.experiment) if each.run_id < run.run_id and _is_like(each, run)]
    if not before:
        return dg.AssetCheckResult(
            passed=True, check_name="verdicts_as_before", metadata={"compared with": "nothing: the first such run"}
        )
    pairs = run.findings.join(before[-1].findings, on="claim", suffix="_before", maintain_order="left")
    changed = pairs.filter(pl.col("verdict") != pl.col("verdict_before")).select("claim", "verdict_before", "verdict")
    return dg.AssetCheckResult(
        passed=changed.is_empty(),
        severity=dg.AssetCheckSeverity.WARN,
        check_name="verdicts_as_before",
        metadata={"compared with": before[-1].run_id, "changed": dg.MetadataValue.md(as_markdown(changed))},
    )


def _is_like(other: Run, run: Run) -> bool:
    names = ("preset", "overrides", "repetitions")
    one, two = other.provenance, run.provenance
    return other.is_complete and all(one[name] == two[name] for name in names)


def _picture(path: Path) -> dg.MetadataValue[Any]:
    """A figure as Dagster can show it: 255 colours, as wide as the limit of an event allows."""
    drawn, image = Image.open(path).convert("RGB"), b""
    for width in _WIDTHS:
        reduced = io.BytesIO()
        shown = drawn.copy()
        shown.thumbnail((width, width))
        shown.quantize(255).save(reduced, format="png", optimize=True)
        image = reduced.getvalue()
        if len(image) * 4 // 3 <= FIGURE_LIMIT_BYTES:
            break
    return picture(path.stem, image)


@dg.config_mapping(config_schema=Settings.to_fields_dict())
def suite_settings(chosen: Mapping[str, Any]) -> Mapping[str, Any]:
    """One form for the whole suite: each experiment gets the same choices, with its preset's levels."""
    given = {name: value for name, value in chosen.items() if value is not None}
    return {"ops": {_op(each, "measurements"): {"config": given} for each in DEEP_DIVES.values()}}


def _op(experiment: Experiment, table: str) -> str:
    return key_of(experiment, table).to_python_identifier()


def _job(experiment: Experiment) -> Any:
    return dg.define_asset_job(
        f"experiment_{experiment.name}",
        selection=dg.AssetSelection.assets(
            *(key_of(experiment, table) for table in ("measurements", "analysis", "findings"))
        ),
        config=dg.RunConfig(ops={_op(experiment, "measurements"): settings_of(experiment)()}),
        description=f"{experiment.title}: {experiment.question}",
        tags={"dagster/max_runtime": LONGEST_S},
        executor_def=dg.in_process_executor,
    )


def _nightly(name: str, job: Any, hour: int) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        name=name,
        job=job,
        cron_schedule=f"0 {hour} * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Off until somebody switches it on: it takes the machine for minutes.",
    )


def _schedules(jobs: Mapping[str, Any]) -> Iterable[dg.ScheduleDefinition]:
    for name, job in jobs.items():
        yield _nightly(f"nightly_{name}", job, 2)


ASSETS: Final[Sequence[dg.AssetsDefinition]] = [each for dive in DEEP_DIVES.values() for each in chain(dive)]
_SUITE: Final = dg.define_asset_job(
    SUITE,
    selection=dg.AssetSelection.groups(GROUP),
    config=suite_settings,
    description="Every experiment, one after the other; one that fails does not keep the others from running.",
    tags={"dagster/max_runtime": LONGEST_S},
    executor_def=dg.in_process_executor,
)
_JOBS: Final = {f"experiment_{dive.name}": _job(dive) for dive in DEEP_DIVES.values()} | {SUITE: _SUITE}
JOBS: Final = list(_JOBS.values())
SCHEDULES: Final = list(_schedules(_JOBS))
