"""The command that opens the introduction's notebooks in JupyterLab."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from orchestration.cli.options import HomeOption, opened
from streaming.errors import SetupError
from streaming.home import PROJECT_ROOT, Home


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(notebook)


def notebook(
    home: HomeOption = None,
    port: Annotated[
        int | None, typer.Option(help="Where Jupyter listens. Default: the lab's ports' base + 88.")
    ] = None,
    *,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it in the browser.")] = True,
) -> None:
    """Open the introduction's notebooks (send, receive, exercises, rabbitmq) in JupyterLab, on this machine only.

    They are copies in the lab's home: change them as you like; delete one to get it back as it was. Ctrl-C ends it.
    """
    from streaming.cluster import machine, ports

    where, lab = opened(home)
    if find_spec("jupyterlab") is None:
        raise SetupError("JupyterLab is not installed", "make setup, or: .venv/bin/pip install 'streamgauge[notebook]'")
    chosen = port or lab.port_base + 88
    if not ports.is_free(chosen):
        owner = machine.listening_process(chosen)
        by = f" by process {owner.pid} ({machine.command_of(owner)})" if owner else ""
        raise SetupError(f"port {chosen} is in use{by}", f"streamgauge notebook --port {chosen + 1}")
    folder = _copied(where)
    # Its settings, histories and sockets' secrets lie in the home, too: nothing in the user's own folders.
    own = {name: str(folder / ".jupyter" / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    own |= {
        "JUPYTER_RUNTIME_DIR": str(folder / ".jupyter" / "runtime"),
        "IPYTHONDIR": str(folder / ".jupyter" / "ipython"),
    }
    environment = {**os.environ, **own, "STREAMGAUGE_HOME": str(where.root)}
    os.execve(sys.executable, _command(folder, chosen, browser=browser), environment)  # noqa: S606


def _copied(home: Home) -> Path:
    """The notebooks' folder in the home; what is there already stays as it is."""
    folder = home.root / "notebooks"
    folder.mkdir(exist_ok=True)
    for source in (PROJECT_ROOT / "docs" / "notebooks").glob("*.ipynb"):
        if not (folder / source.name).exists():
            shutil.copyfile(source, folder / source.name)
    return folder


def _command(folder: Path, port: int, *, browser: bool) -> list[str]:
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": folder,
        "ServerApp.allow_root": os.geteuid() == 0,
        "ServerApp.open_browser": browser,
        # It neither asks for news nor for a newer version.
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.news_url": None,
    }
    return [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
