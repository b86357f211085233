"""What Dagster's tests share: one control room for the session, started by the first test that asks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from docs.browser import Page, browser
from streaming.cluster import ports
from streaming.home import Home
from tests.orchestration.control_room import ControlRoom


@pytest.fixture(scope="session")
def control_room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlRoom]:
    """A real webserver and daemon on a home of their own. A test that stops the daemon must bring it back."""
    room = ControlRoom(Home(tmp_path_factory.mktemp("room") / "home").open(), ports.free(1)[0])
    try:
        room.start_webserver()
        room.start_daemon()
        yield room
    finally:
        room.close()


@pytest.fixture
def page() -> Iterator[Page]:
    """A tab of a real browser; skipped, and said so, where there is none."""
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(browser())
        except FileNotFoundError as error:
            pytest.skip(str(error))
        yield opened
