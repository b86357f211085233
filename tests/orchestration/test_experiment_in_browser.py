"""A deep dive as a person meets it: its form changed in the launchpad, its progress followed, a long one terminated."""

from __future__ import annotations

from typing import Final

import pytest

from docs.browser import Page
from experiments.run import find_runs
from tests.orchestration import dives, launchpad
from tests.orchestration.control_room import ControlRoom

JOB: Final = "experiment_keys"
pytestmark = [pytest.mark.brokers, pytest.mark.timeout(400)]


def form(*, repetitions: int) -> dict[str, str]:
    """What is typed over what."""
    return {
        "preset: standard": "preset: smoke",
        "seed: 1": f"seed: 7\n      repetitions: {repetitions}",
        "scenes: []": "scenes: [growth]",
    }


def test_a_dive_takes_what_was_typed_and_is_followed_on_its_page(control_room: ControlRoom, page: Page) -> None:
    before = dives.ids(control_room)
    run_id = launchpad.launched(control_room, page, JOB, form(repetitions=8))
    page.wait_for("measuring 0/16")
    page.wait_until(r"/measuring [1-9]\d*\/16/.test(document.body.innerText)")
    page.wait_for("Success")
    assert control_room.status(run_id) == "SUCCESS"
    (run,) = [each for each in find_runs(control_room.home) if each.run_id not in before]
    assert run.is_complete
    assert (run.provenance["preset"], run.provenance["seed"]) == ("smoke", 7)
    assert run.measurements["repetition"].n_unique() == 8
    assert set(run.measurements["scene"]) == {"growth"}


def test_a_terminated_dive_leaves_no_process_no_topic_and_no_folder(control_room: ControlRoom, page: Page) -> None:
    before = dives.ids(control_room)
    run_id = launchpad.launched(control_room, page, JOB, form(repetitions=500))
    dive = dives.in_its_midst(control_room, run_id, before)
    launchpad.terminate(page)
    dives.is_gone(control_room, run_id, dive)
    page.wait_for("Canceled")
