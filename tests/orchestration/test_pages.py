"""The profiles' pages: what is served, and that nothing else of the home is."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.profiles import runs
from experiments.profiles.runs import Profiler, Run, Status, Workload
from orchestration import pages
from streaming.home import Home

NAME = "20260101-000000-positions-parquet-scalene"
SECRET = b"operator's password"
REPORT = b"<html>lines</html>"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home").open()
    run = Run(NAME, "positions-parquet", "kafka", Profiler.SCALENE, Workload(), "2026-01-01T00:00:00", Status.COMPLETE)
    folder = runs.write(home, run)
    (folder / "report.html").write_bytes(REPORT)
    (folder / "job.json").write_bytes(SECRET)
    (folder / "profile.png").symlink_to(home.root / "secret.json")
    stage = runs.root(home) / f".stage-1-{NAME}"
    stage.mkdir()
    for place in (home.root / "secret.json", runs.root(home) / "secret.json", stage / "report.html"):
        place.write_bytes(SECRET)
    return home


@pytest.fixture
def port(home: Home) -> Iterator[int]:
    served = pages.server(home, 0)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield served.server_address[1]
    served.shutdown()
    served.server_close()
    thread.join()


def ask(port: int, path: str, method: str = "GET", host: str | None = None) -> tuple[int, bytes, str | None]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest(method, path, skip_host=True)  # as it is: a client of the library's would clean it up
    connection.putheader("Host", host or f"127.0.0.1:{port}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, answer.getheader("Content-Type")


def test_a_runs_report_is_served_and_the_first_page_leads_to_it(port: int) -> None:
    status, overview, _ = ask(port, "/")
    assert status == 200
    assert f'href="/{NAME}/report.html"'.encode() in overview
    assert pages.address(port, NAME) == f"http://127.0.0.1:{port}/{NAME}/report.html"
    assert ask(port, f"/{NAME}/report.html") == (200, REPORT, "text/html; charset=utf-8")
    assert ask(port, f"/{NAME}/report.html", "HEAD")[:2] == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.json",
        "/%2e%2e/secret.json",
        f"/{NAME}/../../secret.json",
        f"/{NAME}/../secret.json",
        f"/{NAME}/%2e%2e/%2e%2e/secret.json",
        f"/{NAME}/..%2fsecret.json",
        f"//{NAME}/../../secret.json",
        "/secret.json",
        f"/{NAME}/job.json",
        f"/{NAME}/",
        f"/{NAME}",
        f"/{NAME}/profile.png",  # a link to somewhere else
        f"/.stage-1-{NAME}/report.html",
        f"/{NAME}/report.html/../job.json",
        f"/{NAME}/report.html\\..\\job.json",
    ],
)
def test_nothing_else_of_the_home_can_be_reached(port: int, path: str) -> None:
    status, body, _ = ask(port, path)
    assert status == 404
    assert SECRET not in body


def test_a_page_elsewhere_can_neither_frame_nor_embed_what_is_served(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", f"/{NAME}/report.html")
    answer = connection.getresponse()
    assert answer.getheader("X-Frame-Options") == "DENY"
    assert answer.getheader("Cross-Origin-Resource-Policy") == "same-origin"
    connection.close()


def test_a_folders_name_is_no_html_in_the_list(port: int, home: Home) -> None:
    name = '2026"><script>'
    [known] = runs.listed(home)
    (runs.write(home, replace(known, name=name)) / "report.html").write_bytes(REPORT)
    status, overview, _ = ask(port, "/")
    assert status == 200
    assert b"<script>" not in overview


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_it_can_only_be_read(port: int, home: Home, method: str) -> None:
    assert ask(port, f"/{NAME}/report.html", method)[0] == 501
    assert (runs.root(home) / NAME / "report.html").read_bytes() == REPORT


def test_a_name_that_was_pointed_here_from_elsewhere_is_refused(port: int) -> None:
    assert ask(port, f"/{NAME}/report.html", host="elsewhere.example")[0] == 403
    assert ask(port, f"/{NAME}/report.html", host=f"localhost:{port}")[0] == 200
