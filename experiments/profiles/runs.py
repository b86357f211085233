"""Profile runs as folders: `profiles/RUN/` under the lab's home, each with its run.json and what was measured.

Invariant: run.json is there from the first moment, replaced as a whole, and says in the end how the run ended. What is
kept are the newest KEPT runs, and beyond them the newest undisturbed ones that a role's cost is judged by.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from streaming.errors import UsageError
from streaming.home import Home
from streaming.tuning import Tuning

META: Final = "run.json"
TUNED: Final = {each.name: str if each.name in {"compression", "parquet"} else int for each in fields(Tuning)}
KEPT: Final = 300
KEPT_ALIKE: Final = 30  # undisturbed runs of a role, broker and workload: more than history looks back, and small
LATEST: Final = "latest"


class Profiler(StrEnum):
    """What looks at the role. `none`: its loop is timed, nothing else disturbs it."""

    SCALENE = "scalene"
    CPROFILE = "cprofile"
    NONE = "none"


class Status(StrEnum):
    """How a run is, or how it ended. What was measured is kept in each case but `failed`, mostly even then."""

    RUNNING = "running"
    COMPLETE = "complete"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class Load(StrEnum):
    """How records come to the role: all at once, evenly, or in bursts of two seconds' worth."""

    BACKLOG = "backlog"
    STEADY = "steady"
    BURST = "burst"


@dataclass(frozen=True, slots=True)
class Workload:
    """What the role is given; ends after `messages`, or after `seconds`, whichever is first.

    `rate_hz`: records a second in all, of a steady or bursty load. `tuning`: how the role is set.
    The rest makes the records what they are.
    """

    messages: int | None = 100_000
    seconds: float | None = None
    load: Load = Load.BACKLOG
    rate_hz: float = 200.0
    codec: str = "json"
    vehicles: int = 20
    seed: int = 1
    tuning: Tuning = field(default_factory=Tuning)

    def changed(self, settings: Mapping[str, str]) -> Workload:
        """With settings from the command line, in words; UsageError for what there is not."""
        kinds = {"load": Load, "rate_hz": float, "codec": str, "vehicles": int, "seed": int, **TUNED}
        given: dict[str, Any] = {}
        for name, text in settings.items():
            if name not in kinds:
                raise UsageError(f"--set {name}={text}: there is {', '.join(kinds)}")
            try:
                given[name] = kinds[name](text)
            except ValueError:
                of = f"one of {', '.join(Load)}" if name == "load" else f"a {kinds[name].__name__}"
                raise UsageError(f"--set {name}={text}: {of} is wanted") from None
        tuned = {name: given.pop(name) for name in TUNED if name in given}
        return replace(self, **given, tuning=replace(self.tuning, **tuned))

    @property
    def says(self) -> str:
        """In a few words."""
        size = f"{self.messages:,} records" if self.messages else f"{self.seconds:g} s"
        pace = "as fast as it can" if self.load is Load.BACKLOG else f"{self.load}, {self.rate_hz:g} a second"
        tuned = "".join(f", {name} {value}" for name, value in self.tuning.given.items())
        return f"{size}, {pace}, {self.codec}, {self.vehicles} vehicles, seed {self.seed}{tuned}"


@dataclass(frozen=True, slots=True)
class Run:
    """A profile run: what was asked, and what became of it. Times are UTC in ISO 8601; seconds are the role's own."""

    name: str
    role: str
    broker: str
    profiler: Profiler
    workload: Workload
    began: str
    status: Status = Status.RUNNING
    ended: str | None = None
    exit_code: int | None = None
    reason: str | None = None  # why it was interrupted or failed
    records: int = 0
    committed: int = 0
    rejected: int = 0
    wall_s: float | None = None  # of the process under the profiler, imports excluded
    cpu_s: float | None = None
    loop_s: float | None = None
    waited_s: float | None = None  # of loop_s; of a sink the polling loop's, which also waits for the writing one
    peak_rss_mb: float | None = None
    scenario: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cpu_us_per_record(self) -> float | None:
        """Processor time a record; None when nothing was taken in."""
        return 1e6 * self.cpu_s / self.records if self.cpu_s and self.records else None

    @property
    def rate_hz(self) -> float | None:
        """Records a second of the loop."""
        return self.records / self.loop_s if self.loop_s else None

    @property
    def waiting(self) -> float | None:
        """How much of its main loop's time went by waiting."""
        return self.waited_s / self.loop_s if self.loop_s and self.waited_s is not None else None


def root(home: Home) -> Path:
    """Where runs lie."""
    return home.root / "profiles"


def new_name(home: Home, role: str, profiler: Profiler) -> str:
    """A name that no run has."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    base, number = f"{stamp}-{role}-{profiler}", 1
    name = base
    while (root(home) / name).exists():
        number += 1
        name = f"{base}-{number}"
    return name


def write(home: Home, run: Run) -> Path:
    """Make or replace the run's run.json; its folder."""
    folder = root(home) / run.name
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{META}"
    scratch.write_text(json.dumps(asdict(run), indent=2, default=str) + "\n")
    scratch.replace(folder / META)
    return folder


def listed(home: Home) -> list[Run]:
    """All runs, the oldest first; what can't be read is left out."""
    return [run for path in sorted(root(home).glob(f"*/{META}")) if (run := _read(path)) is not None]


def found(home: Home, name: str, *, role: str | None = None, holding: Sequence[str] = ()) -> Run:
    """The run of this name or of a beginning that only it has, or the latest one (of a role: its name will do).

    `holding`: the latest one that has left one of these files, if any has. UsageError if there is no such run.
    """
    runs = [run for run in listed(home) if role in {None, run.role}]
    of_role = [run for run in runs if run.role == name]
    if name == LATEST or of_role:
        latest = of_role or runs
        able = [run for run in latest if any((folder_of(home, run) / each).exists() for each in holding)]
        matching = (able or latest)[-1:]
    else:
        matching = [run for run in runs if run.name == name] or [run for run in runs if run.name.startswith(name)]
    if len(matching) == 1:
        return matching[0]
    if not runs:
        raise UsageError(f"no runs{f' of {role}' if role else ''} yet: streamgauge profile run {role or 'ROLE'}")
    known = ", ".join(run.name for run in (matching or runs)[-5:])
    says = "fits several runs" if matching else "is no run, and no role that was profiled"
    raise UsageError(f"{name!r} {says}; the newest: {known}")


def folder_of(home: Home, run: Run) -> Path:
    """The run's folder."""
    return root(home) / run.name


def forget_old(home: Home, kept: int = KEPT, kept_alike: int = KEPT_ALIKE) -> int:
    """Delete all but the newest runs, and the newest undisturbed ones of each kind; how many.

    One night of every role on every broker is 210 runs: by their number alone none would be left to judge the next by.
    """
    ended = [run for run in listed(home) if run.status is not Status.RUNNING]
    alike: dict[tuple[str, str, Workload], list[Run]] = {}
    for run in ended:
        if run.profiler is Profiler.NONE and run.status is Status.COMPLETE:
            alike.setdefault((run.role, run.broker, run.workload), []).append(run)
    judging = {run.name for of_kind in alike.values() for run in of_kind[-kept_alike:]}
    old = [run for run in ended[:-kept] if run.name not in judging]
    for run in old:
        shutil.rmtree(folder_of(home, run), ignore_errors=True)
    return len(old)


def _read(path: Path) -> Run | None:
    """None also for a folder that is not its run's own: a copy, or one whose run.json leads somewhere else."""
    try:
        said = json.loads(path.read_text())
        if said["name"] != path.parent.name:
            return None
        asked = said["workload"]
        tuning = Tuning(**asked.get("tuning", {}))  # runs of before it was noted had none
        workload = Workload(**{**asked, "load": Load(asked["load"]), "tuning": tuning})
        kinds = {"profiler": Profiler(said["profiler"]), "status": Status(said["status"]), "workload": workload}
        return Run(**{**said, **kinds})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
