"""Homes for tests that run roles as real processes; the processes themselves are in orchestration/ordeal.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestration.ordeal import Killer, RoleProcess, call, verified
from orchestration.roles import create_topics
from streaming.home import Home
from streaming.lab import Lab

__all__ = ["Killer", "RoleProcess", "call", "new_lab", "verified"]


def new_lab(root: Path, bootstrap_servers: str, **settings: Any) -> Home:
    """A home whose lab uses an existing cluster; its topics are there."""
    home = Home(root).open()
    lab = Lab(bootstrap_servers=bootstrap_servers, **settings)
    lab.save(home)
    create_topics(lab)
    return home
