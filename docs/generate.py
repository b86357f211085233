"""Writes the generated parts of the pages and the figures: `make docs`, which is `python -m docs.generate`.

Invariant: what the code knows is not typed into a page. A page is text of its own plus parts between
`<!-- made by docs/generate.py: NAME -->` and `<!-- end -->`; a test holds every committed page against a fresh
generation. Streams and roles of installed packages are left out: the pages are about this program.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import typer

from docs import compose, kafka_features
from docs.diagram import application, base_figure, svg
from docs.footprint import FOOTPRINT
from orchestration.brokers import node_ports
from orchestration.cli import app
from sinks.derive import DERIVED, PLACE
from streaming.home import PROJECT_ROOT, Home
from streaming.lab import BROKER_COUNT, Lab
from streaming.topology import ROLES, STREAMS, Role, Stream, StreamKind

DOCS: Final = PROJECT_ROOT / "docs"
PAGES: Final = ("README.md", "docs/domain.md", "docs/architecture.md", "docs/own-stream.md", "docs/containers.md")
EXAMPLE: Final = DOCS / "examples" / "own_stream"
OWN_STREAMS: Final = {name: stream for name, stream in STREAMS.items() if stream.carries is None}
OWN_ROLES: Final = {
    name: role
    for name, role in ROLES.items()
    if role.made_by is None and {*role.reads, *role.writes} <= set(OWN_STREAMS)
}
ROOMS: Final = (
    "streaming/events.py",
    "streaming/codecs",
    "streaming/transports/kafka",
    "streaming/transports/rabbitmq",
    "streaming/cluster",
    "streaming/generators",
    "streaming/transformers",
    "sinks",
    "experiments",
    "assets",
    "orchestration",
)
_PART: Final = re.compile(r"(<!-- made by docs/generate\.py: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Write everything that differs; say what was written."""
    for path, text in fresh().items():
        target = PROJECT_ROOT / path
        if not target.exists() or target.read_text() != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
            print(f"written: {path}")


def fresh() -> dict[str, str]:
    """Every generated file, by its path in the project, as it should be."""
    pages = {page: filled((PROJECT_ROOT / page).read_text()) for page in PAGES}
    return {
        **pages,
        "docs/figures/application.svg": svg(application(OWN_STREAMS, OWN_ROLES), "The application"),
        "docs/figures/base.svg": svg(base_figure(), "What the task asks for at least"),
    }


def filled(page: str) -> str:
    """The page with its parts made anew. KeyError for a part that nobody makes."""
    return _PART.sub(lambda found: f"{found[1]}{PARTS[found[2]]().strip()}\n{found[3]}", page)


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    lines = [list(header)]
    lines.append(["---"] * len(lines[0]))
    lines += [[_cell(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("<", "&lt;").replace("&lt;br>", "<br>")


def streams() -> str:
    """Each stream that carries events, with its columns."""
    return "\n\n".join(_stream(each) for each in OWN_STREAMS.values() if each.kind is not StreamKind.STATE)


def _stream(stream: Stream) -> str:
    settings = ", ".join(f"`{name}={value}`" for name, value in stream.settings.items())
    writers = ", ".join(role.name for role in OWN_ROLES.values() if stream.name in role.writes)
    facts = f"{stream.kind} · key `{stream.key}` · {stream.partitions} partition(s) · written by {writers} · {settings}"
    rows = [
        (f"`{name}`", kind, says, "yes" if optional else "") for name, kind, says, optional in _columns(stream.schema)
    ]
    says = stream.says[0].upper() + stream.says[1:]
    return f"### `{stream.name}`\n\n{says}.\n\n{facts}\n\n" + table(
        ("column", "type", "meaning and unit", "may be null"), rows
    )


def _columns(schema: Iterable[pa.Field], above: str = "") -> Iterator[tuple[str, str, str, bool]]:
    """Name, type, description, nullable: nested fields behind a dot, list items behind []."""
    for field in schema:
        says = (field.metadata or {}).get(b"description", b"").decode()
        kind, name, inner = field.type, f"{above}{field.name}", None
        if pa.types.is_list(kind):
            kind, name = kind.value_type, f"{name}[]"
        if pa.types.is_struct(kind):
            inner, shown = kind, "group"
        else:
            shown = str(kind)
        yield name, f"{shown} list" if name.endswith("[]") else shown, says, field.nullable
        if inner is not None:
            yield from _columns(inner, f"{name}.")


def derived_columns() -> str:
    """What sinks add to a stream's columns."""
    rows = [
        (f"`{name}`", stream, kind, says) for stream, added in DERIVED.items() for name, (kind, says) in added.items()
    ]
    rows += [(f"`{name}`", "every table", kind, says) for name, (kind, says) in PLACE.items()]
    return table(("column", "of", "type", "meaning"), rows)


def roles() -> str:
    """Each role's task and its interfaces: what it reads and writes."""
    return table(
        ("component", "kind", "task", "reads", "looks up", "writes"),
        ((f"`{role.name}`", role.kind, role.says, _named(role.reads), _named(role.looks_up), _written(role))
         for role in OWN_ROLES.values()),
    )  # fmt: skip


def _named(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _written(role: Role) -> str:
    return f"`{role.table}/p=*/*.{role.format}`" if role.table else _named(role.writes)


def ports() -> str:
    """What listens where, with the default settings."""
    lab, numbers = Lab(), range(1, BROKER_COUNT + 1)
    node = node_ports(lab, 1)
    clients = ", ".join(str(lab.broker_port(number)) for number in numbers)
    controllers = ", ".join(str(lab.controller_port(number)) for number in numbers)
    return table(
        ("port", "who listens", "who calls, and in which protocol"),
        (
            (
                clients,
                "kafka-1 to kafka-3, listener CLIENT",
                "roles, sensors, commands, brokers among themselves: Kafka",
            ),
            (controllers, "kafka-1 to kafka-3, listener CONTROLLER", "the brokers' quorum: Kafka (Raft)"),
            (lab.web_port, "dagster-webserver", "a browser: HTTP, GraphQL"),
            (lab.pages_port, "profile-pages", "a browser, for the profiles' reports: HTTP"),
            *((getattr(node, kind), f"rabbitmq-1, {kind}", says) for kind, says in _RABBITMQ.items()),
        ),
    )


_RABBITMQ: Final = {
    "amqp": "roles on queues: AMQP 0-9-1",
    "stream": "roles on streams: RabbitMQ's stream protocol",
    "management": "commands, a browser: HTTP",
    "prometheus": "whoever scrapes: HTTP",
}


def folders() -> str:
    """The lab's home: what lies where, in the words of the code."""
    home, rows = Home(Path("home")), []
    for name, member in vars(Home).items():
        if isinstance(member, property):
            rows.append((f"`{getattr(home, name).name}/`", member.__doc__))
        elif inspect.isfunction(member) and list(inspect.signature(member).parameters) == ["self", "broker"]:
            rows.append((f"`{member(home, 'BROKER').relative_to('home')}/`", member.__doc__))
    return table(("folder", "holds"), rows)


def footprint() -> str:
    """What each process takes, as docs/footprint.py has measured it."""
    measured = json.loads(FOOTPRINT.read_text())
    machine, lab = measured["machine"], measured["lab"]
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    services = measured["services"]
    rows = [
        (f"`{each['service']}`", f"{each['cpu_percent']:.1f}", f"{each['memory_mib']:,}", each["threads"])
        for each in services
    ]
    total = (
        "**all**",
        f"**{sum(each['cpu_percent'] for each in services):.1f}**",
        f"**{sum(each['memory_mib'] for each in services):,}**",
        sum(each["threads"] for each in services),
    )
    said = (
        f"Measured by `python -m docs.footprint` on {measured['measured_at']} over {measured['seconds']:.0f} s: "
        f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB, {machine['system']}; "
        f"{versions}. {lab['vehicles']} vehicles at {lab['rate_hz']} positions a second, codec {lab['codec']}. "
        f"Load of the machine before and after: {' and '.join(map(str, machine['load_1_min']))}."
    )
    head = ("process", "CPU, % of one core", "memory, MiB (proportional set)", "threads")
    return f"{said}\n\n{table(head, [*rows, total])}"


def libraries() -> str:
    """Which libraries each room imports, read from its source."""
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())
    own = {each.removesuffix("*") for each in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    known = set(sys.stdlib_module_names) | own | {"__future__", "tests", "docs"}
    return table(("room", "libraries"), ((f"`{room}`", _named(sorted(_imports(room) - known))) for room in ROOMS))


def _imports(room: str) -> set[str]:
    place = PROJECT_ROOT / room
    found: set[str] = set()
    for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found


def features() -> str:
    """Kafka's features, settings and reasons."""
    return table(("feature", "set on", "settings", "why"), kafka_features.rows())


def commands() -> str:
    """Every command of the program with the first sentence of its help."""
    return table(("command", "does"), ((f"`{name}`", says) for name, says in every_command().items()))


def every_command() -> dict[str, str]:
    """Full name → first paragraph of the help, of what is not hidden; a group's commands in the group's place."""
    return dict(_commands(typer.main.get_command(app), ""))


def _commands(group: Any, above: str) -> Iterator[tuple[str, str]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{above}{name} ")
        elif not command.hidden:
            yield f"{above}{name}", " ".join((command.help or "").split("\n\n")[0].split()).removesuffix(".")


def example() -> str:
    """The files of the example, whole."""
    paths = [EXAMPLE / "pyproject.toml", *(EXAMPLE / "depot_weather" / f"{x}.py" for x in _EXAMPLE_ORDER)]
    kinds = {".toml": "toml", ".py": "python"}
    return "\n\n".join(
        f"`{path.relative_to(PROJECT_ROOT)}`\n\n```{kinds[path.suffix]}\n{path.read_text().strip()}\n```"
        for path in paths
    )


_EXAMPLE_ORDER: Final = ("declaration", "generator", "transformer")


def containers() -> str:
    """The services of docker/compose.yaml."""
    return table(("service", "image", "waits for", "well when", "on this machine", "memory", "restart"), compose.rows())


PARTS: Final[dict[str, Callable[[], str]]] = {
    "streams": streams,
    "derived-columns": derived_columns,
    "roles": roles,
    "ports": ports,
    "folders": folders,
    "footprint": footprint,
    "libraries": libraries,
    "kafka-features": features,
    "commands": commands,
    "example": example,
    "containers-diagram": compose.diagram,
    "containers": containers,
}

if __name__ == "__main__":
    main()
