"""The lab's home has a format: an older one is upgraded, a newer or unknown one refused, none is ever misread."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sinks.reader import scan
from sinks.slots import committed
from streaming.errors import ChainBroken, SetupError
from streaming.home import FORMAT_VERSION, PROJECT_ROOT, Home


def stamped(root: Path, text: str) -> Home:
    root.mkdir()
    (root / "format-version").write_text(text)
    return Home(root)


def stamp(home: Home) -> str:
    return (home.root / "format-version").read_text()


def test_a_new_home_is_stamped_and_opened_again(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").open()
    assert stamp(home) == f"{FORMAT_VERSION}\n"
    assert home.open() is home
    assert [path.name for path in home.root.iterdir()] == ["format-version"]


def test_processes_that_make_the_same_home_at_once_all_get_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; from pathlib import Path; from streaming.home import Home\n"]
    command[2] += "for number in range(200): Home(Path(sys.argv[1]) / str(number)).open()"
    children = [subprocess.Popen([*command, str(tmp_path)], cwd=PROJECT_ROOT, stderr=subprocess.PIPE) for _ in range(3)]
    assert [child.communicate(timeout=120)[1] for child in children] == [b""] * 3
    assert {stamp(Home(path)) for path in tmp_path.iterdir()} == {f"{FORMAT_VERSION}\n"}


def test_a_home_of_format_1_is_upgraded_and_keeps_what_it_has(tmp_path: Path) -> None:
    home = stamped(tmp_path / "home", "1\n")
    (home.root / "lab.json").write_text("{}")
    home.open()
    assert stamp(home) == "2\n"
    assert (home.root / "lab.json").read_text() == "{}"
    assert scan(home, "kafka", "positions_parquet").collect().is_empty()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3\n", "has format 3, this program reads 2\n  what to do: update the program, use another home"),
        ("999", "has format 999, this program reads 2\n  what to do: update the program"),
        ("0\n", "has format '0', which no version of this program has written\n  what to do: use another home"),
        ("", "has format '', which no version"),
        ("two", "has format 'two', which no version"),
        ("²", "has format '²', which no version"),
        ("-1", "has format '-1', which no version"),
        ("1.5", "has format '1.5', which no version"),
    ],
)
def test_any_other_format_is_refused_and_nothing_is_touched(tmp_path: Path, text: str, message: str) -> None:
    home = stamped(tmp_path / "home", text)
    with pytest.raises(SetupError) as refused:
        home.open()
    assert message in str(refused.value)
    assert refused.value.exit_code == 3
    assert stamp(home) == text


def test_the_command_line_says_so_and_exits_with_3(tmp_path: Path) -> None:
    home = stamped(tmp_path / "home", "3\n")
    command = [sys.executable, "-m", "orchestration.cli", "verify", "--home", str(home.root)]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith(f"streamgauge: {home.root} has format 3, this program reads 2\n  what to do: update")


def test_a_full_folder_that_is_no_home_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(SetupError, match="no lab's home"):
        Home(tmp_path).open()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_where_the_home_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(SetupError, match="cannot write"):
        Home(tmp_path / "home").open()


def test_a_slot_named_by_a_later_format_is_refused_and_not_misread(tmp_path: Path) -> None:
    (tmp_path / "00000000000000000000-00000000000000000010-3-zstd.parquet").touch()
    with pytest.raises(ChainBroken, match="is no slot"):
        committed(tmp_path, "parquet")
