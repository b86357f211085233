"""The last word on each role's cost and memory, kept in the lab's home: `streamgauge status` shows the bad ones.

Invariant: a file a kind and subject, replaced as a whole. So a bad verdict stands until the same is judged well; a run
that can't tell changes nothing. Read by a command that must be quick, so it imports nothing heavy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final

from streaming.durability import replace_file
from streaming.home import Home

REGRESSION: Final = "profile regression"
LEAK: Final = "leak"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was judged of `subject`, in words, and the command that shows more."""

    kind: str
    subject: str
    is_bad: bool
    says: str
    look: str
    at: str = ""

    @property
    def line(self) -> str:
        """All of it on one line."""
        return f"{self.kind}: {self.subject}: {self.says} ({self.at[:16]}; {self.look})"


def keep(home: Home, verdict: Verdict) -> None:
    """Write it down, now."""
    path = home.verdicts / (re.sub(r"[^a-z0-9]+", "-", f"{verdict.kind} {verdict.subject}".lower()) + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    said = asdict(verdict) | {"at": verdict.at or datetime.now(UTC).isoformat(timespec="seconds")}
    replace_file(path, json.dumps(said, indent=2) + "\n")


def bad(home: Home) -> list[Verdict]:
    """Those that stand."""
    return [verdict for verdict in _kept(home) if verdict.is_bad]


def _kept(home: Home) -> Iterator[Verdict]:
    for path in sorted(home.verdicts.glob("*.json")):
        try:
            yield Verdict(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):  # of another version: as if it had not been judged
            continue
