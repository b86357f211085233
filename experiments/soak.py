"""`python -m experiments.soak`: does a role that runs on and on use more and more memory or handles?

Real brokers, every role of the application on each of them as a real process under a steady load; every second each
process's resident memory and open handles are read. Invariant: the verdict follows from the samples. What comes first
is warm-up (allocators, caches, rotations); after it the slope is fitted over medians of fifteen seconds, with its
bootstrap interval. "Grows" is said only if the whole interval lies above the bound, "flat" only if it lies below;
otherwise the run was too short to tell.

Ends with 1 when something grows, when a role failed, when nothing landed or verify finds damage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import psutil
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from experiments import figures, provenance, verdicts
from experiments.statistics import Interval, bootstrap
from experiments.verdicts import Verdict
from sinks.merge import Policy, merge
from sinks.reader import tables
from streaming.cluster import guests, tether
from streaming.cluster.kafka import DisposableCluster
from streaming.cluster.rabbitmq import DisposableRabbitMQ, address_of
from streaming.errors import BrokerUnavailable, RestartRequired, StreamgaugeError, UsageError
from streaming.home import PROJECT_ROOT, Home
from streaming.lab import BROKERS, KAFKA, QUEUES, Lab, service_name
from streaming.topology import ROLES, STREAMS, Role
from streaming.transports.rabbitmq.queues import RabbitQueues
from streaming.transports.rabbitmq.streams import RabbitStreams

FOLDER: Final = "soak"  # in the lab's home
SAMPLE_S: Final = 1.0
BLOCK_S: Final = 15.0
WARM_UP: Final = 0.25  # of the run
MERGE_EVERY_S: Final = 60.0
UNITS: Final = {"rss_mib": "memory, MiB", "handles": "handles"}
MEMORY_BOUND: Final = 0.25  # MiB a minute: what an allocator's breathing may look like in ten minutes
HANDLE_BOUND: Final = 0.2  # handles a minute: two in ten minutes
ENOUGH_BLOCKS: Final = 20
READY_TIMEOUT_S: Final = 300.0
SEED: Final = 4
LINES: Final = ("-", "--", ":", "-.")  # for a figure of more roles than colours
MIB: Final = 1024**2
MAY_RESTART: Final = frozenset({BrokerUnavailable.exit_code, RestartRequired.exit_code})
SAMPLES: Final = pl.Schema(
    {
        "role": pl.String(),
        "life": pl.Int64(),
        "second": pl.Float64(),
        "rss_mib": pl.Float64(),
        "handles": pl.Int64(),
        "threads": pl.Int64(),
    }
)
_console = Console(stderr=True, highlight=False)


@dataclass(frozen=True, slots=True)
class Growth:
    """One quantity of one role: at the beginning and the end of what counts, and its slope a minute.

    `lives`: how often the role was started; its longest life is what counts.
    """

    role: str
    quantity: str
    first: float
    last: float
    highest: float
    per_minute: Interval | None
    bound: float
    lives: int = 1

    @property
    def verdict(self) -> str:
        """grows, flat (the interval lies below the bound), or unknown: the run was too short to tell."""
        if self.per_minute is None:
            return "unknown"
        if self.per_minute.low > self.bound:
            return "grows"
        return "flat" if self.per_minute.high <= self.bound else "unknown"

    @property
    def says(self) -> str:
        """In words."""
        a_minute = "" if self.per_minute is None else " a minute"
        span = f"from {self.first:.1f} to {self.last:.1f}"
        return f"{UNITS[self.quantity]} {self.verdict}: {self.slope}{a_minute}, {span}"

    @property
    def slope(self) -> str:
        """What it grows by a minute, with the interval."""
        return "too few blocks" if self.per_minute is None else _slope(self.per_minute)


@dataclass(frozen=True, slots=True)
class Soak:
    """A run and what it says. `samples`: role, life, second, rss_mib, handles, threads."""

    minutes: float
    samples: pl.DataFrame
    growths: list[Growth]
    problems: list[str]
    records: int  # rows that landed
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """1 when anything grows or went wrong."""
        return int(bool(self.problems) or any(growth.verdict == "grows" for growth in self.growths))


def main(arguments: Sequence[str]) -> int:
    """Soak, print the table, save samples, figure and facts; the exit code."""
    parser = argparse.ArgumentParser("python -m experiments.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the roles are watched (default: 10)")
    parser.add_argument("--vehicles", type=int, default=20, help="simulated vehicles (default: 20)")
    parser.add_argument("--brokers", help=f"some of {','.join(BROKERS)} (default: those of the home's lab)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: soak/ in the lab's home)")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes {options.minutes}: above 0")
    home = Home.locate(os.environ)
    out = options.out or home.open().root / FOLDER
    out.mkdir(parents=True, exist_ok=True)
    try:
        found = soak(
            options.minutes, options.vehicles, brokers_of(home, options.brokers and options.brokers.split(","))
        )
    except StreamgaugeError as error:
        _console.print(f"no result: {error}", style="red", markup=False)
        return error.exit_code
    save(found, out)
    if options.out is None:
        keep_verdicts(found, home)
    Console(width=None if sys.stdout.isatty() else 120).print(rendered(found))
    for problem in found.problems:
        Console().print(problem, style="red", markup=False)
    return found.exit_code


def brokers_of(home: Home, named: Sequence[str] | None) -> tuple[str, ...]:
    """The brokers that are named, by default those of the home's lab. UsageError for what is none."""
    chosen = tuple(named or Lab.load(home).brokers)
    if unknown := set(chosen) - set(BROKERS):
        raise UsageError(f"--brokers {','.join(unknown)}: some of {', '.join(BROKERS)}")
    return chosen


def processes_of(brokers: Sequence[str]) -> dict[str, tuple[str, Role]]:
    """What runs in a lab with these brokers: process → broker and role."""
    return {service_name(broker, each.name): (broker, each) for broker in brokers for each in ROLES.values()}


def soak(minutes: float, vehicles: int = 20, brokers: Sequence[str] = (KAFKA,)) -> Soak:
    """Run every role on brokers of their own and watch them."""
    with tempfile.TemporaryDirectory(prefix="sg-soak-") as scratch, contextlib.ExitStack() as opened:
        home = Home(Path(scratch) / "home").open()
        lab = Lab(**_nodes_for(home, brokers, opened), brokers=tuple(brokers), vehicles=vehicles, seed=SEED)
        lab.save(home)
        facts: dict[str, Any] = {
            "began": provenance.now(),
            "code": provenance.code_version(),
            "versions": provenance.versions(),
            "machine": asdict(provenance.machine(home.root)),
            "lab": {"vehicles": vehicles, "rate_hz": lab.rate_hz, "codec": lab.codec, "brokers": list(brokers)},
        }
        with running(home, brokers) as processes:
            await_ready(home, processes)
            _console.print(f"{len(processes)} roles run; watching them for {minutes:g} minutes")
            samples, problems = watched(home, processes, minutes * 60)
        code, reports = _verified(home)
        verdict = "; ".join(dict.fromkeys(report["verdict"] for report in reports))
        facts |= {"ended": provenance.now(), "load_after": os.getloadavg(), "verify": verdict, "reports": reports}
    records = sum(table["rows"] for report in reports for table in report["tables"])
    problems += [f"verify: {verdict}"] if code == 1 else []
    problems += ["nothing has landed"] if not records else []
    return Soak(minutes, samples, judged(samples, minutes * 60), problems, records, facts)


def _nodes_for(home: Home, brokers: Sequence[str], opened: contextlib.ExitStack) -> dict[str, Any]:
    """Start what these brokers need; the lab's settings by which roles find it."""
    found: dict[str, Any] = {}
    if KAFKA in brokers:
        found["bootstrap_servers"] = opened.enter_context(DisposableCluster()).bootstrap_servers
    if patterns := [broker for broker in brokers if broker != KAFKA]:
        node = opened.enter_context(DisposableRabbitMQ(home.brokers("rabbitmq")))  # its users are found there
        ports = node.nodes[0].ports
        found["rabbitmq_ports"] = ports.amqp, ports.stream, ports.management
        for broker in patterns:
            _create_streams(node, broker)
    return found


def _create_streams(node: DisposableRabbitMQ, broker: str) -> None:
    """As `up` does: roles may not make queues."""
    at = address_of(node.nodes[0], node.credentials, vhost=guests.VHOSTS[broker])
    with contextlib.closing(RabbitQueues(at) if broker == QUEUES else RabbitStreams(at)) as transport:
        transport.create(STREAMS.values(), replication=1)


@contextlib.contextmanager
def running(home: Home, brokers: Sequence[str]) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The roles as processes, by name; stopped cleanly at the end."""
    home.logs.mkdir(parents=True, exist_ok=True)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name in processes_of(brokers):
            processes[name] = started(home, name)
        yield processes
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def started(home: Home, name: str) -> subprocess.Popen[bytes]:
    """A role's process, which ends with this one."""
    broker, role = processes_of(BROKERS)[name]
    words = ["role", role.name, "--broker", broker, "--home", str(home.root)]
    command = [sys.executable, "-m", "orchestration.cli", *words]
    with (home.logs / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            tether.tethered(command), cwd=PROJECT_ROOT, env=tether.environment(), stdout=log, stderr=log
        )


def await_ready(home: Home, processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Return when each role has reported progress, or has done all it had to do; one that asks for it starts again."""
    deadline, waiting = time.monotonic() + READY_TIMEOUT_S, set(processes)
    while waiting:
        for name in list(waiting):
            code = processes[name].poll()
            if code in MAY_RESTART:
                processes[name], code = started(home, name), None
            if code or time.monotonic() > deadline:
                raise StreamgaugeError(f"{name} did not begin to work ({code}):\n{_last_words(home, name)}")
            if code == 0 or (home.run / f"{name}.json").exists():
                waiting.remove(name)
        time.sleep(0.1)


def watched(
    home: Home, processes: dict[str, subprocess.Popen[bytes]], seconds: float
) -> tuple[pl.DataFrame, list[str]]:
    """Samples of every second, and what went wrong. Small files are merged meanwhile, as in a lab.

    A role that asks for a fresh start (its broker did not answer in time: this happens on a busy machine) gets it, as
    from the supervisor; its next life is another series.
    """
    began = time.monotonic()
    merge_at = began + MERGE_EVERY_S
    seen, problems = {name: psutil.Process(process.pid) for name, process in processes.items()}, list[str]()
    lives = dict.fromkeys(processes, 1)
    rows: list[tuple[str, int, float, float, int, int]] = []
    while (now := time.monotonic()) < began + seconds:
        for name in list(seen):
            try:
                rows.append((name, lives[name], now - began, *_usage(seen[name])))
            except psutil.Error:
                del seen[name]
                if (code := processes[name].wait()) in MAY_RESTART:
                    processes[name] = started(home, name)
                    seen[name], lives[name] = psutil.Process(processes[name].pid), lives[name] + 1
                elif code:
                    problems.append(f"{name} ended by itself with {code}:\n{_last_words(home, name)}")
        if now >= merge_at:
            merge_at = now + MERGE_EVERY_S
            for broker in BROKERS:
                for table in tables(home, broker):
                    merge(home, broker, table, Policy(settled_s=30, fewest=3))
        time.sleep(max(0.0, SAMPLE_S - (time.monotonic() - now)))
    return pl.DataFrame(rows, schema=SAMPLES, orient="row"), problems


def _usage(process: psutil.Process) -> tuple[float, int, int]:
    with process.oneshot():
        if process.status() == psutil.STATUS_ZOMBIE:
            raise psutil.NoSuchProcess(process.pid)
        return process.memory_info().rss / MIB, process.num_fds(), process.num_threads()


def _last_words(home: Home, name: str) -> str:
    return (home.logs / f"{name}.log").read_text(errors="replace")[-1500:]


def _verified(home: Home) -> tuple[int, list[dict[str, Any]]]:
    """What verify says of each broker once the roles have stopped; what is still on them is pending, not lost."""
    command = [sys.executable, "-m", "orchestration.cli", "verify", "--json", "--wait", "1s", "--home", str(home.root)]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=600, check=False)
    if not done.stdout:
        raise StreamgaugeError(f"verify said nothing but: {done.stderr[-1500:]}")
    report: Any = json.loads(done.stdout)
    return done.returncode, report if isinstance(report, list) else [report]


def judged(samples: pl.DataFrame, seconds: float) -> list[Growth]:
    """Memory and handles of each role, in its longest life and after that one's warm-up."""
    growths: list[Growth] = []
    for (role,), own in samples.group_by("role", maintain_order=True):
        longest = own["life"].mode().min()
        counts = own.filter(life=longest).filter(pl.col("second") >= pl.col("second").min() + WARM_UP * seconds)
        for quantity, bound in (("rss_mib", MEMORY_BOUND), ("handles", HANDLE_BOUND)) if len(counts) else ():
            series = counts["second"].to_numpy(), counts[quantity].to_numpy()
            growths.append(replace(growth(str(role), quantity, *series, bound), lives=own["life"].n_unique()))
    return growths


def growth(role: str, quantity: str, seconds: NDArray[Any], values: NDArray[Any], bound: float) -> Growth:
    """The slope a minute over medians of fifteen seconds; none from fewer than ENOUGH_BLOCKS of them."""
    blocks = (seconds // BLOCK_S).astype(np.int64)
    medians = np.array(
        [(np.mean(seconds[blocks == each]) / 60, np.median(values[blocks == each])) for each in np.unique(blocks)]
    )
    slope = bootstrap(medians, _slopes, seed=SEED) if len(medians) >= ENOUGH_BLOCKS else None
    return Growth(role, quantity, medians[0, 1], medians[-1, 1], float(values.max()), slope, bound)


def _slopes(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares; `rows` of shape (resamples, n, 2): minute and value."""
    minutes, values = rows[..., 0], rows[..., 1]
    minutes = minutes - minutes.mean(axis=1, keepdims=True)
    spread: NDArray[np.float64] = (minutes**2).sum(axis=1)
    rise: NDArray[np.float64] = (minutes * values).sum(axis=1)
    return np.divide(rise, spread, out=np.zeros_like(rise), where=spread > 0)


def rendered(found: Soak) -> Table:
    """The table."""
    title = f"{found.minutes:g} minutes, {found.records:,} rows landed, after a warm-up of {WARM_UP:.0%}"
    table = Table("role", "of", title=title)
    for name in ("lives", "first", "last", "highest", "a minute [95 %]", "bound"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for each in found.growths:
        numbers = [f"{value:.1f}" for value in (each.first, each.last, each.highest)]
        table.add_row(
            each.role, UNITS[each.quantity], str(each.lives), *numbers, each.slope, f"{each.bound:g}", each.verdict
        )
    return table


def _slope(interval: Interval) -> str:
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def save(found: Soak, out: Path) -> None:
    """samples.parquet, soak.json and soak.png in a folder; earlier ones are replaced."""
    found.samples.write_parquet(out / "samples.parquet")
    document = {
        "minutes": found.minutes,
        "records": found.records,
        "problems": found.problems,
        "growths": [asdict(each) | {"verdict": each.verdict} for each in found.growths],
        **found.provenance,
    }
    (out / "soak.json").write_text(json.dumps(document, indent=2, default=str) + "\n")
    with figures.style():
        figures.save(drawn(found), out / "soak.png", str(found.provenance.get("began", "")))


def keep_verdicts(found: Soak, home: Home) -> None:
    """Note for `streamgauge status` which roles grow and which are flat; what can't be told leaves all as it was."""
    for role in dict.fromkeys(each.role for each in found.growths):
        own = [each for each in found.growths if each.role == role]
        grows = [each for each in own if each.verdict == "grows"]
        if grows or all(each.verdict == "flat" for each in own):
            says = "; ".join(each.says for each in grows or own)
            verdicts.keep(home, Verdict(verdicts.LEAK, role, bool(grows), says, "make soak"))


def drawn(found: Soak) -> Figure:
    """Memory and handles of each role over time, a row for each broker; what is before the line is warm-up."""
    by_broker: dict[str, list[str]] = {}
    for role in found.samples["role"].unique(maintain_order=True):
        by_broker.setdefault(role.rpartition(".")[0] or KAFKA, []).append(role)
    figure, axes = figures.panels(2, len(by_broker), width=11)
    for row, (broker, roles) in enumerate(by_broker.items()):
        _draw(found, roles, (axes[2 * row], f"{broker}: resident memory, MiB"), "rss_mib")
        _draw(found, roles, (axes[2 * row + 1], f"{broker}: open handles"), "handles")
        axes[2 * row + 1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=6.5)
    return figure


def _draw(found: Soak, roles: list[str], at: tuple[Axes, str], quantity: str) -> None:
    axes, title = at
    for number, role in enumerate(roles):
        line, colour = divmod(number, len(figures.PALETTE))
        own = found.samples.filter(role=role)
        look = figures.PALETTE[colour], LINES[line % len(LINES)]
        axes.plot(own["second"] / 60, own[quantity], color=look[0], ls=look[1], lw=1.1, label=role)
    axes.axvline(WARM_UP * found.minutes, color=figures.GREY, lw=0.8, ls="--")
    axes.set_title(title)
    axes.set_xlabel("minutes")
    axes.set_ylim(bottom=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
