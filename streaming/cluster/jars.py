"""The broker's jars: resolved by Maven coordinates, pinned by SHA-256, kept where every lab finds them.

Invariant: no jar reaches a class path unless its checksum is the one in `jars.lock`. When all jars are there, neither
the network nor the Maven client (jgo, pure Python; no `mvn`, no Java) is touched.

`python -m streaming.cluster.jars` fetches what is missing and prepares quick starts (warmup.py); `--lock` resolves anew
and writes the locks. RabbitMQ's PerfTest, which only the benchmark needs, has a lock of its own and is fetched by it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from streaming.cluster.machine import Finding
from streaming.errors import SetupError

if TYPE_CHECKING:
    from jgo.maven import Artifact, MavenContext

KAFKA_VERSION: Final = "4.3.1"
LOG4J_VERSION: Final = "2.25.3"
PERF_TEST_VERSION: Final = "2.22.1"
LOCK: Final = Path(__file__).with_name("jars.lock")
PERF_TEST_LOCK: Final = Path(__file__).with_name("perf-test.lock")

# `!` is jgo's raw resolution: otherwise log4j's own dependency management would replace Kafka's versions
# (kafka-clients 3.9.1 beside a 4.3.1 broker).
_BROKER: Final = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}!"
    f"+org.apache.logging.log4j:log4j-core:{LOG4J_VERSION}!"
    f"+org.apache.logging.log4j:log4j-slf4j-impl:{LOG4J_VERSION}!"
)
# Taken alone: all it needs beyond the broker's jars is Kafka Connect and its web server, which no tool used here loads.
_TOOLS: Final = f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}!"
_PERF_TEST: Final = f"com.rabbitmq:perf-test:{PERF_TEST_VERSION}!"
_HEAD: Final = "# group:artifact:version sha256 - written by `python -m streaming.cluster.jars --lock`\n"


@dataclass(frozen=True, slots=True)
class Jar:
    """One pinned file: group:artifact:version, and the SHA-256 of its bytes in hexadecimal."""

    coordinate: str
    sha256: str

    @property
    def filename(self) -> str:
        """As Maven names it."""
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


def locked(lock: Path = LOCK) -> list[Jar]:
    """The jars of a committed lock, in class path order."""
    return [Jar(*line.split()) for line in lock.read_text().splitlines() if line and not line.startswith("#")]


def folder() -> Path:
    """Where the jars of this Python environment lie: every lab's home shares them."""
    return Path(sys.prefix) / "share" / "streamgauge" / "jars"


def class_path(pinned: Sequence[Jar] | None = None) -> str:
    """The class path of these jars, by default the broker's; install() has put them there."""
    return os.pathsep.join(str(folder() / jar.filename) for jar in (locked() if pinned is None else pinned))


def install(progress: Callable[[str], None] = lambda _: None, pinned: Sequence[Jar] | None = None) -> Path:
    """Fetch what is missing, check every jar; returns their folder. SetupError when a jar cannot be had or is another.

    `progress` gets a line now and then while something is being fetched, and nothing otherwise. `pinned`: by default
    the broker's jars.
    """
    jars, target = locked() if pinned is None else pinned, folder()
    if missing := [jar for jar in jars if not (target / jar.filename).exists()]:
        target.mkdir(parents=True, exist_ok=True)
        _fetch(missing, target, progress)
    for jar in jars:
        _check(jar, target / jar.filename)
    return target


def examine() -> Finding:
    """Whether the jars are there and are the pinned ones, for `doctor`; up fetches what is missing by itself."""
    missing = [jar for jar in locked() if not (folder() / jar.filename).exists()]
    changed = [jar for jar in locked() if jar not in missing and _sha256(folder() / jar.filename) != jar.sha256]
    if changed:
        names = " ".join(str(folder() / jar.filename) for jar in changed)
        return Finding(
            "broker jars", ok=False, detail=f"not the pinned ones: {names}", remedy=f"rm {names}; make setup"
        )
    detail = f"{len(missing)} missing" if missing else f"{len(locked())} there, each with its checksum"
    return Finding("broker jars", not missing, detail, "with a network: make setup")


def lock() -> dict[Path, list[Jar]]:
    """Resolve the coordinates anew and pin what the repository delivers now, for each lock. Needs the network."""
    import jgo  # noqa: PLC0415 - takes half a second, and is not needed once the jars are there

    found = {LOCK: [*jgo.resolve(_BROKER), jgo.resolve(_TOOLS)[0]], PERF_TEST_LOCK: jgo.resolve(_PERF_TEST)}
    return {
        path: sorted((pin(artifact) for artifact in artifacts), key=lambda jar: jar.coordinate)
        for path, artifacts in found.items()
    }


def _fetch(missing: list[Jar], target: Path, progress: Callable[[str], None]) -> None:
    context = maven()
    progress(f"fetching {len(missing)} jars of Maven Central; later starts need no network")
    with ThreadPoolExecutor(4) as pool:
        for done, jar in enumerate(pool.map(lambda jar: _fetch_one(context, jar, target), missing), start=1):
            if done % 10 == 0 or done == len(missing):
                progress(f"jars: {done} of {len(missing)} ({jar.filename})")


def _fetch_one(context: MavenContext, jar: Jar, target: Path) -> Jar:
    found = _resolve(context, jar)
    if _sha256(found) != jar.sha256:  # an interrupted download stays in the local repository: once more
        found.unlink()
        found = _resolve(context, jar)
    _check(jar, found)
    scratch = target / f".{jar.filename}.{os.getpid()}"
    shutil.copyfile(found, scratch)
    scratch.replace(target / jar.filename)
    return jar


def _resolve(context: MavenContext, jar: Jar) -> Path:
    group, artifact, version = jar.coordinate.split(":")
    try:
        return Path(context.project(group, artifact).at_version(version).artifact().resolve())
    except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
        raise SetupError(
            f"{jar.coordinate} could not be fetched: {error}",
            "connect to the network and call again (only the first set-up needs it); a Maven mirror goes in jgo's "
            "settings file, section [repositories]",
        ) from error


def maven() -> MavenContext:
    """The Maven client with its user's ordinary settings: the local repository, and mirrors before the central one."""
    from jgo.config import GlobalSettings  # noqa: PLC0415
    from jgo.maven import MavenContext  # noqa: PLC0415

    settings = GlobalSettings.load()
    context = MavenContext(repo_cache=settings.repo_cache, timeout=60)
    context.remote_repos = {**settings.repositories, **context.remote_repos}
    return context


def pin(artifact: Artifact) -> Jar:
    """The artifact under the checksum of what the repository delivers now."""
    return Jar(f"{artifact.groupId}:{artifact.artifactId}:{artifact.version}", _sha256(artifact.resolve()))


def _check(jar: Jar, path: Path) -> None:
    found = _sha256(path)
    if found != jar.sha256:
        raise SetupError(
            f"{path} is not the pinned {jar.coordinate}: its SHA-256 is {found}, the lock says {jar.sha256}",
            f"delete {path} and call again; if it comes back like this, do not trust where it comes from",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: list[str]) -> int:
    """`--lock` writes the lock; otherwise install."""
    try:
        if arguments == ["--lock"]:
            for path, pinned in lock().items():
                path.write_text(_HEAD + "".join(f"{jar.coordinate} {jar.sha256}\n" for jar in pinned))
                print(f"{path.name}: {len(pinned)} jars")
        else:
            install(lambda says: print(says, file=sys.stderr))
            _warm_up()
    except SetupError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _warm_up() -> None:
    from streaming.cluster import kafka, warmup  # noqa: PLC0415 - they need the jars

    if not warmup.is_made():
        print("preparing quick broker starts (about 15 s, once)", file=sys.stderr)
        kafka.warm_up()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
