"""Whether a role does its work, judged by what it last wrote of itself (progress.py): for health checks of containers.

Invariant: a role is never well because a process or a port exists. It is well when this life of it has turned its loop
of late and, where data always flows, has made something durable of late.

`python -m streaming.health ROLE [--commits-within SECONDS] [--rests]` imports little on purpose: it runs twice a
minute beside every role.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson

TURNS_WITHIN_S: Final = 30.0


def complaint(
    progress: Mapping[str, Any],
    *,
    now: float,
    alive_since: float,
    commits_within_s: float | None = None,
    may_rest: bool = False,
) -> str | None:
    """Why the role that wrote `progress` is not well, or None. Times are seconds since 1970.

    `alive_since` is when the role's process (its container) began: what was written before is of an earlier life.
    `commits_within_s`: data always flows there, so something must have become durable within so many seconds.
    `may_rest`: the role may have done all it had to do; then it is well while everything it took is durable.
    """
    if progress["written_at"] < alive_since:
        return "this life of it has not reported yet"
    quiet_s = now - progress["written_at"]
    is_done = may_rest and progress["records"] == progress["committed"] > 0
    if quiet_s > TURNS_WITHIN_S and not is_done:
        return f"its loop has not turned for {quiet_s:.0f} s"
    if commits_within_s is not None:
        idle_s = now - (progress["last_commit_at"] or progress["started_at"])
        if idle_s > commits_within_s:
            return f"nothing has become durable for {idle_s:.0f} s"
    return None


def check(path: Path, *, commits_within_s: float | None, may_rest: bool) -> str | None:
    """complaint() about the role that reports to `path` and is this container's first process."""
    try:
        progress = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        return f"it has not reported: {error}"
    alive_since = Path("/proc/1").stat().st_ctime - 1
    return complaint(
        progress, now=time.time(), alive_since=alive_since, commits_within_s=commits_within_s, may_rest=may_rest
    )


def main() -> int:
    """0 when the role is well, 1 and the reason when it is not."""
    parser = argparse.ArgumentParser(prog="streaming.health")
    parser.add_argument("role")
    parser.add_argument("--commits-within", type=float, dest="commits_within_s", metavar="SECONDS")
    parser.add_argument("--rests", action="store_true", dest="may_rest")
    asked = parser.parse_args()
    path = Path(os.environ["STREAMGAUGE_HOME"]) / "run" / f"{asked.role}.json"
    reason = check(path, commits_within_s=asked.commits_within_s, may_rest=asked.may_rest)
    print(f"{asked.role}: {reason or 'well'}")
    return 0 if reason is None else 1


if __name__ == "__main__":
    sys.exit(main())
