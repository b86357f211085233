"""A merge's process for the crash tests: merges a table's files, and dies where its arguments say.

    python -m tests.crash.merging HOME CHECKPOINT:TIMES FORMAT [HARM]

HARM is for the controls that must find the damage: `remove-first` takes the parts away before what replaces them is
there, `link-first` puts the merged file beside its parts and removes them then.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from orchestration.injection import checkpoint_of
from sinks import merge as merging
from sinks.lanes import Lane
from sinks.merge import Policy, merge
from streaming.home import Home
from tests.crash.landing import table_for

POLICY = Policy(settled_s=0, fewest=3, grace_s=0)


def remove_first(lane: Lane, folder: Path, gone: Sequence[Path], begins: str | None = None) -> None:
    """The control: for a moment the rows are nowhere."""
    made = list(folder.iterdir())
    for path in gone:
        path.unlink()
    lane.checkpoint("folders_exchanged")
    for path in made:
        (lane.folder / path.name).hardlink_to(path)


def link_first(lane: Lane, folder: Path, gone: Sequence[Path], begins: str | None = None) -> None:
    """The control: for a moment the rows are there twice, for whoever reads the folder by a bare glob."""
    for path in folder.iterdir():
        (lane.folder / path.name).hardlink_to(path)
    lane.checkpoint("folders_exchanged")
    for path in gone:
        path.unlink()


def main() -> None:
    """See the module."""
    home, crash_at, file_format, *harm = sys.argv[1:]
    if harm:
        merging.replace = {"remove-first": remove_first, "link-first": link_first}[harm[0]]  # type: ignore[attr-defined]
    merge(
        Home(Path(home)),
        "kafka",
        table_for(file_format),
        POLICY,
        checkpoint=checkpoint_of({"STREAMGAUGE_CRASH_AT": crash_at}),
    )


if __name__ == "__main__":
    main()
