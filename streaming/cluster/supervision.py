"""Long-running processes under supervisord: started in order, restarted when they crash, stopped without a remnant.

Invariant: every process under a supervisor carries the supervisor's mark in its environment and so do its children,
however deep; `survivors` finds them all, even when the supervisor itself was killed. Services are tethered to it.

The traps of supervisord, and what is done about them: a socket's path has room for 107 bytes, so it lies in a short
folder of its own; a crash is restarted at once, so the tether paces it (`startsecs=0`: an exit code counts however
early it comes); priorities are not readiness, so the caller starts group after group; in its settings file ` ;` and
` #` begin a comment, wherever they stand, so no path may contain them.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shlex
import stat
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
from supervisor.xmlrpc import Faults, SupervisorTransport

from streaming.cluster import tether
from streaming.errors import SetupError

MARK: Final = "STREAMGAUGE_SUPERVISED"
_START_TIMEOUT_S: Final = 20.0
_END_TIMEOUT_S: Final = 10.0
_SOCKET_PATH_BYTES: Final = 100  # the kernel's limit is 107, supervisord appends its process id while it binds


@dataclass(frozen=True, slots=True)
class Service:
    """A process to supervise. `group` is what starts and stops together; groups start in the order they come."""

    name: str
    group: str
    command: tuple[str, ...]
    folder: Path  # its working directory
    log: Path  # standard output and error, rotated
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_timeout_s: int = 30  # from SIGTERM to SIGKILL
    final_exit_codes: tuple[int, ...] = ()  # exits that are not restarted; all others are


@dataclass(frozen=True, slots=True)
class ServiceState:
    """How a service is: RUNNING, BACKOFF (waits before its next start), STOPPED, EXITED, STOPPING, FATAL."""

    name: str
    group: str
    state: str
    pid: int | None
    uptime_s: float | None
    exit_code: int | None  # of the last end, when it has ended by itself


class Supervisor:
    """One supervisord and its services. The same `root` is the same supervisor, whichever process asks."""

    def __init__(self, root: Path, *, run: Path, logs: Path) -> None:
        self._root = root
        self._run = run
        self._logs = logs

    @property
    def is_up(self) -> bool:
        """Whether supervisord answers."""
        try:
            return bool(self._call("getState"))
        except (OSError, http.client.HTTPException, xmlrpc.client.Fault):  # the last: it is shutting down
            return False

    def launch(self, services: Sequence[Service], environment: Mapping[str, str]) -> None:
        """Start supervisord with these services, none of them running yet. `environment` is everyone's."""
        self._run.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        socket = self._make_socket_folder() / "supervisor.sock"
        configuration = self._run / "supervisord.conf"
        configuration.write_text(_configuration(services, socket, self._run, self._logs))
        (self._run / "socket").write_text(str(socket))
        (self._run / "services").write_text("\n".join(service.name for service in services))
        console = self._logs / "supervisord.console.log"
        pid = _spawn(configuration, console, {**environment, MARK: str(self._root)})
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self.is_up:
            if _has_ended(pid) or time.monotonic() > deadline:
                raise SetupError(f"supervisord did not start: {console.read_text()[-500:]}", f"look at {console}")
            time.sleep(0.05)

    def states(self) -> list[ServiceState]:
        """All services, in the order of launch()."""
        order = (self._run / "services").read_text().split()
        states = [self._state(info) for info in self._call("getAllProcessInfo")]
        return sorted(states, key=lambda state: order.index(state.name))

    def start(self, services: Iterable[str]) -> None:
        """Start what is not running, without a pause; returns when the processes exist, not when they are ready."""
        for state in self._named(services):
            (self._run / f"{state.name}.pace").unlink(missing_ok=True)
            self._call("startProcess", f"{state.group}:{state.name}", False, tolerate=Faults.ALREADY_STARTED)  # noqa: FBT003

    def stop(self, services: Iterable[str]) -> None:
        """SIGTERM to all, SIGKILL to those that do not end in their time; returns when all are gone."""
        named = self._named(services)
        for state in named:
            self._call("stopProcess", f"{state.group}:{state.name}", False, tolerate=Faults.NOT_RUNNING)  # noqa: FBT003
        names = {state.name for state in named}
        while any(state.pid for state in self.states() if state.name in names):
            time.sleep(0.05)

    def kill(self, services: Iterable[str]) -> None:
        """SIGKILL, without a word before; returns when all are gone. They rest, STOPPED, until they are started.

        supervisord restarts what ends by itself, so it must hear of a stop first; the process is frozen before, so
        that it never sees the SIGTERM that comes with the stop.
        """
        named = self._named(services)
        for state in named:
            if state.pid:
                _signal(psutil.Process(state.pid), psutil.Process.suspend)
                self._call("stopProcess", f"{state.group}:{state.name}", False, tolerate=Faults.NOT_RUNNING)  # noqa: FBT003
                _signal(psutil.Process(state.pid), psutil.Process.kill)
        self.stop(state.name for state in named)

    def shut_down(self) -> None:
        """End supervisord, then whatever carries its mark: nothing that was started under it is left."""
        if self.is_up:
            process = psutil.Process(self._call("getPID"))
            self._call("shutdown")
            psutil.wait_procs([process], timeout=_END_TIMEOUT_S)
        self.end_survivors()
        self._remove_socket_folder()

    def survivors(self) -> list[psutil.Process]:
        """Every process that was started under this supervisor, however deep, itself included."""
        mine, root = os.getpid(), str(self._root)
        return [process for process in psutil.process_iter() if process.pid != mine and _mark(process) == root]

    def end_survivors(self, *, but: Iterable[int] = ()) -> int:
        """End what carries the mark, except these process ids: SIGTERM, then SIGKILL. Returns how many there were."""
        spared = set(but)
        found = [process for process in self.survivors() if process.pid not in spared]
        for process in found:
            _signal(process, psutil.Process.terminate)
        _, alive = psutil.wait_procs(found, timeout=_END_TIMEOUT_S)
        for process in alive:
            _signal(process, psutil.Process.kill)
        psutil.wait_procs(alive, timeout=_END_TIMEOUT_S)
        return len(found)

    def pids(self) -> set[int]:
        """The processes of supervisord and its services, without their children."""
        return {self._call("getPID"), *(state.pid for state in self.states() if state.pid)}

    def _named(self, services: Iterable[str]) -> list[ServiceState]:
        names = set(services)
        return [state for state in self.states() if state.name in names]

    def _state(self, info: Mapping[str, Any]) -> ServiceState:
        is_alive = bool(info["pid"])
        waits = is_alive and tether.starts_at(self._run / f"{info['name']}.pace") > time.time()
        state = "BACKOFF" if waits else str(info["statename"])
        return ServiceState(
            name=str(info["name"]),
            group=str(info["group"]),
            state=state,
            pid=int(info["pid"]) or None,
            uptime_s=max(0.0, float(info["now"] - info["start"])) if is_alive else None,
            exit_code=int(info["exitstatus"]) if state == "EXITED" else None,
        )

    def _call(self, method: str, *arguments: Any, tolerate: int | None = None) -> Any:
        socket = (self._run / "socket").read_text()
        with xmlrpc.client.ServerProxy(
            "http://localhost", SupervisorTransport(None, None, f"unix://{socket}")
        ) as server:
            try:
                return getattr(server.supervisor, method)(*arguments)
            except xmlrpc.client.Fault as fault:
                if fault.faultCode != tolerate:
                    raise
                return None

    def _make_socket_folder(self) -> Path:
        """A short folder that only this user can look into."""
        name = f"sg-{hashlib.sha256(str(self._root).encode()).hexdigest()[:16]}"
        folder = Path(tempfile.gettempdir()) / name
        if len(os.fsencode(folder / "supervisor.sock")) > _SOCKET_PATH_BYTES:
            raise SetupError(f"{folder} is too long a path for a socket", "set TMPDIR to a folder with a shorter path")
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise SetupError(f"{folder} is not a private folder of this user", f"remove {folder}, or set TMPDIR")
        return folder

    def _remove_socket_folder(self) -> None:
        with contextlib.suppress(OSError):  # never made, or gone already
            folder = Path((self._run / "socket").read_text()).parent
            for leftover in folder.glob("supervisor.sock*"):
                leftover.unlink()
            folder.rmdir()
            (self._run / "socket").unlink()


def _spawn(configuration: Path, console: Path, environment: Mapping[str, str]) -> int:
    """Start supervisord in a session of its own. The shell tells it its process id, which the tethers compare."""
    tied = f'{tether.PARENT}=$$ exec "$0" "$@"'
    command = ["sh", "-c", tied, sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(configuration)]
    appends = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawnp(
        "sh",
        command,
        {**os.environ, **environment},
        setsid=True,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(console), appends, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )


def _configuration(services: Sequence[Service], socket: Path, run: Path, logs: Path) -> str:
    """The settings file of supervisord. The services do not start by themselves."""
    groups: dict[str, list[str]] = {}
    for service in services:
        groups.setdefault(service.group, []).append(service.name)
    sections: dict[str, dict[str, object]] = {
        "unix_http_server": {"file": socket, "chmod": "0700"},
        "rpcinterface:supervisor": {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        },
        "supervisord": {
            "logfile": logs / "supervisord.log",
            "logfile_maxbytes": "10MB",
            "logfile_backups": 2,
            "pidfile": run / "supervisord.pid",
            "childlogdir": logs,
            "silent": "true",
            **({"user": "root"} if os.geteuid() == 0 else {}),
        },
        **{f"program:{service.name}": _program(service, run) for service in services},
        **{
            f"group:{name}": {"programs": ",".join(names), "priority": at}
            for at, (name, names) in enumerate(groups.items())
        },
    }
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {str(value).replace('%', '%%')}\n" for key, value in section.items())
        for name, section in sections.items()
    )


def _program(service: Service, run: Path) -> dict[str, object]:
    service.log.parent.mkdir(parents=True, exist_ok=True)
    # By env(1): supervisord's own `environment` knows no escapes.
    adding = ("env", *(f"{name}={value}" for name, value in service.environment.items()))
    command = (*adding, *service.command) if service.environment else service.command
    return {
        "command": shlex.join(tether.tethered(command, pace=run / f"{service.name}.pace")),
        "directory": service.folder,
        "autostart": "false",
        "startsecs": 0,
        "autorestart": "unexpected" if service.final_exit_codes else "true",
        "exitcodes": ",".join(map(str, service.final_exit_codes or (0,))),
        "stopwaitsecs": service.stop_timeout_s,
        "stopsignal": "TERM",
        "killasgroup": "true",
        "redirect_stderr": "true",
        "stdout_logfile": str(service.log).replace("%", "%%"),  # supervisord expands this one twice
        "stdout_logfile_maxbytes": "10MB",
        "stdout_logfile_backups": 3,
    }


def _mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except (psutil.Error, OSError):  # another user's, or gone meanwhile
        return None


def _signal(process: psutil.Process, send: Callable[[psutil.Process], None]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        send(process)


def _has_ended(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True
