"""What verify found, in words and numbers.

Invariant: plain data; the verdict (exit code) follows from the counts and from nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

WORDS: Final = {
    "lost": "confirmed by the broker or due by recomputation, and in no file",
    "duplicated": "more than once in the files",
    "unexpected": "in the files, and nobody's ledger or input accounts for it",
    "corrupt": "a file that is unreadable or contradicts its name, its count or its neighbours",
    "reordered": "a vehicle's records out of their producer's order",
    "wrong": "a derived value that differs from the recomputation, or from the same record in the other format",
    "pending": "committed on the broker, not yet in files (or not yet transformed)",
    "recovered": "sent with unknown outcome, and here: no problem",
}
DAMAGE: Final = ("lost", "duplicated", "unexpected", "corrupt", "reordered", "wrong")
EXAMPLES: Final = 5
PENDING: Final = 6  # the exit code when there is no damage, and not all is in the files yet


def worst(exit_codes: Iterable[int]) -> int:
    """What several reports come to: damage (1) before what is pending (6) before nothing (0)."""
    return min((code for code in exit_codes if code), default=0)


@dataclass(slots=True)
class TableReport:
    """One table: what is in its files, and how often each of WORDS applies, with at most EXAMPLES examples each."""

    table: str
    stream: str
    rows: int = 0
    files: int = 0
    quarantined: int = 0
    pruned: int = 0  # rows that were here and are older than what is kept
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WORDS, 0))
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, word: str, count: int, examples: Iterable[object] = ()) -> None:
        """Count more of `word`."""
        if count:
            self.counts[word] += count
            self._show(word, examples)

    def at_least(self, word: str, count: int, examples: Iterable[object] = ()) -> None:
        """Count `word` at least this often: a second way of finding the same records."""
        if count:
            self.counts[word] = max(self.counts[word], count)
            self._show(word, examples)

    def _show(self, word: str, examples: Iterable[object]) -> None:
        shown = self.examples.setdefault(word, [])
        shown.extend(str(example) for example in list(examples)[: EXAMPLES - len(shown)])


@dataclass(frozen=True, slots=True)
class Report:
    """All tables of one broker at one cut. `waited_s`: how long it took the sinks to pass the cut."""

    broker: str
    taken_at: str
    waited_s: float
    tables: tuple[TableReport, ...]

    @property
    def totals(self) -> Mapping[str, int]:
        """Each word's count over all tables."""
        return {word: sum(table.counts[word] for table in self.tables) for word in WORDS}

    @property
    def exit_code(self) -> int:
        """1 when anything is damaged; else 6 while something is pending; else 0."""
        totals = self.totals
        if any(totals[word] for word in DAMAGE):
            return 1
        return PENDING if totals["pending"] else 0

    @property
    def verdict(self) -> str:
        """One sentence."""
        totals = self.totals
        found = [f"{totals[word]:,} {word}" for word in (*DAMAGE, "pending") if totals[word]]
        rows = sum(table.rows for table in self.tables)
        if not rows and not found:
            return "no row in any file yet: there is nothing to judge"
        return f"{rows:,} rows in files: {', '.join(found) or 'nothing lost, nothing doubled, all accounted for'}"

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        names = ("table", "stream", "rows", "files", "quarantined", "pruned", "counts", "examples", "notes")
        return {
            "broker": self.broker,
            "taken_at": self.taken_at,
            "waited_s": round(self.waited_s, 3),
            "exit_code": self.exit_code,
            "verdict": self.verdict,
            "totals": dict(self.totals),
            "tables": [{name: getattr(table, name) for name in names} for table in self.tables],
        }

    def render(self) -> Group:
        """For a terminal: a table of counts, then examples and notes."""
        counts = Table("table", title=f"Files against ledgers, {self.broker}, cut at {self.taken_at}")
        for column in ("rows", "files", "quarantined"):
            counts.add_column(column, justify="right")
        counts.add_column("found")
        for table in self.tables:
            found = ", ".join(f"{count:,} {word}" for word, count in table.counts.items() if count)
            cells = [f"{cell:,}" for cell in (table.rows, table.files, table.quarantined)]
            counts.add_row(table.table, *cells, found or "clean")
        return Group(counts, *self._lines(), Text(self.verdict, style="red" if self.exit_code == 1 else ""))

    def _lines(self) -> Iterable[Text]:
        for table in self.tables:
            for word, examples in table.examples.items():
                yield Text(f"{table.table}: {word} ({WORDS[word]}): {', '.join(examples)}")
            for note in table.notes:
                yield Text(f"{table.table}: {note}")
