"""The lab's home: every file the lab keeps, under one folder, with a format version.

Invariant: a table's folder in the warehouse holds committed slots and nothing else, so any reader may glob it;
temporaries, quarantine and high-water marks live in sibling trees on the same file system.

Format 2 has slots that were merged or pruned (see sinks/folders.py). A home of format 1 has none, so it is one of
format 2 as soon as its stamp says so; a program of format 1 refuses the home from then on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from streaming.durability import replace_file
from streaming.errors import SetupError

FORMAT_VERSION: Final = 2
UPGRADABLE: Final = frozenset({1})
PROJECT_ROOT: Final = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Home:
    """Paths under the lab's home. Creating the object touches nothing; open() makes and checks the folder."""

    root: Path

    @classmethod
    def locate(cls, environ: Mapping[str, str]) -> Home:
        """STREAMGAUGE_HOME, or .streamgauge/ in the project's root (not in the current folder)."""
        return cls(Path(environ.get("STREAMGAUGE_HOME") or PROJECT_ROOT / ".streamgauge").absolute())

    def open(self) -> Home:
        """Make the folder, or bring it to this format. SetupError if it is of a newer one, or no lab's home."""
        stamp = self.root / "format-version"
        try:
            if not stamp.exists() and self.root.exists() and any(map(_is_foreign, self.root.iterdir())):
                raise SetupError(f"{self.root} is not empty and no lab's home", "name another folder for the home")
            self.root.mkdir(parents=True, exist_ok=True)
            found = self._format_of(stamp.read_text().strip()) if stamp.exists() else None
            if found != FORMAT_VERSION:
                self._stamp(stamp)
        except OSError as error:
            raise SetupError(
                f"cannot write {self.root}: {error}", "set STREAMGAUGE_HOME to a folder you own"
            ) from error
        return self

    def _format_of(self, stamp: str) -> int:
        """The format that a stamp names, if this program reads it or can upgrade it."""
        found = int(stamp) if stamp.isascii() and stamp.isdigit() else None
        if found == FORMAT_VERSION or found in UPGRADABLE:
            return found
        if found is None or found < FORMAT_VERSION:
            raise SetupError(
                f"{self.root} has format {stamp!r}, which no version of this program has written",
                f"use another home (STREAMGAUGE_HOME=…) or move {self.root} away",
            )
        raise SetupError(
            f"{self.root} has format {found}, this program reads {FORMAT_VERSION}",
            f"update the program, use another home (STREAMGAUGE_HOME=…) or move {self.root} away",
        )

    def _stamp(self, stamp: Path) -> None:
        """Write down the format, in one step: a stamp is whole or not there."""
        replace_file(stamp, f"{FORMAT_VERSION}\n", lasts=True)

    def brokers(self, broker: str) -> Path:
        """Data and logs of this machine's own brokers."""
        return self.root / "brokers" / broker

    def warehouse(self, broker: str) -> Path:
        """Committed slots: <table>/p=<partition>/<base>.<format>."""
        return self.root / "warehouse" / broker

    def staging(self, broker: str) -> Path:
        """Files being written; a stranger may delete what no process has open."""
        return self.root / "staging" / broker

    def quarantine(self, broker: str) -> Path:
        """Committed slots of undecodable records, same layout as the warehouse."""
        return self.root / "quarantine" / broker

    def high_water(self, broker: str) -> Path:
        """How far each chain has ever been, so that a missing file is noticed."""
        return self.root / "high_water" / broker

    def ledgers(self, broker: str) -> Path:
        """What each producer attempted and what was confirmed: <producer>/<epoch>.jsonl."""
        return self.root / "ledgers" / broker

    def outboxes(self, broker: str) -> Path:
        """Transformers' states and last outputs, where the broker has no transactions: <role>-<instance>/."""
        return self.root / "outboxes" / broker

    @property
    def run(self) -> Path:
        """Process ids, sockets and each role's progress: <role>.json."""
        return self.root / "run"

    @property
    def logs(self) -> Path:
        """One rotated log a process."""
        return self.root / "logs"

    @property
    def verdicts(self) -> Path:
        """The last word on each role's cost and memory, from profiles and soaks."""
        return self.root / "verdicts"

    @property
    def dagster(self) -> Path:
        """Dagster's instance (DAGSTER_HOME)."""
        return self.root / "dagster"

    @property
    def tables(self) -> Path:
        """What Dagster's downstream assets materialise."""
        return self.root / "tables"


def _is_foreign(path: Path) -> bool:
    """Whether it is something else than a stamp that another process makes at this moment."""
    return not path.name.lstrip(".").startswith("format-version")
