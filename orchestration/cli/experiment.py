"""Commands for experiments: list, run, runs, show, compare. What Dagster's jobs run, from the terminal.

Exit codes of `run`: 0 all was measured; 1 trials failed or lost messages; 5 another experiment runs; 130 interrupted
(what is measured is kept).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from orchestration.cli.options import HomeOption, JsonOption, home_of, print_json
from streaming.errors import StreamgaugeError, UsageError

if TYPE_CHECKING:
    from experiments.experiment import Preset
    from experiments.launch import Request
    from experiments.run import Progress, Run

EVERY = "all"
SIGNS = {"holds": "[green]✔ holds[/]", "refuted": "[red]✘ refuted[/]", "unknown": "[dim]? unknown[/]"}

NameArgument = Annotated[str, typer.Argument(help="An experiment, or all; `streamgauge experiment list` names them.")]
RunArgument = Annotated[str, typer.Argument(help="A run's id or a part of it, an experiment's name, or latest.")]

experiments = typer.Typer(no_args_is_help=True, help="Questions asked of real brokers: run, look, compare.")


def register(app: typer.Typer) -> None:
    """Add `experiment` with its commands."""
    app.add_typer(experiments, name="experiment")


@experiments.command("list")
def list_(*, as_json: JsonOption = False) -> None:
    """The experiments: question, factors, and about how long each takes."""
    from experiments.deep_dives import DEEP_DIVES
    from experiments.experiment import Preset

    facts: list[dict[str, Any]] = [
        {
            "name": each.name,
            "question": each.question,
            "expected_s": {str(preset): round(each.expected_s(preset)) for preset in Preset},
            "scenes": {
                scene.name: {
                    factor.name: {str(preset): list(factor.levels.at(preset)) for preset in Preset}
                    for factor in scene.factors
                }
                for scene in each.scenes
            },
        }
        for each in DEEP_DIVES.values()
    ]
    if as_json:
        print_json(facts)
        return
    table = Table("experiment", "question", *(str(preset) for preset in Preset), show_lines=True)
    for each in facts:
        table.add_row(each["name"], each["question"], *(_duration(s) for s in each["expected_s"].values()))
    Console().print(table)


@experiments.command("run")
def run(
    name: NameArgument,
    home: HomeOption = None,
    preset: Annotated[str, typer.Option(help="smoke (seconds), standard (minutes) or thorough (an evening).")] = "",
    settings: Annotated[list[str] | None, typer.Option("--set", help="factor=level,…; may be repeated.")] = None,
    scene: Annotated[list[str] | None, typer.Option(help="Only this scene; may be repeated.")] = None,
    repetitions: Annotated[int | None, typer.Option(min=1, help="Of each trial. Under 5 decide nothing.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of trials and of what is drawn at random.")] = 1,
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="On this cluster; what would break it is skipped. Default: brokers of its own.")
    ] = None,
    containers: Annotated[
        str | None, typer.Option(help="With --bootstrap-servers: the compose project whose brokers may be broken.")
    ] = None,
    recording: Annotated[
        Path | None,
        typer.Option(
            "--recording",
            "--workload",
            help="Send this recording (CSV, Parquet, GPX), not the simulated fleet.",
            exists=True,
        ),
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to queue behind an experiment that runs.")] = 0.0,
    *,
    beside: Annotated[
        bool, typer.Option("--beside", help="Let this home's live application run on; the findings say so.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run an experiment, or all one after the other, and print what was found."""
    from experiments.launch import INTERRUPTED, Request, carry_out, exit_code

    signal.signal(signal.SIGTERM, lambda *_: _interrupt())
    asked = Request(
        experiment=name,
        preset=_preset(preset),
        seed=seed,
        repetitions=repetitions,
        scenes=tuple(scene or ()),
        bootstrap_servers=bootstrap_servers,
        compose_project=containers,
        recording=str(recording.absolute()) if recording else None,
        wait_s=wait,
        pauses=not beside,
    )
    requests = _requests(asked, settings or [])
    kept, console = home_of(home), Console(stderr=True)
    _announce(requests, console)
    done: list[Run] = []
    worst = 0
    for request in requests:
        try:
            with _watching(console) as progress:
                found = carry_out(request, kept, progress)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:  # one experiment that fails does not keep the others from running
            if len(requests) == 1:
                raise
            console.print(f"{request.experiment} failed: {error}", style="red", highlight=False, markup=False)
            worst = worst or (error.exit_code if isinstance(error, StreamgaugeError) else 1)
            continue
        done.append(found)
        if not as_json:
            _show(found)
        if (code := exit_code(found)) == INTERRUPTED:
            worst = code
            break
        worst = worst or code
    if as_json:
        print_json([_facts(each) for each in done])
    if worst:
        raise typer.Exit(worst)


@experiments.command("runs")
def runs(name: NameArgument = EVERY, home: HomeOption = None, *, as_json: JsonOption = False) -> None:
    """The runs there are, oldest first."""
    from experiments.run import find_runs

    found = find_runs(home_of(home), None if name == EVERY else name)
    facts = [_row(each) for each in found]
    if as_json:
        print_json(facts)
        return
    table = Table("run", "experiment", "preset", "seed", "trials", "status", "holds", "refuted", "unknown")
    for each in facts:
        verdicts = [str(each["verdicts"].get(verdict, 0)) for verdict in SIGNS]
        names = ("run", "experiment", "preset", "seed", "trials", "status")
        table.add_row(*(str(each[column]) for column in names), *verdicts)
    Console().print(table)


@experiments.command("show")
def show(run: RunArgument = "latest", home: HomeOption = None, *, as_json: JsonOption = False) -> None:
    """What a run has found: each claim with its verdict and numbers, and where its figures are."""
    from experiments.launch import find

    found = find(home_of(home), run)
    if as_json:
        print_json(_facts(found))
    else:
        _show(found)


@experiments.command("compare")
def compare(first: RunArgument, second: RunArgument, home: HomeOption = None, *, as_json: JsonOption = False) -> None:
    """Two runs of an experiment side by side: verdicts, numbers, and in what the runs differ."""
    from experiments.launch import find

    opened = home_of(home)
    one, other = find(opened, first), find(opened, second)
    if one.experiment != other.experiment:
        raise UsageError(f"{one.run_id} is of {one.experiment}, {other.run_id} of {other.experiment}")
    claims = _side_by_side(one, other)
    differences = _differences(one.provenance, other.provenance)
    if as_json:
        print_json({"runs": [one.run_id, other.run_id], "claims": claims, "differences": differences})
        return
    table = Table("claim", one.run_id, other.run_id, "", show_lines=True)
    for each in claims:
        cells = [
            f"{SIGNS[verdict]}\n{numbers}" for verdict, numbers in zip(each["verdicts"], each["numbers"], strict=True)
        ]
        table.add_row(each["text"], *cells, "" if each["is_same"] else "[bold]changed")
    console = Console()
    console.print(table)
    for name, values in differences.items():
        console.print(f"{name}: {values[0]} | {values[1]}", highlight=False, markup=False)


def _interrupt() -> None:
    raise KeyboardInterrupt


def _preset(name: str) -> Preset:
    from experiments.experiment import Preset

    try:
        return Preset(name or Preset.STANDARD)
    except ValueError:
        raise UsageError(f"--preset {name}: one of {', '.join(Preset)}") from None


def _requests(asked: Request, settings: Sequence[str]) -> list[Request]:
    """One request an experiment. For all of them, a setting goes to those that have the factor."""
    from experiments.deep_dives import DEEP_DIVES
    from experiments.experiment import parse_overrides
    from experiments.launch import named

    if asked.experiment != EVERY:
        return [replace(asked, factors=parse_overrides(named(asked.experiment), settings))]
    if asked.scenes:
        raise UsageError("--scene needs one experiment, not all")
    owners = {
        each.name: {factor.name for scene in each.scenes for factor in scene.factors} for each in DEEP_DIVES.values()
    }
    for setting in settings:
        if not any(setting.partition("=")[0] in names for names in owners.values()):
            raise UsageError(f"--set {setting}: no experiment has such a factor")
    return [
        replace(
            asked,
            experiment=name,
            factors=parse_overrides(each, [it for it in settings if it.partition("=")[0] in owners[name]]),
        )
        for name, each in DEEP_DIVES.items()
    ]


def _announce(requests: Sequence[Request], console: Console) -> None:
    """Before anything starts: what, where, and for how long; refuses what cannot be planned."""
    from experiments.experiment import plan
    from experiments.launch import expected_s, named

    for each in requests:
        planned = plan(
            named(each.experiment),
            each.preset,
            seed=each.seed,
            overrides=each.factors,
            repetitions=each.repetitions,
            scenes=each.scenes or None,
        )
        where = f"on {each.bootstrap_servers}" if each.bootstrap_servers else "on three brokers of its own"
        says = f"{each.experiment}, {each.preset}: {len(planned)} trials {where}, about {_duration(expected_s(each))}"
        console.print(says, highlight=False)
    if len(requests) > 1:
        console.print(f"together about {_duration(sum(map(expected_s, requests)))}", highlight=False)


class _watching:  # noqa: N801 - used as a function
    """A progress bar on a terminal; lines elsewhere, one a phase."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("about {task.fields[left]} left"),
            console=console,
            transient=True,
        )
        self._phase = ""

    def __enter__(self) -> Callable[[Progress], None]:
        if self._console.is_terminal:
            self._task = self._bar.add_task("", total=None, left="")
            self._bar.start()
        return self._tell

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _tell(self, progress: Progress) -> None:
        if self._console.is_terminal:
            says = f"{progress.phase}: {progress.says}"[:70]
            left = _duration(progress.remaining_s)
            self._bar.update(
                self._task, description=says, completed=progress.done, total=progress.total or None, left=left
            )
        elif progress.phase != self._phase:
            self._phase = progress.phase
            self._console.print(f"{progress.phase} ({progress.says})", highlight=False, markup=False, soft_wrap=True)


def _show(found: Run) -> None:
    console, stamp = Console(), found.provenance
    status = stamp["status"] + (f" ({stamp['reason']})" if stamp["reason"] else "")
    console.print(
        f"[bold]{found.experiment}[/] run {found.run_id}: {status}; {stamp['preset']}, seed {stamp['seed']}, "
        f"{stamp['trials']} trials planned",
        highlight=False,
    )
    if paused := stamp.get("paused"):
        console.print(f"{len(paused)} roles of the live application rested meanwhile", highlight=False)
    for each in stamp["contention"]:
        console.print(f"[yellow]measured beside other load:[/] {each}", highlight=False)
    table = Table("verdict", "claim", "measured", show_lines=True)
    for row in found.findings.iter_rows(named=True):
        table.add_row(SIGNS[row["verdict"]], f"{row['text']} [dim]({row['source']})[/]", row["says"])
    console.print(table)
    for row in found.measured.troubles().iter_rows(named=True):
        metric = row["metric"].replace("_", " ")
        console.print(f"{metric}: {row['scene']} {row['factors']}: {row['note']}", highlight=False, markup=False)
    for path in (*found.figures, found.folder):
        console.print(str(path), highlight=False, markup=False, soft_wrap=True)


def _row(found: Run) -> dict[str, Any]:
    stamp = found.provenance
    verdicts = dict(found.findings["verdict"].value_counts().iter_rows())
    return {
        "run": found.run_id,
        "experiment": found.experiment,
        **{name: stamp[name] for name in ("preset", "seed", "trials", "status", "reason", "began", "ended")},
        "contention": stamp["contention"],
        "verdicts": verdicts,
    }


def _facts(found: Run) -> dict[str, Any]:
    return {
        **_row(found),
        "findings": found.findings.drop("run_id", "experiment").to_dicts(),
        "troubles": found.measured.troubles().to_dicts(),
        "figures": [str(path) for path in found.figures],
        "folder": str(found.folder),
    }


def _side_by_side(one: Run, other: Run) -> list[dict[str, Any]]:
    pairs = one.findings.join(other.findings, on="claim", suffix="_other", maintain_order="left")
    return [
        {
            "claim": row["claim"],
            "text": row["text"],
            "verdicts": [row["verdict"], row["verdict_other"]],
            "numbers": [_numbers(row, ""), _numbers(row, "_other")],
            "is_same": row["verdict"] == row["verdict_other"],
        }
        for row in pairs.iter_rows(named=True)
    ]


def _numbers(row: Mapping[str, Any], suffix: str) -> str:
    if row[f"estimate{suffix}"] is None:
        return "not measured"
    low, high = row[f"low{suffix}"], row[f"high{suffix}"]
    n = row[f"repetitions{suffix}"]
    return f"{row[f'estimate{suffix}']:.4g} [{low:.4g}, {high:.4g}] {row[f'unit{suffix}']}, {n} repetitions"


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[Any]]:
    names = ("preset", "seed", "overrides", "repetitions", "status", "code", "versions", "workload", "contention")
    return {name: [one[name], other[name]] for name in names if one[name] != other[name]}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
