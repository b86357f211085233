"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from streaming.errors import UsageError
from streaming.home import Home
from streaming.lab import BROKERS, Lab

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", envvar="STREAMGAUGE_HOME", help="The lab's home. Default: .streamgauge in the project."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
BrokerOption = Annotated[str, typer.Option("--broker", help="kafka, rabbitmq (queues) or rabbitmq-stream.")]
RabbitMQHostOption = Annotated[
    str | None,
    typer.Option(
        "--rabbitmq-host", help="Where the lab's RabbitMQ is from here: 127.0.0.1 for containers; or n1,n2,n3."
    ),
]
RoleArgument = Annotated[str, typer.Argument(help="A service's name; `streamgauge status` lists them.")]


def home_of(option: Path | None) -> Home:
    """The home an option names, made and checked."""
    home = Home(option.absolute()) if option else Home.locate(os.environ)
    return home.open()


def opened(option: Path | None) -> tuple[Home, Lab]:
    """Home and the lab remembered in it."""
    home = home_of(option)
    return home, Lab.load(home)


def broker_of(option: str) -> str:
    """The broker an option names; UsageError naming all if there is none."""
    if option not in BROKERS:
        raise UsageError(f"--broker {option}: one of {', '.join(BROKERS)}")
    return option


def brokers_of(option: str | None) -> tuple[str, ...] | None:
    """The brokers that `--brokers kafka,rabbitmq` names."""
    return None if option is None else tuple(broker_of(name.strip()) for name in option.split(","))


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(value, indent=2, default=str))
