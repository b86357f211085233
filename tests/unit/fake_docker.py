"""A `docker` program with containers that are files: what the engine's command line is asked, without an engine.

    python tests/unit/fake_docker.py FOLDER COMMAND …

FOLDER has <container>.json: service, group, status, pid; `log` gets each order; an order in `refused` fails.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

PROJECT: Final = "river"
_LEAVES: Final = {"stop": "exited", "kill": "exited", "pause": "paused", "unpause": "running", "start": "running"}


def install(folder: Path) -> Path:
    """Put the program into folder/bin, which is returned, for PATH; its containers are in `folder`."""
    program = folder / "bin" / "docker"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {Path(__file__).resolve()} {folder} "$@"\n')
    program.chmod(0o755)
    return program.parent


def add(folder: Path, service: str, group: str = "", status: str = "running", pid: int = 0) -> str:
    """A container of a service; its name."""
    name = f"{PROJECT}-{service}-1"
    container = {"service": service, "group": group, "status": status, "pid": pid}
    (folder / f"{name}.json").write_text(json.dumps(container))
    return name


def states(folder: Path) -> dict[str, str]:
    """Service → status."""
    return {each["service"]: each["status"] for each in _all(folder).values()}


def _all(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def _ps(folder: Path, words: list[str]) -> None:
    filters = [words[at + 1] for at, word in enumerate(words) if word == "--filter"]
    template = words[words.index("--format") + 1]
    for name, each in _all(folder).items():
        labels = {
            f"label=com.docker.compose.project={PROJECT}",
            f"label=com.docker.compose.service={each['service']}",
            f"label=streamgauge.group={each['group']}",
        }
        if set(filters) <= labels and ("--all" in words or each["status"] in {"running", "paused"}):
            shown = template.replace("{{.Names}}", name)
            print(shown.replace('{{.Label "com.docker.compose.service"}}', each["service"]))


def _order(folder: Path, order: str, names: list[str]) -> None:
    refused = folder / "refused"
    if refused.exists() and order in refused.read_text().split():
        sys.exit(f"no {order} today")
    with (folder / "log").open("a") as log:
        log.write(f"{order} {' '.join(names)}\n")
    for name in names:
        path = folder / f"{name}.json"
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps(json.loads(path.read_text()) | {"status": _LEAVES[order]}))
        scratch.replace(path)


def main() -> None:
    """As docker."""
    folder, order, *words = Path(sys.argv[1]), *sys.argv[2:]
    if order == "ps":
        _ps(folder, words)
    elif order == "inspect":
        known = _all(folder)
        print(
            json.dumps(
                [
                    {"Name": f"/{name}", "State": {"Status": known[name]["status"], "Pid": known[name]["pid"]}}
                    for name in words
                ]
            )
        )
    else:
        _order(folder, order, words[2:] if words[0] == "-t" else words)


if __name__ == "__main__":
    main()
