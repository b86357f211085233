"""The power goes at any moment of any commit: what was acknowledged is there, and what is there is whole.

A kill can't show that, for the kernel keeps what a process has written. So everything the sink asks of the file system
is recorded, and after each operation the disks are built that a power cut may leave: of an unsynced file nothing is
left, of the names in an unsynced folder none, all, or any one of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sinks.formats import FORMATS
from sinks.reader import quarantine_scan, scan
from streaming.errors import DataError
from streaming.home import Home
from tests.crash.landing import BATCH, PARTITIONS, POISON, RECORDS, batches, sink_for, table_for

ROUNDS = 4  # commits
BAD = {at for at in range(RECORDS) if at % POISON == POISON - 1}
Name = tuple[Path, str | None]  # a name and the file behind it; None: a folder


@dataclass
class Disk:
    """What a power cut may leave of everything below a folder, after each recorded operation."""

    root: Path
    names: dict[Path, Name] = field(default_factory=dict)  # durable
    unsynced: dict[Path, Name] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)  # of synced files
    acknowledged: dict[int, int] = field(default_factory=dict)

    def survivors(self) -> list[dict[Path, Name]]:
        """The names that may be left."""
        choices = [{}, self.unsynced]
        if len(self.unsynced) > 1:
            choices += [{path: name} for path, name in self.unsynced.items()]
        return [self.names | chosen for chosen in choices]

    def build(self, names: dict[Path, Name], home: Path) -> None:
        """Lay such a disk down as `home`."""
        home.mkdir()
        for path, (_, file) in sorted(names.items()):
            there = home / path.relative_to(self.root)
            if not there.parent.is_dir():
                continue  # its folder is gone, and it with it
            if file is None:
                there.mkdir()
            else:
                there.write_bytes(self.contents.get(file, b""))


@dataclass
class Recorder:
    """Stands between the sink and os, passes everything on, and hands each state of the disk to the test."""

    disk: Disk
    states: Path  # where the disks are built
    file_format: str
    syncs: tuple[str, ...]  # without one of them that fsync is left out
    checked: int = 0
    damaged: list[str] = field(default_factory=list)
    real: dict[str, Any] = field(default_factory=dict)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        real = {name: getattr(os, name) for name in ("mkdir", "link", "replace", "fsync")}

        def mkdir(path: Path, *rest: int) -> None:
            real["mkdir"](path, *rest)
            self.named(Path(path), None)

        def link(source: Path, target: Path) -> None:
            real["link"](source, target)
            self.named(Path(target), str(source))

        def replace(source: Path, target: Path) -> None:
            real["replace"](source, target)
            self.named(Path(target), str(source))

        def fsync(descriptor: int) -> None:
            real["fsync"](descriptor)
            self.synced(Path(f"/proc/self/fd/{descriptor}").readlink())

        for made in (mkdir, link, replace, fsync):
            patch.setattr(os, made.__name__, made)
        self.real = real

    def named(self, path: Path, file: str | None) -> None:
        self.disk.unsynced[path] = (path, file)
        self.check()

    def synced(self, path: Path) -> None:
        if path.is_dir() and "folders" in self.syncs:
            durable = [name for name in self.disk.unsynced if name.parent == path]
            self.disk.names |= {name: self.disk.unsynced.pop(name) for name in durable}
        if path.is_file() and "files" in self.syncs:
            self.disk.contents[str(path)] = path.read_bytes()
        self.check()

    def check(self) -> None:
        """Look at every disk that a power cut at this moment may leave."""
        with pytest.MonkeyPatch.context() as within:
            for name, function in self.real.items():
                within.setattr(os, name, function)
            for names in self.disk.survivors():
                home = self.states / f"{self.checked}"
                self.disk.build(names, home)
                self.checked += 1
                if problem := damage(home, self.disk.acknowledged, self.file_format):
                    self.damaged.append(problem)


def damage(home: Path, acknowledged: dict[int, int], file_format: str) -> str | None:
    """What is wrong with the files: a start that is refused, an acknowledged record that is not there, or a double."""
    sink = sink_for(home, file_format)
    try:
        ends = {partition: sink.resume(partition) or 0 for partition in PARTITIONS}
    except DataError as refused:
        return str(refused)
    rows = scan(Home(home), "kafka", table_for(file_format)).select("_partition", "_offset", "sequence").collect()
    if rows.filter(pl.col("_offset") != pl.col("sequence")).height:
        return "a row has another's offset"
    aside = quarantine_scan(Home(home), "kafka", table_for(file_format)).collect()
    for partition, end in ends.items():
        if end < acknowledged.get(partition, 0):
            return f"{partition}: {acknowledged[partition]} were acknowledged, {end} are left"
        if sorted(rows.filter(_partition=partition)["_offset"]) != sorted(set(range(end)) - BAD):
            return f"{partition}: other rows than those below {end}"
        if not {at for at in BAD if at < end} <= set(aside.filter(partition=partition)["_offset"]):
            return f"{partition}: undecodable records below {end} are not in quarantine"
    return None


def feed(recorder: Recorder, home: Path, file_format: str) -> None:
    """A few rotations of both partitions, a restart in the middle, after a start that died early."""
    name = table_for(file_format).removesuffix(f"_{file_format}")
    for partition in PARTITIONS:  # made and not synced: what a process that died then leaves to the next
        (Home(home).warehouse("kafka") / table_for(file_format) / f"p={partition:05d}").mkdir(parents=True)
    for rounds in (range(ROUNDS // 2), range(ROUNDS // 2, ROUNDS)):
        sink = sink_for(home, file_format)
        for partition in PARTITIONS:
            sink.resume(partition)
        for number in rounds:
            for partition in PARTITIONS:
                for batch in batches(name, partition, 3 * number * BATCH)[:3]:
                    sink.write(batch)
            recorder.disk.acknowledged |= sink.commit()
            recorder.check()


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without the cache of footers: a disk's files differ from the next one's, but not always in size and time."""
    monkeypatch.setattr("sinks.slots.footer", lambda path: FORMATS[path.suffix[1:]].footer(path))
    return monkeypatch


def cut_the_power(
    folder: Path, patch: pytest.MonkeyPatch, file_format: str, syncs: tuple[str, ...] = ("files", "folders")
) -> Recorder:
    home, states = folder / "home", folder / "states"
    home.mkdir()
    states.mkdir()
    recorder = Recorder(Disk(home), states, file_format, syncs)
    recorder.install(patch)
    feed(recorder, home, file_format)
    patch.undo()
    return recorder


@pytest.mark.parametrize("file_format", ["parquet", "csv"])
def test_a_power_cut_takes_nothing_that_was_acknowledged(
    tmp_path: Path, patch: pytest.MonkeyPatch, file_format: str
) -> None:
    recorder = cut_the_power(tmp_path, patch, file_format)
    assert recorder.checked > 500
    assert recorder.damaged == []
    assert recorder.disk.acknowledged.keys() == set(PARTITIONS)


@pytest.mark.parametrize("syncs", [("files",), ("folders",)])
def test_without_either_sync_a_power_cut_does_damage(
    tmp_path: Path, patch: pytest.MonkeyPatch, syncs: tuple[str, ...]
) -> None:
    assert cut_the_power(tmp_path, patch, "parquet", syncs).damaged
