"""Commands for profiles: `streamgauge profile run | list | view | compare | timing | scenarios`.

`streamgauge profile ROLE …` is short for `streamgauge profile run ROLE …`. Ctrl-C and SIGTERM end a run in order: the
role flushes and commits, its profile is kept, the exit code is 130.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from typer.core import TyperGroup

from orchestration.cli import schedule
from orchestration.cli.options import HomeOption, JsonOption, home_of, print_json
from streaming.errors import SetupError, UsageError
from streaming.topology import ROLES

INTERRUPTED: Final = 130
EVERY_ROLE: Final = "all"
DEFAULT_MESSAGES: Final = 100_000

RunArgument = Annotated[str, typer.Argument(help="A run's name, the beginning of one, or latest.")]
ServersOption = Annotated[
    str | None,
    typer.Option("--bootstrap-servers", help="Profile on this cluster, behind a prefix. Default: start one."),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="load, rate_hz, codec, vehicles or seed: k=v, as often as needed.")
]
BrokerOption = Annotated[str, typer.Option(help="kafka.")]
MessagesOption = Annotated[int | None, typer.Option(min=1, help="End after this many records. Default: 100,000.")]


class _RolesAreCommands(TyperGroup):
    """`profile positions-parquet` is `profile run positions-parquet`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The named command, or `run` with the role as its argument."""
        if args and (args[0] in ROLES or args[0] == EVERY_ROLE):
            args = ["run", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_RolesAreCommands,
    help="Roles under scalene and cProfile: run, look at, compare. `profile ROLE` is short for `profile run ROLE`.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def register(program: typer.Typer) -> None:
    """Add this module's commands, and those for the schedules that run profiles."""
    program.add_typer(app, name="profile")
    schedule.register(program)


@app.command()
def run(
    role: Annotated[str, typer.Argument(help="A role, or all; `streamgauge status` lists them.")],
    home: HomeOption = None,
    broker: BrokerOption = "kafka",
    profiler: Annotated[str, typer.Option("--with", help="scalene, cprofile, or none (timing only).")] = "scalene",
    seconds: Annotated[float | None, typer.Option(min=0.5, help="End after this long.")] = None,
    messages: MessagesOption = None,
    settings: SetOption = None,
    servers: ServersOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Run a role on real brokers under a profiler, and show what dominates. Its topics are its own and go with it."""
    from experiments.profiles import rendering, runner, runs

    workload = _workload(messages, seconds, settings)
    names = list(ROLES) if role == EVERY_ROLE else [role]
    found = _run_all(home, [runner.Request(name, broker, _profiler(profiler), workload) for name in names], servers)
    opened = home_of(home)
    if as_json:
        shown = [rendering.as_json(each, runs.folder_of(opened, each)) for each in found]
        print_json(shown if role == EVERY_ROLE else shown[0])
    else:
        for each in found:
            _print(rendering.view(each, runs.folder_of(opened, each)))
            typer.echo(f"look again: streamgauge profile view {each.name}")
    _exit_as(found)


@app.command("list")
def list_runs(
    home: HomeOption = None,
    role: Annotated[str | None, typer.Option(help="Of this role only.")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """All profile runs, the newest last."""
    from dataclasses import asdict

    from experiments.profiles import rendering, runs

    found = [each for each in runs.listed(home_of(home)) if role in {None, each.role}]
    if as_json:
        print_json([{**asdict(each), "cpu_us_per_record": each.cpu_us_per_record} for each in found])
    elif found:
        _print(rendering.listing(found))
    else:
        typer.echo("no runs yet: streamgauge profile run ROLE")


@app.command()
def view(
    name: RunArgument = "latest",
    home: HomeOption = None,
    role: Annotated[str | None, typer.Option(help="The latest of this role.")] = None,
    lines: Annotated[int, typer.Option("-n", min=1, help="How many lines or functions.")] = 15,
    *,
    html: Annotated[bool, typer.Option("--html", help="Open scalene's interactive page in a browser.")] = False,
    cli: Annotated[bool, typer.Option("--cli", help="Scalene's own view, in this terminal.")] = False,
    snakeviz: Annotated[bool, typer.Option("--snakeviz", help="Open cProfile's calls in SnakeViz.")] = False,
    figure: Annotated[bool, typer.Option("--figure", help="Print where the figure lies.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at a run: here, in a browser, or as scalene and SnakeViz show it."""
    from experiments.profiles import rendering, results, runs

    opened = home_of(home)
    chosen = runs.found(opened, name, role=role)
    folder = runs.folder_of(opened, chosen)
    if html:
        _open_page(folder)
    elif cli:
        report = _existing(folder / results.SCALENE_JSON, "--cli shows scalene's report, and this run has none")
        program = str(Path(sys.executable).parent / "scalene")
        os.execv(program, [program, "view", "--cli", "--reduced", str(report)])  # noqa: S606
    elif snakeviz:
        prof = _existing(_busiest_prof(folder), "--snakeviz shows cProfile's calls, and this run has none")
        os.execv(sys.executable, [sys.executable, "-m", "snakeviz", "-H", "127.0.0.1", str(prof)])  # noqa: S606
    elif figure:
        typer.echo(_existing(folder / results.FIGURE, "this run has no figure"))
    elif as_json:
        print_json(rendering.as_json(chosen, folder, shown=lines))
    else:
        _print(rendering.view(chosen, folder, shown=lines))


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="Run A.")],
    second: Annotated[str, typer.Argument(help="Run B.")],
    home: HomeOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Two runs side by side: processor time a record, and each activity's part of it."""
    from experiments.profiles import rendering, runs

    opened = home_of(home)
    one, other = (runs.found(opened, name) for name in (first, second))
    tables = (_activities(opened, one), _activities(opened, other))
    if as_json:
        cpu = {"a": one.cpu_us_per_record, "b": other.cpu_us_per_record}
        print_json({"cpu_us_per_record": cpu, "activities": rendering.compared(one, other, tables).to_dicts()})
    else:
        _print(rendering.comparison(one, other, tables))


@app.command()
def timing(
    role: Annotated[str, typer.Argument(help="A role.")],
    home: HomeOption = None,
    broker: BrokerOption = "kafka",
    repetitions: Annotated[int, typer.Option("--runs", min=1, help="Runs, each a process on new topics.")] = 10,
    seconds: Annotated[float | None, typer.Option(min=0.5, help="End each after this long.")] = None,
    messages: MessagesOption = None,
    settings: SetOption = None,
    servers: ServersOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Time a role's loop over several runs without a profiler: mean, deviation, median, p99, and how sure that is."""
    from experiments.profiles import rendering, runner
    from experiments.profiles import timing as times
    from experiments.profiles.runs import Profiler

    request = runner.Request(role, broker, Profiler.NONE, _workload(messages, seconds, settings), "timing")
    found = _run_all(home, [request] * repetitions, servers)
    table = times.table(times.timings(home_of(home), found))
    if as_json:
        print_json(table.to_dicts())
    else:
        _print(rendering.timing_table(table))
    _exit_as(found)


@app.command()
def scenarios(
    home: HomeOption = None,
    kind: Annotated[str | None, typer.Option(help="generator, transformer or sink; default: all.")] = None,
    servers: ServersOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Profile the configurations of scenarios.py one after the other, and say what dominates where."""
    from experiments.profiles import rendering, runner
    from experiments.profiles import scenarios as of
    from experiments.profiles.runs import Profiler

    chosen = [each for each in of.SCENARIOS if kind in {None, str(each.kind)}]
    if not chosen:
        raise UsageError(f"--kind {kind}: generator, transformer or sink")
    requests = [runner.Request(each.role, "kafka", Profiler.CPROFILE, each.workload, each.name) for each in chosen]
    found = _run_all(home, requests, servers)
    table = of.table(home_of(home), found)
    if as_json:
        print_json(table.to_dicts())
    else:
        _print(rendering.scenario_table(table))
    _exit_as(found)


def _activities(home: Any, run: Any) -> Any:
    from experiments.profiles import results, runs

    table = results.read(runs.folder_of(home, run), results.ACTIVITIES)
    if table is None:
        raise UsageError(f"{run.name} has nothing to compare: it ran under no profiler, or failed")
    return table


def _print(shown: Any) -> None:
    """At the terminal's width; a pipe gets one at which little is cut."""
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(shown)


def _workload(messages: int | None, seconds: float | None, settings: list[str] | None) -> Any:
    from experiments.profiles.runs import Workload

    pairs = dict(_pair(each) for each in settings or ())
    if messages is None and seconds is None:
        messages = DEFAULT_MESSAGES
    return Workload(messages=messages, seconds=seconds).changed(pairs)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text}: name=value is wanted")
    return name.strip(), value.strip()


def _profiler(name: str) -> Any:
    from experiments.profiles.runs import Profiler

    try:
        return Profiler(name)
    except ValueError:
        raise UsageError(f"--with {name}: {', '.join(Profiler)}") from None


def _run_all(home: Path | None, requests: list[Any], servers: str | None) -> list[Any]:
    """The runs, one after the other on one cluster; when it is interrupted, those that were done and the last one."""
    from experiments.profiles import runner
    from experiments.profiles.stage import insist
    from streaming.topology import role as role_of

    opened, console, found = home_of(home), Console(stderr=True, highlight=False), []
    for each in requests:
        insist(role_of(each.role), each.broker, each.workload)
    with _stopping() as stop, console.status("starting brokers") as status, runner.brokers(servers) as address:
        for each in requests:
            if stop.is_set():
                break
            found.append(runner.profile(opened, each, address, stop=stop, say=status.update))
    if not found:
        raise typer.Exit(INTERRUPTED)
    return found


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_as(found: list[Any]) -> None:
    from experiments.profiles.runs import Status

    if any(each.status is Status.FAILED for each in found):
        raise typer.Exit(1)
    if any(each.status is Status.INTERRUPTED for each in found):
        raise typer.Exit(INTERRUPTED)


def _open_page(folder: Path) -> None:
    from experiments.profiles.scalene_report import HTML

    page = _existing(folder / HTML, "--html shows scalene's page, and this run has none; look at it with --snakeviz")
    typer.echo(page)
    webbrowser.open(page.as_uri())


def _busiest_prof(folder: Path) -> Path:
    """The thread that does most of the work: a sink's own, else the main one."""
    return next((path for path in (folder / "sink.prof", folder / "main.prof") if path.exists()), folder / "main.prof")


def _existing(path: Path, otherwise: str) -> Path:
    if not path.exists():
        raise SetupError(otherwise, "streamgauge profile list shows what was run under what")
    return path
