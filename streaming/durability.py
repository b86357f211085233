"""Files that are whole or not there, and names that last.

A file's fsync keeps its content through a power cut, its folder's keeps its name.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


@contextmanager
def replacing(path: Path, *, lasts: bool = False) -> Iterator[Path]:
    """A file to make beside `path`; it takes its place in one step when nothing was raised, and is gone otherwise.

    Whoever reads `path`, or comes after a kill, finds the old file or the new one, whole. With `lasts` the new one
    survives a power cut too.
    """
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        yield scratch
        if lasts:
            _sync(scratch, os.O_RDONLY)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    if lasts:
        sync_folder(path.parent)


def replace_file(path: Path, content: bytes | str, *, lasts: bool = False, mode: int = 0o666) -> None:
    """Give a file new content, as replacing() does. A new file has the rights of `mode`, less the umask."""
    with replacing(path, lasts=lasts) as scratch:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
