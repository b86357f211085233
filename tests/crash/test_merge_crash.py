"""A merge killed at every named moment, beside a sink that goes on writing and readers that go on reading.

Each record is in the files exactly once at every moment, also for a bare glob that knows nothing of merges.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from sinks import lanes as exchanging
from sinks import merge as merging
from sinks.folders import exchange
from sinks.formats import FORMATS
from sinks.lanes import lanes
from sinks.merge import CHECKPOINTS, merge
from sinks.reader import scan, slots
from streaming.durability import sync_folder
from streaming.home import PROJECT_ROOT, Home
from tests.crash.landing import PARTITIONS, RECORDS, batches, land, role_for, sink_for, table_for
from tests.crash.merging import POLICY
from tests.crash.test_commit_crashes import BAD, assert_exact, landed, run
from tests.crash.test_power_loss import Disk, Name, Recorder, damage

CHILD = [sys.executable, "-m", "tests.crash.merging"]
HOLDS = """
import sys
from pathlib import Path
from sinks.folders import locked
with locked(Path(sys.argv[1]), exclusive=True):
    print(flush=True)
    sys.stdin.read()
"""
HOLDER = [sys.executable, "-c", HOLDS]
LANDING = Path(__file__).with_name("landing.py")
GOOD = sorted(set(range(RECORDS)) - BAD)


def merge_in_child(home: Path, crash_at: str, file_format: str, *harm: str) -> int:
    command = [*CHILD, str(home), crash_at, file_format, *harm]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr
    return done.returncode


def by_bare_glob(home: Path, file_format: str) -> list[tuple[int, int]]:
    """What somebody reads who knows nothing of slots; who finds a file gone that he has listed looks again."""
    folder = Home(home).warehouse("kafka") / table_for(file_format)
    read = pl.read_parquet if file_format == "parquet" else pl.read_csv
    while True:
        try:
            frames = [read(path) for path in sorted(folder.glob(f"**/*.{file_format}"))]
        except FileNotFoundError:
            continue
        return sorted(pl.concat(frame.select("_partition", "_offset") for frame in frames).rows())


@pytest.fixture(scope="module")
def half_landed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a chain in either format, from sinks that were killed: more is to come."""
    home = tmp_path_factory.mktemp("half") / "home"
    for file_format in ("parquet", "csv"):
        assert run(home, "after_high_water:12", file_format) == -signal.SIGKILL
    return home


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_a_merge_killed_at_any_moment_loses_and_doubles_nothing(
    tmp_path: Path, half_landed: Path, checkpoint: str
) -> None:
    home = shutil.copytree(half_landed, tmp_path / "home")
    for file_format in ("parquet", "csv"):
        before = landed(home, file_format)
        assert merge_in_child(home, f"{checkpoint}:1", file_format) == -signal.SIGKILL, "never got there"
        assert landed(home, file_format) == before
        assert by_bare_glob(home, file_format) == sorted((p, at) for p in PARTITIONS for at in before[p])
        assert merge(Home(home), "kafka", table_for(file_format), POLICY)
        land(sink_for(home, file_format), role_for(file_format).reads[0])  # the sink goes on from where it was
        merge(Home(home), "kafka", table_for(file_format), POLICY)
        assert_exact(home, file_format)
        assert by_bare_glob(home, file_format) == sorted((p, at) for p in PARTITIONS for at in GOOD)
        commits = [slot.commits for slot in slots(Home(home), "kafka", table_for(file_format)) if not slot.partition]
        assert commits[0] > 3
        assert commits[-2:] == [1, 1]


def test_without_the_order_of_the_steps_a_kill_loses_or_doubles(tmp_path: Path, half_landed: Path) -> None:
    for harm, wrong in (("remove-first", "lost"), ("link-first", "doubled")):
        home = shutil.copytree(half_landed, tmp_path / harm)
        expected = by_bare_glob(home, "parquet")
        assert merge_in_child(home, "folders_exchanged:1", "parquet", harm) == -signal.SIGKILL
        found = by_bare_glob(home, "parquet")
        assert (len(found) < len(expected)) if wrong == "lost" else (len(found) > len(set(found)))


@contextmanager
def reading(home: Path, file_format: str, found: list[str]) -> Iterator[threading.Event]:
    """A thread that reads as strangers do, and as we do: below what it has seen, no row may be missing or doubled."""
    end, started = threading.Event(), threading.Event()

    def look() -> None:
        while not end.is_set():
            rows = scan(Home(home), "kafka", table_for(file_format)).select("_partition", "_offset").collect().rows()
            for who, read in (("scan", sorted(rows)), ("glob", by_bare_glob(home, file_format))):
                for partition in PARTITIONS:
                    mine = [at for p, at in read if p == partition]
                    if mine != GOOD[: len(mine)]:
                        found.append(f"{who}, partition {partition}: {mine}")
            started.set()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield started
    finally:
        end.set()
        thread.join()


@pytest.mark.parametrize("file_format", ["parquet", "csv"])
def test_readers_see_each_row_once_while_sinks_write_and_merges_run_and_die(tmp_path: Path, file_format: str) -> None:
    role, wrong = role_for(file_format), list[str]()
    sink = sink_for(tmp_path, file_format)
    for partition in PARTITIONS:
        sink.resume(partition)
    queues = {partition: batches(role.reads[0], partition, 0) for partition in PARTITIONS}
    for partition in PARTITIONS:
        sink.write(queues[partition].pop(0))
    sink.commit()
    merges = kills = 0
    with reading(tmp_path, file_format, wrong) as started:
        assert started.wait(60)
        while any(queues.values()):
            for partition in PARTITIONS:
                sink.write(queues[partition].pop(0))
            sink.commit()
            if len(queues[0]) in {21, 14, 7}:
                kills += merge_in_child(tmp_path, f"{CHECKPOINTS[2 * kills]}:1", file_format) == -signal.SIGKILL
            else:
                merges += bool(merge(Home(tmp_path), "kafka", table_for(file_format), POLICY))
    assert wrong == []
    assert (merges > 5, kills > 0) == (True, True)
    assert_exact(tmp_path, file_format)


def test_a_merge_that_stands_still_with_the_lane_in_its_hand_only_delays_the_sink(
    tmp_path: Path, half_landed: Path
) -> None:
    """And its end lets go of the lane, however it ends."""
    home = shutil.copytree(half_landed, tmp_path / "home")
    lane = next(lanes(Home(home), "kafka", "positions_parquet"))
    files = len(lane.paths())
    # Its own standard input: where a test run has none, the holder would read the end of it and let go.
    with subprocess.Popen([*HOLDER, str(lane.lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.send_signal(signal.SIGSTOP)
        try:
            with subprocess.Popen([sys.executable, str(LANDING), str(home), "", "parquet"]) as sink:
                with pytest.raises(subprocess.TimeoutExpired):
                    sink.wait(5)
                assert len(lane.paths()) == files
                holder.kill()
                assert sink.wait(60) == 0
        finally:
            holder.kill()  # one that stands still would be waited for without end
    assert_exact(home, "parquet")


@dataclass
class ExchangeRecorder(Recorder):
    """Knows files that are made under their own name, and exchanges of folders.

    Until a parent of the two is synced, a power cut leaves all as it was or all as it is.
    """

    exchanged_names: dict[Path, Name] | None = None

    def check(self) -> None:
        try:
            super().check()
        except pl.exceptions.PolarsError as error:
            self.damaged.append(str(error))

    def named(self, path: Path, file: str | None) -> None:
        known = self.disk.names | self.disk.unsynced
        super().named(path, known[Path(file)][1] if file and Path(file) in known else file)

    def exchanged(self, one: Path, other: Path) -> None:
        exchange(one, other)
        self.disk.unsynced = swapped(self.disk.unsynced, one, other)
        before, self.disk.names = self.disk.names, swapped(self.disk.names, one, other)
        self.check()
        self.exchanged_names, self.disk.names = self.disk.names, before
        self.check()

    def synced(self, path: Path) -> None:
        if self.exchanged_names is not None and "folders" in self.syncs:
            self.disk.names, self.exchanged_names = self.exchanged_names, None
        if path.is_file() and path not in self.disk.names and _is_slot(path):
            self.disk.unsynced[path] = (path, str(path))
        super().synced(path)


def _is_slot(path: Path) -> bool:
    return path.parent.suffix == ".replaced"


def swapped(names: dict[Path, Name], one: Path, other: Path) -> dict[Path, Name]:
    moved = {}
    for path, name in names.items():
        if one in path.parents:
            path = other / path.relative_to(one)  # noqa: PLW2901
        elif other in path.parents:
            path = one / path.relative_to(other)  # noqa: PLW2901
        moved[path] = name
    return moved


def power_cuts(folder: Path, patch: pytest.MonkeyPatch, *, without: str = "") -> list[str]:
    """Land some commits, merge with every operation recorded, and look at every disk that a power cut may leave."""
    home, states = folder / "home", folder / "states"
    home.mkdir()
    states.mkdir()
    recorder = ExchangeRecorder(Disk(home), states, "parquet", ("files", "folders"))
    for module in ("slots", "lanes", "reader"):
        patch.setattr(f"sinks.{module}.footer", lambda path: FORMATS[path.suffix[1:]].footer(path))
    recorder.install(patch)
    patch.setattr(exchanging, "exchange", recorder.exchanged)
    sink = sink_for(home, "parquet")
    with pytest.MonkeyPatch.context() as quietly:
        quietly.setattr(recorder, "check", lambda: None)  # commits have a test of their own
        for partition in PARTITIONS:
            sink.resume(partition)
        for number in range(5):
            for partition in PARTITIONS if not number else PARTITIONS[:1]:  # the other is too short for a merge
                sink.write(batches("positions", partition, 0)[number])
            recorder.disk.acknowledged |= sink.commit()
    if without == "file":
        recorder.syncs = ("folders",)
    if without == "folder":
        patch.setattr(exchanging, "sync_folder", lambda path: sync_folder(path) if path.suffix != ".replaced" else None)
    merge(Home(home), "kafka", "positions_parquet", POLICY)
    patch.undo()
    assert recorder.checked > 20
    assert damage(home, recorder.disk.acknowledged, "parquet") is None
    return recorder.damaged


def test_a_power_cut_during_a_merge_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert power_cuts(tmp_path, monkeypatch) == []


@pytest.mark.parametrize("without", ["file", "folder"])
def test_without_a_sync_a_power_cut_during_a_merge_does_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    assert power_cuts(tmp_path, monkeypatch, without=without)


def test_the_moments_of_a_merge_are_all_killed_above() -> None:
    source = Path(str(merging.__file__)).read_text() + Path(str(exchanging.__file__)).read_text()
    assert all(f'checkpoint("{moment}")' in source for moment in CHECKPOINTS)
    assert source.count(".checkpoint(") == len(CHECKPOINTS)
