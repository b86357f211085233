""".ci/run: with an engine containers must be tested; without one the reason is said and all else is tested."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
ENGINE: Final = """#!/bin/sh
echo "$1" >> "$(dirname "$0")/calls"
case "$1" in
  env) echo "export DOCKER_HOST=unix:///nowhere/engine" ;;
  up) {up} ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with .ci/run and programs of its own: `make` tells what it was told, no engine is up before."""
    run = tmp_path / "checkout" / ".ci" / "run"
    run.parent.mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", run)
    _program(tmp_path / "bin" / "make", '#!/bin/sh\necho "make $*: ${STREAMGAUGE_CONTAINERS:-free} $DOCKER_HOST"\n')
    _program(tmp_path / "bin" / "docker", "#!/bin/sh\nexit 1\n")
    return tmp_path / "checkout"


def test_with_an_engine_a_skipped_container_test_is_a_failure_and_the_engine_goes_down_again(checkout: Path) -> None:
    script = checkout.parent / "shared" / "tools" / "docker-here"
    _program(script, ENGINE.format(up="true"))
    done = _run(checkout)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "make test: required unix:///nowhere/engine\n"
    assert (script.parent / "calls").read_text().split() == ["env", "up", "down"]


def test_an_engine_that_was_up_before_stays_up(checkout: Path) -> None:
    script = checkout.parent / "shared" / "tools" / "docker-here"
    _program(script, ENGINE.format(up="true"))
    _program(checkout.parent / "bin" / "docker", "#!/bin/sh\nexit 0\n")
    assert _run(checkout).returncode == 0
    assert (script.parent / "calls").read_text().split() == ["env", "up"]


def test_an_engine_that_does_not_start_is_said_before_and_after_and_the_rest_is_tested(checkout: Path) -> None:
    script = checkout.parent / "elsewhere" / "engine"
    _program(script, ENGINE.format(up='echo "iptables: permission denied" >&2; exit 7'))
    done = _run(checkout, STREAMGAUGE_DOCKER_HERE=str(script))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "make test: free \n"
    assert done.stderr.count("failed with exit code 7") == 2
    assert done.stderr.count("iptables: permission denied") == 2


def test_without_a_script_containers_are_not_tested_and_that_is_said(checkout: Path) -> None:
    done = _run(checkout)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "make test: free \n"
    assert done.stderr.count("there is no script ../shared/tools/docker-here") == 2


def test_a_failure_of_the_tests_is_ci_s_failure(checkout: Path) -> None:
    _program(checkout.parent / "bin" / "make", "#!/bin/sh\nexit 2\n")
    assert _run(checkout).returncode == 2


def _program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def _run(checkout: Path, **told: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("STREAMGAUGE", "DOCKER"))}
    clean["PATH"] = f"{checkout.parent / 'bin'}:{clean['PATH']}"
    command = [str(checkout / ".ci" / "run")]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, cwd=checkout.parent, env=clean | told
    )
