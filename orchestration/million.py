"""`python -m orchestration.million`: the application on RabbitMQ under faults, by the hundred; nothing may be missing.

A recording of so many positions undergoes the trial (see trial.py) on queues, then on streams; the page of the run says
what was counted. Exit code 1 when there was any problem, and then the homes are left where they are. What a transport
gave is kept as soon as it is over: after a break, the same call goes on with those that are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from experiments import provenance
from orchestration.trial import ALARMS, SINK, Counted, Plan, new_lab, record, say, undergo
from streaming.durability import replace_file
from streaming.errors import StreamgaugeError
from streaming.home import Home
from streaming.lab import QUEUES, RABBITMQ_STREAMS


def main(arguments: Sequence[str]) -> int:
    """Run, print the table, write the page; the exit code."""
    options = _options(arguments)
    plan = Plan(options.messages, options.kills, options.drops)
    runs: Path = options.folder or Home.locate(os.environ).open().root / "million"
    folder = runs / f"{plan.messages}-{plan.kills}-{plan.drops}"
    kept = Kept(folder / "counted.json", plan)
    if kept.is_empty:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    say(f"the run is in {folder}; broken off, the same call goes on with the transports that are missing")
    recording = folder / "recording.parquet"
    record(recording, plan.messages)
    for broker in (each for each in options.transports if not kept.is_done(each)):
        home, lab = new_lab(Path(tempfile.mkdtemp(prefix=f"{broker}-", dir=folder)), (broker,))
        say(f"{broker}: {plan.messages:,} messages, faults for about {plan.guess_s / 60:.0f} minutes; home {home.root}")
        try:
            found, version = undergo(home, lab, broker, plan, recording)
        except StreamgaugeError as error:
            say(f"{broker}: no result: {error}; its home is {home.root}", style="red", markup=False)
            return error.exit_code
        say(f"{broker}: {'; '.join(found.problems) or CLEAN}", markup=False)
        kept.add(found, version)
        if options.page:  # after each, for the next may be broken off
            options.page.write_text(page(list(kept.counted.values()), kept.facts, " ".join(arguments)))
            say(f"written: {options.page}")
    counted = [kept.counted[broker] for broker in options.transports]
    Console(width=None if sys.stdout.isatty() else 160).print(rendered(counted))
    if any(each.problems for each in counted):
        say(f"the homes are left in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


class Kept:
    """What the transports that are done gave, in a file, so that a run that was broken off can go on.

    Only what the same commit counted under the same plan is taken up again.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        commit = provenance.code_version().removesuffix("+changed")  # by the page of the first transport, it may be
        self._path, self._plan = path, {**asdict(plan), "code": commit}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.counted, self.facts = dict[str, Counted](), _facts(path.parent)
        if path.exists() and (found := json.loads(path.read_text()))["plan"] == self._plan:
            self.counted = {each["broker"]: Counted(**each) for each in found["counted"]}
            self.facts = found["facts"] | {"gone on with": self.facts["began"]}

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to go on with."""
        return not self.counted

    def is_done(self, broker: str) -> bool:
        """Whether this transport need not run again."""
        return broker in self.counted and not self.counted[broker].problems

    def add(self, counted: Counted, version: str) -> None:
        """A transport has run, on this version of RabbitMQ."""
        self.counted[counted.broker] = counted
        self.facts |= {"RabbitMQ": version, "ended": provenance.now()}
        found = {"plan": self._plan, "counted": [asdict(each) for each in self.counted.values()], "facts": self.facts}
        replace_file(self._path, json.dumps(found, indent=1))


def _facts(scratch: Path) -> dict[str, str]:
    """When, on what and by which code, for the page."""
    machine = provenance.machine(scratch)
    versions = provenance.versions() | {name: metadata.version(name) for name in ("pika", "rstream")}
    return {
        "began": provenance.now(),
        "code": provenance.code_version(),
        "machine": f"{machine.cores} cores of {machine.cpu}, {machine.memory_bytes / 1024**3:.0f} GiB",
        "kernel": machine.kernel,
        "load before": ", ".join(f"{each:.2f}" for each in os.getloadavg()),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def rows(counted: Sequence[Counted]) -> list[list[str]]:
    """The table's rows, for the terminal and the page."""
    return [
        [
            each.broker,
            f"{each.messages:,}",
            f"{each.lost:,}",
            f"{each.duplicated:,}",
            f"{each.sent_meanwhile:,}",
            f"{each.redelivered:,}",
            ", ".join(f"{name} {kills}" for name, kills in each.kills.items()),
            f"{each.drops}",
            f"{each.node_kills} kill, {each.alarms} {ALARMS[each.broker].what} alarm ({each.blocked} held back)",
            f"{each.rows.get('position_means_parquet', 0):,} means, {each.rows.get('alerts_parquet', 0):,} alerts",
            "differs" if each.differs else "equal",
            f"{each.took_s / 60:.1f} min",
        ]
        for each in counted
    ]


CLEAN: Final = "Nothing lost, nothing doubled, all equal."
HEADER: Final = (
    "broker",
    "messages",
    "lost",
    "duplicated",
    "sent meanwhile",
    "redelivered",
    "killed",
    "cut after commit",
    "node",
    "landed too",
    "offline",
    "took",
)


def rendered(counted: Sequence[Counted]) -> Table:
    """For a terminal."""
    table = Table(*HEADER, title="The application on RabbitMQ under faults")
    for row in rows(counted):
        table.add_row(*row)
    return table


def page(counted: Sequence[Counted], facts: Mapping[str, str], arguments: str) -> str:
    """The page, from this run alone."""
    cells = [HEADER, ["---"] * len(HEADER), *rows(counted)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    verdict = [f"* **{each.broker}**: {problem}" for each in counted for problem in each.problems]
    moments = [f"{each.moments} of {each.kills[SINK]} on {each.broker}" for each in counted]
    return f"""# RabbitMQ under faults

Written by `make rabbit-million` (`python -m orchestration.million {arguments}`), from what one run counted.

A recording of simulated positions was replayed through the whole application (means, alerts, Parquet and CSV sinks),
each role a process, as fast as the faults came: some of it was left to send until the last of them had happened (sent
meanwhile: before that). Meanwhile the sink of positions and both transformers were ended by SIGKILL, the sink also at
named moments of its commit ({", ".join(moments)}); its connections were cut between the commit and its
acknowledgement; the node was killed and started again; and it alarmed while a sink stood still. Afterwards
`verify` compared every table with the ledgers, and positions, means and alerts were compared, value by value, with what
the same steps make of the recording without any broker.

{chr(10).join(lines)}

Redelivered: on queues the broker's own count of messages delivered once more; on streams at least, what the sink had
read and not committed when it died. Held back: the most connections that the broker called blocked during its alarm.

{chr(10).join(verdict) or CLEAN}

{chr(10).join(f"* {name}: {value}" for name, value in facts.items())}
"""


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m orchestration.million", description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=1_000_000, help="positions (default: 1,000,000)")
    parser.add_argument(
        "--transports",
        type=lambda text: tuple(text.split(",")),
        default=(QUEUES, RABBITMQ_STREAMS),
        help=f"{QUEUES},{RABBITMQ_STREAMS} (default: one after the other)",
    )
    parser.add_argument("--kills", type=int, default=50, help="of the sink and of each transformer (default: 50)")
    parser.add_argument("--drops", type=int, default=200, help="connections cut after a commit (default: 200)")
    parser.add_argument("--page", type=Path, help="write the page of this run there")
    parser.add_argument(
        "--folder", type=Path, help="runs are kept there while they are not clean (default: million, in the home)"
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.transports) - {QUEUES, RABBITMQ_STREAMS}:
        parser.error(f"--transports {', '.join(sorted(unknown))}: {QUEUES} or {RABBITMQ_STREAMS}")
    if min(options.messages, options.kills, options.drops) < 1:
        parser.error("--messages, --kills and --drops: at least 1")
    return options


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and the roles are ended on the way out
    sys.exit(main(sys.argv[1:]))
