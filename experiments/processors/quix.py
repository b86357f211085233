"""Quix Streams, in an environment of its own: it wants a confluent-kafka older than the one that Streamgauge needs.

Invariant: the environment holds what quix.lock pins by hash and nothing else; another lock makes another one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from streaming.cluster import jars
from streaming.errors import SetupError

REQUIREMENT: Final = "quixstreams==3.28.1"
LOCK: Final = Path(__file__).with_name("quix.lock")
PROGRAM: Final = Path(__file__).with_name("quix_means.py")


def install(progress: Callable[[str], None] = lambda _: None) -> None:
    """Make the environment when it is missing. SetupError when its packages can't be had."""
    target = _folder()
    if target.exists():
        return
    count = sum("==" in line for line in LOCK.read_text().splitlines())
    progress(f"installing Quix Streams into an environment of its own: {count} packages (about half a minute, once)")
    scratch = target.with_name(f"{target.name}.{os.getpid()}")
    python, pip = str(scratch / "bin" / "python"), [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    try:
        scratch.parent.mkdir(parents=True, exist_ok=True)
        _do([sys.executable, "-m", "venv", "--without-pip", str(scratch)])
        _do(
            [
                *pip,
                "--python",
                python,
                "install",
                "--quiet",
                "--retries",
                "1",
                "--no-deps",
                "--require-hashes",
                "-r",
                str(LOCK),
            ]
        )
        if not target.exists():
            scratch.rename(target)  # its Python finds its packages from where it lies
    except OSError as error:
        raise SetupError(f"Quix Streams could not be installed: {error}", f"make {target.parent} writable") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def lock() -> None:
    """Resolve the environment anew and pin it by hash. Needs the network, and uv."""
    words = ["--universal", "--generate-hashes", "--no-header", "--no-emit-index-url", "--no-emit-find-links"]
    words += ["--python-version", "3.11", "--quiet", "--upgrade", "-", "-o", str(LOCK)]
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([str(uv), "pip", "compile", *words], input=REQUIREMENT, text=True, check=True)


def command(job: Mapping[str, Any]) -> list[str]:
    """The command line of its process, which install() has made possible."""
    return [str(_folder() / "bin" / "python"), str(PROGRAM), json.dumps(job)]


def _folder() -> Path:
    return jars.folder().parent / f"quix-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]}"


def _do(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-600:]
        raise SetupError(
            f"Quix Streams could not be installed: {said}",
            "connect to the network and call `make setup` again (only the first set-up needs it)",
        )
