"""Checks: each finds the damage it is for, and passes only on evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assets.audit import audit
from assets.chains import gaps, look
from orchestration.checks import judged
from orchestration.definitions import defs
from sinks.reader import Slot, slots, slots_of
from streaming.home import Home
from streaming.topology import ROLES
from tests.orchestration.landing_scenes import land, land_fleet, positions

ROLE = ROLES["positions-parquet"]
TABLE = "positions_parquet"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def verdicts(home: Home, *, full: bool = False) -> dict[str, dg.AssetCheckResult]:
    """The results of positions_parquet by name."""
    return {str(result.check_name): result for result in judged(home, ROLE, audit(home, "kafka", TABLE, full=full))}


def passed(home: Home, *, full: bool = False) -> dict[str, bool]:
    return {name: result.passed for name, result in verdicts(home, full=full).items()}


def value(result: dg.AssetCheckResult, name: str) -> Any:
    found = (result.metadata or {})[name]
    return getattr(found, "value", found)


@pytest.mark.parametrize("full", [False, True])
def test_undamaged_tables_pass_everything(home: Home, full: bool) -> None:
    land(home, "positions-parquet", positions(750), positions(750, first=750))
    assert passed(home, full=full) == dict.fromkeys(
        ["fresh", "no_duplicate", "no_gap", "quarantine_empty", "ten_hz"], True
    )


@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("was_audited", [False, True])
def test_a_removed_slot_is_found_wherever_it_was(home: Home, missing: int, was_audited: bool) -> None:
    land(home, "positions-parquet", *(positions(100, first=100 * part) for part in range(3)))
    if was_audited:
        assert verdicts(home)["no_gap"].passed
    slots(home, "kafka", TABLE)[missing].path.unlink()
    assert not verdicts(home)["no_gap"].passed
    assert not verdicts(home)["no_gap"].passed, "an audit that goes on from a damaged one forgets nothing"


def test_a_slot_put_back_heals_the_gap(home: Home, tmp_path: Path) -> None:
    land(home, "positions-parquet", *(positions(100, first=100 * part) for part in range(3)))
    slot = slots(home, "kafka", TABLE)[1].path
    slot.rename(tmp_path / "aside")
    assert not verdicts(home)["no_gap"].passed
    (tmp_path / "aside").rename(slot)
    assert passed(home)["no_gap"]
    assert passed(home)["no_duplicate"]


def test_a_slot_that_cannot_be_read_is_a_gap(home: Home) -> None:
    land(home, "positions-parquet", *(positions(100, first=100 * part) for part in range(3)))
    slots(home, "kafka", TABLE)[1].path.write_bytes(b"torn")
    assert not verdicts(home)["no_gap"].passed


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("in_one_slot", [False, True])
def test_a_doubled_row_is_found_within_a_slot_and_across_slots(home: Home, full: bool, in_one_slot: bool) -> None:
    land(home, "positions-parquet", positions(100))
    verdicts(home)
    again = positions(50, first=99 if not in_one_slot else 100)
    land(home, "positions-parquet", again if not in_one_slot else again.vstack(again[:1]), partition=1)
    found = verdicts(home, full=full)["no_duplicate"]
    assert not found.passed
    assert value(found, "duplicates") == 1
    assert not verdicts(home)["no_duplicate"].passed, "a later look forgets nothing"


def test_the_same_sequence_in_another_life_is_no_duplicate(home: Home) -> None:
    land(home, "positions-parquet", positions(100), positions(100, producer="another"))
    assert verdicts(home)["no_duplicate"].passed


def test_an_undecodable_record_is_a_warning(home: Home) -> None:
    land(home, "positions-parquet", positions(100), bad=2)
    found = verdicts(home)["quarantine_empty"]
    assert (found.passed, found.severity, value(found, "quarantined")) == (False, dg.AssetCheckSeverity.WARN, 2)


@pytest.mark.parametrize(("hz", "is_enough"), [(9.75, False), (9.99, False), (10.0, True), (10.1, True)])
def test_less_than_ten_a_second_is_found(home: Home, hz: float, is_enough: bool) -> None:
    for partition, vehicle in enumerate(("a", "b")):
        rate = hz if vehicle == "b" else 12.0
        rows = positions(int(rate * 400), hz=rate, vehicle=vehicle, producer="positions-generator")
        land(home, "positions-parquet", rows[:1000], rows[1000:], partition=partition)
    found = verdicts(home)["ten_hz"]
    assert found.passed is is_enough
    assert value(found, "rate_min_hz") == pytest.approx(hz, abs=0.01)
    assert value(found, "vehicles") == 2


def test_a_recording_may_be_slower(home: Home) -> None:
    land(home, "positions-parquet", positions(1500), positions(400, hz=1.0, producer="replay-drive-1"))
    assert verdicts(home)["ten_hz"].passed


def test_where_there_is_no_evidence_there_is_no_result(home: Home) -> None:
    assert passed(home) == {}
    land(home, "positions-parquet", positions(500))
    assert "ten_hz" not in passed(home)
    assert passed(home)["no_gap"]


def test_a_table_that_is_gone_altogether_is_a_gap(home: Home) -> None:
    land(home, "positions-parquet", positions(100))
    verdicts(home)
    slots(home, "kafka", TABLE)[0].path.unlink()
    assert not verdicts(home)["no_gap"].passed


def test_an_audit_opens_only_what_is_new_and_a_full_one_everything(home: Home) -> None:
    land(home, "positions-parquet", *(positions(100, first=100 * part) for part in range(3)))
    assert (audit(home, "kafka", TABLE).read, audit(home, "kafka", TABLE).read) == (3, 0)
    land(home, "positions-parquet", positions(100, first=300))
    assert audit(home, "kafka", TABLE).read == 1
    assert audit(home, "kafka", TABLE, full=True).read == 4


def test_an_audit_whose_note_is_damaged_reads_everything(home: Home) -> None:
    land(home, "positions-parquet", positions(100))
    audit(home, "kafka", TABLE)
    (home.tables / "kafka" / "audits" / f"{TABLE}.json").write_text("{")
    assert audit(home, "kafka", TABLE).read == 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(1, 30)), min_size=1, max_size=6),
    looks=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_audits_along_the_way_find_what_one_audit_at_the_end_finds(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, int, int]], looks: list[bool]
) -> None:
    home = Home(tmp_path_factory.mktemp("home"))
    landed: list[int] = []
    for (partition, first, count), has_look in zip(parts, looks, strict=False):
        land(home, "positions-parquet", positions(count, first=first), partition=partition)
        landed += range(first, first + count)
        if has_look:
            audit(home, "kafka", TABLE)
    step_by_step, at_once = audit(home, "kafka", TABLE), audit(home, "kafka", TABLE, full=True)
    assert step_by_step.duplicates == at_once.duplicates == len(landed) - len(set(landed))
    assert step_by_step.extent == at_once.extent
    assert at_once.extent.rows == len(landed)


def test_the_full_check_job_runs_on_the_lab_of_the_environment(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMGAUGE_HOME", str(home.root))
    land_fleet(home)
    slots(home, "kafka", "position_means_csv")
    land(home, "positions-parquet", positions(10, first=4495))
    with dg.DagsterInstance.ephemeral() as instance:
        result = defs().resolve_job_def("check_sinks").execute_in_process(instance=instance)
    assert result.success
    found = {(each.asset_key.path[-1], each.check_name): each for each in result.get_asset_check_evaluations()}
    failed = {key for key, each in found.items() if not each.passed}
    assert failed == {(TABLE, "no_duplicate")}
    assert found[TABLE, "no_duplicate"].metadata["is_full"].value is True
    assert ("position_means_csv", "no_gap") in found
    assert ("late_positions_parquet", "no_gap") not in found


def test_a_gap_is_named_by_partition_and_positions(home: Home) -> None:
    land(home, "positions-parquet", *(positions(100, first=100 * part) for part in range(3)), partition=4)
    for slot in slots(home, "kafka", TABLE)[1:]:
        slot.path.unlink()
    assert gaps(look(home, "kafka", TABLE).extent) == ["partition 4: the chain ends at 100 and has been at 300"]


def test_a_commit_while_the_files_are_looked_at_is_no_gap(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    land(home, "positions-parquet", positions(100), partition=4)

    def looked_at_just_before_a_commit(*asked: Any) -> list[Slot]:
        found = slots_of(*asked)
        land(home, "positions-parquet", positions(100, first=100), partition=4)
        return found

    monkeypatch.setattr("assets.chains.slots_of", looked_at_just_before_a_commit)
    assert gaps(look(home, "kafka", TABLE).extent) == []
