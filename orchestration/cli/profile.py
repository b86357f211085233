"""Commands for profiles: `streamgauge profile run | list | view | compare | timing | scenarios`.

`streamgauge profile ROLE …` is short for `streamgauge profile run ROLE …`. Ctrl-C and SIGTERM end a run in order: the
role flushes and commits, its profile is kept, the exit code is 130.
"""

from __future__ import annotations

import os
import sys
import webbrowser
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from typer.core import TyperGroup

from orchestration.cli import schedule
from orchestration.cli.options import HomeOption, JsonOption, home_of, print_json
from streaming.errors import SetupError, UsageError
from streaming.stopping import stopping
from streaming.topology import ROLES

INTERRUPTED: Final = 130
ALL: Final = "all"
BOTH: Final = "both"
CODECS: Final = "codecs"  # alone, without a broker
DEFAULT_MESSAGES: Final = 100_000

RunArgument = Annotated[str, typer.Argument(help="A run's name, the beginning of one, latest, or a role: its latest.")]
ServersOption = Annotated[
    str | None,
    typer.Option("--bootstrap-servers", help="Profile on this cluster, behind a prefix. Default: start one."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="load, rate_hz, codec, vehicles, seed, or one of streaming/tuning.py: k=v, as often as needed."
    ),
]
BrokerOption = Annotated[str, typer.Option(help="kafka, rabbitmq or rabbitmq-stream.")]
BrokersOption = Annotated[str, typer.Option("--broker", help="kafka, rabbitmq, rabbitmq-stream, or all.")]
MessagesOption = Annotated[int | None, typer.Option(min=1, help="End after this many records. Default: 100,000.")]


class _RolesAreCommands(TyperGroup):
    """`profile positions-parquet` is `profile run positions-parquet`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The named command, or `run` with the role as its argument."""
        if args and (args[0] in ROLES or args[0] in {ALL, CODECS}):
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
    role: Annotated[
        str, typer.Argument(help="A role (`streamgauge status` lists them), codecs (alone, without a broker), or all.")
    ],
    home: HomeOption = None,
    broker: BrokersOption = "kafka",
    profiler: Annotated[
        str, typer.Option("--with", help="scalene, cprofile, both, or none (timing only).")
    ] = "scalene",
    seconds: Annotated[float | None, typer.Option(min=0.5, help="End after this long.")] = None,
    messages: MessagesOption = None,
    settings: SetOption = None,
    servers: ServersOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Run a role on real brokers under a profiler, and show what dominates. Its topics are its own and go with it."""
    from experiments.profiles import rendering, runs

    found = _run_all(home, _requests(role, broker, profiler, _workload(messages, seconds, settings)), servers)
    opened = home_of(home)
    if as_json:
        shown = [rendering.as_json(each, runs.folder_of(opened, each)) for each in found]
        print_json(shown if ALL in {role, broker} or profiler == BOTH else shown[0])
    elif role == ALL:
        _print(rendering.listing(found, _console().width))
    else:
        for each in found:
            _print(rendering.view(each, runs.folder_of(opened, each), width=_console().width))
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

    _insist_on_role(role)
    found = [each for each in runs.listed(home_of(home)) if role in {None, each.role}]
    if as_json:
        print_json([{**asdict(each), "cpu_us_per_record": each.cpu_us_per_record} for each in found])
    elif found:
        _print(rendering.listing(found, _console().width))
    else:
        typer.echo(f"no runs{f' of {role}' if role else ''} yet: streamgauge profile run {role or 'ROLE'}")


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
    from experiments.profiles.scalene_report import HTML

    _insist_on_role(role)
    ways = {"--html": html, "--cli": cli, "--snakeviz": snakeviz, "--figure": figure, "--json": as_json}
    if len(asked := [way for way, is_asked in ways.items() if is_asked]) > 1:
        raise UsageError(f"{' and '.join(asked)}: one of them at a time")
    opened = home_of(home)
    files = ((HTML, html), (results.SCALENE_JSON, cli), ("main.prof", snakeviz), (results.FIGURE, figure))
    chosen = runs.found(opened, name, role=role, holding=[file for file, is_asked in files if is_asked])
    folder = runs.folder_of(opened, chosen)
    if html:
        _open_page(folder)
    elif cli:
        report = _existing(folder / results.SCALENE_JSON, "--cli shows scalene's report, and this run has none")
        program = str(Path(sys.executable).parent / "scalene")
        os.execv(program, [program, "view", "--cli", "--reduced", str(report)])  # noqa: S606
    elif snakeviz:
        prof = _existing(_busiest_prof(folder), "--snakeviz shows cProfile's calls, and this run has none")
        words = ["-u", "-m", "snakeviz", "-H", "127.0.0.1", *([] if _has_browser() else ["--server"]), str(prof)]
        os.execv(sys.executable, [sys.executable, *words])  # noqa: S606
    elif figure:
        typer.echo(_existing(folder / results.FIGURE, "this run has no figure"))
    elif as_json:
        print_json(rendering.as_json(chosen, folder, shown=lines))
    else:
        _print(rendering.view(chosen, folder, shown=lines, width=_console().width))


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="Run A.")],
    second: Annotated[str, typer.Argument(help="Run B.")],
    home: HomeOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Two runs side by side: processor time a record, and each activity's part of it if a profiler looked at both."""
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
    from experiments.profiles import history, rendering, runner, runs
    from experiments.profiles import stage as stages
    from experiments.profiles import timing as times
    from experiments.profiles.runs import Profiler

    workload, at = _workload(messages, seconds, settings), stages.broker_of(role, broker)
    request = runner.Request(role, at, Profiler.NONE, workload, "timing")
    earlier = runs.listed(home_of(home))
    found = _run_all(home, [request] * repetitions, servers)
    table = times.table(times.timings(home_of(home), found))
    judgement = history.judged(found, earlier)
    history.keep_verdict(home_of(home), found, judgement)
    if as_json:
        print_json(table.to_dicts())
    else:
        _print(rendering.timing_table(table, _console().width))
        typer.echo(f"{'worse: ' if judgement.is_worse else ''}{judgement.says}")
    _exit_as(found)


@app.command()
def scenarios(
    home: HomeOption = None,
    kind: Annotated[str | None, typer.Option(help="generator, transformer or sink; default: all.")] = None,
    broker: BrokerOption = "kafka",
    servers: ServersOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Profile the configurations of scenarios.py one after the other, and say what dominates where."""
    from experiments.profiles import rendering, runner
    from experiments.profiles import scenarios as of
    from experiments.profiles.runs import Profiler

    chosen = [each for each in of.SCENARIOS if kind in {None, str(each.kind)} and each.is_for(broker)]
    if not chosen:
        raise UsageError(f"--kind {kind}: generator, transformer or sink")
    requests = [runner.Request(each.role, broker, Profiler.CPROFILE, each.workload, each.name) for each in chosen]
    found = _run_all(home, requests, servers)
    table = of.table(home_of(home), found)
    if as_json:
        print_json(table.to_dicts())
    else:
        _print(rendering.scenario_table(table))
    _exit_as(found)


def _activities(home: Any, run: Any) -> Any:
    from experiments.profiles import patterns, results, runs

    if not run.records:
        raise UsageError(f"{run.name} has nothing to compare: no record was taken in")
    table = results.read(runs.folder_of(home, run), results.ACTIVITIES)
    return patterns.SHARES.to_frame() if table is None else table


def _insist_on_role(name: str | None) -> None:
    if name is not None and name not in ROLES and name != CODECS:
        raise UsageError(f"--role {name}: there is {', '.join(ROLES)}, {CODECS}")


def _console() -> Console:
    """At the terminal's width; a pipe gets one at which little is cut."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def _print(shown: Any) -> None:
    _console().print(shown)


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


def _requests(role: str, broker: str, profiler: str, workload: Any) -> list[Any]:
    """What is asked for, broker by broker; the codecs alone come once, whatever the broker."""
    from experiments.profiles import runner, stage

    subjects = list(stage.SUBJECTS) if role == ALL else [role]
    brokers = list(stage.BROKERS) if broker == ALL else [broker]
    profilers = ["scalene", "cprofile"] if profiler == BOTH else [profiler]
    asked = [
        (stage.broker_of(subject, at), subject, _profiler(name))
        for at in brokers
        for subject in subjects
        for name in profilers
    ]
    return [runner.Request(subject, at, name, workload) for at, subject, name in dict.fromkeys(asked)]


def _run_all(home: Path | None, requests: list[Any], servers: str | None) -> list[Any]:
    """The runs, one after the other, each broker started once; when interrupted, those that were done and the last."""
    from experiments.profiles import runner
    from experiments.profiles.stage import insist

    opened, console, found = home_of(home), Console(stderr=True, highlight=False), []
    for each in requests:
        insist(each.role, each.broker, each.workload)
        runner.insist_on_kafka(servers, each.broker)
    with stopping() as stop, console.status("starting brokers") as status:
        for broker, own in groupby(sorted(requests, key=lambda each: str(each.broker)), lambda each: each.broker):
            if stop.is_set():
                break
            with runner.brokers(servers, broker=broker) as at:
                for each in own:
                    if stop.is_set():
                        break
                    found.append(runner.profile(opened, each, at, stop=stop, say=status.update))
    if not found:
        raise typer.Exit(INTERRUPTED)
    return found


def _exit_as(found: list[Any]) -> None:
    from experiments.profiles.runs import Status

    if any(each.status is Status.FAILED for each in found):
        raise typer.Exit(1)
    if any(each.status is Status.INTERRUPTED for each in found):
        raise typer.Exit(INTERRUPTED)


def _open_page(folder: Path) -> None:
    from experiments.profiles.scalene_report import HTML

    page = _existing(folder / HTML, "--html shows scalene's page, and this run has none")
    typer.echo(page)
    if not webbrowser.open(page.as_uri()):
        typer.echo("there is no browser here: open the file yourself", err=True)


def _has_browser() -> bool:
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def _busiest_prof(folder: Path) -> Path:
    """The thread that does most of the work: a sink's own, else the main one."""
    return next((path for path in (folder / "sink.prof", folder / "main.prof") if path.exists()), folder / "main.prof")


def _existing(path: Path, otherwise: str) -> Path:
    if not path.exists():
        raise SetupError(otherwise, "streamgauge profile list shows what was run under what")
    return path
