"""The broker's jars: pinned, checked, and had without network once they are there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import pytest

from streaming.cluster import jars
from streaming.cluster.jars import Jar
from streaming.errors import SetupError

JAR = Jar("org.example:thing:1.0", "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae")  # of b"foo"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One pinned jar, an environment without it, an empty Maven repository; whoever asks the network fails."""
    monkeypatch.setattr(jars, "locked", lambda: [JAR])
    monkeypatch.setattr(jars, "folder", lambda: tmp_path / "jars")
    monkeypatch.setenv("M2_REPO", str(tmp_path / "m2"))
    monkeypatch.setattr("requests.request", _no_network)
    return tmp_path / "jars"


def _no_network(*arguments: object, **options: object) -> NoReturn:
    raise OSError("no network")


def _in_local_repository(folder: Path, content: bytes) -> Path:
    path = folder.parent / "m2" / "org" / "example" / "thing" / "1.0" / JAR.filename
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_the_lock_pins_every_jar_of_the_broker_at_one_version_of_kafka() -> None:
    pinned = jars.locked()
    own = [jar for jar in pinned if jar.coordinate.startswith("org.apache.kafka:")]
    assert {jar.coordinate.split(":")[2] for jar in own} == {jars.KAFKA_VERSION}
    assert {"kafka_2.13", "kafka-clients", "kafka-tools"} <= {jar.coordinate.split(":")[1] for jar in own}
    assert all(len(jar.sha256) == 64 for jar in pinned)
    assert len({jar.filename for jar in pinned}) == len(pinned)


def test_what_is_there_needs_neither_network_nor_the_maven_client(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    (folder / JAR.filename).write_bytes(b"foo")
    monkeypatch.setitem(sys.modules, "jgo", None)  # importing it would fail
    monkeypatch.setitem(sys.modules, "jgo.maven", None)
    said: list[str] = []
    assert jars.install(said.append) == folder
    assert not said


def test_what_is_missing_comes_from_the_local_maven_repository(folder: Path) -> None:
    _in_local_repository(folder, b"foo")
    said: list[str] = []
    jars.install(said.append)
    assert (folder / JAR.filename).read_bytes() == b"foo"
    assert "1 of 1" in said[-1]


def test_what_is_missing_is_a_finding(folder: Path) -> None:
    assert not jars.examine().ok
    _in_local_repository(folder, b"foo")
    jars.install()
    assert jars.examine().ok


def test_a_changed_jar_is_refused_and_named(folder: Path) -> None:
    folder.mkdir()
    (folder / JAR.filename).write_bytes(b"evil")
    with pytest.raises(SetupError, match="is not the pinned org") as caught:
        jars.install()
    assert str(folder / JAR.filename) in caught.value.remedy


def test_a_torn_download_is_fetched_once_more_and_never_used(folder: Path) -> None:
    torn = _in_local_repository(folder, b"fo")
    with pytest.raises(SetupError, match="could not be fetched"):  # the second fetch: there is no network here
        jars.install()
    assert not torn.exists()
    assert not (folder / JAR.filename).exists()


def test_without_network_the_first_set_up_says_what_it_needs(folder: Path) -> None:
    with pytest.raises(SetupError, match="no network") as caught:
        jars.install()
    assert "connect to the network" in caught.value.remedy


def test_a_changed_jar_is_a_finding_that_names_it(folder: Path) -> None:
    folder.mkdir()
    (folder / JAR.filename).write_bytes(b"evil")
    found = jars.examine()
    assert not found.ok
    assert str(folder / JAR.filename) in found.remedy
