"""What must hold of each sink's table: no gap, no duplicate, nothing in quarantine, fresh, and ten positions a second.

Invariant: a check passes only on evidence. Each run reads the slots that are new and answers for all; a full run reads
everything. Where there is nothing to judge yet (no whole minute of a vehicle, no slot), there is no result.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import dagster as dg
import polars as pl
from pydantic import Field

from assets.audit import Audit, audit
from assets.keys import BROKER, in_keys, table_key
from assets.quality import STEADY, steady_rates
from assets.rates import DEMANDED_HZ, recent
from orchestration.resources import as_markdown
from orchestration.specs import NEVER_RESTING, SINKS, STALE_AFTER
from streaming.home import Home
from streaming.topology import Role

SHOWN: Final = 20


class CheckConfig(dg.Config):
    """How much a check reads."""

    full: bool = Field(default=False, description="Read every slot anew, not only those since the last check.")


Result = tuple[bool, dict[str, dg.MetadataValue | str | int | float]]


def no_gap(account: Audit) -> Result:
    """Each slot begins where the one before it ends, from 0 to as far as the chain has ever been."""
    return not account.gaps, {"gaps": len(account.gaps), "first_gaps": "\n".join(account.gaps[:SHOWN]) or "none"}


def no_duplicate(account: Audit) -> Result:
    """Every (producer, epoch, sequence) is there once."""
    return not account.duplicates, {"duplicates": account.duplicates, "rows": account.extent.rows}


def quarantine_empty(account: Audit) -> Result:
    """No record was undecodable."""
    return not account.quarantined, {"quarantined": account.quarantined}


def fresh(account: Audit) -> Result:
    """The newest commit is less than ten minutes old: this stream never rests while the lab is up."""
    age_s = time.time() - account.extent.committed_at
    return age_s < STALE_AFTER.total_seconds(), {"age_s": round(age_s, 1)}


def ten_hz(home: Home, table: str, broker: str = BROKER) -> Result | None:
    """Each simulated vehicle's rate over at most the last five whole minutes is at least 10.0 a second."""
    found = steady_rates(table, recent(home, broker, table))
    if found.is_empty():
        return None
    slowest = found.sort("rate_hz")
    return bool((found["rate_hz"] >= DEMANDED_HZ).all()), {
        **found.select(
            rate_min_hz=pl.col("rate_hz").min(),
            rate_median_hz=pl.col("rate_hz").median(),
            slowest_minute_hz=pl.col("slowest_hz").min(),
            jitter_p99_ms=pl.col("jitter_p99_ms").max().round(3),
            vehicles=pl.col("vehicle").n_unique(),
            whole_minutes=pl.col("minutes").max(),
        ).to_dicts()[0],
        "slowest_vehicles": dg.MetadataValue.md(as_markdown(slowest.drop("producer").head(SHOWN))),
    }


OF_ACCOUNT: Final[dict[str, Callable[[Audit], Result]]] = {
    each.__name__: each for each in (no_gap, no_duplicate, quarantine_empty, fresh)
}
WARNINGS: Final = frozenset({"quarantine_empty", "fresh"})


def judged(
    home: Home, role: Role, account: Audit, names: Iterable[str] | None = None, broker: str = BROKER
) -> Iterator[dg.AssetCheckResult]:
    """The results of a table's checks (all, or some) on an audit; none for what can't be judged yet."""
    table = str(role.table)
    if not account.extent.files and not account.gaps:
        return  # nothing has ever landed
    for name in sorted(_asked(role) if names is None else names):
        result = ten_hz(home, table, broker) if name == ten_hz.__name__ else OF_ACCOUNT[name](account)
        if result is None:
            continue
        passed, metadata = result
        yield dg.AssetCheckResult(
            asset_key=table_key(table, broker),
            check_name=name,
            passed=passed,
            severity=dg.AssetCheckSeverity.WARN if name in WARNINGS else dg.AssetCheckSeverity.ERROR,
            metadata={**metadata, "slots_read": account.read, "is_full": account.is_full},
        )


def checks_of(role: Role, broker: str = BROKER) -> dg.AssetChecksDefinition:
    """The checks of a sink's table, as one step: they share one reading of the new slots."""
    table = str(role.table)
    key = table_key(table, broker)
    specs = [dg.AssetCheckSpec(name, asset=key, description=says) for name, says in _asked(role).items()]

    @dg.multi_asset_check(name=check_op(role, broker), specs=specs, can_subset=True)
    def check(
        context: dg.AssetCheckExecutionContext, config: CheckConfig, home: dg.ResourceParam[Home]
    ) -> Iterator[dg.AssetCheckResult]:
        account = audit(home, broker, table, full=config.full)
        yield from judged(home, role, account, [key.name for key in context.selected_asset_check_keys], broker)

    return check


def check_op(role: Role, broker: str = BROKER) -> str:
    """The step that checks a sink's table."""
    return f"check_{role.table}" if broker == BROKER else f"check_{in_keys(broker)}_{role.table}"


def _asked(role: Role) -> dict[str, str]:
    """The checks that make sense of a table, with what they ask."""
    (stream,) = role.reads
    asked = {name: str(each.__doc__) for name, each in OF_ACCOUNT.items() if name != "fresh" or stream in NEVER_RESTING}
    if stream in STEADY and role.format == "parquet":
        asked[ten_hz.__name__] = str(ten_hz.__doc__)
    return asked


def all_checks(brokers: Iterable[str] = (BROKER,)) -> list[dg.AssetChecksDefinition]:
    """Every table's checks."""
    return [checks_of(role, broker) for broker in brokers for role in SINKS]
