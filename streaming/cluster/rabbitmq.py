"""RabbitMQ nodes of one's own as processes on this machine, described as data: one node, or a cluster of three.

Invariant: every port is on 127.0.0.1; there is no `guest`; passwords and the Erlang cookie live in files that only
their owner can read and appear on no command line; and when the process that started the nodes ends, so do they.

Erlang nodes find each other through `epmd`, which would otherwise make a daemon of itself and outlive the lab. Here it
is one more tethered process on a port of its own, and `-start_epmd false` keeps the nodes from starting another.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

from streaming.cluster import ports, tether
from streaming.durability import replace_file
from streaming.errors import BrokerUnavailable, SetupError, StreamgaugeError
from streaming.topology import ROLES, STREAMS, Role, StreamKind
from streaming.transports.rabbitmq import management
from streaming.transports.rabbitmq.address import Address

VHOST: Final = "streamgauge"  # the application on queues
STREAM_VHOST: Final = "streamgauge-streams"  # and on streams, whose names would meet those of reference data there
EXCHANGE: Final = "streamgauge"
OPERATOR: Final = "operator"  # makes queues and streams; administers the nodes
MONITOR: Final = "monitor"  # reads the management API, no messages
NO_SETTINGS: Final[Mapping[str, str]] = MappingProxyType({})
READY_TIMEOUT_S: Final = 240.0  # eight seconds on a machine with nothing else to do
STOP_TIMEOUT_S: Final = 60.0
PORTS_PER_NODE: Final = 6
REPLICATION_PORTS: Final = 50  # each copy of a stream listens for a moment on the first free port of this many

_SERVER: Final = "rabbitmq-server"
# Debian's /usr/sbin/rabbitmq-server insists on root or the user rabbitmq; the script behind it does not.
_PROGRAMS: Final = Path("/usr/lib/rabbitmq/bin")
PLUGINS: Final = "[rabbitmq_management,rabbitmq_prometheus,rabbitmq_stream,rabbitmq_stream_management].\n"
_LOOPBACK_DISTRIBUTION: Final = "-kernel inet_dist_use_interface {127,0,0,1}"


@dataclass(frozen=True, slots=True)
class NodePorts:
    """Where a node listens. From `replication` on come the ports on which streams are copied between nodes."""

    amqp: int
    stream: int
    management: int
    prometheus: int
    distribution: int
    replication: int


@dataclass(frozen=True, slots=True)
class RabbitProcess:
    """One process as data (a node, or the nodes' epmd): run `command` in `folder` with `environment` added."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    log: Path


@dataclass(frozen=True, slots=True)
class Node:
    """One RabbitMQ node as data, beside its process: `rabbit@…` name, ports and settings in RabbitMQ's own names."""

    number: int
    process: RabbitProcess
    ports: NodePorts
    settings: Mapping[str, str]

    @property
    def node_name(self) -> str:
        """As Erlang calls it."""
        return _node_name(self.number)


@dataclass(frozen=True, slots=True)
class Nodes:
    """A whole cluster as data. Start `epmd` first, stop it last."""

    root: Path
    epmd: RabbitProcess
    nodes: tuple[Node, ...]

    @property
    def processes(self) -> tuple[RabbitProcess, ...]:
        """All processes, in the order in which they start."""
        return (self.epmd, *(node.process for node in self.nodes))


@dataclass(frozen=True, slots=True)
class Credentials:
    """User → password, made once per cluster; the file is its owner's only. Each role is a user of its own."""

    passwords: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, root: Path) -> Credentials:
        """Those of the cluster under `root`; what is missing is made."""
        path = root / "credentials.json"
        if not path.exists():
            write_secret(path, "{}")
        known: dict[str, str] = json.loads(path.read_text())
        if missing := [user for user in (OPERATOR, MONITOR, *ROLES) if user not in known]:
            known |= {user: secrets.token_urlsafe(24) for user in missing}
            write_secret(path, json.dumps(known))
        return cls(MappingProxyType(known))


def install(progress: Callable[[str], None] = lambda _: None) -> None:
    """RabbitMQ from the distribution's packages if it is missing, its own service kept from starting.

    Needs root and apt; SetupError with the command to type where that is not so. `progress` says what is done.
    """
    if (_PROGRAMS / _SERVER).exists():
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SetupError(
            "RabbitMQ is not installed",
            "sudo env RUNLEVEL=1 apt-get install --no-install-recommends rabbitmq-server "
            "&& sudo systemctl disable --now rabbitmq-server   (the lab runs nodes of its own)",
        )
    progress("installing rabbitmq-server with apt-get; its own service is kept from starting")
    subprocess.run(["apt-get", "update", "-qq"], check=False)  # a fresh machine has no lists; stale ones may still do
    _without_service(["apt-get", "install", "-y", "--no-install-recommends", "rabbitmq-server"])


def describe(
    root: Path,
    listening: Sequence[NodePorts],
    epmd_port: int,
    *,
    logs: Path | None = None,
    settings: Mapping[str, str] = NO_SETTINGS,
) -> Nodes:
    """The nodes 1, 2, … of one cluster whose data lies under `root`. Touches nothing.

    `settings` (names of rabbitmq.conf) are added to, or replace, each node's own; logs go to `logs` or beside the data.
    """
    where = logs or root
    common = {"HOME": str(root), "ERL_EPMD_PORT": str(epmd_port), "ERL_EPMD_ADDRESS": ports.HOST}
    epmd = RabbitProcess(
        "rabbitmq-epmd",
        ("epmd", "-address", ports.HOST, "-port", str(epmd_port)),
        MappingProxyType(common),
        root,
        where / "rabbitmq-epmd.log",
    )
    numbers = range(1, len(listening) + 1)
    nodes = tuple(
        _describe(root, number, each, where, common, _settings(root, each, numbers) | dict(settings))
        for number, each in zip(numbers, listening, strict=True)
    )
    return Nodes(root, epmd, nodes)


def prepare(cluster: Nodes, progress: Callable[[str], None] = lambda _: None) -> Credentials:
    """Everything before the first start: package, folders, settings, users. Doing it again changes nothing."""
    install(progress)
    cluster.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    cookie = cluster.root / ".erlang.cookie"
    if not cookie.exists():
        write_secret(cookie, new_cookie(), mode=0o400)
    credentials = Credentials.of(cluster.root)
    write_secret(cluster.root / "definitions.json", json.dumps(definitions(credentials)))
    for node in cluster.nodes:
        _prepare_node(node)
    return credentials


def address_of(
    node: Node, credentials: Credentials, user: str = OPERATOR, *, vhost: str = VHOST, prefix: str = ""
) -> Address:
    """Where the node is for its clients, and as whom to talk to it."""
    listening = node.ports
    return Address(
        listening.amqp,
        user,
        credentials.passwords[user],
        stream_port=listening.stream,
        management_port=listening.management,
        vhost=vhost,
        prefix=prefix,
    )


def is_ready(cluster: Nodes, credentials: Credentials) -> bool:
    """Whether each node serves AMQP and streams and sees all the others running."""
    return all(_serves(node) for node in cluster.nodes) and all(
        _running(node, credentials) == {each.node_name for each in cluster.nodes} for node in cluster.nodes
    )


def wait_until_ready(cluster: Nodes, credentials: Credentials, *, timeout_s: float = READY_TIMEOUT_S) -> None:
    """Return when all nodes serve and see each other; BrokerUnavailable when time is up."""
    deadline = time.monotonic() + timeout_s
    while not is_ready(cluster, credentials):
        if time.monotonic() > deadline:
            raise BrokerUnavailable(
                f"RabbitMQ is not ready after {timeout_s:.0f} s; see {cluster.nodes[0].process.log} and its neighbours"
            )
        time.sleep(0.2)


def control(node: Node, *arguments: str, timeout_s: float = 60.0) -> str:
    """What `rabbitmqctl ARGUMENTS` says about this node. SetupError when it fails. Takes about two seconds."""
    done = subprocess.run(
        [str(_PROGRAMS / "rabbitmqctl"), "--node", node.node_name, *arguments],
        env={**os.environ, **node.process.environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    if done.returncode != 0:
        raise SetupError(f"rabbitmqctl {arguments[0]} failed: {done.stderr.strip()}", f"look at {node.process.log}")
    return done.stdout


class DisposableRabbitMQ:
    """RabbitMQ of one's own on free ports: to be killed, paused, alarmed and thrown away.

    A context manager. All processes end when the block ends, and also when this process ends, even by SIGKILL. Node
    numbers start at 1. The folder is a temporary one, deleted at the end, unless `folder` is given; or all of it is as
    `cluster` describes it.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        count: int = 1,
        settings: Mapping[str, str] = NO_SETTINGS,
        cluster: Nodes | None = None,
    ) -> None:
        self._is_temporary = folder is None and cluster is None
        self.cluster = cluster or _on_free_ports(
            folder or Path(tempfile.mkdtemp(prefix="sg-rabbitmq-")), count, settings
        )
        self.folder = self.cluster.root
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        # One thread starts every process and lives as long as they do: a tether holds to the thread that started it.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="rabbitmq-starter")

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes as data."""
        return self.cluster.nodes

    def __enter__(self) -> Self:
        try:
            self.credentials = prepare(self.cluster)
            for process in self.cluster.processes:
                self._launch(process)
            self.wait_until_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait_until_ready(self, *, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return when all nodes serve and see each other; BrokerUnavailable when one ended or time is up."""
        deadline = time.monotonic() + timeout_s
        while not is_ready(self.cluster, self.credentials):
            ended = [name for name, process in self._processes.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise BrokerUnavailable(f"RabbitMQ is not ready ({ended or f'{timeout_s:.0f} s'}); see {self.folder}")
            time.sleep(0.1)

    def start(self, number: int) -> None:
        """Start a stopped or killed node and wait until it is a working member again."""
        self._launch(self.nodes[number - 1].process)
        self.wait_until_ready()

    def stop(self, number: int, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Orderly shutdown; returns when the process is gone."""
        self._stop(self.nodes[number - 1].process.name, timeout_s)

    def kill(self, number: int) -> None:
        """SIGKILL: what the node had not written is gone."""
        process = self._of(number)
        process.kill()
        process.wait()

    def pause(self, number: int) -> None:
        """SIGSTOP: the node keeps its connections and answers nothing."""
        self._of(number).send_signal(signal.SIGSTOP)

    def resume(self, number: int) -> None:
        """SIGCONT: the node goes on where it was."""
        self._of(number).send_signal(signal.SIGCONT)

    def ask(self, path: str, *, method: str = "GET", body: object = None) -> Any:
        """What the first node's management API answers the operator; see management.ask()."""
        return management.ask(address_of(self.nodes[0], self.credentials), path, method=method, body=body)

    def drop_connections(self) -> int:
        """Close every client's connection from the broker's side; returns how many there were."""
        dropped = 0
        for connection in self.ask("/connections"):
            with contextlib.suppress(BrokerUnavailable):  # it went by itself
                self.ask(f"/connections/{management.quoted(connection['name'])}", method="DELETE")
                dropped += 1
        return dropped

    def close(self) -> None:
        """End every process and delete a temporary folder. Doing it again changes nothing."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()
        self._starter.shutdown()
        if self._is_temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _of(self, number: int) -> subprocess.Popen[bytes]:
        return self._processes[self.nodes[number - 1].process.name]

    def _stop(self, name: str, timeout_s: float) -> None:
        process = self._processes[name]
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _launch(self, process: RabbitProcess) -> None:
        self._processes[process.name] = self._starter.submit(_launch, process).result()


def _on_free_ports(folder: Path, count: int, settings: Mapping[str, str]) -> Nodes:
    epmd, *found = ports.free(1 + PORTS_PER_NODE * count)
    listening = [NodePorts(*found[at : at + PORTS_PER_NODE]) for at in range(0, len(found), PORTS_PER_NODE)]
    return describe(folder, listening, epmd, settings=settings)


def _launch(process: RabbitProcess) -> subprocess.Popen[bytes]:
    process.log.parent.mkdir(parents=True, exist_ok=True)
    with process.log.open("ab") as log:
        return subprocess.Popen(
            tether.tethered(process.command),
            cwd=process.folder,
            env=tether.environment(process.environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _describe(
    root: Path, number: int, listening: NodePorts, logs: Path, common: Mapping[str, str], settings: Mapping[str, str]
) -> Node:
    folder = root / str(number)
    name = f"rabbitmq-{number}"
    environment = {
        **common,
        "ERL_FLAGS": "-start_epmd false",
        "RABBITMQ_NODENAME": _node_name(number),
        "RABBITMQ_DIST_PORT": str(listening.distribution),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
        "RABBITMQ_CONF_ENV_FILE": os.devnull,  # the machine's own service has its settings there
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "logs"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
        # With "input allowed" the script becomes the Erlang machine instead of waiting for it as a parent, so that a
        # signal, and the tether's, reaches the node itself.
        "RABBITMQ_ALLOW_INPUT": "1",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-noinput {_LOOPBACK_DISTRIBUTION}",
        "RABBITMQ_CTL_ERL_ARGS": _LOOPBACK_DISTRIBUTION,
    }
    process = RabbitProcess(
        name, (str(_PROGRAMS / _SERVER),), MappingProxyType(environment), folder, logs / f"{name}.log"
    )
    return Node(number, process, listening, MappingProxyType(dict(settings)))


def _settings(root: Path, listening: NodePorts, numbers: Sequence[int]) -> dict[str, str]:
    alone = {
        "listeners.tcp.1": f"{ports.HOST}:{listening.amqp}",
        "stream.listeners.tcp.1": f"{ports.HOST}:{listening.stream}",
        "stream.advertised_host": ports.HOST,
        "stream.advertised_port": str(listening.stream),
        "management.tcp.ip": ports.HOST,
        "management.tcp.port": str(listening.management),
        "prometheus.tcp.ip": ports.HOST,
        "prometheus.tcp.port": str(listening.prometheus),
        "load_definitions": str(root / "definitions.json"),
        # The default, 40 % of the machine, is for a machine that does nothing else.
        "vm_memory_high_watermark.absolute": "1GiB",
        "disk_free_limit.absolute": "1GB",  # the default, 50 MB, alarms when it is too late
        # Quorum queues' log is kept in memory until it rolls over; the default of 512 MB is half the watermark.
        "raft.wal_max_size_bytes": str(64 * 1024**2),
        "log.console": "true",
        "log.console.level": "warning",
        "log.file": "false",
        "cluster_name": "streamgauge",
    }
    if len(numbers) == 1:
        return alone
    members = {f"cluster_formation.classic_config.nodes.{number}": _node_name(number) for number in numbers}
    return alone | members | {"cluster_formation.peer_discovery_backend": "classic_config"}


def _prepare_node(node: Node) -> None:
    folder = node.process.folder
    folder.mkdir(exist_ok=True)
    node.process.log.parent.mkdir(parents=True, exist_ok=True)
    (folder / "rabbitmq.conf").write_text(as_file(node.settings))
    (folder / "enabled_plugins").write_text(PLUGINS)
    first = node.ports.replication
    (folder / "advanced.config").write_text(
        f"[{{osiris, [{{port_range, {{{first}, {first + REPLICATION_PORTS}}}}}]}}].\n"
    )


def as_file(settings: Mapping[str, str]) -> str:
    """Settings as rabbitmq.conf has them."""
    return "".join(f"{name} = {value}\n" for name, value in settings.items())


def new_cookie() -> str:
    """What the nodes of a cluster know each other by."""
    return secrets.token_hex(20).upper()


def _node_name(number: int) -> str:
    return f"streamgauge{number}@localhost"


def definitions(credentials: Credentials) -> dict[str, object]:
    """Users, permissions and the vhosts, as the nodes load them at each start."""
    tags = {OPERATOR: "administrator", MONITOR: "monitoring"}
    granted = [
        (user, vhost, rights)
        for vhost in (VHOST, STREAM_VHOST)
        for user, rights in ((OPERATOR, (".*", ".*", ".*")), (MONITOR, ("^$", "^$", "^$")))
    ]
    for role in ROLES.values():
        granted += [(role.name, VHOST, on_queues(role)), (role.name, STREAM_VHOST, on_streams(role))]
    return {
        "vhosts": [{"name": VHOST}, {"name": STREAM_VHOST}],
        "users": [
            {
                "name": user,
                "password_hash": _hashed(password),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": tags.get(user, ""),
            }
            for user, password in credentials.passwords.items()
        ],
        "permissions": [
            {"user": user, "vhost": vhost, "configure": configure, "write": write, "read": read}
            for user, vhost, (configure, write, read) in granted
        ],
        "topic_permissions": [
            {"user": role.name, "vhost": VHOST, "exchange": EXCHANGE, "write": topics(role), "read": "^$"}
            for role in ROLES.values()
        ],
    }


def on_queues(role: Role) -> tuple[str, str, str]:
    """What a role may configure, write and read: the exchange, its own queues <stream>.<group>, reference streams."""
    reads = [f"{stream}\\.{role.name}" for stream in role.reads]
    return "^$", _anchored([EXCHANGE] if _written(role) else []), _anchored([*reads, *role.looks_up])


def on_streams(role: Role) -> tuple[str, str, str]:
    """The same where each stream is one of RabbitMQ's."""
    return "^$", _anchored(_written(role)), _anchored([*role.reads, *role.looks_up])


def topics(role: Role) -> str:
    """Which routing keys (<stream>.<key>) a role may publish with."""
    return f"^({'|'.join(_written(role))})\\..*$" if _written(role) else "^$"


def _written(role: Role) -> list[str]:
    return sorted(name for name in role.writes if STREAMS[name].kind is not StreamKind.STATE)


def _anchored(names: Sequence[str]) -> str:
    return f"^({'|'.join(sorted(set(names)))})$" if names else "^$"


def _hashed(password: str) -> str:
    """RabbitMQ's own form: a salt of four bytes before the SHA-256 of salt and password."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def write_secret(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace a file as a whole; only its owner can ever read it."""
    replace_file(path, text, mode=mode)


def _serves(node: Node) -> bool:
    return all(_answers(port) for port in (node.ports.amqp, node.ports.stream, node.ports.management))


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((ports.HOST, port), timeout=1):
        return True
    return False


def _running(node: Node, credentials: Credentials) -> set[str]:
    with contextlib.suppress(StreamgaugeError):  # a node that has not loaded its users yet refuses
        listed = management.ask(address_of(node, credentials), "/nodes?columns=name,running")
        return {each["name"] for each in listed if each["running"]}
    return set()


def _without_service(command: list[str]) -> None:
    """Run apt-get with service starts refused (policy-rc.d answers 101), and its own service disabled afterwards."""
    policy = Path("/usr/sbin/policy-rc.d")
    made = not policy.exists()
    if made:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        done = subprocess.run(
            command, env={**os.environ, "RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"}, check=False
        )
    finally:
        if made:
            policy.unlink()
    if done.returncode != 0:
        raise SetupError("apt-get could not install rabbitmq-server", " ".join(command))
    if shutil.which("systemctl"):
        subprocess.run(["systemctl", "disable", "--now", "rabbitmq-server"], capture_output=True, check=False)
