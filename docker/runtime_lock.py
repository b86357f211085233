"""Prints the part of requirements.lock that the application needs when it runs, or that the packages named need.

uv notes behind each pinned package by whom it is wanted, so the part follows from the lock and the project's own list
of dependencies (with those of its extra `containers`), whatever is installed here. Usage: runtime_lock.py [PACKAGE…]
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_WANTED_BY = re.compile(r"# +(?:via )?([a-z0-9._-]+)$", re.MULTILINE)


Pins = list[tuple[str, str]]


def pins(lock: str) -> Pins:
    """Package and lines (version, marker, hashes, by whom it is wanted) of each pin; a package may have several."""
    return [(_NAME.match(block)[0], block) for block in re.split(r"\n(?=[a-z0-9])", lock.strip())]  # type: ignore[index]


def needed(pinned: Pins, roots: set[str]) -> set[str]:
    """The packages that are roots, or are wanted by one that is needed."""
    keep, found = set[str](), roots
    while found != keep:
        keep = found
        found = keep | {name for name, block in pinned if keep & set(_WANTED_BY.findall(block))}
    return keep


def main() -> None:
    """Print the part for the packages named, or for the project's dependencies."""
    pinned = pins(Path("requirements.lock").read_text())
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["containers"]
    roots = set(sys.argv[1:]) or {_NAME.match(line)[0].lower() for line in wanted}  # type: ignore[index]
    keep = needed(pinned, roots)
    print("\n".join(block for name, block in pinned if name in keep))


if __name__ == "__main__":
    main()
