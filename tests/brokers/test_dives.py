"""Every deep dive in its smoke preset, on real brokers of its own."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from experiments import workload
from experiments.deep_dives import DEEP_DIVES
from experiments.experiment import Preset
from experiments.findings import UNJUDGED
from experiments.lab import own_brokers
from experiments.run import run
from streaming.codecs.json import JsonCodec
from streaming.events import POSITIONS
from streaming.home import Home


@pytest.mark.brokers
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", DEEP_DIVES)
def test_a_deep_dive_measures_its_claims_without_a_failed_trial(name: str, tmp_path: Path) -> None:
    dive = DEEP_DIVES[name]
    open_lab = own_brokers(workload.fleet(JsonCodec(POSITIONS)), dive.broker_settings)
    done = run(dive, home=Home(tmp_path), open_lab=open_lab, preset=Preset.SMOKE)
    assert done.is_complete
    assert done.measured.troubles()["note"].to_list() == []
    measured = done.findings.filter(pl.col("repetitions") > 0)
    assert measured.height >= 3, done.findings["says"].to_list()
    assert set(done.findings["verdict"]) == {"unknown"}  # one repetition decides nothing
    assert not done.findings["says"].str.starts_with(UNJUDGED).any()
    assert not list((done.folder / "figures").glob("*.txt")), "a figure that is not drawn has no trials"
    assert {path.stem for path in done.figures} <= {each.name for each in dive.figures}
    assert done.figures
