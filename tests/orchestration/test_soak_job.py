"""The soak in Dagster: a leak fails its check, and a real soak's slopes are shown."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest

from experiments.soak import Soak, judged
from orchestration import soaking
from orchestration.definitions import defs
from streaming.home import Home
from streaming.topology import ROLES

SECONDS = np.arange(600.0)


@pytest.mark.parametrize(
    ("a_minute", "seconds", "given_s", "passed", "said"),
    [
        (1.0, SECONDS, 600, False, {"grows": "positions-csv: memory, MiB grows: +1.0", "could not be told": "none"}),
        (0.0, SECONDS, 600, True, {"grows": "none", "could not be told": "none"}),
        (1.0, SECONDS[:60], 60, True, {"grows": "none", "could not be told": "positions-csv: memory, MiB unknown"}),
        (1.0, SECONDS[:60], 600, True, {"grows": "none", "could not be told": "positions-csv: no life long enough"}),
    ],
    ids=["leaks", "flat", "too short", "ends in the warm-up"],
)
def test_what_grows_fails_the_check_and_what_can_not_be_told_is_named(
    a_minute: float, seconds: np.typing.NDArray[np.float64], given_s: int, passed: bool, said: dict[str, str]
) -> None:
    memory = 200 + np.random.default_rng(1).normal(0, 1, len(seconds)) + a_minute * seconds / 60
    columns = {"role": "positions-csv", "life": 1, "second": seconds, "rss_mib": memory, "handles": 30, "threads": 9}
    samples = pl.DataFrame(columns)
    check = soaking.leak_check(Soak(10, samples, judged(samples, given_s), [], 1))
    assert (check.passed, check.severity) == (passed, dg.AssetCheckSeverity.ERROR)
    for name, words in said.items():
        assert str(check.metadata[name].value).startswith(words)


@pytest.mark.brokers
@pytest.mark.timeout(600)
def test_a_short_soak_from_dagster_shows_every_roles_memory_and_leaves_its_files(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").open()
    job = defs().resolve_job_def("soak_roles")
    assert job.asset_layer.selected_asset_keys == {soaking.KEY}
    with dg.DagsterInstance.ephemeral() as instance:
        done = job.execute_in_process(
            run_config={
                "ops": {"profiles__soak": {"config": {"minutes": 0.15, "vehicles": 4}}},
                "resources": {"home": {"config": {"root": str(home.root)}}},
            },
            instance=instance,
        )
    assert done.success
    [materialization] = done.asset_materializations_for_node("profiles__soak")
    assert all(role in str(materialization.metadata["growths"].value) for role in ROLES)
    assert (home.root / "soak" / "samples.parquet").exists()
    [check] = done.get_asset_check_evaluations()
    assert (check.check_name, check.passed) == (soaking.CHECK, True)
    assert "unknown" in str(check.metadata["could not be told"].value), "nine seconds can't tell"
