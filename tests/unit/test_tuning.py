"""Settings beyond the presets: each reaches what it sets, and one that makes no difference is refused."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from experiments.profiles import runs, stage
from experiments.profiles.runs import Profiler, Run, Workload
from experiments.profiles.scenarios import SCENARIOS
from orchestration.brokers import remember, transport_of
from orchestration.injection import rotation_of
from sinks.files import Rotation
from sinks.slots import Place, SlotChain
from streaming.errors import UsageError
from streaming.home import Home
from streaming.interfaces import Identity
from streaming.lab import BROKERS, KAFKA, QUEUES, Lab
from streaming.topology import STREAMS
from streaming.transports.kafka import KafkaTransport
from streaming.transports.kafka.settings import PRODUCER
from streaming.transports.rabbitmq.queues import RabbitQueues
from streaming.tuning import COMPRESSIONS, PARQUET_COMPRESSIONS, Tuning


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").open()


def test_a_lab_remembers_how_its_roles_are_set(home: Home) -> None:
    lab = Lab(tuning=Tuning(compression="zstd", poll_records=500))
    lab.save(home)
    assert Lab.load(home) == lab


def test_a_producers_settings_are_the_preset_but_for_what_is_set(home: Home) -> None:
    lab = Lab(bootstrap_servers="127.0.0.1:1")
    tuned = replace(lab, tuning=Tuning(compression="none", batch_bytes=16_384))
    usual, other = (transport_of(home, each, KAFKA) for each in (lab, tuned))
    assert isinstance(usual, KafkaTransport)
    assert isinstance(other, KafkaTransport)
    assert usual._producer == PRODUCER
    assert other._producer == {**PRODUCER, "compression.type": "none", "batch.size": 16_384}


def test_a_queues_prefetch_is_as_set(home: Home) -> None:
    kept = remember(home, "amqp://user:secret@127.0.0.1:1/there")
    lab = Lab(brokers=(QUEUES,), rabbitmq_url=kept, tuning=Tuning(prefetch=77))
    transport = transport_of(home, lab, QUEUES)
    assert isinstance(transport, RabbitQueues)
    assert transport._prefetch == 77


@pytest.mark.parametrize("compression", [None, *PARQUET_COMPRESSIONS])
def test_a_slot_is_compressed_as_set_and_read_back(tmp_path: Path, compression: str | None) -> None:
    mark = tmp_path / "high_water/kafka/table/p=00000.table.json"
    folder, staging = tmp_path / "warehouse/kafka/table/p=00000", tmp_path / "staging"
    place = Place(folder, staging, mark, "positions", 0, Identity("cluster", "topic"), "test")
    rows = pl.DataFrame({"_offset": range(1_000)})
    SlotChain(place, "parquet", compression=compression).append(rows, 1_000)
    [path] = folder.iterdir()
    found = pq.read_metadata(path).row_group(0).column(0).compression
    assert found == (compression or "zstd").upper()
    assert pl.read_parquet(path).equals(rows)
    assert SlotChain(place, "parquet").next == 1_000


def test_a_sinks_files_are_as_large_as_set() -> None:
    assert rotation_of({}) == {}
    assert rotation_of({}, 5_000) == {"rotation": Rotation(rows=5_000)}
    assert rotation_of({"STREAMGAUGE_FILE_SECONDS": "0.3"}, 5_000) == {"rotation": Rotation(rows=5_000, seconds=0.3)}


def test_topics_get_as_many_partitions_as_set_but_reference_data_keeps_its_one() -> None:
    assert STREAMS["positions"].shaped(24).partitions == STREAMS["means_state"].shaped(24).partitions == 24
    assert STREAMS["vehicles"].shaped(24).partitions == 1
    assert STREAMS["positions"].shaped(None) is STREAMS["positions"]


@pytest.mark.parametrize(
    ("tuning", "says"),
    [
        (Tuning(compression="brotli"), ", ".join(COMPRESSIONS)),
        (Tuning(parquet="none"), ", ".join(PARQUET_COMPRESSIONS)),
        (Tuning(prefetch=70_000), "from 1 to 65,535"),
        (Tuning(poll_records=0), "from 1 on"),
    ],
)
def test_a_value_that_nothing_can_be_set_to_is_refused(tuning: Tuning, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        tuning.insist()


@pytest.mark.parametrize(
    ("subject", "broker", "setting"),
    [
        ("positions-parquet", KAFKA, {"prefetch": "5"}),
        ("positions-parquet", QUEUES, {"partitions": "5"}),
        ("position-means-csv", KAFKA, {"parquet": "gzip"}),
        ("positions-generator", KAFKA, {"file_rows": "5"}),
        ("codecs", "none", {"poll_records": "5"}),
    ],
)
def test_a_setting_that_makes_no_difference_is_refused(subject: str, broker: str, setting: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(setting))}: of no consequence for {subject} on {broker}"):
        stage.insist(subject, broker, Workload().changed(setting))


def test_every_setting_matters_somewhere_and_some_scenario_varies_it() -> None:
    names = {each.name for each in fields(Tuning)}
    assert set(stage.TUNABLE) == names
    assert {name for each in SCENARIOS for name in each.workload.tuning.given} == names
    for each in SCENARIOS:
        on = [broker for broker in BROKERS if each.is_for(broker)]
        assert on, each.name
        for broker in on:
            stage.insist(each.role, broker, each.workload)


def test_a_run_says_how_its_role_was_set_and_is_read_back(home: Home) -> None:
    asked = Workload().changed({"compression": "none", "batch_bytes": "16384"})
    assert asked.tuning == Tuning(compression="none", batch_bytes=16_384)
    assert asked.says.endswith(", compression none, batch_bytes 16384")
    run = Run("a", "positions-generator", KAFKA, Profiler.NONE, asked, "2026-01-01T00:00:00+00:00")
    runs.write(home, run)
    assert runs.found(home, "a") == run
