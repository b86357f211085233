"""Free ports on this machine's loopback address, for brokers that live as long as one test or experiment."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import Final

from streaming.errors import SetupError

HOST: Final = "127.0.0.1"
# Below Linux's range for outgoing connections (32768 and up): nobody takes these ports by accident between the look
# and the broker's start. Below the lab's own base too.
_RANGE: Final = range(20_000, 28_000)


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT does not count
        with contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return True
    return False


def free(count: int) -> list[int]:
    """`count` different ports that nobody listens on, chosen at random so that parallel callers rarely meet."""
    candidates = random.SystemRandom().sample(_RANGE, len(_RANGE))
    found = [port for port, _ in zip((p for p in candidates if is_free(p)), range(count), strict=False)]
    if len(found) < count:
        raise SetupError(f"no {count} free ports between {_RANGE.start} and {_RANGE.stop}", "stop what listens there")
    return found
