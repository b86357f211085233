"""JupyterLab in a container: the notebooks' folder, and the token as a file, so that no environment shows it.

Who has the token runs any code here, so it must be a secret; an empty one would mean to Jupyter: everybody may come in.
"""

from pathlib import Path

_FILE = Path("/run/secrets/jupyter_token")
_token = _FILE.read_text().strip() if _FILE.is_file() else ""
if _token in {"", "change-me"}:
    # SystemExit, because any other error of this file is logged and then Jupyter starts as if the file weren't there.
    raise SystemExit(
        f"JupyterLab does not start: its token ({_FILE}) is missing, empty or the word of an example. "
        "Make one with: openssl rand -hex 16 > docker/secrets/jupyter_token"
    )

c = get_config()  # type: ignore[name-defined]  # noqa: F821 - Jupyter's own way
c.IdentityProvider.token = _token
c.ServerApp.root_dir = "/var/lib/notebooks"
