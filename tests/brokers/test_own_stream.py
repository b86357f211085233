"""A person's own stream, from the example in the docs: one package is installed, and nothing else is touched.

The package is built and installed by pip, into a folder of the test's; the roles run as the supervisor starts them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from streaming.cluster.kafka import DisposableCluster
from streaming.home import PROJECT_ROOT, Home
from streaming.lab import Lab

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(280)]
EXAMPLE = PROJECT_ROOT / "docs" / "examples" / "own_stream"
ROLES = ["frosts-transformer", "depot-weather-parquet", "frosts-parquet", "frosts-csv"]
HALF_AN_HOUR = 40 * 18_180  # readings of four depots at 10.1 Hz


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, installed as a person would, from a copy (a build leaves its traces beside the source)."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "target"))
    subprocess.run(["cp", "-R", f"{EXAMPLE}/.", str(source)], check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, timeout=120)
    return target


class OwnLab:
    """The program with the package beside it, on brokers of its own; every process of it has ended when it is left."""

    def __init__(self, home: Home, package: Path) -> None:
        self.home = home
        self.environment = {**os.environ, "PYTHONPATH": str(package), "STREAMGAUGE_HOME": str(home.root)}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def call(self, *arguments: str, timeout_s: float = 200) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "orchestration.cli", *arguments]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    @contextlib.contextmanager
    def roles(self, *names: str) -> Iterator[None]:
        self.home.logs.mkdir(parents=True, exist_ok=True)
        try:
            for name in names:
                self.start(name)
            yield
        finally:
            for process in self._running.values():
                process.terminate()
            codes = {name: process.wait(60) for name, process in self._running.items()}
        assert codes == dict.fromkeys(names, 0), {name: self.log(name)[-1500:] for name in names if codes[name]}

    def start(self, name: str) -> None:
        with (self.home.logs / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", "orchestration.cli", "role", name]
            self._running[name] = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def kill(self, name: str) -> None:
        self._running[name].kill()
        assert self._running[name].wait(30) == -signal.SIGKILL

    def log(self, name: str) -> str:
        return (self.home.logs / f"{name}.log").read_text(errors="replace")

    def table(self, name: str) -> pl.LazyFrame:
        return pl.scan_parquet(self.home.warehouse("kafka") / name / "**/*.parquet", hive_partitioning=False)

    def rows(self, name: str) -> int:
        if not list((self.home.warehouse("kafka") / name).glob("p=*/*.parquet")):
            return 0
        return int(self.table(name).select(pl.len()).collect().item())


@pytest.fixture
def lab(installed: Path, tmp_path: Path) -> OwnLab:
    return OwnLab(Home(tmp_path / "home").open(), installed)


@pytest.fixture
def own_brokers(lab: OwnLab) -> Iterator[None]:
    """Brokers for one test alone: the application's topics have fixed names."""
    with DisposableCluster() as cluster:
        Lab(bootstrap_servers=cluster.bootstrap_servers).save(lab.home)
        yield


def verified(lab: OwnLab) -> dict[str, Any]:
    """The reports of the example's tables; the other streams' roles do not run here, so theirs are empty."""
    done = lab.call("verify", "--json", "--wait", "90s")
    assert done.returncode == 0, done.stdout + done.stderr
    return {each["table"]: each for each in json.loads(done.stdout)["tables"]}


def crossings(readings: pl.DataFrame) -> pl.DataFrame:
    """Where frost begins and ends, worked out from the landed readings without the step."""
    side = readings.sort("sequence").with_columns(is_freezing=pl.col("temperature_c") < 0)
    changed = side.filter(pl.col("is_freezing") != pl.col("is_freezing").shift(1).over("depot"))
    return changed.select("depot", "event_time", "is_freezing", "temperature_c").sort("depot", "event_time")


@pytest.mark.usefixtures("own_brokers")
def test_an_installed_package_adds_a_stream_that_lands_exactly_once_though_its_transformer_is_killed(
    lab: OwnLab,
) -> None:
    with lab.roles(*ROLES):
        half = str(HALF_AN_HOUR // 2)
        sent = lab.call("produce", "depot_weather", "--rate", "max", "--messages", half, "--producer", "first")
        assert sent.returncode == 0, sent.stderr
        deadline = time.monotonic() + 90
        while not lab.rows("frosts_parquet") and time.monotonic() < deadline:
            time.sleep(0.2)
        lab.kill("frosts-transformer")
        lab.start("frosts-transformer")
        sent = lab.call("produce", "depot_weather", "--rate", "max", "--messages", half, "--producer", "second")
        assert sent.returncode == 0, sent.stderr
        tables = verified(lab)
    assert tables["depot_weather_parquet"]["rows"] == HALF_AN_HOUR // 2 * 2
    assert tables["frosts_parquet"]["rows"] == tables["frosts_csv"]["rows"] > 0
    assert any("values not recomputed" in note for note in tables["frosts_parquet"]["notes"])
    readings = lab.table("depot_weather_parquet").filter(producer="first").collect()
    frosts = lab.table("frosts_parquet").collect().sort("event_time")
    expected = crossings(readings)
    assert frosts.join(expected, on=expected.columns, how="semi").height == expected.height > 50


def test_without_the_package_the_program_knows_nothing_of_it(lab: OwnLab) -> None:
    del lab.environment["PYTHONPATH"]
    done = lab.call("sink", "frosts-csv")
    assert done.returncode == 2
    assert "there is no sink 'frosts-csv'" in done.stderr


def test_dagster_shows_the_own_stream_with_its_lineage_columns_and_checks(lab: OwnLab) -> None:
    program = """
from orchestration.definitions import defs
specs = {spec.key.to_user_string(): spec for spec in defs().resolve_all_asset_specs()}
for key, spec in specs.items():
    if key.startswith("kafka/") and ("depot_weather" in key or "frosts" in key):
        print(key, "<-", *sorted(dep.asset_key.to_user_string() for dep in spec.deps))
print(*sorted(k.name for c in defs().asset_checks for k in c.check_keys if k.asset_key.path[-1] == "frosts_csv"))
columns = specs["kafka/tables/frosts_csv"].metadata["dagster/column_schema"].columns
print(next(column.description for column in columns if column.name == "is_freezing"))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=lab.environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == {
        "kafka/generators/depot_weather_generator <-",
        "kafka/streams/depot_weather <- kafka/generators/depot_weather_generator",
        "kafka/streams/frosts <- kafka/streams/depot_weather",
        "kafka/tables/depot_weather_parquet <- kafka/streams/depot_weather",
        "kafka/tables/frosts_parquet <- kafka/streams/frosts",
        "kafka/tables/frosts_csv <- kafka/streams/frosts",
        "no_duplicate no_gap quarantine_empty",
        "whether frost begins (true) or ends",
    }
