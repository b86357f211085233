"""A profile as a person meets it: launched in the launchpad, its figure in the asset's page, its report by the link."""

from __future__ import annotations

from typing import Final

import pytest

from docs.browser import Page, saying
from orchestration import profiling
from streaming.lab import KAFKA
from tests.orchestration import launchpad
from tests.orchestration.control_room import ControlRoom, pages_served
from tests.orchestration.nights import PROFILED

BRIEF: Final = {"messages: 100000": "messages: 2000", "timing_runs: 3": "timing_runs: 1"}
FIGURE: Final = "document.querySelector('img[src^=\"data:image/png\"]')"


@pytest.mark.brokers
@pytest.mark.timeout(400)
def test_a_profile_is_launched_its_figure_seen_and_its_report_reached(control_room: ControlRoom, page: Page) -> None:
    with pages_served(control_room.home):
        run_id = launchpad.launched(control_room, page, profiling.job_name(PROFILED), BRIEF, partition=KAFKA)
        control_room.wait_for(run_id, "SUCCESS")
        key = "/".join(profiling.profile_key(PROFILED).path)
        page.open(f"{control_room.address}/assets/{key}", launchpad.WIDTH, launchpad.HEIGHT)
        page.wait_for("cprofile_figure", "report_page")
        assert page.run(f"{FIGURE} === null")
        page.click(f"{_row('cprofile_figure')}?.querySelector('a')")
        page.wait_until(f"{FIGURE}?.naturalWidth > 300")
        page.click(saying("Close", "button"))
        page.wait_until(f"{FIGURE} === null")
        report = page.follow(f"{_row('report_page')}?.querySelector('a[href]')")
        report.wait_for("% of time", "/streaming/")


def _row(name: str) -> str:
    """Of the table of metadata."""
    return f"[...document.querySelectorAll('tr')].find(row => row.innerText.startsWith('{name}'))"
