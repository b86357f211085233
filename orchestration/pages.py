"""`python -m orchestration.pages`: the profiles' reports and figures for a browser, linked from Dagster.

Invariant: loopback only, and read only: what is served are the files in SERVED of runs' folders, and a list of them. A
request names a run and a file and never a path, so nothing else of the home can be reached.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Iterator
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO, Final

from experiments.profiles import runs
from streaming.cluster import ports
from streaming.home import Home

REPORT: Final = "report.html"
SERVED: Final = {REPORT: "text/html; charset=utf-8", "profile.png": "image/png"}
# A run's name begins with a digit: a stage's folder, which has secrets, does not.
_ASKED: Final = re.compile(r"/(\d[A-Za-z0-9-]*)/(" + "|".join(map(re.escape, SERVED)) + ")")
_AT_HOME: Final = re.compile(rf"({re.escape(ports.HOST)}|localhost)(:\d+)?")


def address(port: int, run: str, file: str = REPORT) -> str:
    """Where a run's file is served."""
    return f"http://{ports.HOST}:{port}/{run}/{file}"


def server(home: Home, port: int) -> ThreadingHTTPServer:
    """Bound and listening; serve_forever() serves. Port 0: any."""
    made = type("Pages", (_Pages,), {"home": home})
    found = ThreadingHTTPServer((ports.HOST, port), made)
    found.daemon_threads = True
    return found


class _Pages(BaseHTTPRequestHandler):
    home: Home
    timeout = 30

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        if not _AT_HOME.fullmatch(self.headers.get("Host", "")):  # a page elsewhere whose name was pointed here
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path == "/":
            content = _overview(self.home).encode()
            self._head(SERVED[REPORT], len(content))
            if with_body:
                self.wfile.write(content)
        elif (asked := _ASKED.fullmatch(self.path)) and (file := _opened(self.home, *asked.groups())):
            with file:
                self._head(SERVED[asked[2]], file.seek(0, 2))
                file.seek(0)
                if with_body:
                    shutil.copyfileobj(file, self.wfile)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _head(self, kind: str, size: int) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")  # no page elsewhere learns what there is
        self.end_headers()


def _opened(home: Home, run: str, file: str) -> BinaryIO | None:
    """The file itself, if it is where it seems to be."""
    path = runs.root(home) / run / file
    if path.resolve() != path.parent.parent.resolve() / run / file:
        return None  # a link to somewhere else
    try:
        return path.open("rb")
    except OSError:
        return None


def _overview(home: Home) -> str:
    rows = "\n".join(_rows(home)) or "<tr><td>no profiles yet: streamgauge profile ROLE</td></tr>"
    return f'<!doctype html><html lang="en"><title>Profiles</title><h1>Profiles</h1><table>\n{rows}\n</table></html>\n'


def _rows(home: Home) -> Iterator[str]:
    for run in reversed(runs.listed(home)):
        folder = runs.folder_of(home, run)
        links = " ".join(
            f'<a href="/{escape(run.name)}/{file}">{file}</a>' for file in SERVED if (folder / file).is_file()
        )
        cells = (run.began[:16], run.role, run.broker, run.profiler, run.status)
        if links:
            yield "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + f"<td>{links}</td></tr>"


def main() -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser("python -m orchestration.pages", description=__doc__.partition("\n")[0])
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    server(Home(options.home), options.port).serve_forever()


if __name__ == "__main__":
    main()
