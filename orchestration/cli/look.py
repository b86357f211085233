"""Commands that look into the cluster and change nothing: topics, groups, messages.

They work on the running lab or on any cluster (`--bootstrap-servers`), and join no consumer group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from orchestration.cli.options import HomeOption, JsonOption, opened, print_json
from streaming.errors import BrokerUnavailable
from streaming.home import Home
from streaming.lab import Lab
from streaming.topology import ROLES, STREAMS, RoleKind, StreamKind

if TYPE_CHECKING:
    from streaming.interfaces import Codec
    from streaming.transports.kafka.browsing import Record
    from streaming.transports.kafka.inspection import Cluster, Group, Partition, Topic

ServersOption = Annotated[str | None, typer.Option("--bootstrap-servers", help="Default: the lab's own brokers.")]
HINT = (
    "Sinks resume from their committed files ([b]files to[/b]), never from the group's offset, which is a hint for lag "
    "tools. Transformers commit theirs in the transaction that writes their output: there it is the truth."
)
_VALUE_CHARACTERS = 160
_BROKER = "kafka"


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (topics, groups, messages):
        app.command()(command)


def topics(
    name: Annotated[str | None, typer.Argument(help="One topic in detail; without it, all.")] = None,
    home: HomeOption = None,
    servers: ServersOption = None,
    *,
    internal: Annotated[bool, typer.Option("--internal", help="Kafka's own topics, too.")] = False,
    count: Annotated[bool, typer.Option("--count", help="Of one topic: read it whole to count its records.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Leaders, replicas, ISR and offsets of each topic; with a NAME per partition, with its settings.

    Offsets held are no count: transactions' control records take an offset each, compaction leaves gaps. An exact
    number of records costs reading them: --count.
    """
    _, _, cluster = connected(home, servers)
    if name is None:
        found = cluster.topics(internal=internal)
        _show([each.to_dict() for each in found], as_json, lambda: [_topics_table(found)])
    else:
        topic = cluster.topic(name)
        records = _counted(cluster, topic) if count else {}
        value = {**topic.to_dict(), **({"records": {str(p): n for p, n in records.items()}} if count else {})}
        _show(value, as_json, lambda: _topic_detail(topic, records))


def groups(
    name: Annotated[str | None, typer.Argument(help="One group in detail; without it, all.")] = None,
    home: HomeOption = None,
    servers: ServersOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """State, members, committed offsets and lag of each consumer group; with a NAME per partition.

    Our sinks resume from their files, so for them the group's offset is a hint only; `files to` is the truth.
    """
    opened_home, lab, cluster = connected(home, servers)
    is_lab = cluster.bootstrap_servers == lab.kafka
    found = cluster.groups() if name is None else [cluster.group(name)]
    landed = {each.name: _landed(opened_home, each.name) if is_lab else {} for each in found}
    values = [_group_dict(each, landed[each.name]) for each in found]
    if name is None:
        _show(values, as_json, lambda: [_groups_table(values), HINT])
    else:
        _show(values[0], as_json, lambda: _group_detail(found[0], values[0]))


def messages(
    topic: Annotated[str, typer.Argument(help="Any topic of the cluster.")],
    home: HomeOption = None,
    servers: ServersOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="How many. Default: 20; with --follow: no end.")] = None,
    start: Annotated[
        str,
        typer.Option(
            "--from",
            help="earliest, an offset (with --partition) or a time such as 2026-11-25T15:00:00Z: the first ones from "
            "there. latest: the last ones there are; with --follow, only what comes.",
        ),
    ] = "latest",
    partition: Annotated[int | None, typer.Option(min=0, help="Of this partition only.")] = None,
    key: Annotated[str | None, typer.Option(help="With this key only.")] = None,
    codec: Annotated[str | None, typer.Option(help="Decode with json or avro. Default: the lab's.")] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as records come, until Ctrl-C.")] = False,
    uncommitted: Annotated[
        bool, typer.Option("--uncommitted", help="Also records of transactions that are open or were aborted.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show records of a topic: decoded where it is one of ours, as they are otherwise. Leaves no trace in any group."""
    from streaming.transports.kafka.browsing import browsing, start_of

    begin = start_of(start)
    _, lab, cluster = connected(home, servers)
    decoder, why_raw = _decoder(topic.removeprefix(lab.prefix), codec or lab.codec)
    wanted: Callable[[Record], bool] = (
        (lambda record: record.key == key.encode()) if key is not None else lambda _: True
    )
    printer = _Printer(decoder, why_raw, as_json=as_json)
    with browsing(cluster, topic, partition=partition, is_committed=not uncommitted) as browser:
        if follow:
            _follow(browser.follow(begin, wanted), printer, limit)
        elif begin == "latest":
            printer.show(browser.last(limit or 20, wanted))
        else:
            printer.show(browser.first(begin, limit or 20, wanted))


def connected(home: Any, servers: str | None) -> tuple[Home, Lab, Cluster]:
    """Home, its lab, and the cluster to look at. BrokerUnavailable when that would be a lab that does not run."""
    from orchestration import services
    from streaming.transports.kafka.inspection import Cluster

    opened_home, lab = opened(home)
    if servers is None and lab.bootstrap_servers is None and not services.is_up(opened_home):
        raise BrokerUnavailable(
            "no lab runs here; start it with: streamgauge up, or name a cluster: --bootstrap-servers HOST:PORT"
        )
    return opened_home, lab, Cluster(servers or lab.kafka)


def layout_table(title: str, before: Iterable[Partition], after: Iterable[Partition] | None = None) -> Table:
    """Leaders and ISR of each partition; with `after`, both, and what has changed is emphasised."""
    old = {(each.topic, each.number): each for each in before}
    new = None if after is None else {(each.topic, each.number): each for each in after}
    table = Table("partition", "leader", "replicas", "ISR", title=title, title_justify="left")
    for place in sorted({*old, *(new or {})}):
        then, now = old.get(place), (new or old).get(place)
        is_changed = new is not None and then != now
        table.add_row(
            f"{place[0]}\\[{place[1]}]",
            _change(_leader(then), _leader(now)),
            _change(_numbers(then.replicas) if then else "", _numbers(now.replicas) if now else ""),
            _change(_numbers(then.in_sync) if then else "", _numbers(now.in_sync) if now else ""),
            style="" if is_changed or new is None else "dim",
        )
    return table


class _Printer:
    """Prints records as they come: a block each for people, a line each for scripts."""

    def __init__(self, codec: Codec | None, why_raw: str, *, as_json: bool) -> None:
        self._codec, self._why_raw, self._as_json = codec, why_raw, as_json
        self._console = Console(highlight=False, soft_wrap=True)

    def show(self, records: list[Record]) -> None:
        from streaming.transports.kafka.browsing import shown

        for each in shown(records, self._codec, self._why_raw) if records else []:
            if self._as_json:
                typer.echo(orjson.dumps(each, default=str).decode())
            else:
                self._console.print(_message_line(each))


def _follow(polls: Iterable[list[Record]], printer: _Printer, limit: int | None) -> None:
    left = limit
    for records in polls:
        printer.show(records if left is None else records[:left])
        if left is not None:
            left -= len(records)
            if left <= 0:
                return


def _decoder(topic: str, codec_name: str) -> tuple[Codec | None, str]:
    """The codec of one of our streams; or None and why there is none."""
    from streaming.codecs import codec

    stream = STREAMS.get(topic)
    if stream is None:
        return None, "not a stream of this application"
    if stream.kind is StreamKind.STATE:
        return None, "a transformer's memory: opaque snapshots, no schema"
    return codec(codec_name, stream.schema), ""


def _message_line(each: dict[str, Any]) -> str:
    from rich.markup import escape

    place = escape(f"{each['topic']}[{each['partition']}]")
    key = "" if each["key"] is None else escape(each["key"])
    head = f"[cyan]{place}[/] [b]{each['offset']}[/] [dim]{each['timestamp'] or ''}[/] [green]{key}[/]"
    headers = f" [dim]{escape(str(each['headers']))}[/]" if each["headers"] else ""
    if each.get("is_tombstone"):
        return f"{head}{headers} [red]tombstone[/]"
    if "row" in each:
        mark = " [magenta]mark[/]" if each["is_mark"] else ""
        return f"{head}{headers}{mark}\n    {escape(orjson.dumps(each['row'], default=str).decode())}"
    raw = str(each.get("text") or f"0x{each.get('hex', '')}")
    cut = raw if len(raw) <= _VALUE_CHARACTERS else f"{raw[:_VALUE_CHARACTERS]}…"
    return f"{head}{headers} [dim]{each['size_bytes']:,} bytes, raw: {escape(each['why_raw'])}[/]\n    {escape(cut)}"


def _topics_table(found: list[Topic]) -> Table:
    table = Table("topic", "kind", "partitions", "copies", "leaders (broker: partitions)", "under-replicated")
    table.add_column("offsets held", justify="right")
    for each in found:
        stream = STREAMS.get(each.name)
        leaders = "  ".join(f"{broker}: {count}" for broker, count in each.leaders.items())
        under = f"[red]{each.under_replicated}[/]" if each.under_replicated else "0"
        held = _number(each.to_dict()["offsets_held"])
        kind = stream.kind.value if stream else ""
        table.add_row(each.name, kind, str(len(each.partitions)), str(each.replication), leaders, under, held)
    return table


def _topic_detail(topic: Topic, records: dict[int, int]) -> list[Table | str]:
    table = Table("partition", "leader", "replicas", "ISR", title=topic.name, title_justify="left")
    for column in ("earliest", "latest", "offsets held", "in open transactions", *(["records"] if records else [])):
        table.add_column(column, justify="right")
    for each in topic.partitions:
        is_open = None if each.written is None or each.end is None else max(0, each.written - each.end)
        under = " [red]under-replicated[/]" if each.is_under_replicated else ""
        cells = [str(each.number), _leader(each), _numbers(each.replicas), _numbers(each.in_sync) + under]
        cells += [_number(each.low), _number(each.end), _number(each.offsets_held), _number(is_open)]
        table.add_row(*cells, *([_number(records.get(each.number))] if records else []))
    settings = Table("setting", "value", "from", title="not the defaults", title_justify="left")
    for name, value in topic.settings.items():
        settings.add_row(name, value, "the topic")
    for name, value in topic.inherited.items():
        settings.add_row(name, value, "the brokers")
    return [table, settings, *_uses(topic.name)]


def _uses(topic: str) -> list[str]:
    if topic not in STREAMS:
        return []
    writers = ", ".join(role.name for role in ROLES.values() if topic in role.writes)
    readers = ", ".join(role.name for role in ROLES.values() if topic in (*role.reads, *role.looks_up))
    return [f"{STREAMS[topic].says}\nwritten by {writers or 'nobody'}; read by {readers or 'nobody but its writer'}"]


def _counted(cluster: Cluster, topic: Topic) -> dict[int, int]:
    from streaming.transports.kafka import KafkaTransport

    transport = KafkaTransport(cluster.bootstrap_servers)
    return {
        each.number: transport.count_between(topic.name, each.number, each.low, each.end)
        for each in topic.partitions
        if each.low is not None and each.end is not None
    }


def _landed(home: Home, group: str) -> dict[int, int]:
    """How far a sink's files reach; empty for groups that are no sinks of ours."""
    from orchestration.landed import landed_to

    role = ROLES.get(group)
    return dict(landed_to(home, _BROKER, role)) if role and role.kind is RoleKind.SINK else {}


def _group_dict(group: Group, landed: dict[int, int]) -> dict[str, Any]:
    """The group with `kind` (what of ours it is) and, for sinks, `files_to` and `files_lag` of each partition."""
    role = ROLES.get(group.name)
    value = {**group.to_dict(), "kind": role.kind.value if role else None}
    if role and role.kind is RoleKind.SINK and landed:
        for each in value["positions"]:
            each["files_to"] = landed.get(each["partition"], 0)
            each["files_lag"] = None if each["end"] is None else max(0, each["end"] - each["files_to"])
        lags = [each["files_lag"] for each in value["positions"]]
        value["files_lag"] = None if None in lags else sum(lags)
    return value


def _groups_table(values: list[dict[str, Any]]) -> Table:
    table = Table("group", "kind", "state", "protocol", "members", "topics", "coordinator")
    table.add_column("group's lag", justify="right")
    table.add_column("files' lag", justify="right")
    for each in values:
        names = ", ".join(sorted({position["topic"] for position in each["positions"]}))
        cells = [each["name"], each["kind"] or "", each["state"], each["protocol"], str(len(each["members"])), names]
        files = _number(each["files_lag"]) if "files_lag" in each else ""
        table.add_row(*cells, str(each["coordinator"] or "?"), _number(each["lag"]), files)
    return table


def _group_detail(group: Group, value: dict[str, Any]) -> list[Table | str]:
    members = Table(
        "member", "instance", "host", "assignment", title=f"{group.name}: {group.state}", title_justify="left"
    )
    for each in group.members:
        assigned = "; ".join(f"{topic} {_numbers(numbers)}" for topic, numbers in each.assignment.items())
        members.add_row(each.client, each.instance or "", each.host, assigned or "nothing")
    is_sink = "files_lag" in value
    positions = Table("partition", "read by")
    for column in ("committed", "latest", "group's lag", *(["files to", "files' lag"] if is_sink else [])):
        positions.add_column(column, justify="right")
    for each in value["positions"]:
        cells = [f"{each['topic']}\\[{each['partition']}]", each["client"] or "nobody"]
        cells += [_number(each[name]) for name in ("committed", "end", "lag")]
        positions.add_row(*cells, *([_number(each["files_to"]), _number(each["files_lag"])] if is_sink else []))
    return [members, positions, *([HINT] if value["kind"] in {"sink", "transformer"} else [])]


def _show(value: Any, as_json: bool, render: Callable[[], list[Table | str]]) -> None:  # noqa: FBT001
    if as_json:
        print_json(value)
        return
    console = Console(highlight=False)
    for part in render():
        console.print(part)


def _change(then: str, now: str) -> str:
    return now if then == now else f"{then or '-'} → [b]{now or '-'}[/]"


def _leader(partition: Partition | None) -> str:
    if partition is None:
        return ""
    return "nobody" if partition.leader is None else str(partition.leader)


def _numbers(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def partition_dicts(partitions: Iterable[Partition]) -> list[dict[str, Any]]:
    """Leaders and ISR as JSON can hold them, without the offsets that were not asked for."""
    kept = ("topic", "number", "leader", "replicas", "in_sync")
    return [{name: value for name, value in asdict(each).items() if name in kept} for each in partitions]
