"""What ends a link for good and what only ends one of its connections, by what pika's loop raises."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pika import exceptions

from streaming.errors import RestartRequired
from streaming.transports.rabbitmq import link as under_test
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.link import Link

WAIT_S = 30.0


class RaisingConnections:
    """In place of pika's connections: each one's loop raises the same error."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.opened = threading.Semaphore(0)

    def __call__(self, *_: Any, **__: Any) -> Any:
        self.opened.release()
        return SimpleNamespace(
            ioloop=SimpleNamespace(start=self._start, close=lambda: None, add_callback_threadsafe=_ignore),
            add_on_connection_blocked_callback=_ignore,
            add_on_connection_unblocked_callback=_ignore,
            abandon=lambda: None,
            leave=lambda: None,
        )

    def _start(self) -> None:
        raise self.error


def _ignore(_: Callable[..., object]) -> None:
    pass


def linked(monkeypatch: pytest.MonkeyPatch, error: Exception) -> tuple[Link, RaisingConnections]:
    connections = RaisingConnections(error)
    monkeypatch.setattr(under_test, "BulkConnection", connections)
    made = Link(Address(1, "u", "p"), "client", on_open=lambda *_: None, on_lost=lambda: None)
    return made, connections


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(32, "Broken pipe"), ConnectionResetError(104, "reset"), exceptions.StreamLostError("lost")],
    ids=lambda error: type(error).__name__,
)
def test_a_connection_cut_under_the_loop_is_opened_again(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    link, connections = linked(monkeypatch, error)
    try:
        assert all(connections.opened.acquire(timeout=WAIT_S) for _ in range(3))
        assert link.failure is None
    finally:
        link.close()


def test_an_error_of_our_own_ends_the_link_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    link, connections = linked(monkeypatch, OSError(28, "No space left on device"))
    with pytest.raises(RestartRequired, match="No space left"):
        link.wait_open(WAIT_S)
    link.close()
    assert connections.opened.acquire(blocking=False)
    assert not connections.opened.acquire(blocking=False)
