"""A command that looks at the lab's RabbitMQ and changes nothing: queues."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from orchestration.cli.options import HomeOption, JsonOption, broker_of, opened, print_json
from streaming.lab import KAFKA

if TYPE_CHECKING:
    from streaming.transports.rabbitmq.browsing import Binding, QueueState

HINT = (
    "The numbers are RabbitMQ's own books, some seconds old. Sinks acknowledge after their files are durable, so what "
    "is unacked is being written. A stream keeps what was read; its readers resume from their files."
)


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(queues)


def queues(
    home: HomeOption = None,
    broker: Annotated[str | None, typer.Option(help="rabbitmq or rabbitmq-stream. Default: those of the lab.")] = None,
    *,
    bindings: Annotated[bool, typer.Option("--bindings", help="The exchanges and what they feed, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """RabbitMQ's queues and streams: ready, unacked, consumers; with --bindings how exchanges feed them."""
    from orchestration.brokers import address_of
    from streaming.cluster.rabbitmq import OPERATOR
    from streaming.transports.rabbitmq import browsing

    opened_home, lab = opened(home)
    chosen = [broker_of(broker)] if broker else [each for each in lab.brokers if each != KAFKA] or ["rabbitmq"]
    found = {}
    for name in chosen:
        address = address_of(opened_home, lab, name, OPERATOR)
        found[name] = (browsing.queues(address), browsing.bindings(address) if bindings else [])
    if as_json:
        print_json(
            {
                name: {"queues": [asdict(each) for each in states], "bindings": [asdict(each) for each in bound]}
                for name, (states, bound) in found.items()
            }
        )
        return
    console = Console()
    for name, (states, bound) in found.items():
        console.print(_queues_table(name, states))
        if bound:
            console.print(_bindings_table(name, bound))
    console.print(HINT, style="dim")


def _queues_table(broker: str, states: list[QueueState]) -> Table:
    table = Table("queue", "kind", "state", title=broker, title_justify="left")
    for column in ("ready", "unacked", "consumers", "published", "acknowledged"):
        table.add_column(column, justify="right")
    for each in states:
        numbers = (each.ready, each.unacked, each.consumers, each.published, each.acknowledged)
        table.add_row(each.name, each.kind, each.state, *(f"{number:,}" for number in numbers))
    return table


def _bindings_table(broker: str, bound: list[Binding]) -> Table:
    table = Table("exchange", "kind", "routing key", "queue", title=f"{broker}: bindings", title_justify="left")
    for each in bound:
        table.add_row(each.exchange, each.exchange_kind, each.routing_key, each.queue)
    return table
