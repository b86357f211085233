"""A lab on several brokers: the same shape under each broker's name, ports and services that do not meet."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from orchestration import services
from orchestration.checks import all_checks
from orchestration.definitions import defs
from orchestration.sensors import landed
from orchestration.specs import external_assets, shown_brokers
from sinks.arrivals import ArrivalSink
from streaming.batch import Batch
from streaming.codecs import codec
from streaming.errors import UsageError
from streaming.home import Home
from streaming.interfaces import Identity
from streaming.lab import BROKERS, Lab
from streaming.topology import ROLES, stream
from tests.orchestration.landing_scenes import positions
from tests.orchestration.test_sensors import Watch

LAB = Lab(brokers=BROKERS, rabbitmq_nodes=3)


def edges(broker: str) -> set[tuple[str, str]]:
    """(asset, what it depends on), without the broker's name."""
    return {
        ("/".join(spec.key.path[1:]), "/".join(dep.asset_key.path[1:]))
        for spec in external_assets([broker])
        for dep in spec.deps
        if dep.asset_key.path[0] == spec.key.path[0] == broker.replace("-", "_")
    }


def test_each_broker_has_the_same_lineage_under_its_own_name() -> None:
    assert len(edges("kafka")) > 15
    assert edges("rabbitmq") == edges("rabbitmq-stream") == edges("kafka")
    assert len({spec.key for spec in external_assets(BROKERS)}) == 3 * len(external_assets())
    names = [check.node_def.name for check in all_checks(BROKERS)]
    assert len(set(names)) == len(names) == 3 * len(all_checks())


def test_dagster_shows_the_brokers_of_the_lab_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMGAUGE_HOME", str(tmp_path))
    assert {spec.key.path[0] for spec in defs().resolve_all_asset_specs()} & {"kafka", "rabbitmq"} == {"kafka"}
    Lab(brokers=("kafka", "rabbitmq")).save(Home(tmp_path))
    assert shown_brokers({"STREAMGAUGE_HOME": str(tmp_path)}) == ("kafka", "rabbitmq")
    shown = {spec.key.path[0] for spec in defs().resolve_all_asset_specs()}
    assert {"kafka", "rabbitmq"} <= shown
    assert "rabbitmq_stream" not in shown
    dg.Definitions.validate_loadable(defs())


def test_a_queues_table_is_reported_and_checked_under_its_brokers_name(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").open()
    Lab(brokers=("kafka", "rabbitmq")).save(home)
    role = ROLES["positions-parquet"]
    coding = codec("json", stream("positions").schema)
    sink = ArrivalSink(home, "rabbitmq", role, coding, Identity("streamgauge", "queue"), writer="test")
    values = coding.encode(positions(1500))
    sink.write(Batch("positions", 0, values, np.arange(len(values), dtype=np.int64)))
    sink.commit()

    with dg.DagsterInstance.ephemeral() as instance:
        events = Watch(landed, home, instance).tick().asset_events
    [report] = [event for event in events if isinstance(event, dg.AssetMaterialization)]
    assert report.asset_key.path == ["rabbitmq", "tables", "positions_parquet"]
    assert report.metadata["dagster/row_count"].value == 1500
    checked = {event.check_name for event in events if isinstance(event, dg.AssetCheckEvaluation) and event.passed}
    assert checked == {"no_gap", "no_duplicate", "quarantine_empty", "fresh", "ten_hz"}


def test_no_two_services_share_a_port_or_a_name(tmp_path: Path) -> None:
    ports = services.ports_of(LAB)
    assert len(set(ports.values())) == len(ports) > 20
    assert not set(ports.values()) & set(range(LAB.port_base + 100, LAB.port_base + 151)), "kept for copying streams"
    found = services.services_of(Home(tmp_path), LAB)
    assert len({each.name for each in found}) == len({each.log for each in found}) == len(found)
    assert sum(each.name.startswith("rabbitmq-stream.") for each in found) == len(ROLES)


def test_what_is_no_broker_is_refused() -> None:
    for brokers in ((), ("kafka", "redis")):
        with pytest.raises(UsageError, match="brokers"):
            Lab().changed({"brokers": brokers})
    with pytest.raises(UsageError, match="nodes"):
        Lab().changed({"rabbitmq_nodes": 2})
