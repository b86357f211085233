"""Dagster as the lab runs it: a real webserver and a real daemon on an instance of their own, asked through GraphQL.

Invariant: when the block is left, no process of either, and none that a run has started, is alive.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import dagster as dg
import psutil

from orchestration import services
from streaming.cluster import ports
from streaming.cluster.supervision import Supervisor
from streaming.home import PROJECT_ROOT, Home
from streaming.lab import Lab

T = TypeVar("T")
LOCATION: Final = "tests.orchestration.nights"
MARK: Final = "STREAMGAUGE_TEST_ROOM"  # in the environment of all that a room starts, however deep
READY_S: Final = 120.0
ENDED: Final = frozenset({"SUCCESS", "FAILURE", "CANCELED"})
_REPOSITORY: Final = "__repository__"


def wait_until(condition: Callable[[], T], within_s: float = 120) -> T:
    """Poll until truthy, and return that; AssertionError when it is not in time."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "not within the time allowed"
        time.sleep(0.1)
    return found


@contextlib.contextmanager
def pages_served(home: Home) -> Iterator[None]:
    """The profiles' pages, the only service of a lab that is up in the block."""
    [port] = ports.free(1)
    lab = Lab(port_base=port - 31)
    assert lab.pages_port == port
    lab.save(home)
    supervisor = Supervisor(home.root, run=home.run, logs=home.logs)
    try:
        supervisor.launch([each for each in services.services_of(home, lab) if each.name == services.PAGES], {})
        supervisor.start([services.PAGES])
        yield
    finally:
        supervisor.shut_down()
        (home.root / "lab.json").unlink()


@dataclass
class ControlRoom:
    """A webserver, a daemon that can be away for a while, and their instance in the home."""

    home: Home
    port: int
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        services.write_dagster_yaml(self.home)  # the lab's own settings: the pool of one is among them
        self.instance = dg.DagsterInstance.from_config(str(self.home.dagster))

    # -- processes -----------------------------------------------------------------------------------------------------

    def start_webserver(self) -> None:
        """Returns when it answers and has loaded the location."""
        self._start("dagster-webserver", "-h", ports.HOST, "-p", str(self.port), "-m", LOCATION)
        wait_until(self._is_loaded, READY_S)

    def start_daemon(self) -> None:
        """The daemon that launches queued runs and looks at schedules; returns at once."""
        self._start("dagster-daemon", "run", "-m", LOCATION)

    def stop_daemon(self) -> None:
        """As when a lab goes down."""
        self._stop("dagster-daemon")

    @contextlib.contextmanager
    def without_daemon(self) -> Iterator[None]:
        """What the block does happens while the daemon is away."""
        self.stop_daemon()
        try:
            yield
        finally:
            self.start_daemon()

    def close(self) -> None:
        """End both, and whatever their runs have left."""
        for name in list(self._processes):
            self._stop(name)
        for process in self.started():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.instance.dispose()

    def started(self) -> list[psutil.Process]:
        """All that lives because of this room, however deep."""
        return [process for process in psutil.process_iter() if _mark(process) == str(self.home.root)]

    # -- GraphQL -------------------------------------------------------------------------------------------------------

    def query(self, text: str, **variables: Any) -> dict[str, Any]:
        """What the webserver answers; AssertionError with its errors."""
        request = urllib.request.Request(  # noqa: S310 - http, on this machine
            f"{self.address}/graphql",
            json.dumps({"query": text, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - http, on this machine
            found = json.load(answer)
        assert "errors" not in found, found["errors"]
        data: dict[str, Any] = found["data"]
        return data

    @property
    def address(self) -> str:
        """Where the browser goes."""
        return f"http://{ports.HOST}:{self.port}"

    def launch(self, job: str, run_config: dict[str, Any], *, partition: str | None = None) -> str:
        """Launch a run as the launchpad does; its id."""
        text = """mutation($parameters: ExecutionParams!) { launchRun(executionParams: $parameters) {
            __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
            ... on RunConfigValidationInvalid { errors { message } } } }"""
        parameters: dict[str, Any] = {
            "selector": self._selector(pipelineName=job),
            "runConfigData": json.dumps(run_config),
        }
        if partition is not None:
            parameters["executionMetadata"] = {"tags": [{"key": "dagster/partition", "value": partition}]}
        answer = self.query(text, parameters=parameters)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def terminate(self, run_id: str) -> None:
        """As the button in the UI does."""
        text = """mutation($id: String!) { terminateRun(runId: $id, terminatePolicy: SAFE_TERMINATE) {
            __typename ... on TerminateRunFailure { message } ... on PythonError { message } } }"""
        answer = self.query(text, id=run_id)["terminateRun"]
        assert answer["__typename"] == "TerminateRunSuccess", answer

    def switch_on(self, schedule: str, *, ago: timedelta = timedelta(0)) -> None:
        """Switch a schedule on; `ago`: it has been on for so long, and the daemon (stopped meanwhile) was down."""
        text = """mutation($selector: ScheduleSelector!) { startSchedule(scheduleSelector: $selector) {
            __typename ... on PythonError { message } } }"""
        answer = self.query(text, selector=self._selector(scheduleName=schedule))["startSchedule"]
        assert answer["__typename"] == "ScheduleStateResult", answer
        if ago:
            (state,) = [each for each in self.instance.all_instigator_state() if each.instigator_name == schedule]
            since: Any = state.instigator_data
            began = (datetime.now(UTC) - ago).timestamp()
            data = since._replace(start_timestamp=began, last_iteration_timestamp=None)
            self.instance.update_instigator_state(state.with_data(data))

    def switch_off(self, schedule: str) -> None:
        """Switch a schedule off."""
        text = """query($selector: ScheduleSelector!) { scheduleOrError(scheduleSelector: $selector) {
            ... on Schedule { scheduleState { id } } } }"""
        found = self.query(text, selector=self._selector(scheduleName=schedule))["scheduleOrError"]
        text = """mutation($id: String!) { stopRunningSchedule(id: $id) { __typename } }"""
        answer = self.query(text, id=found["scheduleState"]["id"])["stopRunningSchedule"]
        assert answer["__typename"] == "ScheduleStateResult", answer

    def _selector(self, **named: str) -> dict[str, str]:
        return {"repositoryLocationName": LOCATION, "repositoryName": _REPOSITORY, **named}

    def _is_loaded(self) -> bool:
        text = """{ repositoriesOrError { __typename ... on RepositoryConnection { nodes { name } } } }"""
        with contextlib.suppress(OSError):
            return bool(self.query(text)["repositoriesOrError"].get("nodes"))
        assert self._processes["dagster-webserver"].poll() is None, self.log("dagster-webserver")[-3000:]
        return False

    # -- runs ----------------------------------------------------------------------------------------------------------

    def status(self, run_id: str) -> str:
        """As Dagster names it: QUEUED, STARTED, SUCCESS and so on."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status.value

    def wait_for(self, run_id: str, *statuses: str, within_s: float = 180) -> str:
        """Return when the run has one of these; AssertionError with what it said when it ends otherwise."""
        wanted = set(statuses)
        found = wait_until(lambda: self.status(run_id) in wanted | ENDED and self.status(run_id), within_s)
        assert found in wanted, f"{found}: {self.says(run_id)[-3000:]}"
        return str(found)

    def runs_of(self, job: str) -> list[dg.DagsterRun]:
        """A job's runs, oldest first."""
        return list(reversed(self.instance.get_runs(dg.RunsFilter(job_name=job))))

    def says(self, run_id: str) -> str:
        """The run's event log, as text."""
        return "\n".join(f"{entry.user_message} {entry.message}" for entry in self.instance.all_logs(run_id))

    def log(self, name: str) -> str:
        """What dagster-daemon or dagster-webserver has written."""
        return (self.home.logs / f"{name}.log").read_text(errors="replace")

    def _start(self, program: str, *words: str) -> None:
        self.home.logs.mkdir(parents=True, exist_ok=True)
        environment = {
            "DAGSTER_HOME": str(self.home.dagster),
            "STREAMGAUGE_HOME": str(self.home.root),
            MARK: str(self.home.root),
        }
        with (self.home.logs / f"{program}.log").open("ab") as log:
            self._processes[program] = subprocess.Popen(
                [str(Path(sys.executable).parent / program), *words],
                env={**os.environ, **environment},
                cwd=PROJECT_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _stop(self, program: str) -> None:
        process = self._processes.pop(program)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its code server


def _mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except (psutil.Error, OSError):
        return None
