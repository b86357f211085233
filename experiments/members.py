"""Consumer processes from the trial's side: start them, kill them, read what they wrote down.

Invariant: a member ends with its trial, and (by its tether) with this process, even by SIGKILL.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from experiments.trial import Trial
from streaming.cluster import tether

EVENTS = pl.Schema(
    {  # type: ignore[arg-type]
        "member": pl.Int64,
        "event": pl.String,
        "at": pl.Float64,
        "partition": pl.Int64,
        "offset": pl.Int64,
        "partitions": pl.List(pl.Int64),
        "reason": pl.String,
    }
)


@dataclass(frozen=True, slots=True)
class Role:
    """What a member does. `commit`: none (or the client's own), stored, before or after a batch's work."""

    topic: str
    settings: dict[str, Any]
    log: str
    work_s: float = 0.0
    batch: int = 50
    commit: str = "none"
    revoke_s: float = 0.0  # work for each partition that is taken away, such as committing its file
    is_share: bool = False


@dataclass
class Member:
    """A running (or ended) consumer process."""

    number: int
    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """SIGKILL: the group does not hear of it."""
        self.process.kill()
        self.process.wait()

    def leave(self) -> None:
        """SIGTERM: it leaves the group; returns when it has."""
        self.process.terminate()
        self.process.wait(15)

    def events(self) -> list[dict[str, Any]]:
        """What it wrote down so far (a torn last line is dropped)."""
        if not self.log.exists():
            return []
        text = self.log.read_text()
        return [{"member": self.number, **json.loads(line)} for line in text[: text.rfind("\n") + 1].splitlines()]


@dataclass
class Members:
    """The members of one trial's group, in one topic."""

    trial: Trial
    topic: str
    group: str
    settings: dict[str, Any] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)

    def start(self, *, instance: str | None = None, number: int | None = None, **role: Any) -> Member:
        """Start one more process; with `instance` as a static member."""
        lab = self.trial.lab
        number = len(self.members) if number is None else number
        settings = {"group.id": self.group, **self.settings}
        if not role.get("is_share"):
            settings = {"auto.offset.reset": "earliest", "enable.auto.commit": False, **settings}
        if instance is not None:
            settings["group.instance.id"] = instance
        log = lab.folder / f"member-{self.group}-{len(self.members)}.jsonl"
        client = lab.client("member", settings)
        words = [
            sys.executable,
            "-m",
            "experiments.member",
            json.dumps(asdict(Role(self.topic, client, str(log), **role))),
        ]
        process = subprocess.Popen(
            tether.tethered(words), env=tether.environment(), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        member = Member(number, process, log)
        self.members.append(member)
        lab.keep(lambda: _end(member))
        return member

    def events(self) -> pl.DataFrame:
        """Everything everybody wrote down, by time."""
        rows = [event for member in self.members for event in member.events()]
        return pl.DataFrame(rows, schema=EVENTS).sort("at")

    def processed(self) -> pl.DataFrame:
        """member, at, partition, offset of each processed record, by time."""
        return self.events().filter(event="processed").select("member", "at", "partition", "offset")

    def owners(self) -> dict[int, int]:
        """Which member has each partition, by the last thing written about it (classic and incremental alike)."""
        owner: dict[int, int] = {}
        for row in self.events().filter(pl.col("event").is_in(["assigned", "revoked", "lost"])).iter_rows(named=True):
            for partition in row["partitions"]:
                if row["event"] == "assigned":
                    owner[partition] = row["member"]
                elif owner.get(partition) == row["member"]:
                    del owner[partition]
        return owner

    def wait_settled(self, partitions: int, alive: Sequence[Member], within_s: float = 30.0) -> None:
        """Return when each partition has an owner, spread over all living members (as far as there are enough)."""
        numbers = {member.number for member in alive}
        wanted = min(len(numbers), partitions)

        def is_settled() -> bool:
            owners = self.owners()
            return len(owners) == partitions and set(owners.values()) <= numbers and len(set(owners.values())) == wanted

        self.trial.wait_until(is_settled, f"{len(numbers)} members sharing {partitions} partitions", within_s)


def _end(member: Member) -> None:
    if member.process.poll() is None:
        member.kill()
    member.log.unlink(missing_ok=True)
