"""docker/compose.yaml says nothing that the project's own declarations do not say: roles, broker settings, ports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from orchestration.specs import NEVER_RESTING
from streaming.cluster import jars, kafka
from streaming.cluster.kafka import BrokerPorts
from streaming.lab import BROKER_COUNT, Lab
from streaming.metrics import RoleMetrics
from streaming.progress import Progress
from streaming.topology import ROLES, Role

ROOT: Final = Path(__file__).resolve().parents[2]
TEXT: Final = (ROOT / "docker" / "compose.yaml").read_text()
COMPOSE: Final[dict[str, Any]] = yaml.safe_load(TEXT)
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
BROKERS: Final = [f"kafka-{number}" for number in range(1, BROKER_COUNT + 1)]
DEFAULT: Final = {name: each for name, each in SERVICES.items() if "profiles" not in each}
OURS: Final = {name: each for name, each in SERVICES.items() if "STREAMGAUGE_IMAGE" in each.get("image", "")}


def resolved(text: str) -> str:
    """A value with each variable's default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_every_role_is_a_service_of_the_application_image() -> None:
    roles = {name: each["command"] for name, each in DEFAULT.items() if each.get("command", [""])[0] == "role"}
    assert roles == {name: ["role", name] for name in ROLES}
    assert ROLES.keys() <= OURS.keys()


@pytest.mark.parametrize("role", ROLES.values(), ids=str)
def test_a_roles_health_is_its_own_progress_and_asks_for_commits_where_data_always_flows(role: Role) -> None:
    asked = SERVICES[role.name]["healthcheck"]["test"]
    assert asked[:5] == ["CMD", "python", "-m", "streaming.health", role.name]
    always_flows = bool(NEVER_RESTING & {*role.reads, *role.writes}) and role.name != "recording-replay"
    assert ("--commits-within" in asked) == always_flows


def test_broker_settings_are_those_of_the_brokers_on_this_machine() -> None:
    lab = Lab()
    ports = [BrokerPorts(lab.broker_port(n), lab.controller_port(n)) for n in range(1, BROKER_COUNT + 1)]
    for service, native in zip(BROKERS, kafka.describe(Path("unused"), ports), strict=True):
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
    for number, service in enumerate(BROKERS, start=1):
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


def test_every_service_is_bounded_and_comes_back_and_none_has_the_engines_socket() -> None:
    for name, each in SERVICES.items():
        assert each["mem_limit"], name
        assert each["pids_limit"], name
        assert each["restart"], name
        assert each["logging"]["options"]["max-size"], name
        assert not each.get("privileged"), name
        assert not any("docker.sock" in str(volume) for volume in each.get("volumes", [])), name


@pytest.mark.parametrize("name", OURS)
def test_our_containers_have_no_privilege_and_a_root_file_system_they_cannot_write(name: str) -> None:
    service = OURS[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "healthcheck" in service or name.startswith("topics")


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
    jobs = {each["job_name"]: each["static_configs"][0]["targets"] for each in told["scrape_configs"]}
    ports = {SERVICES[name]["environment"]["STREAMGAUGE_METRICS_PORT"] for name in ROLES}
    assert ports == {"9400"}
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
        assert named or "kafka_" in expression


def test_the_secrets_that_are_asked_for_have_an_example_and_are_never_committed() -> None:
    for name, each in COMPOSE["secrets"].items():
        assert (ROOT / "docker" / each["file"]).parent.name == "secrets"
        assert (ROOT / "docker" / "secrets.example" / name).exists()
    assert "docker/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
