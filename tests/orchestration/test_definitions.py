"""Definitions: they load, and their lineage is the topology's."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import dagster as dg
import pytest

from orchestration.definitions import defs
from orchestration.resources import lab_home
from orchestration.specs import generator_key
from sinks.derive import table_descriptions, table_schema
from streaming.home import PROJECT_ROOT
from streaming.lab import BROKERS
from streaming.topology import ROLES, STREAMS, RoleKind, StreamKind

SUMMARIES = {"vehicle_hours", "tracks", "quality"}


@pytest.fixture(scope="module")
def graph() -> dict[tuple[str, ...], dg.AssetSpec]:
    """Every asset by its key."""
    return {tuple(spec.key.path): spec for spec in defs().resolve_all_asset_specs()}


def parents(graph: dict[tuple[str, ...], dg.AssetSpec], *key: str) -> set[tuple[str, ...]]:
    return {tuple(dep.asset_key.path) for dep in graph[key].deps}


def test_the_definitions_can_be_loaded() -> None:
    dg.Definitions.validate_loadable(defs())


def test_dagster_finds_them_by_the_workspace_file_from_any_folder(tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).parent / "dagster"),
        *("definitions", "validate", "-w", str(PROJECT_ROOT / "workspace.yaml")),
    ]
    environment = {**os.environ, "DAGSTER_HOME": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_project_file_and_the_workspace_file_name_the_same_code_location() -> None:
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["tool"]["dagster"]
    workspace = (PROJECT_ROOT / "workspace.yaml").read_text()
    assert f"module_name: {project['module_name']}\n" in workspace
    assert f"location_name: {project['code_location_name']}\n" in workspace


def test_each_table_depends_on_its_sinks_stream_and_on_nothing_else(graph: dict[tuple[str, ...], dg.AssetSpec]) -> None:
    sinks = [role for role in ROLES.values() if role.kind is RoleKind.SINK]
    assert len(sinks) == 8
    for role in sinks:
        assert parents(graph, "kafka", "tables", str(role.table)) == {("kafka", "streams", role.reads[0])}


def test_each_derived_stream_depends_on_what_its_transformer_reads_and_looks_up(
    graph: dict[tuple[str, ...], dg.AssetSpec],
) -> None:
    for role in ROLES.values():
        if role.kind is RoleKind.TRANSFORMER:
            for written in role.writes:
                if STREAMS[written].kind is not StreamKind.STATE:
                    expected = {("kafka", "streams", name) for name in (*role.reads, *role.looks_up)}
                    assert parents(graph, "kafka", "streams", written) == expected


def test_each_source_stream_depends_on_its_generators(graph: dict[tuple[str, ...], dg.AssetSpec]) -> None:
    assert parents(graph, "kafka", "streams", "positions") == {
        ("kafka", "generators", "positions_generator"),
        ("kafka", "generators", "recording_replay"),
    }
    for role in ROLES.values():
        if role.kind is RoleKind.GENERATOR:
            assert tuple(generator_key(role).path) in parents(graph, "kafka", "streams", role.writes[0])


def test_one_graph_leads_from_each_generator_to_the_summaries(graph: dict[tuple[str, ...], dg.AssetSpec]) -> None:
    upstream: set[tuple[str, ...]] = {("kafka", "summaries", name) for name in SUMMARIES}
    while more := {parent for key in upstream for parent in parents(graph, *key)} - upstream:
        upstream |= more
    assert upstream == {key for key in graph if key[0] == "kafka"}


def test_a_transformers_memory_is_no_asset(graph: dict[tuple[str, ...], dg.AssetSpec]) -> None:
    shown = {key[2] for key in graph if key[0] in BROKERS and key[1] == "streams"}
    assert shown == {stream.name for stream in STREAMS.values() if stream.kind is not StreamKind.STATE}


def test_each_table_shows_the_columns_that_land_with_what_they_mean(
    graph: dict[tuple[str, ...], dg.AssetSpec],
) -> None:
    for role in ROLES.values():
        if role.table:
            shown = graph["kafka", "tables", role.table].metadata["dagster/column_schema"]
            assert [column.name for column in shown.columns] == table_schema(role).names()
            assert {column.name: column.description for column in shown.columns} == table_descriptions(role)


def test_each_table_is_checked_and_only_steady_positions_for_their_rate() -> None:
    asked: dict[str, set[str]] = {}
    for check in defs().asset_checks or ():
        assert isinstance(check, dg.AssetChecksDefinition)
        for key in check.check_keys:
            asked.setdefault(key.asset_key.path[-1], set()).add(key.name)
    always = {"no_gap", "no_duplicate", "quarantine_empty"}
    assert set(asked) == {role.table for role in ROLES.values() if role.table}
    assert asked["positions_parquet"] == {*always, "fresh", "ten_hz"}
    assert asked["position_means_csv"] == {*always, "fresh"}
    assert asked["vehicles_parquet"] == asked["alerts_csv"] == always


def test_the_home_is_looked_up_when_a_resource_is_set_up_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMGAUGE_HOME", str(tmp_path / "elsewhere"))
    assert lab_home(dg.build_init_resource_context(config={})).root == tmp_path / "elsewhere"
    assert lab_home(dg.build_init_resource_context(config={"root": str(tmp_path)})).root == tmp_path
