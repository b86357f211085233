"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from streaming.home import Home
from streaming.lab import Lab

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", envvar="STREAMGAUGE_HOME", help="The lab's home. Default: .streamgauge in the project."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
RoleArgument = Annotated[str, typer.Argument(help="A service's name; `streamgauge status` lists them.")]


def home_of(option: Path | None) -> Home:
    """The home an option names, made and checked."""
    home = Home(option.absolute()) if option else Home.locate(os.environ)
    return home.open()


def opened(option: Path | None) -> tuple[Home, Lab]:
    """Home and the lab remembered in it."""
    home = home_of(option)
    return home, Lab.load(home)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(value, indent=2, default=str))
