"""A headless Chromium by its debugging protocol: open a page, wait until it shows something, take a picture.

Invariant: the browser ends with the block, its profile is a folder of its own that is deleted, and a page that does not
show in time what was waited for is an error, never a picture of a spinner.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from websockets.sync.client import ClientConnection, connect

T = TypeVar("T")
PROGRAMS: Final = ("chromium", "chromium-browser", "google-chrome")
FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
LOOK_AGAIN_S: Final = 0.5
LARGEST_ANSWER_BYTES: Final = 64 * 1024**2


class Page:
    """One tab."""

    def __init__(self, connection: ClientConnection, session: str) -> None:
        self._connection = connection
        self._session = session
        self._numbers = itertools.count(1000)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; RuntimeError with its message when it fails."""
        return _call(self._connection, next(self._numbers), method, parameters, self._session)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def open(self, address: str, width: int, height: int) -> None:
        """Go there, in a window of this size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=address)

    def wait_until(self, script: str, timeout_s: float = 240) -> None:
        """Return when a JavaScript expression is true; TimeoutError with the page's text when it is not in time."""
        _in_time(lambda: self.run(script), timeout_s, lambda: f"not true: {script}; the page: {self.text()[:2000]}")

    def wait_for(self, *words: str, timeout_s: float = 240) -> None:
        """Return when the page shows all these words."""
        shown = "(document.body?.innerText ?? '')"
        self.wait_until(f"{json.dumps(words)}.every(word => {shown}.includes(word))", timeout_s)

    def click(self, element: str) -> None:
        """Press the mouse on the middle of the element that a JavaScript expression gives, once it can be pressed."""
        self.wait_until(f"(it => (it?.getClientRects().length ?? 0) > 0 && !it.disabled)({element})")
        self.run(f"({element}).scrollIntoView({{block: 'center'}})")
        middle = f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])(({element}).getBoundingClientRect())"
        self.wait_until(f"({element}).contains(document.elementFromPoint(...{middle}))")
        box = self.run(middle)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def follow(self, link: str) -> Page:
        """Press a link that opens a tab of its own; that tab."""
        before = self._tabs()
        self.click(link)
        (opened,) = _in_time(lambda: self._tabs() - before, 60, lambda: f"no tab was opened by {link}")
        attached = self._ask("Target.attachToTarget", targetId=opened, flatten=True)
        return Page(self._connection, attached["sessionId"])

    def type(self, text: str) -> None:
        """As from the keyboard, where the cursor is."""
        self.call("Input.insertText", text=text)

    def text(self) -> str:
        """What the page shows."""
        return str(self.run("document.body?.innerText"))

    def picture(self, path: Path) -> None:
        """Save what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _tabs(self) -> set[str]:
        found = self._ask("Target.getTargets")["targetInfos"]
        return {each["targetId"] for each in found if each["type"] == "page"}

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The browser itself."""
        return _call(self._connection, next(self._numbers), method, parameters)


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """A page of a fresh browser. FileNotFoundError when there is no Chromium on this machine."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise FileNotFoundError(f"no browser: one of {', '.join(PROGRAMS)} makes the pictures")
    with tempfile.TemporaryDirectory(prefix="sg-browser-", ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        try:
            with connect(_endpoint(process), max_size=LARGEST_ANSWER_BYTES, compression=None) as connection:
                target = _call(connection, 1, "Target.createTarget", {"url": "about:blank"})["targetId"]
                attached = _call(connection, 2, "Target.attachToTarget", {"targetId": target, "flatten": True})
                yield Page(connection, attached["sessionId"])
        finally:
            process.terminate()
            process.communicate(timeout=20)


def saying(words: str, kind: str = "*") -> str:
    """A JavaScript expression for the innermost element of this kind that says just these words."""
    said = f"it => it.innerText?.trim() === {json.dumps(words)}"
    return f"[...document.querySelectorAll({json.dumps(kind)})].findLast({said})"


def _in_time(condition: Callable[[], T], timeout_s: float, else_say: Callable[[], str]) -> T:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout_s:.0f} s {else_say()}")
        time.sleep(LOOK_AGAIN_S)
    return found


def _endpoint(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None  # noqa: S101 - for the type checker: it was asked for
    for line in process.stderr:
        if found := re.search(r"DevTools listening on (ws://\S+)", line):
            return found[1]
    raise RuntimeError("the browser ended before it listened")


def _call(
    connection: ClientConnection, number: int, method: str, parameters: dict[str, Any], session: str | None = None
) -> dict[str, Any]:
    asked = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
    connection.send(json.dumps(asked))
    while True:
        answer = json.loads(connection.recv(timeout=120))
        if answer.get("id") == number:  # others are events
            if "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            result: dict[str, Any] = answer["result"]
            return result
