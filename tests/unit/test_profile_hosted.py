"""What a hosted role finds when it begins under scalene."""

from __future__ import annotations

import subprocess
import sys

ROLE = """
import asyncio.events, pathlib
from scalene import scalene_profiler
scalene_profiler.start = scalene_profiler.stop = lambda: None
from experiments.profiles import hosted
assert asyncio.events._event_loop_policy is None
hosted._under_scalene(pathlib.Path(), lambda: print(asyncio.events._event_loop_policy is not None))
"""


def test_asyncio_is_ready_before_scalenes_signals_come() -> None:
    """Scalene's handler would wait for the lock under which the role is making it: it did, on RabbitMQ's streams."""
    done = subprocess.run([sys.executable, "-c", ROLE], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "True\n"
