"""docker/compose.yaml says nothing that the project's own declarations do not say: roles, broker settings, ports."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from traitlets.config.loader import Config, PyFileConfigLoader

from orchestration.brokers import node_ports
from orchestration.specs import NEVER_RESTING
from streaming.cluster import jars, kafka, rabbitmq, rabbitmq_container
from streaming.cluster.kafka import BrokerPorts
from streaming.lab import BROKER_COUNT, BROKERS, KAFKA, Lab, service_name
from streaming.metrics import RoleMetrics
from streaming.progress import Progress
from streaming.topology import ROLES, Role

ROOT: Final = Path(__file__).resolve().parents[2]
TEXT: Final = (ROOT / "docker" / "compose.yaml").read_text()
COMPOSE: Final[dict[str, Any]] = yaml.safe_load(TEXT)
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
KAFKA_NODES: Final = [f"kafka-{number}" for number in range(1, BROKER_COUNT + 1)]
DEFAULT: Final = {name: each for name, each in SERVICES.items() if "profiles" not in each}
RABBITMQ: Final = [f"rabbitmq-{number}" for number in (1, 2, 3)]
ONCE: Final = {name for name, each in SERVICES.items() if each["restart"] == "on-failure:5"}
OURS: Final = {name: each for name, each in SERVICES.items() if each["image"].startswith("${STREAMGAUGE_")}


def resolved(text: str) -> str:
    """A value with each variable's default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_every_role_is_a_service_of_the_application_image() -> None:
    roles = {name: each["command"] for name, each in DEFAULT.items() if each.get("command", [""])[0] == "role"}
    assert roles == {name: ["role", name] for name in ROLES}
    assert ROLES.keys() <= OURS.keys()


@pytest.mark.parametrize("broker", sorted(set(BROKERS) - {KAFKA}))
def test_every_role_is_a_service_on_each_of_rabbitmqs_patterns_with_the_health_it_has_on_kafka(broker: str) -> None:
    for name in ROLES:
        on_kafka, service = SERVICES[name], SERVICES[service_name(broker, name)]
        assert service["command"] == [*on_kafka["command"], "--broker", broker]
        asked = on_kafka["healthcheck"]["test"]
        assert service["healthcheck"]["test"] == [*asked[:4], service_name(broker, name), *asked[5:]]
        assert service["profiles"] == ["rabbitmq", "rabbitmq-cluster"]
        needs = {"condition": "service_completed_successfully", "required": False}
        assert service["depends_on"] == {"rabbitmq-queues": needs, "rabbitmq-cluster-queues": needs}


def test_rabbitmqs_nodes_listen_where_the_native_ones_do_inside_and_outside() -> None:
    for number, name in enumerate(RABBITMQ, start=1):
        service, ports = SERVICES[name], node_ports(Lab(), number)
        doors = (ports.amqp, ports.stream, ports.management)
        assert service["ports"] == [f"127.0.0.1:{port}:{port}" for port in doors]
        assert re.findall(r"/dev/tcp/127\.0\.0\.1/(\d+)", service["healthcheck"]["test"][-1]) == list(map(str, doors))
        assert service["hostname"] == name
        assert service["environment"]["RABBITMQ_NODENAME"] == f"rabbit@{name}"
        assert service["user"] == "rabbitmq"
        assert [volume for volume in service["volumes"] if volume.startswith("rabbitmq-files:")] == [
            "rabbitmq-files:/etc/streamgauge:ro"
        ]
    assert [SERVICES[name]["profiles"] for name in RABBITMQ] == [
        ["rabbitmq", "rabbitmq-cluster"],
        ["rabbitmq-cluster"],
        ["rabbitmq-cluster"],
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_rabbitmqs_nodes_are_told_what_native_ones_are_told_but_where_they_listen(tmp_path: Path, count: int) -> None:
    lab = Lab()
    listening = [node_ports(lab, number) for number in range(1, count + 1)]
    credentials = rabbitmq.Credentials.of(tmp_path)
    rabbitmq_container.write_files(tmp_path, Path("/etc/streamgauge"), credentials, listening)
    for node in rabbitmq.describe(Path("/etc/streamgauge"), listening, 1).nodes:
        text = (tmp_path / f"rabbitmq-{node.number}.conf").read_text()
        told = dict(line.split(" = ", 1) for line in text.splitlines())
        where = {name for name in told if name.split(".")[0] in {"listeners", "cluster_formation"}}
        where |= {"stream.listeners.tcp.1", "stream.advertised_host", "management.tcp.ip", "prometheus.tcp.ip"}
        assert told.keys() == node.settings.keys()
        assert {name: each for name, each in told.items() if name not in where} == {
            name: each for name, each in node.settings.items() if name not in where
        }
        assert told["stream.advertised_host"] == f"rabbitmq-{node.number}"
    written = "".join(path.read_text() for path in tmp_path.iterdir() if path.name != "credentials.json")
    assert not any(password in written for password in credentials.passwords.values())
    users = json.loads((tmp_path / "definitions.json").read_text())["users"]
    assert {each["name"] for each in users} == {"operator", "monitor", *ROLES}


@pytest.mark.parametrize("role", ROLES.values(), ids=str)
def test_a_roles_health_is_its_own_progress_and_asks_for_commits_where_data_always_flows(role: Role) -> None:
    asked = SERVICES[role.name]["healthcheck"]["test"]
    assert asked[:5] == ["CMD", "python", "-m", "streaming.health", role.name]
    always_flows = bool(NEVER_RESTING & {*role.reads, *role.writes}) and role.name != "recording-replay"
    assert ("--commits-within" in asked) == always_flows


def test_broker_settings_are_those_of_the_brokers_on_this_machine() -> None:
    lab = Lab()
    ports = [BrokerPorts(lab.broker_port(n), lab.controller_port(n)) for n in range(1, BROKER_COUNT + 1)]
    for service, native in zip(KAFKA_NODES, kafka.describe(Path("unused"), ports), strict=True):
        told = {
            name.removeprefix("KAFKA_").lower().replace("_", "."): str(value)
            for name, value in SERVICES[service]["environment"].items()
            if name.startswith("KAFKA_") and name != "KAFKA_HEAP_OPTS"
        }
        where = {"listeners", "advertised.listeners", "listener.security.protocol.map", "log.dirs"}
        where |= {"inter.broker.listener.name", "controller.quorum.voters"}
        assert {name: each for name, each in told.items() if name not in where} == {
            name: each for name, each in native.settings.items() if name not in where
        }


def test_each_listener_is_advertised_where_its_clients_are() -> None:
    for number, service in enumerate(KAFKA_NODES, start=1):
        told = SERVICES[service]["environment"]
        port = Lab().broker_port(number)
        advertised = resolved(told["KAFKA_ADVERTISED_LISTENERS"])
        assert advertised == f"INTERNAL://{service}:19092,EXTERNAL://127.0.0.1:{port}"
        assert [resolved(each) for each in SERVICES[service]["ports"]] == [f"127.0.0.1:{port}:9092"]
        assert f"{number}@{service}:9093" in told["KAFKA_CONTROLLER_QUORUM_VOTERS"]


def test_dagster_is_where_the_native_lab_has_it() -> None:
    assert resolved(SERVICES["dagster-webserver"]["ports"][0]) == f"127.0.0.1:{Lab().web_port}:3000"


def test_nothing_is_published_beyond_this_machine() -> None:
    published = [port for each in SERVICES.values() for port in each.get("ports", [])]
    assert published
    assert [port for port in published if not resolved(port).startswith("127.0.0.1:")] == []


def test_every_service_is_bounded_and_comes_back_and_none_has_a_privilege_or_the_engines_socket() -> None:
    for name, each in SERVICES.items():
        assert each["mem_limit"], name
        assert each["pids_limit"], name
        assert each["restart"], name
        assert each["logging"]["options"]["max-size"], name
        assert not each.get("privileged"), name
        assert each["cap_drop"] == ["ALL"], name
        assert "cap_add" not in each, name
        assert each["security_opt"] == ["no-new-privileges:true"], name
        assert "healthcheck" in each or name in ONCE | {"kafka-ui", "kafka-exporter"}, name
        assert not any("docker.sock" in str(volume) for volume in each.get("volumes", [])), name


@pytest.mark.parametrize("name", OURS)
def test_our_containers_have_no_privilege_and_a_root_file_system_they_cannot_write(name: str) -> None:
    assert OURS[name]["read_only"]
    assert OURS[name]["pull_policy"] == "never"


def test_our_images_are_built_from_one_dockerfile_and_told_their_commit() -> None:
    built = {name: each["build"] for name, each in SERVICES.items() if "build" in each}
    stages = re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    assert {name: each["target"] for name, each in built.items()} == {
        "topics": "application",
        "jupyterlab": "notebooks",
    }
    assert {each["target"] for each in built.values()} <= set(stages)
    assert all(each["args"] == {"REVISION": "${STREAMGAUGE_REVISION:-unknown}"} for each in built.values())


def test_the_file_names_every_variable_that_it_reads() -> None:
    preface = TEXT[: TEXT.index("\nname: streamgauge")]
    assert set(re.findall(r"\$\{(\w+)", TEXT)) == set(re.findall(r"\b[A-Z]+(?:_[A-Z0-9]+)+\b", preface))


def test_every_image_is_of_a_fixed_version() -> None:
    images = {resolved(each["image"]) for each in SERVICES.values()}
    assert f"apache/kafka:{jars.KAFKA_VERSION}" in images
    for image in images:
        assert re.search(r":v?\d|:local$", image), image


def test_the_image_gets_what_the_application_imports_and_nothing_that_only_builds_or_tests() -> None:
    done = subprocess.run(
        [sys.executable, "docker/runtime_lock.py"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    chosen = {canonicalize_name(each) for each in re.findall(r"^([A-Za-z0-9._-]+)==", done.stdout, re.MULTILINE)}
    assert _closure("streamgauge") <= chosen | {"streamgauge"}
    assert chosen.isdisjoint({"pip", "uv", "pytest", "mypy", "ruff", "hypothesis"})
    pins = done.stdout.count("==")
    assert done.stdout.count("--hash=sha256:") >= pins


def _closure(root: str) -> set[str]:
    """What is installed here for `root`: itself, what it requires, and so on, without its extras."""
    found, waiting = set[str](), [root]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        wanted = (Requirement(line) for line in metadata.requires(name) or ())
        waiting += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def test_prometheus_asks_every_role_where_it_answers() -> None:
    told = yaml.safe_load((ROOT / "docker" / "prometheus" / "prometheus.yml").read_text())
    jobs = {
        each["job_name"]: each["static_configs"][0]["targets"]
        for each in told["scrape_configs"]
        if "static_configs" in each
    }
    found = {each["job_name"]: each["dns_sd_configs"] for each in told["scrape_configs"] if "dns_sd_configs" in each}
    on_rabbitmq = [service_name(broker, name) for broker in ("rabbitmq", "rabbitmq-stream") for name in ROLES]
    ports = {SERVICES[name]["environment"]["STREAMGAUGE_METRICS_PORT"] for name in (*ROLES, *on_rabbitmq)}
    assert ports == {"9400"}
    assert found["application-on-rabbitmq"] == [{"names": on_rabbitmq, "type": "A", "port": 9400}]
    assert found["rabbitmq"] == [
        {"names": [name], "type": "A", "port": node_ports(Lab(), number).prometheus}
        for number, name in enumerate(RABBITMQ, start=1)
    ]
    assert jobs["application"] == [f"{name}:9400" for name in ROLES]
    assert {target.split(":")[0] for targets in jobs.values() for target in targets} <= SERVICES.keys()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docker" / "grafana" / "dashboards").glob("*.json")), ids=lambda p: p.stem
)
def test_dashboards_draw_only_what_is_exported(path: Path) -> None:
    progress = Progress("role")
    progress.commits(1)
    ours = {sample.name for family in RoleMetrics(progress).collect() for sample in family.samples}
    drawn = [target["expr"] for panel in json.loads(path.read_text())["panels"] for target in panel["targets"]]
    assert len(drawn) >= 4
    for expression in drawn:
        named = set(re.findall(r"\bstreamgauge_\w+", expression))
        assert named <= ours, expression
        assert named or re.search(r"\b(kafka|rabbitmq)_", expression)


@pytest.mark.parametrize("page", ["docker/compose.yaml", "docs/containers.md"])
def test_the_secrets_that_are_asked_for_are_made_by_what_the_pages_say_and_never_committed(
    page: str, tmp_path: Path
) -> None:
    """No value is shipped: the command of the page is typed here, and makes two that are not the same."""
    text = re.sub(r"^# ?", "", (ROOT / page).read_text(), flags=re.MULTILINE)
    [command] = re.findall(r"^ +(mkdir -p docker/secrets .*?done\))$", text, re.MULTILINE | re.DOTALL)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    made = {path.name: path.read_text().strip() for path in (tmp_path / "docker" / "secrets").iterdir()}
    assert made.keys() == COMPOSE["secrets"].keys()
    assert sorted({len(value) for value in made.values()}) == [32]
    assert len(set(made.values())) == len(made)
    for name, each in COMPOSE["secrets"].items():
        assert each["file"] == f"${{STREAMGAUGE_SECRETS:-./secrets}}/{name}"
    assert "docker/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("token", [None, "", "\n", "change-me\n"])
def test_jupyterlab_does_not_start_without_a_token_of_its_own(tmp_path: Path, token: str | None) -> None:
    with pytest.raises(SystemExit, match=r"its token .* is missing, empty or the word of an example"):
        jupyter_settings(tmp_path, token)


def test_jupyterlab_wants_the_token_of_its_file(tmp_path: Path) -> None:
    value = secrets.token_hex(16)
    assert jupyter_settings(tmp_path, f"{value}\n").IdentityProvider.token == value


def jupyter_settings(folder: Path, token: str | None) -> Config:
    """What Jupyter's own reader makes of its settings where the secret has this text (None: no file)."""
    secret = folder / "token"
    if token is not None:
        secret.write_text(token)
    text = (ROOT / "docker" / "jupyter_server_config.py").read_text()
    assert "/run/secrets/jupyter_token" in text
    (folder / "config.py").write_text(text.replace("/run/secrets/jupyter_token", str(secret)))
    return PyFileConfigLoader("config.py", path=str(folder)).load_config()
