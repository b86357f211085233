"""What is looked at before a lab starts, and what a broker's listeners say."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from streaming.cluster import listeners, machine, ports
from streaming.errors import SetupError


def _finding(findings: list[machine.Finding], name: str) -> machine.Finding:
    return next(each for each in findings if each.name == name)


def test_this_machine_is_fine(tmp_path: Path) -> None:
    findings = machine.check(tmp_path / "not" / "yet", {"something": ports.free(1)[0]})
    assert [(each.name, each.ok) for each in findings[:3]] == [("platform", True), ("python", True), ("disk", True)]
    machine.insist(findings)


def test_another_platform_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(SetupError, match="platform: Linux aarch64"):
        machine.insist(machine.check(tmp_path, {}))


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 15, 0)])
def test_a_python_too_old_or_too_new_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]
) -> None:
    monkeypatch.setattr("sys.version_info", version)
    found = _finding(machine.check(tmp_path, {}), "python")
    assert not found.ok
    assert "3.11 to 3.14" in found.remedy


def test_a_disk_nearly_full_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(machine.LEAST_FREE_BYTES - 1))
    found = _finding(machine.check(tmp_path, {}), "disk")
    assert not found.ok
    assert "STREAMGAUGE_HOME" in found.remedy


def test_free_ports_are_free_and_different() -> None:
    found = ports.free(6)
    assert len(set(found)) == 6
    assert all(ports.is_free(port) for port in found)


def test_a_port_on_which_somebody_listens_is_not_free() -> None:
    with socket.socket() as holder:
        holder.bind((ports.HOST, 0))
        holder.listen()
        assert not ports.is_free(holder.getsockname()[1])


@pytest.fixture
def broker() -> Iterator[tuple[int, list[tuple[int, bytes, int]]]]:
    """Something that understands ApiVersions and Metadata, answers with the brokers in the list; its port, the list."""
    brokers: list[tuple[int, bytes, int]] = []

    def answer() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                while request := connection.recv(1024):
                    (key,) = struct.unpack_from(">h", request, 4)
                    if key not in answers:
                        break
                    body = struct.pack(">i", key) + answers[key]()
                    connection.sendall(struct.pack(">i", len(body)) + body)

    def metadata() -> bytes:
        body = struct.pack(">i", len(brokers))
        for number, host, port in brokers:
            body += struct.pack(">ih", number, len(host)) + host + struct.pack(">ih", port, -1)
        return body + struct.pack(">h", 2) + b"id"

    answers = {18: lambda: struct.pack(">hihhh", 0, 1, 3, 0, 12), 3: metadata}
    with socket.create_server((ports.HOST, 0)) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()[1], brokers
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_an_advertised_address_that_cannot_be_reached_is_named(
    broker: tuple[int, list[tuple[int, bytes, int]]],
) -> None:
    port, brokers = broker
    nobody = ports.free(1)[0]
    brokers += [(1, ports.HOST.encode(), port), (2, ports.HOST.encode(), nobody)]
    findings = listeners.examine(f"{ports.HOST}:{port}")
    assert [(each.name, each.ok) for each in findings] == [
        ("bootstrap servers", True),
        ("broker 1", True),
        ("broker 2", False),
    ]
    assert f"{ports.HOST}:{nobody}" in findings[2].remedy
    assert "advertised.listeners" in findings[2].remedy


def test_nobody_at_the_given_address_is_a_finding() -> None:
    port = ports.free(1)[0]
    answer, address = listeners.examine(f"{ports.HOST}:{port}")
    assert answer.is_bad
    assert address.is_bad
    assert (address.name, address.detail) == (f"address {ports.HOST}:{port}", "nothing listens there")


def test_something_that_is_no_broker_is_nobody() -> None:
    with socket.create_server((ports.HOST, 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert listeners.advertised(ports.HOST, server.getsockname()[1], timeout_s=1) == {}
        thread.join()
