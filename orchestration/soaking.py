"""The soak in Dagster: roles watched on brokers of their own, the slope of each one's memory and handles as a check.

Invariant: a role that grows fails the check; one that can't be told yet does not, and is named.
"""

from typing import Any, Final

import dagster as dg
import polars as pl
from pydantic import Field

from experiments import soak
from experiments.soak import Growth, Soak
from orchestration.profiling import GROUP, POOL, image, table
from streaming.home import Home

CHECK: Final = "no_leak"
KEY: Final = dg.AssetKey([GROUP, "soak"])


class SoakConfig(dg.Config):
    """How long the roles are watched, with how many vehicles, and on which brokers."""

    minutes: float = Field(default=10.0, gt=0, le=100, description="Below about seven nothing can be told.")
    vehicles: int = Field(default=20, ge=1, description="Simulated vehicles.")
    brokers: list[str] = Field(default=[], description="kafka, rabbitmq, rabbitmq-stream; empty: those of the lab.")


@dg.asset(
    key=KEY,
    group_name=GROUP,
    kinds={"python", "kafka"},
    owners=["team:performance"],
    pool=POOL,
    description="Every role under a steady load: memory and handles over time, and what they grow by a minute.",
    check_specs=[
        dg.AssetCheckSpec(
            CHECK, asset=KEY, description="No role's memory or handles grow: the 95 % interval is not above the bound."
        )
    ],
)
def soaked(config: SoakConfig, home: dg.ResourceParam[Home]) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster reads the annotation, and not a subscripted one
    """A soak; its files are in soak/ of the lab's home before Dagster is told."""
    found = soak.soak(config.minutes, config.vehicles, soak.brokers_of(home, config.brokers))
    folder = home.root / soak.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    soak.save(found, folder)
    soak.keep_verdicts(found, home)
    if found.problems:
        raise dg.Failure("; ".join(found.problems), allow_retries=False)
    metadata: dict[str, Any] = {
        "minutes": found.minutes,
        "records": found.records,
        "growths": table(as_table(found.growths)),
        "figure": image(folder / "soak.png"),
        "folder": dg.MetadataValue.path(str(folder)),
    }
    return dg.MaterializeResult(metadata=metadata, check_results=[leak_check(found)])


def leak_check(found: Soak) -> dg.AssetCheckResult:
    """Failed when anything grows; what grows and what can't be told in words."""
    grows = [each for each in found.growths if each.verdict == "grows"]
    untold = [f"{each.role}: {each.says}" for each in found.growths if each.verdict == "unknown"]
    judged = {each.role for each in found.growths}
    untold += [
        f"{role}: no life long enough"
        for role in found.samples["role"].unique(maintain_order=True).to_list()
        if role not in judged
    ]
    slopes = [each.per_minute.estimate for each in found.growths if each.per_minute and each.quantity == "rss_mib"]
    return dg.AssetCheckResult(
        check_name=CHECK,
        passed=not grows,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "grows": "; ".join(f"{each.role}: {each.says}" for each in grows) or "none",
            "could not be told": "; ".join(untold) or "none",
            "flat": sum(each.verdict == "flat" for each in found.growths),
            **({"steepest_mib_a_minute": max(slopes)} if slopes else {}),
        },
    )


def as_table(growths: list[Growth]) -> pl.DataFrame:
    """A row a role and quantity; the slope a minute with its 95 % interval."""
    rows = [
        {
            "role": each.role,
            "of": soak.UNITS[each.quantity],
            "first": each.first,
            "highest": each.highest,
            "last": each.last,
            "a minute": each.per_minute.estimate if each.per_minute else None,
            "low": each.per_minute.low if each.per_minute else None,
            "high": each.per_minute.high if each.per_minute else None,
            "bound": each.bound,
            "verdict": each.verdict,
        }
        for each in growths
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


ASSETS: Final[list[Any]] = [soaked]
JOBS: Final = [
    dg.define_asset_job(
        "soak_roles",
        selection=dg.AssetSelection.assets(KEY),
        executor_def=dg.in_process_executor,
        description="Watches every role for ten minutes: does memory or a handle grow?",
    )
]
