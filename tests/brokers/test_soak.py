"""The soak in twenty seconds: that it runs, samples, merges and counts. Whether memory is flat takes ten minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from experiments.soak import processes_of
from streaming.home import PROJECT_ROOT
from streaming.lab import BROKERS
from streaming.topology import ROLES

pytestmark = pytest.mark.brokers


@pytest.mark.timeout(600)
def test_a_short_soak_samples_every_role_on_every_broker_and_says_that_it_can_not_tell_yet(tmp_path: Path) -> None:
    words = ["--minutes", "0.33", "--vehicles", "4", "--brokers", ",".join(BROKERS), "--out", str(tmp_path)]
    command = [sys.executable, "-m", "experiments.soak", *words]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    samples = pl.read_parquet(tmp_path / "samples.parquet")
    counts = dict(samples.group_by("role").len().iter_rows())
    assert set(counts) == set(processes_of(BROKERS))
    assert len(counts) == len(BROKERS) * len(ROLES)
    assert counts["positions-parquet"] >= 3  # one a second, on a machine that has the time
    assert samples["rss_mib"].min() > 20  # type: ignore[operator]
    assert samples["handles"].min() > 3  # type: ignore[operator]
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["records"] > 100
    assert found["problems"] == []
    assert {each["verdict"] for each in found["growths"]} == {"unknown"}
    assert found["machine"]["cores"] >= 1
    assert (tmp_path / "soak.png").stat().st_size > 10_000
    assert "unknown" in done.stdout
