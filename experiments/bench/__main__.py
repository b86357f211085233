"""`python -m experiments.bench`: start brokers, run the rounds, print the table and what it was measured on.

Ends with 1 when a run is void: something was lost or doubled, or a process did not come to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape

from experiments import provenance
from experiments.bench import results
from experiments.bench.results import CONTENDERS, Run
from experiments.bench.rounds import WARM_UP, Bench
from streaming.cluster.kafka import DisposableCluster
from streaming.codecs import CODECS
from streaming.errors import StreamgaugeError
from streaming.home import Home

LEAST_RECORDS: Final = 100_000
_progress = Console(stderr=True, highlight=False)


def main(arguments: list[str]) -> int:
    """Measure and print; the exit code."""
    options = _options(arguments)
    folder = Home.locate(os.environ).open().root / "bench"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        facts = _facts(options, Path(scratch))
        runs = _runs(options, Path(scratch))
    counted = [run for run in runs if run.repetition != WARM_UP]
    if options.json:
        print(json.dumps(_document(facts, runs, counted), indent=2))
    else:
        _print(facts, runs, counted)
    return int(any(run.is_void for run in runs))


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m experiments.bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--records", type=_count, default=1_000_000, help="positions in the topic (default: 1,000,000)")
    parser.add_argument("--repetitions", type=_count, default=5, help="rounds, each on new topics (default: 5)")
    parser.add_argument("--codec", choices=sorted(CODECS), default="json")
    parser.add_argument("--vehicles", type=_count, default=20, help="simulated vehicles (default: 20)")
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    options = parser.parse_args(arguments)
    if options.records < LEAST_RECORDS:
        parser.error(f"--records {options.records:,}: at least {LEAST_RECORDS:,}, or the first poll takes most of them")
    return options


def _count(text: str) -> int:
    number = int(text.replace(",", "").replace("_", ""))
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return number


def _runs(options: argparse.Namespace, scratch: Path) -> list[Run]:
    runs = []
    with DisposableCluster() as cluster:
        bench = Bench(
            cluster.bootstrap_servers, scratch, options.records, options.repetitions, options.codec, options.vehicles
        )
        for run in bench.run():
            runs.append(run)
            _progress.print(_line(run, options.repetitions), style="red" if run.is_void else "dim")
    return runs


def _line(run: Run, repetitions: int) -> str:
    said = "void: " + escape("; ".join(run.problems)) if run.is_void else f"{run.rate_hz:>9,.0f} records/s"
    return f"round {run.repetition} of {repetitions}  {run.contender:<8}{said}"


def _facts(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What must be known to judge the numbers and to measure again; taken before anything runs."""
    return {
        "began": provenance.now(),
        "code": provenance.code_version(),
        "records": options.records,
        "repetitions": options.repetitions,
        "codec": options.codec,
        "vehicles": options.vehicles,
        "topic": "6 partitions, replication 3, min.insync.replicas 2, three brokers on this machine",
        "machine": asdict(provenance.machine(folder)),
        "versions": provenance.versions(),
        "contention": provenance.contention(),
    }


def _document(facts: dict[str, Any], runs: list[Run], counted: list[Run]) -> dict[str, Any]:
    ratios = {each.name: results.ratio(counted, each) for each in CONTENDERS if each.name != each.beside}
    return {
        **facts,
        "is_void": any(run.is_void for run in runs),
        "runs": [asdict(run) for run in runs],
        "ratios": {name: asdict(found) if found else None for name, found in ratios.items()},
    }


def _print(facts: dict[str, Any], runs: list[Run], counted: list[Run]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(results.table(counted))
    for line in _remarks(facts):
        console.print(line, style="dim")
    for trouble in facts["contention"]:
        console.print(f"disturbed: {trouble}", style="yellow")
    for run in runs:
        for problem in run.problems:
            console.print(f"void: round {run.repetition}, {run.contender}: {problem}", style="red", markup=False)


def _remarks(facts: dict[str, Any]) -> list[str]:
    machine, disk = facts["machine"], facts["machine"]["disk"]
    load = ", ".join(f"{each:.2f}" for each in machine["load_before"])
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    measured = f"{facts['records']:,} positions, {facts['codec']}, {facts['vehicles']} vehicles; {facts['topic']}"
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB"
    return [
        f"{measured}; {facts['repetitions']} repetitions on new topics; every record counted afterwards",
        "producers' memory is what sending added to the messages that were made before",
        f"{where}, Linux {machine['kernel']}; fsync {disk['median_ms']:.1f} ms; load before: {load}",
        f"Python {machine['python']}, {versions}; code {facts['code'][:12]}; {facts['began']}",
    ]


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except StreamgaugeError as error:
        _progress.print(str(error), style="red", markup=False)
        sys.exit(error.exit_code)
