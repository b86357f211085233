"""Commands for what runs by the clock: `streamgauge schedule list | on NAME | off NAME`.

Dagster's own program does it on this lab's instance, whether the lab is up or not; the daemon obeys at its next look.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from orchestration.cli.options import HomeOption, JsonOption, home_of, print_json
from streaming.errors import SetupError, UsageError
from streaming.home import PROJECT_ROOT, Home

ON: Final = "on"
OFF: Final = "off"
_LISTED: Final = re.compile(r"^Schedule: (\S+) \[(\w+)\]\s*\nCron Schedule: (.+)$", re.MULTILINE)
_PATIENCE_S: Final = 240.0

NameArgument = Annotated[str, typer.Argument(help="A schedule's name; `streamgauge schedule list` shows them.")]

app = typer.Typer(
    help="What Dagster runs by the clock: see it, switch it on and off. Profiles are off until they are switched on.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def register(program: typer.Typer) -> None:
    """Add this module's commands."""
    program.add_typer(app, name="schedule")


@app.command("list")
def list_schedules(home: HomeOption = None, *, as_json: JsonOption = False) -> None:
    """Every schedule, whether it is on, and when it runs (UTC)."""
    found = _schedules(home_of(home))
    if as_json:
        print_json(found)
        return
    for each in found:
        typer.echo(f"{each['state']:<4} {each['cron']:<14} {each['name']}")


@app.command()
def on(name: NameArgument, home: HomeOption = None) -> None:
    """Switch a schedule on; it stays on when the lab is started anew."""
    _switch(home_of(home), name, "start")
    typer.echo(f"{name} is on")


@app.command()
def off(name: NameArgument, home: HomeOption = None) -> None:
    """Switch a schedule off; what runs already goes on."""
    _switch(home_of(home), name, "stop")
    typer.echo(f"{name} is off")


def _schedules(home: Home) -> list[dict[str, str]]:
    said = _dagster(home, "list")
    return [
        {"name": name, "state": ON if state == "RUNNING" else OFF, "cron": cron}
        for name, state, cron in _LISTED.findall(said)
    ]


def _switch(home: Home, name: str, action: str) -> None:
    known = [each["name"] for each in _schedules(home)]
    if name not in known:
        raise UsageError(f"there is no schedule {name!r}; there are {', '.join(known)}")
    _dagster(home, action, name)


def _dagster(home: Home, *words: str) -> str:
    """What `dagster schedule …` says on this lab's instance."""
    from orchestration.services import write_dagster_yaml

    write_dagster_yaml(home)
    program = str(Path(sys.executable).parent / "dagster")
    done = subprocess.run(
        [program, "schedule", *words, "-w", str(PROJECT_ROOT / "workspace.yaml")],
        env={**os.environ, "DAGSTER_HOME": str(home.dagster), "STREAMGAUGE_HOME": str(home.root)},
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise SetupError(
            f"dagster schedule {' '.join(words)}: {reason[-1] if reason else done.returncode}", "see above"
        )
    return done.stdout
