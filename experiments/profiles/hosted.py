"""The process that is profiled: `python -m experiments.profiles.hosted JOB` runs the command line's own role in it.

Invariant: what is measured begins after the imports, and what was measured is written when the role ends, by whatever
exception or signal but SIGKILL. The process ends with the one that started it, so no profiled role outlives its runner.

cProfile sees the thread that enables it and no other, so each thread gets a profiler of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import json
import os
import re
import resource
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from experiments.profiles import alone
from streaming.home import Home
from streaming.service import Limits

if sys.version_info >= (3, 12):  # cProfile is one a process there (sys.monitoring); its elder sister is one a thread
    from profile import Profile
else:
    from cProfile import Profile

# What a role imports as it goes would otherwise be most of a short profile.
PRELOADED: Final = ("orchestration.cli.flow", "orchestration.roles", "rich.console")
ENTRIES: Final = ("generate", "replay", "transform", "sink")  # of orchestration.roles: what the commands call
FACTS: Final = "hosted.json"
READY: Final = "began"
MAIN: Final = "main"
_PR_SET_PDEATHSIG: Final = 1
_KIB: Final = 1024

Act = Callable[[], None]
T = TypeVar("T")


def main(job: dict[str, Any]) -> None:
    """Run the job's command under the job's profiler. The exit code is the role's."""
    ctypes.CDLL(None).prctl(
        _PR_SET_PDEATHSIG, signal.SIGKILL
    )  # scalene's launcher is our parent, tethered to the runner
    for name in PRELOADED:
        importlib.import_module(name)
    folder = Path(job["folder"])
    if codecs := job.get("codecs"):
        _codecs_alone(job["profiler"], folder, codecs)
        return
    sys.argv = ["streamgauge", *job["arguments"]]
    _replace_entries(job["profiler"], folder)
    _say_ready(folder)
    runpy.run_module("orchestration.cli", run_name="__main__")


def _say_ready(folder: Path) -> None:
    scratch = folder / f".{READY}"
    scratch.write_text(str(os.getpid()))
    scratch.replace(folder / READY)


def _codecs_alone(profiler: str, folder: Path, job: dict[str, Any]) -> None:
    """Encode and decode under the profiler; the rows are made before."""
    home, workload = Home(Path(job["home"])), job["workload"]
    prepared = alone.blocks(workload["codec"], workload["vehicles"], workload["seed"])
    limits = Limits(workload["seconds"], workload["messages"])
    _say_ready(folder)
    _measured(alone.run, profiler, folder)(home, prepared, limits)


def _replace_entries(profiler: str, folder: Path) -> None:
    """From now on the command line's roles run under the profiler: what leads to them is not measured."""
    roles = importlib.import_module("orchestration.roles")
    for name in ENTRIES:
        setattr(roles, name, _measured(getattr(roles, name), profiler, folder))


def _measured(entry: Callable[..., Any], profiler: str, folder: Path) -> Callable[..., None]:
    ways: dict[str, Callable[[Path, Act], None]] = {
        "scalene": _under_scalene,
        "cprofile": _under_cprofile,
        "none": lambda _, act: act(),
    }

    def measured(*arguments: Any, **options: Any) -> None:
        with _facts(folder):
            ways[profiler](folder, lambda: entry(*arguments, **options))

    return measured


@contextlib.contextmanager
def _facts(folder: Path) -> Iterator[None]:
    """Note what the role took of the machine."""
    began_s, cpu_s = time.monotonic(), time.process_time()
    try:
        yield
    finally:
        facts = {
            "pid": os.getpid(),
            "wall_s": time.monotonic() - began_s,
            "cpu_s": time.process_time() - cpu_s,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB,
        }
        (folder / FACTS).write_text(json.dumps(facts))


def _under_scalene(_: Path, act: Act) -> None:
    from scalene import scalene_profiler  # noqa: PLC0415 - only where scalene runs us: elsewhere start() ends the process

    # Scalene's signal handler asks asyncio for its policy. Who asks first makes it under a lock: a signal that meets a
    # role in there would wait for the lock that it has interrupted, for good. So it is made before.
    asyncio.new_event_loop().close()
    scalene_profiler.start()
    try:
        act()
    finally:
        scalene_profiler.stop()


def _under_cprofile(folder: Path, act: Act) -> None:
    kept: list[tuple[str, Profile]] = []
    run = threading.Thread.run

    def profiled_run(thread: threading.Thread) -> None:
        profile = Profile()
        kept.append((thread.name, profile))
        profile.runcall(run, thread)

    profile = Profile()
    kept.append((MAIN, profile))
    threading.Thread.run = profiled_run  # type: ignore[method-assign, assignment]
    try:
        profile.runcall(act)
    finally:
        threading.Thread.run = run  # type: ignore[method-assign]
        _dump(kept, folder)


def under_profiler(act: Callable[[], T]) -> T:
    """What `act` returns, run under the profiler; nothing is kept of it."""
    found: T = Profile().runcall(act)
    return found


def _dump(kept: list[tuple[str, Profile]], folder: Path) -> None:
    """One .prof a thread, named after it; a second thread of the same name gets a number."""
    for place, (name, profile) in enumerate(kept):
        words = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "thread"
        path = folder / f"{words}.prof"
        profile.dump_stats(str(folder / f"{words}-{place}.prof" if path.exists() else path))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
