"""Whether this machine can run a lab: platform, Python, disk, ports; each finding says what to do about it.

Invariant: looking changes nothing.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from streaming.cluster import ports
from streaming.errors import SetupError

LEAST_FREE_BYTES: Final = 1024**3
_PYTHON: Final = ((3, 11), (3, 15))


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `remedy` is what to do when it is not `ok`.

    `matters`: whether the lab needs it; what is only worth knowing, or can't be known here, does not.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    matters: bool = True

    @property
    def is_bad(self) -> bool:
        """Whether something has to be done about it."""
        return self.matters and not self.ok


def check(root: Path, listening: Mapping[str, int]) -> list[Finding]:
    """Look at the machine for a lab whose home is `root` and which will listen on these ports (service → port)."""
    return [_platform(), _python(), _disk(root), *(_port(name, port) for name, port in listening.items())]


def insist(findings: Sequence[Finding]) -> None:
    """SetupError with the first finding that is not ok, if there is one."""
    for finding in findings:
        if finding.is_bad:
            raise SetupError(f"{finding.name}: {finding.detail}", finding.remedy)


def _platform() -> Finding:
    found = f"{platform.system()} {platform.machine()}"
    return Finding(
        "platform",
        found == "Linux x86_64",
        found,
        "use Linux on x86_64: the locked packages exist for nothing else (scalene has no wheels elsewhere)",
    )


def _python() -> Finding:
    oldest, first_too_new = _PYTHON
    return Finding(
        "python",
        oldest <= sys.version_info[:2] < first_too_new,
        platform.python_version(),
        f"use Python {'.'.join(map(str, oldest))} to 3.{first_too_new[1] - 1}: PYTHON=… make setup",
    )


def _disk(root: Path) -> Finding:
    existing = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return Finding(
        "disk",
        free >= LEAST_FREE_BYTES,
        f"{free / 1024**3:.1f} GiB free for {root}",
        "free some disk (1 GiB at least), or set STREAMGAUGE_HOME to a folder on a larger one",
    )


def _port(name: str, port: int) -> Finding:
    if ports.is_free(port):
        return Finding(f"port {port}", ok=True, detail=f"free for {name}")
    owner = listening_process(port)
    by = f" by process {owner.pid} ({command_of(owner)})" if owner else ""
    remedy = "stop what listens there, or let the lab's ports count from elsewhere: --port-base"
    return Finding(f"port {port}", ok=False, detail=f"{name} needs it, but it is in use{by}", remedy=remedy)


def listening_process(port: int) -> psutil.Process | None:
    """The process that listens on `port`, if there is one and this user may know."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                return psutil.Process(connection.pid)
    return None


def command_of(process: psutil.Process) -> str:
    """The beginning of a process's command line."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())[:80] or process.name()
    return "gone meanwhile"
