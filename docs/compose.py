"""Diagram and tables of the container set-up, read from docker/compose.yaml: what they show is what compose starts.

Invariant: a box is a service, a volume or a published port of the file; an arrow is a `depends_on`, a mount or a port.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml

from streaming.home import PROJECT_ROOT

COMPOSE: Final = PROJECT_ROOT / "docker" / "compose.yaml"
_MANY: Final = ("application", "application on rabbitmq", "application on rabbitmq-stream")
_GROUPS: Final = {"kafka-": "brokers", "dagster-": "Dagster", "postgres": "Dagster"}


def services() -> dict[str, dict[str, Any]]:
    """The services of the file, by name, with every variable's default in its place."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", COMPOSE.read_text())
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    return found


def diagram() -> str:
    """A Mermaid flow chart: who waits for whom, what is kept where, what this machine can reach."""
    found = services()
    groups: dict[str, list[str]] = {}
    for name, each in found.items():
        groups.setdefault(_group(name, each), []).append(name)
    lines = ["```mermaid", "flowchart LR"]
    for group, names in groups.items():
        lines += [f'  subgraph {_id(group)}["{group}"]', *(f"    {_id(name)}[{name}]" for name in names), "  end"]
    for volume in sorted({volume for each in found.values() for volume in _volumes(each)}):
        lines.append(f"  volume_{_id(volume)}[({volume})]")
    return "\n".join([*lines, *_arrows(found, groups), "```"])


def _arrows(found: Mapping[str, Mapping[str, Any]], groups: Mapping[str, list[str]]) -> Iterator[str]:
    """Arrows between groups where a whole group has them, so that the picture stays readable."""
    seen: dict[str, None] = {}
    for name, each in found.items():
        here = _end(name, groups)
        seen |= dict.fromkeys(f"  {_end(other, groups)} --> {here}" for other in each.get("depends_on", ()))
        seen |= dict.fromkeys(f"  {here} --- volume_{_id(volume)}" for volume in _volumes(each))
        for port in each.get("ports", ()):
            address, _, inside = port.rpartition(":")
            seen[f'  {_id(name)} -. "{inside}" .-> at_{_id(address)}(["{address}"])'] = None
    yield from seen


def _end(name: str, groups: Mapping[str, list[str]]) -> str:
    """The group of a role, of which there are many; others speak for themselves."""
    return next((_id(group) for group in _MANY if name in groups.get(group, ())), _id(name))


def _group(name: str, service: Mapping[str, Any]) -> str:
    is_role = service.get("command", [""])[0] == "role"
    if profiles := service.get("profiles"):
        return f"application on {service['command'][-1]}" if is_role else f"profile {profiles[0]}"
    if is_role:
        return "application"
    return next((group for prefix, group in _GROUPS.items() if name.startswith(prefix)), "once")


def _volumes(service: Mapping[str, Any]) -> list[str]:
    """Named volumes only."""
    sources = (str(mount).split(":", 1)[0] for mount in service.get("volumes", ()))
    return [source for source in sources if not source.startswith((".", "/"))]


def _id(name: str) -> str:
    return re.sub(r"\W", "_", name)


def rows() -> list[tuple[str, ...]]:
    """Service, image, waits for, health, address on this machine, memory limit, restart; a role once, as on Kafka."""
    return [
        (
            f"`{name}`" + (f" ({' or '.join(each['profiles'])})" if "profiles" in each else ""),
            f"`{each['image']}`",
            _waits(each),
            _health(each),
            ", ".join(f"`{port.rpartition(':')[0]}`" for port in each.get("ports", ())) or "-",
            each["mem_limit"],
            each["restart"],
        )
        for name, each in services().items()
        if "--broker" not in each.get("command", ())
    ]


def _waits(service: Mapping[str, Any]) -> str:
    asked = service.get("depends_on", {})
    if isinstance(asked, list):
        return ", ".join(asked)
    words = {"service_healthy": "healthy", "service_completed_successfully": "done"}

    def told(name: str, each: Mapping[str, Any]) -> str:
        return f"{name} {words[each['condition']]}" + ("" if each.get("required", True) else " (if there)")

    return ", ".join(told(name, each) for name, each in asked.items()) or "-"


def _health(service: Mapping[str, Any]) -> str:
    test = service.get("healthcheck", {}).get("test", ())
    if "streaming.health" in test:
        within = f", durable within {test[-1]} s" if "--commits-within" in test else ""
        return "its loop turns" + within + (", or all is done" if "--rests" in test else "")
    if "bash" in test and "GET" not in test[-1]:
        return "its listener is open"
    return "it answers" if test else "-"
