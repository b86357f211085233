"""The pages say what is: generated parts are fresh, evidence exists, no demand is forgotten, no link is dead."""

from __future__ import annotations

import ast
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer

from docs.diagram import application, base_figure, contains_base_figure
from docs.footprint import FOOTPRINT, cpu_seconds, family, memory_bytes
from docs.generate import OWN_ROLES, OWN_STREAMS, PAGES, every_command, filled, fresh
from docs.layout import layered
from orchestration.cli import app
from streaming.home import PROJECT_ROOT
from streaming.topology import StreamKind

_IDS = """
S1 S2 S3 S4 S5 S6 S7  I1 I2 I3 I4 I5 I6 I7
1.1a 1.1b 1.1c 1.1d 1.1e 1.1f  1.2a 1.2b 1.2c 1.2d  1.3a 1.3b 1.3c 1.3d 1.3e 1.3f 1.3g 1.3h  B1
2.0 D1 D2 D3 D4 D5 D6 D7 D8 D9 2.1 2.2 2.3 B2  3.1 3.2 3.3a 3.3b 3.3c B3
4.0a 4.0b 4.0c 4.1 4.2a 4.2b 4.3a 4.3b B4  X1 X2 X3 X4 X5  Z1 Z2 Z3 Z4
R0 R1a R1b R1c R2a R2b R2c R2d R2e R3a R3b R3c R3d R3e R3f R4a R4b R4c R5  F1 F2 F3 F4 F5 F6
"""
DEMANDS = [*_IDS.split(), *(f"defect {number}" for number in range(1, 8))]
EVIDENCE = (PROJECT_ROOT / "docs" / "evidence.md").read_text()
HAND_WRITTEN = sorted({*PROJECT_ROOT.glob("*.md"), *(PROJECT_ROOT / "docs").glob("*.md")})


def rows() -> list[list[str]]:
    """The cells of the evidence tables."""
    lines = [line for line in EVIDENCE.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return [row for row in cells if row[0] != "id"]


def referenced() -> list[str]:
    """Everything in back quotes in the column of what runs."""
    return sorted({found for row in rows() for found in re.findall(r"`([^`]+)`", row[2])})


@cache
def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def exists(what: str) -> bool:
    """Whether a file, a test, a command, a make target, an option, a check or an experiment is there."""
    if what.startswith("streamgauge "):
        return what.removeprefix("streamgauge ") in every_command()
    if what.startswith("make "):
        return f"\n{what.removeprefix('make ')}:" in (PROJECT_ROOT / "Makefile").read_text()
    if "::" in what:
        path, test = what.split("::")
        return (PROJECT_ROOT / path).is_file() and test in functions_of(PROJECT_ROOT / path)
    if "/" in what or "." in what:
        return (PROJECT_ROOT / what).exists()
    return what in {"ten_hz", "retention", "--brokers"}


@pytest.fixture(scope="module")
def made_now() -> dict[str, str]:
    return fresh()


@pytest.mark.parametrize("path", [*PAGES, "docs/figures/application.svg", "docs/figures/base.svg"])
def test_a_committed_page_is_as_the_code_would_make_it_now(made_now: dict[str, str], path: str) -> None:
    assert (PROJECT_ROOT / path).read_text() == made_now[path], f"{path} is stale: make docs"


def test_nothing_is_made_that_is_not_held_against_the_committed_file(made_now: dict[str, str]) -> None:
    assert set(made_now) == {*PAGES, "docs/figures/application.svg", "docs/figures/base.svg"}


def test_a_part_that_nobody_makes_is_an_error() -> None:
    with pytest.raises(KeyError, match="nonsense"):
        filled("<!-- made by docs/generate.py: nonsense -->\n<!-- end -->")


def test_every_demand_has_its_evidence_once() -> None:
    ids = [row[0] for row in rows()]
    assert [each for each in ids if each in DEMANDS] == DEMANDS
    assert all(each.startswith("A3 ") for each in ids if each not in DEMANDS)


def test_every_row_of_the_evidence_has_a_state_and_what_is_done_names_something() -> None:
    for row in rows():
        assert len(row) == 4, row
        assert re.fullmatch(r"done|(partly|open) \(#[4-8]\)|open", row[3]), row
        assert row[3].startswith("open") or "`" in row[2] or row[2].startswith("see "), row


@pytest.mark.parametrize("what", referenced())
def test_what_the_evidence_names_exists(what: str) -> None:
    assert exists(what)


@pytest.mark.parametrize(
    "what",
    ["docs/nothing.md", "tests/unit/test_docs.py::test_nothing", "streamgauge nothing", "make nothing", "nothing"],
)
def test_what_is_not_there_is_noticed(what: str) -> None:
    assert not exists(what)


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=lambda page: page.name)
def test_no_link_is_dead(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=lambda page: page.name)
def test_every_command_that_a_page_calls_exists(page: Path) -> None:
    text = page.read_text()
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    calls = {
        *re.findall(r"`(?:\.venv/bin/)?streamgauge ([a-z-]+)", text),
        *re.findall(r"^\s*(?:\$ )?(?:\.venv/bin/)?streamgauge ([a-z-]+)", fenced, re.MULTILINE),
    }
    assert calls - {*typer.main.get_command(app).commands} == set()  # type: ignore[attr-defined]


def options_refused(text: str) -> list[str]:
    """`COMMAND --option` for each option in a call of the program that its parser does not know."""
    plain = re.sub(r"^ *#+ ?", "", text, flags=re.MULTILINE)  # a comment of compose.yaml may hold a call
    calls = re.findall(r"`(?:\.venv/bin/|docker compose [^`]* )?streamgauge ([^`]+)`", plain)
    calls += re.findall(
        r"^\s*(?:\$ |docker compose .* )?(?:\.venv/bin/)?streamgauge ([^`\n]+)$",
        plain.replace("\\\n", " "),
        re.MULTILINE,
    )
    refused = []
    for call in calls:
        command, words = command_of(re.split(r"[|;&#]", call)[0].split())
        known = {"--help", *(each for option in command.params for each in (*option.opts, *option.secondary_opts))}
        given = [word.partition("=")[0].rstrip(",.)]") for word in words if re.match(r"--[a-z]", word)]
        refused += [f"{command.name} {word}" for word in given if word not in known]
    return refused


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that a call's first words name, in however many groups, and the words after them."""
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        _, command, words = command.resolve_command(typer.Context(command), words)  # an error when there is none
    return command, words


@pytest.mark.parametrize("page", [*HAND_WRITTEN, PROJECT_ROOT / "docker" / "compose.yaml"], ids=lambda page: page.name)
def test_every_option_that_a_page_gives_a_command_is_one_of_it(page: Path) -> None:
    assert options_refused(page.read_text()) == []


def test_an_option_that_a_command_has_not_is_noticed() -> None:
    assert options_refused("Call `streamgauge up\n--nonsense 1`.") == ["up --nonsense"]
    assert options_refused("    docker compose -f f exec c streamgauge verify --nonsense\n") == ["verify --nonsense"]
    assert options_refused("x:\n\n    streamgauge broker stop 2 --nonsense --json\n\nThat was `--all`.") == [
        "stop --nonsense"
    ]


def test_situation_and_problem_take_at_most_200_words() -> None:
    page = (PROJECT_ROOT / "docs" / "domain.md").read_text()
    words = page.split("## Situation and problem")[1].split("## Actors")[0].split()
    assert 100 < len(words) <= 200


def test_the_application_contains_the_tasks_base_figure() -> None:
    assert contains_base_figure(OWN_STREAMS, OWN_ROLES)
    without = {name: role for name, role in OWN_ROLES.items() if not name.endswith("-csv")}
    assert not contains_base_figure(OWN_STREAMS, without)


def test_the_diagrams_arrows_are_the_roles_and_nothing_else() -> None:
    graph = application(OWN_STREAMS, OWN_ROLES)
    expected = {(read, role.name) for role in OWN_ROLES.values() for read in (*role.reads, *role.looks_up)}
    expected |= {(role.name, written) for role in OWN_ROLES.values() for written in role.writes}
    expected |= {(role.name, f"{role.table}/") for role in OWN_ROLES.values() if role.table}
    assert set(graph.arrows) == expected
    state = {name for name, stream in OWN_STREAMS.items() if stream.kind is StreamKind.STATE}
    assert {end for _, end in graph.dashed} == {*state, "alerts-transformer"}
    assert set(graph.boxes) == {name for arrow in graph.arrows for name in arrow}


def test_a_layout_goes_forward_and_nothing_lies_on_anything_else() -> None:
    for graph in (application(OWN_STREAMS, OWN_ROLES), base_figure()):
        layout = layered(graph.boxes, graph.arrows)
        for route in layout.routes.values():
            layers = [layout.places[name][0] for name in route]
            assert layers == list(range(layers[0], layers[0] + len(layers)))
        rows_of: dict[int, list[float]] = {}
        for name in graph.boxes:
            layer, row = layout.places[name]
            rows_of.setdefault(layer, []).append(row)
        for column in rows_of.values():
            assert all(below - above > 0.999 for above, below in pairwise(sorted(column)))


def test_a_footprint_counts_a_busy_process_and_its_memory() -> None:
    import os  # noqa: PLC0415

    before, ballast = cpu_seconds(os.getpid()), bytearray(50 * 1024**2)
    while cpu_seconds(os.getpid()) < before + 0.2:
        sum(range(10_000))
    assert memory_bytes(os.getpid()) > len(ballast)
    assert family(os.getpid())[0].pid == os.getpid()
    assert FOOTPRINT.is_file()


def test_the_pages_with_generated_parts_have_some() -> None:
    for page in PAGES:
        assert "<!-- made by docs/generate.py: " in (PROJECT_ROOT / page).read_text()
