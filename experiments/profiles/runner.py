"""Profiling a role: start it as a process of its own under a profiler, stop it in order, keep what was measured.

Invariant: however it ends (its work done, Ctrl-C, SIGTERM, a deadline), the role gets a signal after which it flushes
and commits, the profile is written and kept, and no process is left. If this process is killed, the kernel ends the
role.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import psutil

from experiments import provenance
from experiments.profiles import hosted, runs
from experiments.profiles.alone import CODECS
from experiments.profiles.corners import At
from experiments.profiles.results import build
from experiments.profiles.runs import Load, Profiler, Run, Status, Workload
from experiments.profiles.stage import NO_BROKER, Stage, insist, possible, stage
from streaming.cluster import tether
from streaming.cluster.kafka import DisposableCluster
from streaming.cluster.rabbitmq import DisposableRabbitMQ
from streaming.errors import UsageError
from streaming.home import PROJECT_ROOT, Home
from streaming.lab import KAFKA
from streaming.turns import SUFFIX

SCALENE_JSON: Final = "scalene.json"
LOG: Final = "role.log"
JOB: Final = "job.json"
STARTING_S: Final = 120.0  # imports under a profiler on a busy machine
PATIENCE_S: Final = 600.0  # for a workload that is a number of messages, beside the time in which they come
ENDING_S: Final = 90.0  # flush, commit, write the profile
_LOOK_S: Final = 0.1

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be profiled."""

    role: str
    broker: str = "kafka"
    profiler: Profiler = Profiler.CPROFILE
    workload: Workload = field(default_factory=Workload)
    scenario: str = ""


@contextlib.contextmanager
def brokers(bootstrap_servers: str | None = None, *, broker: str = KAFKA) -> Iterator[At | None]:
    """Where to profile: the Kafka cluster that is given, or brokers started for it and then ended; None: no broker.

    UsageError for Kafka's address with another broker.
    """
    insist_on_kafka(bootstrap_servers, broker)
    if broker == NO_BROKER:
        yield None
    elif bootstrap_servers is not None:
        yield bootstrap_servers
    elif broker == KAFKA:
        with DisposableCluster() as cluster:
            yield cluster.bootstrap_servers
    else:
        with DisposableRabbitMQ() as node:
            yield node


def insist_on_kafka(bootstrap_servers: str | None, broker: str) -> None:
    """UsageError for Kafka's address with another broker; to be asked for all before anything is started."""
    if bootstrap_servers is not None and broker not in {KAFKA, NO_BROKER}:
        raise UsageError(
            f"--bootstrap-servers is a Kafka cluster's address; on {broker} a node is started for profiles"
        )


def profile(
    home: Home,
    request: Request,
    at: At | None,
    *,
    stop: threading.Event | None = None,
    say: Say = lambda _: None,
) -> Run:
    """Profile a role on the broker at `at`; the run with everything it measured on disk.

    Setting `stop` ends it early: the run is `interrupted` and keeps its profile. UsageError for what can't be profiled.
    BrokerUnavailable also when something of the run is left on the broker: it is `failed` then, with all it measured.
    """
    stop = stop or threading.Event()
    insist(request.role, request.broker, request.workload)
    request = replace(request, workload=possible(request.role, request.workload))
    run = _begun(home, request)
    folder = runs.write(home, run)
    try:
        say(f"{request.role}: preparing {request.workload.says}")
        with stage(home, request.role, request.broker, request.workload, at, run.name, stop) as made:
            try:
                ending = _hosted(made, folder, request.profiler, stop, say)
            except BaseException:
                run = replace(_finished(run, made, folder, _Ending(0, "broken off")), exit_code=None)
                _keep_turns(made, folder)
                raise
            run = _finished(run, made, folder, ending)
            if run.status is not Status.FAILED:
                _keep_turns(made, folder)
    except BaseException as error:
        status = Status.FAILED if isinstance(error, Exception) else Status.INTERRUPTED
        reason = "; ".join([str(error) or repr(error), *getattr(error, "__notes__", [])])
        run = replace(run, status=status, ended=provenance.now(), reason=reason)
        runs.write(home, run)
        if (folder / hosted.FACTS).exists():
            build(folder, run)
        raise
    say(f"{request.role}: making tables and figures")
    runs.write(home, run)  # first: whatever ends us while tables are made, how the run ended is known
    build(folder, run)
    runs.forget_old(home)
    return run


@dataclass(frozen=True, slots=True)
class _Ending:
    """How the role's process ended: its exit code, why it was told to, if it was, and whether its work had begun."""

    exit_code: int
    reason: str | None
    has_begun: bool = True


def _begun(home: Home, request: Request) -> Run:
    folder = runs.root(home)
    folder.mkdir(parents=True, exist_ok=True)
    machine = provenance.machine(folder)
    return Run(
        name=runs.new_name(home, request.role, request.profiler),
        role=request.role,
        broker=request.broker,
        profiler=request.profiler,
        workload=request.workload,
        began=provenance.now(),
        scenario=request.scenario,
        provenance={
            "code": provenance.code_version(),
            "versions": provenance.versions(),
            "machine": asdict(machine),
            "contention": provenance.contention(),
        },
    )


def _hosted(made: Stage, folder: Path, profiler: Profiler, stop: threading.Event, say: Say) -> _Ending:
    """Run the role's process to its end."""
    job: dict[str, Any] = {"profiler": str(profiler), "folder": str(folder), "arguments": made.arguments()}
    if made.role is None:
        job["codecs"] = {"home": str(made.home.root), "workload": asdict(made.workload)}
    (folder / JOB).write_text(json.dumps(job, indent=2) + "\n")
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            tether.tethered(_command(folder, profiler)),
            cwd=folder,
            env=tether.environment({"STREAMGAUGE_TURNS": "1", "COLUMNS": "120"}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C in the terminal is ours to pass on
        )
    try:
        return _watched(process, made, folder, stop, say)
    except BaseException:  # Dagster ends a run by raising in the midst of it: the profile is kept even then
        if (folder / hosted.READY).exists() and process.poll() is None:
            _tell(int((folder / hosted.READY).read_text()), process)
        raise
    finally:
        _end_group(process)


def _command(folder: Path, profiler: Profiler) -> list[str]:
    module = ["-m", hosted.__name__]
    if profiler is not Profiler.SCALENE:
        return [sys.executable, *module, str(folder / JOB)]
    options = ["--off", "-o", str(folder / SCALENE_JSON), "--program-path", str(PROJECT_ROOT)]
    return [sys.executable, "-m", "scalene", "run", *options, *module, "---", str(folder / JOB)]


def _watched(process: subprocess.Popen[bytes], made: Stage, folder: Path, stop: threading.Event, say: Say) -> _Ending:
    ready, reason = folder / hosted.READY, None
    deadline = time.monotonic() + STARTING_S
    while process.poll() is None and not ready.exists():
        if stop.is_set():
            return _Ending(-signal.SIGKILL, "stopped before the role had begun", has_begun=False)
        if time.monotonic() > deadline:
            return _Ending(-signal.SIGKILL, "never began")
        stop.wait(_LOOK_S)
    say(f"{made.role.name if made.role else CODECS}: runs")
    made.begin_feeding()
    deadline = time.monotonic() + _patience_s(made.workload) + ENDING_S
    while process.poll() is None:
        if made.fault is not None:
            raise made.fault
        if stop.is_set() or time.monotonic() > deadline:
            reason = "interrupted" if stop.is_set() else "not done in time"
            _tell(int(ready.read_text()), process)
            break
        stop.wait(_LOOK_S)
    return _Ending(process.wait(), reason)


def _patience_s(workload: Workload) -> float:
    """How long the role's work may take: as asked, or enough for so many messages, which may come at a rate."""
    if workload.seconds is not None:
        return workload.seconds
    is_paced = workload.load is not Load.BACKLOG
    return PATIENCE_S + ((workload.messages or 0) / workload.rate_hz if is_paced else 0.0)


def _tell(pid: int, process: subprocess.Popen[bytes]) -> None:
    """Ask the role itself, not scalene's launcher, to end; SIGKILL if it does not."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGINT)
    try:
        process.wait(ENDING_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Nothing of the process's session is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _finished(run: Run, made: Stage, folder: Path, ending: _Ending) -> Run:
    """The run as its process left it."""
    facts, progress = _json(folder / hosted.FACTS), _json(_progress_path(made))
    status = Status.COMPLETE if ending.exit_code == 0 and ending.reason is None else Status.INTERRUPTED
    if ending.has_begun and (not facts or (ending.exit_code != 0 and ending.reason is None)):
        status = Status.FAILED
    reason = ending.reason or (None if status is Status.COMPLETE else _last_words(folder / LOG))
    return replace(
        run,
        status=status,
        ended=provenance.now(),
        exit_code=ending.exit_code,
        reason=reason,
        records=progress.get("records", 0),
        committed=progress.get("committed", 0),
        rejected=progress.get("rejected", 0),
        wall_s=facts.get("wall_s"),
        cpu_s=facts.get("cpu_s"),
        peak_rss_mb=facts["peak_rss_bytes"] / 1e6 if facts else None,
        loop_s=progress.get("loop_s"),
        waited_s=progress.get("loop_waited_s"),
    )


def _progress_path(made: Stage) -> Path:
    return next(iter(sorted(made.home.run.glob("*.json"))), made.home.run / "none.json")


def _keep_turns(made: Stage, folder: Path) -> None:
    """The loops' turns as raw numbers, named after their thread: main, or sink."""
    service = _progress_path(made).stem  # of RabbitMQ's roles it has a dot itself
    for path in made.home.run.glob(f"*{SUFFIX}"):
        thread = path.name.removesuffix(SUFFIX).removeprefix(service).lstrip(".") or hosted.MAIN
        (folder / f"{thread}{SUFFIX}").write_bytes(path.read_bytes())


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _last_words(path: Path) -> str:
    """What the role said last; scalene tells after it where the profile lies."""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("streamgauge: ")]
    return (own or lines or ["it said nothing"])[-1].strip()


def survivors(folder: Path) -> list[psutil.Process]:
    """Processes that work on this run's folder."""
    return [each for each in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(each.info["cmdline"] or [])]
