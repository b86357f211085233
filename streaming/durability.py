"""Files that are whole or not there, and names that last.

A file's fsync keeps its content through a power cut, its folder's keeps its name.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes | str, *, lasts: bool = False, mode: int = 0o666) -> None:
    """Give a file new content in one step: whoever reads it, or comes after a kill, finds the old or the new, whole.

    With `lasts` the new content survives a power cut too. A new file has the rights of `mode`, less the umask.
    """
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if lasts:
                file.flush()
                os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    if lasts:
        sync_folder(path.parent)
