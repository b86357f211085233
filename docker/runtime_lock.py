"""Prints the part of requirements.lock that the application needs when it runs, or that the packages named need.

uv notes behind each pinned package by whom it is wanted, so the part follows from the lock and the project's own list
of dependencies, whatever is installed here. Usage: runtime_lock.py [PACKAGE…]
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9._-]+")


def blocks(lock: str) -> dict[str, str]:
    """Package → its lines of the lock: pin, hashes, and by whom it is wanted."""
    found = re.split(r"\n(?=[a-z0-9])", lock.strip())
    return {_NAME.match(block)[0]: block for block in found}  # type: ignore[index]


def needed(pinned: dict[str, str], roots: set[str]) -> list[str]:
    """The packages that are roots, or are wanted by one that is needed, in the lock's order."""
    keep = roots & pinned.keys()
    while True:
        found = {
            name
            for name, block in pinned.items()
            if keep & set(re.findall(r"# +(?:via )?([a-z0-9._-]+)$", block, re.MULTILINE))
        }
        if found <= keep:
            return [name for name in pinned if name in keep]
        keep |= found


def main() -> None:
    """Print the part for the packages named, or for the project's dependencies."""
    pinned = blocks(Path("requirements.lock").read_text())
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    roots = set(sys.argv[1:]) or {_NAME.match(line)[0].lower() for line in project["dependencies"]}  # type: ignore[index]
    print("\n".join(pinned[name] for name in needed(pinned, roots)))


if __name__ == "__main__":
    main()
