"""Pictures of a running lab for the README: Dagster's pages as a headless browser shows them, and the tracks.

    python -m docs.screenshots --home HOME

Invariant: a picture is of the lab as it is; nothing is painted in. The lab must have run for some minutes, so that
a whole minute of every vehicle has been checked and the tracks are drawn.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Final

from PIL import Image

from docs.browser import Page, browser
from streaming.home import PROJECT_ROOT, Home
from streaming.lab import Lab

FIGURES: Final = PROJECT_ROOT / "docs" / "figures"
WIDTH, HEIGHT = 1600, 900
SETTLE_S: Final = 6.0  # after the words are there: graphs are laid out and plots drawn
COLOURS: Final = 128
SHOTS: Final = {
    "lineage": ("assets/kafka/summaries/tracks?view=lineage&lineageScope=upstream&lineageDepth=4", ("position_means",)),
    "table": ("assets/kafka/tables/positions_parquet", ("positions_parquet", "next_offsets", "Row count")),
    "check": ("assets/kafka/tables/positions_parquet?view=checks&checkDetail=ten_hz", ("ten_hz", "rate_min_hz")),
}


def main() -> None:
    """Take them all."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--home", type=Path, default=None)
    option = asked.parse_args().home
    home = Home(option.absolute()) if option else Home.locate(os.environ)
    address = f"http://127.0.0.1:{Lab.load(home).web_port}"
    with browser() as page:
        _skip_welcome(page, address)
        for name, (path, words) in SHOTS.items():
            page.open(f"{address}/{path}", WIDTH, HEIGHT)
            page.wait_for(*words)
            time.sleep(SETTLE_S)
            page.picture(FIGURES / f"{name}.png")
            _shrink(FIGURES / f"{name}.png")
    tracks = FIGURES / "tracks.png"
    tracks.write_bytes((home.tables / "kafka" / "tracks.png").read_bytes())
    _shrink(tracks)
    print(f"{', '.join(SHOTS)} and tracks are in {FIGURES}")


def _skip_welcome(page: Page, address: str) -> None:
    """Dagster greets a new instance with a form, once; it is kept out of the pictures."""
    page.open(address, WIDTH, HEIGHT)
    page.wait_for("Lineage")
    time.sleep(SETTLE_S)
    page.run("[...document.querySelectorAll('button')].find(each => each.innerText === 'Skip')?.click()")
    time.sleep(1)


def _shrink(path: Path) -> None:
    """Fewer colours: a third of the bytes, and text as sharp as before."""
    Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)


if __name__ == "__main__":
    main()
