"""The whole lab as `docker compose up`, on a real engine: built, up, a broker killed, verified, an experiment, down.

Brought up once for all tests here, which go on where the one before has left it.
"""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.deep_dives import DEEP_DIVES
from orchestration.experiments import key_of
from streaming.codecs.avro import AvroCodec
from streaming.codecs.registry import Registry
from streaming.errors import DataError
from streaming.lab import QUEUES, RABBITMQ_STREAMS, service_name
from streaming.topology import ROLES, STREAMS, RoleKind, StreamKind
from tests.containers import engine
from tests.containers.engine import ContainerLab, wait_for

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1500)]
RABBITMQ = (QUEUES, RABBITMQ_STREAMS)
ONCE = {"topics", "postgres-files"}
FLOWING = (
    "positions-generator",
    "diagnostics-generator",
    "means-transformer",
    "positions-parquet",
    "position-means-csv",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> None:
    """An engine that answers, and every image."""
    engine.insist_on_one()
    scratch = tmp_path_factory.mktemp("images")
    engine.provide_base_images()
    engine.build_broker_stand_in(scratch / "broker")
    took_s = engine.build(scratch, "application", engine.APPLICATION_IMAGE)
    print(f"the application's image was built in {took_s:.0f} s")


@pytest.fixture(scope="module")
def lab(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerLab]:
    started = time.monotonic()
    with engine.lab_in_containers(tmp_path_factory.mktemp("containers")) as lab:
        print(f"compose up took {time.monotonic() - started:.0f} s")
        yield lab


def test_every_service_becomes_healthy_and_data_becomes_durable(lab: ContainerLab) -> None:
    well = set[str]()  # each by itself: on a machine at its limit a check is late now and then

    def complaint() -> str | None:
        states = lab.states()
        well.update(name for name, state in states.items() if state == "healthy")
        bad = {name: state for name, state in states.items() if name not in well | ONCE}
        idle = [name for name in FLOWING if lab.committed(name) == 0]
        missing = ROLES.keys() - states.keys()
        return f"{bad} {idle} {missing}" if bad or idle or missing else None

    wait_for(complaint, within_s=400)
    ended = [each["State"] for each in lab.containers() if each["Config"]["Labels"][engine.SERVICE] in ONCE]
    assert [(state["Status"], state["ExitCode"]) for state in ended] == [("exited", 0)] * len(ONCE)


def test_no_process_is_root_and_no_file_system_but_the_home_can_be_written(lab: ContainerLab) -> None:
    for each in lab.containers():
        if each["Config"]["Image"] == engine.APPLICATION_IMAGE:
            assert each["Config"]["User"] == "10001:10001"
            assert each["HostConfig"]["ReadonlyRootfs"]
            assert not each["HostConfig"]["Privileged"]
            assert each["HostConfig"]["Memory"] > 0
            writable = {mount["Destination"] for mount in each["Mounts"] if mount["RW"]}
            writes_secrets = each["Config"]["Labels"][engine.SERVICE] == "postgres-files"
            assert writable == {"/etc/streamgauge" if writes_secrets else "/var/lib/streamgauge"}
            if each["State"]["Running"]:
                seen = engine.run("docker", "top", each["Id"], "-eo", "pid,uid").stdout.splitlines()[1:]
                assert {line.split()[1] for line in seen} == {"10001"}, each["Name"]
    refused = "import pathlib; pathlib.Path('/opt/streamgauge/x').write_text('x')"
    with pytest.raises(AssertionError, match="Read-only file system"):
        lab.compose("exec", "-T", "positions-parquet", "python", "-c", refused)


def test_the_image_keeps_no_build_tool_and_no_secret_of_the_build(lab: ContainerLab) -> None:
    # In the whole file system, the base's Python included; the application's own package is the look's control.
    tools = (
        r".*(-packages/(pip|setuptools|wheel|mypy|pytest|streaming)|/lib/python3[.0-9]*/ensurepip"
        r"|/(pip|setuptools|wheel)-[^/]*[.]whl|/bin/(pip|wheel)[.0-9]*)"
    )
    look = f"find / -xdev -regextype posix-egrep -regex '{tools}' 2>/dev/null; true"  # some folders are root's alone
    found = engine.run("docker", "run", "--rm", "--entrypoint", "sh", engine.APPLICATION_IMAGE, "-c", look).stdout
    assert [Path(line).name for line in found.splitlines()] == ["streaming"], found
    label = '{{index .Config.Labels "org.opencontainers.image.revision"}}'
    told = engine.run("docker", "inspect", "--format", label, engine.APPLICATION_IMAGE).stdout.strip()
    assert told == engine.revision()
    history = engine.run("docker", "history", "--no-trunc", engine.APPLICATION_IMAGE).stdout
    environment = engine.run("docker", "inspect", "--format", "{{.Config.Env}}", engine.APPLICATION_IMAGE).stdout
    addresses = {value for value in engine.pip_settings().values() if "/" in value}  # perhaps with a password
    for value in addresses:
        assert value not in history + environment
    known = b"judged by what it last wrote of itself (progress.py)"  # of a file in a layer: the look's own control
    assert engine.in_layers(engine.APPLICATION_IMAGE, {known, *map(str.encode, addresses)}) == {known}


def test_nothing_is_lost_or_doubled_while_a_broker_is_killed(lab: ContainerLab) -> None:
    before = lab.committed("positions-generator")
    lab.brokers.kill(2)
    assert set(lab.brokers.running) == {1, 3}
    goal = before + 2_000
    wait_for(
        lambda: None if lab.committed("positions-generator") > goal else "positions do not flow with two brokers",
        within_s=120,
    )
    report = lab.verify("kafka")
    positions = next(each for each in report["tables"] if each["table"] == "positions_parquet")
    assert positions["rows"] > 1_000
    lab.brokers.start(2)
    lab.brokers.pause(3)
    assert set(lab.brokers.running) == {1, 2}
    lab.brokers.heal()
    assert set(lab.brokers.running) == {1, 2, 3}
    assert lab.brokers.settings()["kafka-3"]["min.insync.replicas"] == "2"
    lab.verify_inside("kafka")


def test_a_role_answers_prometheus_inside_the_network(lab: ContainerLab) -> None:
    ask = "import urllib.request as web; print(web.urlopen('http://positions-parquet:9400/metrics').read().decode())"
    told = lab.compose("exec", "-T", "dagster-code", "python", "-c", ask)
    found = re.search(r'^streamgauge_committed_total\{role="positions-parquet"\} (\S+)$', told, re.MULTILINE)
    assert found is not None, told
    assert float(found[1]) > 0


def test_doctor_finds_a_healthy_lab_well_from_the_host_and_from_inside(lab: ContainerLab) -> None:
    from_outside = lab.call("doctor")
    assert from_outside.returncode == 0, from_outside.stdout + from_outside.stderr
    assert str(engine.PORTS["KAFKA_1_PORT"]) in from_outside.stdout
    assert "kafka-1:19092" in lab.compose("exec", "-T", "dagster-code", "streamgauge", "doctor")


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


def test_dagsters_history_is_in_postgres(lab: ContainerLab) -> None:
    count = "select count(*) from runs where status = 'SUCCESS'"
    ask = ("psql", "--username", "dagster", "--tuples-only", "--no-align", "--command", count)
    assert int(lab.compose("exec", "-T", "postgres", *ask)) >= 1
    assert list(lab.home.dagster.rglob("*.db")) == []
    by_guess = "import os, psycopg2; psycopg2.connect('host=postgres user=dagster dbname=dagster password=guessed')"
    with pytest.raises(AssertionError, match="password authentication failed"):
        lab.compose("exec", "-T", "dagster-code", "python", "-c", by_guess)


def test_an_experiment_breaks_broker_containers_from_the_host_and_leaves_them_whole(lab: ContainerLab) -> None:
    before = {each["Name"]: each["State"]["StartedAt"] for each in lab.containers()}
    roles = {f"{lab.project}-{name}-1" for name in ROLES}
    asked = (
        "--preset",
        "smoke",
        "--scene",
        "survival",
        "--set",
        "patience_s=40",
        "--repetitions",
        "1",
        "--containers",
        lab.project,
        "--json",
    )
    done = lab.call("experiment", "run", "replication", *asked, timeout_s=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    [run] = json.loads(done.stdout)
    assert run["status"] == "complete"
    assert set(lab.brokers.running) == {1, 2, 3}
    after = {each["Name"]: each["State"]["StartedAt"] for each in lab.containers()}
    anew = {name.removeprefix("/") for name in before if before[name] != after[name]}
    assert any("kafka" in name for name in anew), "no broker's container was started anew"
    # The application rested meanwhile, and goes on.
    assert roles <= anew
    assert set(json.loads((Path(run["folder"]) / "provenance.json").read_text())["paused"]) == roles
    assert roles <= {each["Name"].removeprefix("/") for each in lab.containers() if each["State"]["Running"]}


def test_rabbitmq_carries_the_application_and_nothing_is_lost_when_its_node_is_killed(lab: ContainerLab) -> None:
    lab.compose("stop", *ROLES, timeout_s=200)  # two cores carry one application, not three
    services = [service_name(broker, name) for broker in RABBITMQ for name in ROLES]
    lab.compose("--profile", "rabbitmq", "up", "--detach", "--no-build", *services, timeout_s=500)
    flowing = [service_name(broker, name) for broker in RABBITMQ for name in FLOWING]

    def complaint() -> str | None:
        idle = [name for name in flowing if lab.committed(name) == 0]
        return f"nothing durable of {idle}" if idle else None

    wait_for(complaint, within_s=240)
    node = f"{lab.project}-rabbitmq-1-1"
    engine.run("docker", "kill", node)
    engine.run("docker", "start", node)
    before = {name: lab.committed(name) for name in flowing}

    def still() -> str | None:
        idle = [name for name in flowing if lab.committed(name) <= before[name]]
        return f"nothing more of {idle}" if idle else None

    wait_for(still, within_s=240)
    _prometheus_reaches(lab, {"application-on-rabbitmq": 2 * len(ROLES), "rabbitmq": 1})
    # With the producers at rest: whether rows that land while verify looks confuse it is for its own tests.
    generators = [role.name for role in ROLES.values() if role.kind is RoleKind.GENERATOR]
    lab.compose(
        "--profile",
        "rabbitmq",
        "stop",
        *(service_name(broker, name) for broker in RABBITMQ for name in generators),
        timeout_s=200,
    )
    for broker in RABBITMQ:
        report = lab.verify(broker)
        positions = next(each for each in report["tables"] if each["table"] == "positions_parquet")
        assert positions["rows"] > 1_000
    lab.verify_inside(QUEUES)


def test_a_notebook_runs_on_the_labs_brokers_and_strangers_are_kept_out(
    lab: ContainerLab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    engine.build(tmp_path_factory.mktemp("notebooks"), "notebooks", engine.NOTEBOOKS_IMAGE)
    lab.compose("--profile", "*", "stop", *(name for name in lab.states() if "kafka" not in name), timeout_s=300)
    lab.compose("--profile", "notebooks", "up", "--detach", "--no-deps", "--no-build", "jupyterlab")
    wait_for(lambda: None if lab.states()["jupyterlab"] == "healthy" else "JupyterLab is not well", within_s=180)
    address = f"http://127.0.0.1:{engine.PORTS['JUPYTER_PORT']}/api/contents"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(address, timeout=30).close()
    token = (lab.secrets / "jupyter_token").read_text().strip()
    with urllib.request.urlopen(f"{address}?token={token}", timeout=30) as answer:  # noqa: S310
        assert {each["name"] for each in json.load(answer)["content"]} >= {"send.ipynb", "receive.ipynb"}
    run = ("jupyter", "nbconvert", "--to", "markdown", "--execute", "--stdout", "/var/lib/notebooks/send.ipynb")
    told = lab.compose("exec", "-T", "jupyterlab", *run, timeout_s=300)
    assert "LabBrokers" in told
    assert "LOST" not in told.replace('print("LOST"', "")


def test_a_schema_registry_has_every_topics_schema_and_refuses_one_that_could_not_read_it(
    lab: ContainerLab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    engine.build_registry_stand_in(tmp_path_factory.mktemp("registry") / "image")
    lab.compose("--profile", "registry", "up", "--detach", "--no-deps", "--no-build", "schema-registry", "schemas")

    def complaint() -> str | None:
        [schemas] = [each for each in lab.containers() if each["Name"] == f"/{lab.project}-schemas-1"]
        is_done = schemas["State"]["Status"] == "exited" and schemas["State"]["ExitCode"] == 0
        return None if is_done else lab.logs("schemas") + lab.logs("schema-registry")

    wait_for(complaint, within_s=240)
    wait_for(lambda: None if lab.states()["schema-registry"] == "healthy" else "the registry is not well", within_s=60)
    address = f"http://127.0.0.1:{engine.PORTS['SCHEMA_REGISTRY_PORT']}/apis/ccompat/v7"
    with urllib.request.urlopen(f"{address}/subjects", timeout=30) as answer:  # noqa: S310
        assert set(json.load(answer)) == {
            f"{name}-value" for name, each in STREAMS.items() if each.kind is not StreamKind.STATE
        }
    registry, known = Registry(address), AvroCodec(STREAMS["positions"].schema).schema
    assert registry.register("positions", known) == registry.register("positions", known)
    without_default = {**known, "fields": [*known["fields"], {"name": "mood", "type": "string"}]}
    with pytest.raises(DataError, match="can't read what earlier ones wrote"):
        registry.register("positions", without_default)
    optional = {"name": "mood", "type": ["null", "string"], "default": None}
    assert registry.register("positions", {**known, "fields": [*known["fields"], optional]}) > 0


def test_three_rabbitmq_nodes_carry_on_and_verify_is_clean_while_one_of_them_is_down(
    lab: ContainerLab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lab.compose("--profile", "*", "down", "--volumes", "--timeout", "60", timeout_s=200)  # its ports are needed
    sinks = [service_name(broker, "diagnostics-parquet") for broker in RABBITMQ]
    services = [service_name(broker, "diagnostics-generator") for broker in RABBITMQ] + sinks
    scratch = tmp_path_factory.mktemp("cluster")
    with engine.lab_in_containers(scratch, *services, profile="rabbitmq-cluster") as three:

        def idle(since: dict[str, int]) -> str | None:
            found = [name for name in sinks if three.committed(name) <= since[name]]
            return f"nothing more of {found}" if found else None

        wait_for(lambda: idle(dict.fromkeys(sinks, 0)), within_s=300)
        for broker, queues in three.rabbitmq_members().items():
            assert queues, broker
            assert set(queues.values()) == {3}, queues
        engine.run("docker", "kill", f"{three.project}-rabbitmq-3-1")
        before = {name: three.committed(name) for name in sinks}
        wait_for(lambda: idle(before), within_s=240)
        for broker in RABBITMQ:
            rows = {each["table"]: each["rows"] for each in three.verify(broker)["tables"]}
            assert rows["diagnostics_parquet"] > 0
        [killed] = [each for each in three.containers() if each["Name"] == f"/{three.project}-rabbitmq-3-1"]
        assert not killed["State"]["Running"]


def _prometheus_reaches(lab: ContainerLab, jobs: dict[str, int]) -> None:
    """Start Prometheus as compose.yaml has it; return when so many targets of each job answer."""
    lab.compose("--profile", "observability", "up", "--detach", "--no-deps", "--no-build", "prometheus")
    address = f"http://127.0.0.1:{engine.PORTS['PROMETHEUS_PORT']}/api/v1/targets?state=active"

    def complaint() -> str | None:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                targets = json.load(answer)["data"]["activeTargets"]
        except OSError as error:
            return str(error)
        if (state := lab.states()["prometheus"]) != "healthy":
            return f"Prometheus is {state}"
        well = Counter(each["labels"]["job"] for each in targets if each["health"] == "up")
        return None if all(well[job] == count for job, count in jobs.items()) else f"{dict(well)} of {jobs}"

    wait_for(complaint, within_s=120)
    names = f"http://127.0.0.1:{engine.PORTS['PROMETHEUS_PORT']}/api/v1/label/__name__/values"
    with urllib.request.urlopen(names, timeout=10) as answer:
        known = set(json.load(answer)["data"])
    boards = engine.ROOT / "docker" / "grafana" / "dashboards"
    text = (boards / "application.json").read_text() + (boards / "rabbitmq.json").read_text()
    drawn = set(re.findall(r"\b(?:streamgauge|rabbitmq)_[a-z_]+", text))
    assert len(drawn) > 12
    assert drawn <= known, drawn - known


def _graphql(query: str, variables: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{engine.PORTS['DAGSTER_PORT']}/graphql",
        json.dumps({"query": query, "variables": variables}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return dict(json.load(answer)["data"])
