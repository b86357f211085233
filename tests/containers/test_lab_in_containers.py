"""The whole lab as `docker compose up`, on a real engine: built, up, a broker killed, verified, an experiment, down.

Brought up once for all tests here, which go on where the one before has left it.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from experiments.deep_dives import DEEP_DIVES
from orchestration.experiments import key_of
from streaming.topology import ROLES
from tests.containers import engine
from tests.containers.engine import ContainerLab, wait_for

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1500)]
FLOWING = (
    "positions-generator",
    "diagnostics-generator",
    "means-transformer",
    "positions-parquet",
    "position-means-csv",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerLab]:
    reason = engine.absence()
    if reason is not None:
        if os.environ.get("STREAMGAUGE_CONTAINERS") == "required":
            pytest.fail(f"containers are required here, and no engine answers: {reason}")
        pytest.skip(f"NOT TESTED HERE, the lab in containers: {reason}")
    scratch = tmp_path_factory.mktemp("containers")
    engine.provide_base_images()
    engine.build_broker_stand_in(scratch / "broker")
    print(f"the application's image was built in {engine.build_application(scratch):.0f} s")
    started = time.monotonic()
    yield from _timed(engine.lab_in_containers(scratch), started)


def _timed(labs: Iterator[ContainerLab], started: float) -> Iterator[ContainerLab]:
    for lab in labs:
        print(f"compose up took {time.monotonic() - started:.0f} s")
        yield lab
    assert lab.leftovers() == [], "down has left something"


def test_every_service_becomes_healthy_and_data_becomes_durable(lab: ContainerLab) -> None:
    def complaint() -> str | None:
        states = lab.states()
        bad = {name: state for name, state in states.items() if state != "healthy" and name != "topics"}
        idle = [name for name in FLOWING if lab.committed(name) == 0]
        missing = ROLES.keys() - states.keys()
        return f"{bad} {idle} {missing}" if bad or idle or missing else None

    wait_for(complaint, within_s=400)
    assert lab.states()["topics"] == "exited"


def test_no_process_is_root_and_no_file_system_but_the_home_can_be_written(lab: ContainerLab) -> None:
    for each in lab.containers():
        if each["Config"]["Image"] == engine.APPLICATION_IMAGE:
            assert each["Config"]["User"] == "10001:10001"
            assert each["HostConfig"]["ReadonlyRootfs"]
            assert not each["HostConfig"]["Privileged"]
            assert each["HostConfig"]["Memory"] > 0
            assert {mount["Destination"] for mount in each["Mounts"]} == {"/var/lib/streamgauge"}
    users = engine.run("docker", "top", f"{lab.project}-positions-parquet-1", "-eo", "pid,uid").stdout.splitlines()[1:]
    assert {line.split()[1] for line in users} == {"10001"}
    refused = "import pathlib; pathlib.Path('/opt/streamgauge/x').write_text('x')"
    with pytest.raises(AssertionError, match="Read-only file system"):
        lab.compose("exec", "-T", "positions-parquet", "python", "-c", refused)


def test_the_image_keeps_no_build_tool_and_no_secret_of_the_build(lab: ContainerLab) -> None:
    look = "import importlib.util as i; print([n for n in ('pip', 'setuptools', 'mypy', 'pytest') if i.find_spec(n)])"
    inside = engine.run("docker", "run", "--rm", "--entrypoint", "python", engine.APPLICATION_IMAGE, "-I", "-c", look)
    assert inside.stdout.strip() == "[]"
    history = engine.run("docker", "history", "--no-trunc", engine.APPLICATION_IMAGE).stdout
    environment = engine.run("docker", "inspect", "--format", "{{.Config.Env}}", engine.APPLICATION_IMAGE).stdout
    for value in engine.pip_settings().values():
        if "/" in value:  # an address, perhaps with a password
            assert value not in history + environment


def test_nothing_is_lost_or_doubled_while_a_broker_is_killed(lab: ContainerLab) -> None:
    before = lab.committed("positions-generator")
    lab.brokers.kill(2)
    assert set(lab.brokers.running) == {1, 3}
    goal = before + 2_000
    wait_for(
        lambda: None if lab.committed("positions-generator") > goal else "positions do not flow with two brokers",
        within_s=120,
    )
    done = lab.call("verify", "--json", "--wait", "120s")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads(done.stdout)
    positions = next(each for each in report["tables"] if each["table"] == "positions_parquet")
    assert positions["rows"] > 1_000
    lab.brokers.start(2)
    lab.brokers.pause(3)
    assert set(lab.brokers.running) == {1, 2}
    lab.brokers.heal()
    assert set(lab.brokers.running) == {1, 2, 3}
    assert lab.brokers.settings()["kafka-3"]["min.insync.replicas"] == "2"


def test_a_role_answers_prometheus_inside_the_network(lab: ContainerLab) -> None:
    ask = "import urllib.request as web; print(web.urlopen('http://positions-parquet:9400/metrics').read().decode())"
    told = lab.compose("exec", "-T", "dagster-code", "python", "-c", ask)
    found = re.search(r'^streamgauge_committed_total\{role="positions-parquet"\} (\S+)$', told, re.MULTILINE)
    assert found is not None, told
    assert float(found[1]) > 0


def test_a_sink_commits_what_it_holds_within_the_grace_period(lab: ContainerLab) -> None:
    wait_for(lambda: None if lab.committed("positions-parquet") else "no commit yet", within_s=60)
    lab.compose("stop", "positions-parquet")
    [sink] = [each for each in lab.containers() if each["Name"] == f"/{lab.project}-positions-parquet-1"]
    assert sink["State"]["ExitCode"] == 0, lab.logs("positions-parquet")
    told = json.loads((lab.home.run / "positions-parquet.json").read_bytes())
    assert told["records"] == told["committed"]
    lab.compose("start", "positions-parquet")


def test_an_experiment_runs_through_dagsters_interface(lab: ContainerLab) -> None:
    operation = key_of(DEEP_DIVES["keys"], "measurements").to_python_identifier()
    config = {"preset": "smoke", "scenes": ["growth"], "bootstrap_servers": "kafka-1:19092,kafka-2:19092"}
    asked = _graphql(
        """mutation($p: ExecutionParams!) { launchRun(executionParams: $p) { __typename
           ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
           ... on RunConfigValidationInvalid { errors { message } } } }""",
        {
            "p": {
                "selector": {
                    "repositoryLocationName": "streamgauge",
                    "repositoryName": "__repository__",
                    "jobName": "experiment_keys",
                },
                "runConfigData": {"ops": {operation: {"config": config}}},
            }
        },
    )["launchRun"]
    assert asked["__typename"] == "LaunchRunSuccess", asked

    def complaint() -> str | None:
        run = _graphql(
            "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", {"id": asked["run"]["runId"]}
        )
        status = run["runOrError"]["status"]
        assert status not in {"FAILURE", "CANCELED"}, lab.logs("dagster-code")
        return None if status == "SUCCESS" else status

    wait_for(complaint, within_s=300)


def _graphql(query: str, variables: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{engine.PORTS['DAGSTER_PORT']}/graphql",
        json.dumps({"query": query, "variables": variables}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return dict(json.load(answer)["data"])
