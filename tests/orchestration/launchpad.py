"""Dagster's pages as a person uses them: a job's form changed and sent off, a run followed, a run terminated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from docs.browser import Page, saying
from tests.orchestration.control_room import LOCATION, ControlRoom

WIDTH, HEIGHT = 1600, 900
_EDITOR: Final = "document.querySelector('.CodeMirror')?.CodeMirror"


def launched(room: ControlRoom, page: Page, job: str, changes: Mapping[str, str], partition: str | None = None) -> str:
    """The run's id: parts of the form typed over, a partition chosen, the button pressed. The page shows the run."""
    page.open(f"{room.address}/locations/{LOCATION}/jobs/{job}/playground", WIDTH, HEIGHT)
    for default, chosen in changes.items():
        _type_over(page, default, chosen)
    if partition:
        page.click("document.querySelector('input[placeholder=Partition]')")
        page.type(partition)
        page.click(saying(partition, "[role=menuitem], [class*=MenuItem], li"))
    page.click(saying("Launch Run", "button"))
    page.wait_until("location.pathname.startsWith('/runs/')")
    return str(page.run("location.pathname.split('/')[2]"))


def terminate(page: Page) -> None:
    """The button of the run that the page shows, and the dialogue's."""
    page.click(saying("Terminate", "button"))
    page.click(saying("Terminate 1 run", "button"))


def _type_over(page: Page, words: str, others: str) -> None:
    """Select the words in the form, as soon as it has them, and type others."""
    page.wait_until(f"{_EDITOR}?.getValue().includes({json.dumps(words)})")
    page.run(
        f"""((editor, words) => {{
            const at = editor.getValue().indexOf(words);
            editor.focus();
            editor.setSelection(editor.posFromIndex(at), editor.posFromIndex(at + words.length));
        }})({_EDITOR}, {json.dumps(words)})"""
    )
    page.type(others)
    page.wait_until(f"{_EDITOR}.getValue().includes({json.dumps(others)})", timeout_s=10)
