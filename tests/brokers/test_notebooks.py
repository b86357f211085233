"""The introduction's notebooks, executed on real brokers: what they show is true, and the page shows the same."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration import notebooks
from orchestration.brokers import remember
from streaming.cluster import ports
from streaming.cluster.kafka import DisposableCluster
from streaming.cluster.rabbitmq import DisposableRabbitMQ
from streaming.home import Home
from streaming.lab import QUEUES, Lab
from tests.brokers.rabbitmq_scenes import address

pytestmark = pytest.mark.brokers
Rows = list[dict[str, Any]]


class Executed:
    """A notebook with its outputs: what a cell printed, and the tables it shows."""

    def __init__(self, path: Path) -> None:
        self._cells = {cell["id"]: cell for cell in json.loads(path.read_text())["cells"]}

    def outputs(self, cell: str) -> list[dict[str, Any]]:
        outputs: list[dict[str, Any]] = self._cells[cell]["outputs"]
        return outputs

    def printed(self, cell: str) -> str:
        return "".join("".join(each["text"]) for each in self.outputs(cell) if each["output_type"] == "stream")

    def table(self, cell: str) -> Rows:
        """A cell's Markdown table as rows; cells that are Python literals are these values."""
        shown = next(each["data"]["text/markdown"] for each in self.outputs(cell) if "data" in each)
        head, _, *body = ([part.strip() for part in line.strip("|").split("|")] for line in "".join(shown).splitlines())
        return [dict(zip(head, map(_value, line), strict=True)) for line in body]


def _value(text: str) -> Any:
    literal = {"null": "None", "true": "True", "false": "False"}.get(text, text)
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(literal)
    return text


def execute(name: str, into: Path, home: Path | None = None) -> Executed:
    command = [sys.executable, "-m", "orchestration.notebooks", "--into", str(into), name]
    command += ["--home", str(home)] if home else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return Executed(into / f"{name}.ipynb")


def insist_on_the_lesson(shown: Executed) -> None:
    """What the exercises are there to show, in any run of them."""
    doors = shown.table("listeners")
    assert len(doors) == 6
    assert {each["from here"] for each in doors} == {"reached"}

    before, stopped, back = (shown.table(cell) for cell in ("before-stop", "stop", "start"))
    assert {each["leader"] for each in before} == {1, 2, 3}
    assert {each["ISR"] for each in before} == {(1, 2, 3)}
    assert {each["ISR"] for each in stopped} == {(1, 3)}
    assert {each["leader"] for each in stopped} == {1, 3}
    moved = [was["partition"] for was, now in zip(before, stopped, strict=True) if was["leader"] != now["leader"]]
    assert moved == [each["partition"] for each in before if each["leader"] == 2]
    assert {each["ISR"] for each in back} == {(1, 2, 3)}
    assert all(each["leader"] == each["replicas"][0] for each in shown.table("elect"))

    killed, restarted = shown.table("kill"), shown.table("restart")
    assert {each["ISR"] for each in killed} == {(1, 2)}
    assert 3 not in {each["leader"] for each in killed}
    assert {each["ISR"] for each in restarted} == {(1, 2, 3)}

    sent, confirmed, lost = (int(part.split()[0]) for part in shown.printed("numbers").split(", "))
    assert sent == confirmed > 0 == lost
    waits = {each["moment"]: each["longest wait (s)"] for each in shown.table("numbers")}
    assert list(waits) == ["stop 2", "start 2", "kill 3", "start 3"]
    assert waits["kill 3"] > 3  # the session's nine seconds, less what had passed of them
    assert any("image/png" in each.get("data", {}) for each in shown.outputs("figure"))

    assert [each["leader"] for each in shown.table("copies")] == [None]
    (grown,), (survived,) = shown.table("grow"), shown.table("survive")
    assert len(grown["replicas"]) == len(grown["ISR"]) == 3
    assert survived["leader"] not in {None, grown["leader"]}
    steps = [(each["copies"], each["min.insync.replicas"], each["its leader"]) for each in shown.table("strict")]
    assert steps == [(1, 1, "runs"), (1, 1, "is stopped"), (3, 1, "is stopped"), (3, 3, "is stopped"), (3, 3, "runs")]
    fates = [each["one record"] == "confirmed" for each in shown.table("strict")]
    assert fates == [True, False, True, False, True]

    assert (len(shown.table("partitions-before")), len(shown.table("partitions-after"))) == (3, 6)
    keys = shown.table("keys")
    assert any(each["moved"] for each in keys)
    assert sum(each["records"] for each in shown.table("held")) == 2 * len(keys)


@pytest.mark.timeout(1200)
def test_the_exercises_show_leaders_moving_and_copies_leaving_and_returning(tmp_path: Path) -> None:
    insist_on_the_lesson(execute("exercises", tmp_path))


def test_the_committed_exercises_show_it_too() -> None:
    insist_on_the_lesson(Executed(notebooks.FOLDER / "exercises.ipynb"))


def test_the_guides_page_is_the_executed_notebook() -> None:
    import nbformat  # noqa: PLC0415

    executed = nbformat.read(notebooks.FOLDER / "exercises.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    text, figures = notebooks.page(executed)
    assert notebooks.PAGE.read_text() == text, "call: make notebooks"
    assert figures
    for name, png in figures.items():
        assert (notebooks.FIGURES / name).read_bytes() == png
        assert f"(figures/{name})" in text


@pytest.mark.timeout(900)
def test_what_one_notebook_sends_the_other_receives_on_the_labs_brokers(
    kafka: DisposableCluster, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home").open()
    Lab(bootstrap_servers=kafka.bootstrap_servers).save(home)
    sent = execute("send", tmp_path, home.root)
    assert sent.printed("open").strip() == "LabBrokers"
    assert "30 records are confirmed, 0 are not" in sent.printed("send")
    count, confirmed = (int(part.split()[0]) for part in sent.printed("loop").split(", "))
    assert count == confirmed > 0

    received = execute("receive", tmp_path, home.root)
    assert "is there already" in received.printed("fill")
    total = 30 + count
    assert f"of {total} records" in received.printed("read")
    assert f"= {total} of {total}, 0 twice" in received.printed("commit")
    assert f"reads {total} of {total}" in received.printed("again")


def insist_on_rabbitmqs_lesson(shown: Executed) -> None:
    """What the notebook on RabbitMQ is there to show, in any run of it."""
    north, south, alert, short = "positions.north.car-1", "positions.south.car-2", "alerts.north.car-1", "alerts.north"
    outcomes = [(row["routing key"], row["mandatory"], row["outcome"]) for row in shown.table("confirm")]
    assert outcomes == [
        *((key, True, "confirmed") for key in (north, south, alert, short)),
        ("diagnostics.south.car-2", True, "came back: NO_ROUTE"),
        ("diagnostics.south.car-2", False, "confirmed"),
    ]
    went = {row["queue"]: row["got"].split(", ") for row in shown.table("where")}
    assert went == {"positions": [north, south], "north": [north, alert], "alerts": [alert, short]}

    held = [(row["ready"], row["unacknowledged"], row["acknowledged"]) for row in shown.table("prefetch")]
    assert held == [(15, 5, 0), (15, 5, 0), (12, 5, 3)]

    assert shown.printed("redelivery").endswith("[0, 1]\n")
    again = {row["message"]: row["redelivered"] for row in shown.table("again")}
    assert again == {0: True, 1: True, 2: False, 3: False}

    dead = {row["message"]: (row["deliveries"], row["reason"], row["came from"]) for row in shown.table("dead")}
    assert dead == {"unreadable": (1, "rejected", "judged"), "unlucky": (3, "delivery_limit", "judged")}

    whole, once_more, rest = shown.table("stream")
    assert whole == once_more
    assert (whole["read"], whole["first offset"], whole["last offset"]) == (30, 0, 29)
    assert (rest["read"], rest["first offset"], rest["last offset"]) == (10, 20, 29)


def test_rabbitmqs_notebook_shows_routing_confirms_redelivery_dead_letters_and_replay(
    rabbitmq: DisposableRabbitMQ, tmp_path: Path
) -> None:
    at, home = address(rabbitmq), Home(tmp_path / "home").open()
    theirs = f"amqp://{at.user}:{at.password}@{at.host}:{at.port}/{at.vhost}"
    Lab(brokers=(QUEUES,), rabbitmq_url=remember(home, theirs), prefix=at.prefix).save(home)
    shown = execute("rabbitmq", tmp_path, home.root)
    assert shown.printed("open").strip() == "the lab's"
    insist_on_rabbitmqs_lesson(shown)


def test_the_committed_notebook_on_rabbitmq_shows_it_too() -> None:
    insist_on_rabbitmqs_lesson(Executed(notebooks.FOLDER / "rabbitmq.ipynb"))


@pytest.fixture
def jupyter(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """JupyterLab as the command opens it; what it says of itself (url, token, pid), beside the lab's `home`."""
    home, (port,) = tmp_path / "home", ports.free(1)
    command = [sys.executable, "-m", "orchestration.cli", "notebook", "--no-browser", "--port", str(port)]
    with subprocess.Popen([*command, "--home", str(home)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
        try:
            deadline = time.monotonic() + 240
            while not (found := list((home / "notebooks" / ".jupyter" / "runtime").glob("jpserver-*.json"))):
                assert server.poll() is None, server.stdout and server.stdout.read()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            while True:
                with contextlib.suppress(ValueError):  # it is still being written
                    yield {**json.loads(found[0].read_text()), "home": home, "chosen": port}
                    break
                time.sleep(0.1)
        finally:
            server.terminate()
            server.communicate(timeout=60)


def test_the_command_opens_jupyter_with_copies_of_the_notebooks_on_this_machine_only(jupyter: dict[str, Any]) -> None:
    assert (jupyter["hostname"], jupyter["port"]) == ("127.0.0.1", jupyter["chosen"])
    request = urllib.request.Request(  # noqa: S310
        f"{jupyter['url']}api/contents", headers={"Authorization": f"token {jupyter['token']}"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        listed = {each["name"] for each in json.load(answer)["content"]}
    assert {f"{name}.ipynb" for name in notebooks.NAMES} <= listed
    assert (jupyter["home"] / "notebooks" / "send.ipynb").read_bytes() == (notebooks.FOLDER / "send.ipynb").read_bytes()

    again = [sys.executable, "-m", "orchestration.cli", "notebook", "--port", str(jupyter["chosen"])]
    done = subprocess.run(
        [*again, "--home", str(jupyter["home"])], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 3
    assert f"process {jupyter['pid']}" in done.stderr
    assert f"--port {jupyter['chosen'] + 1}" in done.stderr


def test_without_jupyterlab_the_command_says_how_to_get_it(tmp_path: Path) -> None:
    program = "import sys; sys.modules['jupyterlab'] = None; from orchestration.cli import main; main()"
    command = [sys.executable, "-c", program, "notebook", "--home", str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ})
    assert done.returncode == 3, done.stderr
    assert "make setup" in done.stderr
