"""The lab's processes: which they are, the order in which they start and stop, how they are.

Invariants: brokers answer before topics are made, topics exist before roles start, roles stop before brokers; after
down() no process of the lab is left; up() works from any state, including after SIGKILL of everything.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from orchestration.brokers import epmd_port, node_ports, rabbitmq_of
from streaming.cluster import kafka, listeners, machine, ports, rabbitmq
from streaming.cluster.kafka import BrokerPorts, BrokerProcess
from streaming.cluster.rabbitmq import Credentials, RabbitProcess
from streaming.cluster.supervision import Service, ServiceState, Supervisor
from streaming.errors import BrokerUnavailable, SetupError, UsageError
from streaming.home import PROJECT_ROOT, Home
from streaming.lab import BROKER_COUNT, KAFKA, Lab, service_name
from streaming.topology import ROLES, STREAMS

BROKERS: Final = "brokers"
APPLICATION: Final = "application"
CONTROL_ROOM: Final = "control-room"
PAGES: Final = "profile-pages"
STOP_ORDER: Final = (CONTROL_ROOM, APPLICATION, BROKERS)
# A person decides (65), corrects the call (2) or the machine (3); 0: it has done all it was asked for.
FINAL_EXIT_CODES: Final = (0, 2, 3, 65)
ROLE_READY_TIMEOUT_S: Final = 60.0
WEB_READY_TIMEOUT_S: Final = 90.0
_LOCK_TIMEOUT_S: Final = 180.0

Say = Callable[[str], None]
Table = Callable[[Home, Lab], list[Service]]

_DAGSTER_YAML: Final = """\
# Dagster's instance for this lab. Written once: change it as you like.
{storage}
concurrency:
  pools: {{default_limit: 1, granularity: run}}
  runs: {{max_concurrent_runs: 4}}
run_monitoring: {{enabled: true, max_runtime_seconds: 7200}}
run_retries: {{enabled: true, max_retries: 0, retry_on_asset_or_op_failure: false}}
telemetry: {{enabled: false}}
nux: {{enabled: false}}  # no form over the first page
"""
_SQLITE: Final = "# Storage is SQLite in this folder (Dagster's default)."
_POSTGRES: Final = """\
# Where the database is and its password: section [{service}] of the file that PGSERVICEFILE names.
storage: {{postgres: {{postgres_url: "postgresql+psycopg2:///?service={service}"}}}}"""


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """How a service is, and how fast: `records` and `rate_hz` are its own count, None before the first."""

    name: str
    group: str
    state: str
    pid: int | None
    uptime_s: float | None
    exit_code: int | None
    records: int | None
    rate_hz: float | None

    @property
    def is_well(self) -> bool:
        """Whether it runs, or rests because it was told to or has finished its work."""
        return self.state in {"RUNNING", "STOPPED", "STOPPING"} or (self.state == "EXITED" and self.exit_code == 0)


def services_of(home: Home, lab: Lab) -> list[Service]:
    """Every process of the lab, in the order in which they start."""
    own = [_broker_service(home, broker) for broker in brokers_of(home, lab)] if lab.owns_brokers else []
    nodes = [_node_service(process) for process in rabbitmq_of(home, lab).processes] if lab.owns_rabbitmq else []
    roles = [_role_service(home, name, broker) for broker in lab.brokers for name in ROLES]
    return [*own, *nodes, *roles, _pages_service(home, lab), *_dagster_services(home, lab)]


def brokers_of(home: Home, lab: Lab) -> list[BrokerProcess]:
    """The lab's own Kafka brokers as data."""
    listening = [BrokerPorts(lab.broker_port(n), lab.controller_port(n)) for n in range(1, BROKER_COUNT + 1)]
    return kafka.describe(home.brokers("kafka"), listening, logs=home.logs)


def up(
    home: Home,
    lab: Lab,
    *,
    create_topics: Callable[[], None],
    progress: Say,
    roles: Sequence[str] | None = None,
    dagster: bool = True,
    table: Table = services_of,
) -> None:
    """Start what does not run yet and return when it is ready; says so when there is nothing to do.

    `create_topics` is called when the brokers answer and before the first role starts; it may be called again. `roles`:
    which services of the application, by default all.
    UsageError when the lab runs with other settings, or in containers. SetupError, BrokerUnavailable:
    nothing is left running, unless it was running before.
    """
    if lab.in_containers:
        raise UsageError(
            f"{home.root} is the home of a lab in containers: docker compose -f docker/compose.yaml up; "
            "for one on this machine name another --home"
        )
    services = table(home, lab)
    wanted = {each.name for each in services if each.group == BROKERS}
    wanted |= {each.name for each in services if each.group == APPLICATION and (roles is None or each.name in roles)}
    wanted |= {each.name for each in services if each.group == CONTROL_ROOM and dagster}
    with _alone(home):
        supervisor = _supervisor(home)
        if supervisor.is_up:
            _insist_on_same(home, lab)
            _start_missing(supervisor, home, lab, wanted, create_topics, progress)
            return
        try:
            _prepare(supervisor, home, lab, services, progress)
            _start_missing(supervisor, home, lab, wanted, create_topics, progress)
        except BaseException:
            progress("the start failed: stopping what had started")
            _stop_all(supervisor, progress)
            raise


def down(home: Home, *, progress: Say = lambda _: None) -> None:
    """Stop Dagster, the roles, the brokers, in this order; then end whatever the lab's processes have left.

    Somebody else's brokers go on as they are; `progress` is told what the lab leaves there.
    """
    with _alone(home):
        supervisor = _supervisor(home)
        if not supervisor.is_up and not supervisor.survivors():
            progress("nothing runs")
            return
        _stop_all(supervisor, progress)
        progress("the lab is down")
        for each in _left_with_others(Lab.load(home)):
            progress(each)


def _left_with_others(lab: Lab) -> Iterator[str]:
    """What the lab has made on brokers that are not its own, in words. Nobody is asked: they may be down."""
    if lab.bootstrap_servers and KAFKA in lab.brokers:
        names = ", ".join(f"{lab.prefix}{stream}" for stream in STREAMS)
        yield f"Kafka at {lab.bootstrap_servers} goes on and keeps the lab's topics: {names}"
    if lab.rabbitmq_url and lab.uses_rabbitmq:
        names = ", ".join(f"{lab.prefix}{broker}.*" for broker in lab.brokers if broker != KAFKA)
        yield f"RabbitMQ at {lab.rabbitmq_url} goes on and keeps the lab's queues, streams and exchanges: {names}"


def status(home: Home) -> list[ServiceStatus]:
    """Every service of the running lab; empty when the lab is down."""
    supervisor = _supervisor(home)
    return [_status(home, state) for state in supervisor.states()] if supervisor.is_up else []


def start(home: Home, name: str) -> None:
    """Start one service while the rest runs; nothing happens if it runs already."""
    _running(home, name).start([name])


def stop(home: Home, name: str) -> None:
    """Stop one service cleanly while the rest runs; returns when its process is gone."""
    _running(home, name).stop([name])


def restart(home: Home, name: str) -> None:
    """stop(), then start()."""
    stop(home, name)
    start(home, name)


def broker_name(home: Home, named: str) -> str:
    """The service of a broker of the running lab: `2` is kafka-2. UsageError when it is down or not its own."""
    lab = Lab.load(home)
    kind, _, number = named.rpartition("-")
    name = f"{kind or KAFKA}-{number}"
    if lab.in_containers:
        raise UsageError(
            f"this lab's brokers are containers: docker compose -f docker/compose.yaml stop | start {name}"
        )
    if kind in {"", KAFKA} and lab.bootstrap_servers is not None:
        raise UsageError(f"the brokers at {lab.kafka} are not this lab's own: only who started them may stop them")
    known = [each.name for each in brokers_of(home, lab)] if lab.owns_brokers else []
    known += [node.process.name for node in rabbitmq_of(home, lab).nodes] if lab.owns_rabbitmq else []
    if name not in known:
        raise UsageError(f"there is no broker {named}; the lab's own are {', '.join(known)}")
    _running(home, name)
    return name


def kill(home: Home, name: str) -> None:
    """SIGKILL one service while the rest runs. The supervisor lets it rest until start() or up()."""
    _running(home, name).kill([name])


def log_path(home: Home, name: str) -> Path:
    """Where a service's log lies, whether it exists or not."""
    return home.logs / f"{name}.log"


def is_up(home: Home) -> bool:
    """Whether the lab's supervisor answers."""
    return _supervisor(home).is_up


def _supervisor(home: Home) -> Supervisor:
    return Supervisor(home.root, run=home.run, logs=home.logs)


@contextlib.contextmanager
def _alone(home: Home) -> Iterator[None]:
    """One up or down at a time on this home."""
    home.run.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(home.run / "services.lock", timeout=_LOCK_TIMEOUT_S):
            yield
    except Timeout:
        raise SetupError(f"another up or down is at work on {home.root}", "wait until it has ended") from None


def _insist_on_same(home: Home, lab: Lab) -> None:
    if Lab.load(home) != lab:
        raise UsageError("the lab is up with other settings; stop it first: streamgauge down")


def _prepare(supervisor: Supervisor, home: Home, lab: Lab, services: Sequence[Service], progress: Say) -> None:
    """Everything up to a supervisor with all its services at rest."""
    if left := supervisor.end_survivors():
        progress(f"ended {left} processes that a killed lab had left")
    machine.insist(machine.check(home.root, ports_of(lab)))
    if lab.owns_brokers:
        kafka.prepare(brokers_of(home, lab), progress)
    if lab.owns_rabbitmq:
        rabbitmq.prepare(rabbitmq_of(home, lab), progress)
    write_dagster_yaml(home)
    lab.save(home)
    supervisor.launch(services, {"STREAMGAUGE_HOME": str(home.root), "DAGSTER_HOME": str(home.dagster)})


def _start_missing(
    supervisor: Supervisor, home: Home, lab: Lab, wanted: set[str], create_topics: Callable[[], None], progress: Say
) -> None:
    missing = [each for each in supervisor.states() if each.name in wanted and not _is_settled(each)]
    if not missing:
        progress("the lab is up already: nothing to do")
        return
    groups = {group: [each.name for each in missing if each.group == group] for group in STOP_ORDER}
    if groups[BROKERS]:
        progress("starting " + ", ".join(groups[BROKERS]))
        supervisor.start(groups[BROKERS])
    _await_brokers(home, lab)
    create_topics()
    if groups[APPLICATION]:
        progress(f"starting {len(groups[APPLICATION])} roles")
        supervisor.start(groups[APPLICATION])
        _await_roles(supervisor, home, groups[APPLICATION], progress)
    if groups[CONTROL_ROOM]:
        progress("starting " + ", ".join(groups[CONTROL_ROOM]))
        supervisor.start(groups[CONTROL_ROOM])
        _await_web(lab, progress)


def _is_settled(state: ServiceState) -> bool:
    """Whether up() has nothing to do for it: it runs, or it has finished its work."""
    return state.pid is not None or (state.state == "EXITED" and state.exit_code == 0)


def _await_brokers(home: Home, lab: Lab) -> None:
    if lab.owns_brokers:
        kafka.wait_until_ready(brokers_of(home, lab))
    if lab.owns_rabbitmq:
        rabbitmq.wait_until_ready(rabbitmq_of(home, lab), Credentials.of(home.brokers("rabbitmq")))
    if lab.bootstrap_servers and KAFKA in lab.brokers:
        bad = [finding for finding in listeners.examine(lab.kafka) if finding.is_bad]
        if bad:
            raise BrokerUnavailable("; ".join(f"{each.name}: {each.detail}; {each.remedy}" for each in bad))


def _await_roles(supervisor: Supervisor, home: Home, names: Sequence[str], progress: Say) -> None:
    """Return when each role has reported progress or has ended for good; say which have not after a while."""
    waiting = set(names)
    deadline = time.monotonic() + ROLE_READY_TIMEOUT_S
    while waiting and time.monotonic() < deadline:
        found = [_status(home, state) for state in supervisor.states() if state.name in waiting]
        waiting -= {each.name for each in found if each.records is not None or each.state == "EXITED"}
        for each in found:
            if not each.is_well:
                progress(f"{each.name} is {each.state} ({each.exit_code}); see {log_path(home, each.name)}")
        time.sleep(0.2)
    if waiting:
        progress(f"not ready yet: {', '.join(sorted(waiting))}; their logs: streamgauge logs NAME")


def _await_web(lab: Lab, progress: Say) -> None:
    deadline = time.monotonic() + WEB_READY_TIMEOUT_S
    while not _web_answers(lab.web_port):
        if time.monotonic() > deadline:
            progress(f"Dagster does not answer on port {lab.web_port} yet; see: streamgauge logs dagster-webserver")
            return
        time.sleep(0.2)


def _web_answers(port: int) -> bool:
    connection = http.client.HTTPConnection(ports.HOST, port, timeout=5)
    try:
        connection.request("GET", "/server_info")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop_all(supervisor: Supervisor, progress: Say) -> None:
    if supervisor.is_up:
        for group in STOP_ORDER:
            names = [each.name for each in supervisor.states() if each.group == group and each.pid]
            if names:
                progress(f"stopping {group} ({len(names)})")
                supervisor.stop(names)
                supervisor.end_survivors(but=supervisor.pids())  # what those had started themselves, runs of Dagster
    supervisor.shut_down()


def _running(home: Home, name: str) -> Supervisor:
    """The supervisor of a lab that is up and has this service."""
    supervisor = _supervisor(home)
    if not supervisor.is_up:
        raise UsageError("the lab is down; start it first: streamgauge up")
    names = [state.name for state in supervisor.states()]
    if name not in names:
        raise UsageError(f"there is no service {name!r}; the services are {', '.join(names)}")
    return supervisor


def _status(home: Home, state: ServiceState) -> ServiceStatus:
    counted = _progress_of(home, state)
    return ServiceStatus(
        name=state.name,
        group=state.group,
        state=state.state,
        pid=state.pid,
        uptime_s=state.uptime_s,
        exit_code=state.exit_code,
        records=counted.get("records"),
        rate_hz=counted.get("rate_hz"),
    )


def _progress_of(home: Home, state: ServiceState) -> Mapping[str, Any]:
    """What the service's present process has written of itself; empty before it has."""
    with contextlib.suppress(OSError, ValueError):
        counted = json.loads((home.run / f"{state.name}.json").read_bytes())
        if isinstance(counted, dict) and counted.get("pid") == state.pid:
            return counted
    return {}


def ports_of(lab: Lab) -> dict[str, int]:
    """Service → port on which the lab will listen."""
    numbers = range(1, BROKER_COUNT + 1) if lab.owns_brokers else ()
    return {
        **{f"kafka-{number}": lab.broker_port(number) for number in numbers},
        **{f"kafka-{number}'s controller": lab.controller_port(number) for number in numbers},
        **(_rabbitmq_ports(lab) if lab.owns_rabbitmq else {}),
        PAGES: lab.pages_port,
        "dagster-webserver": lab.web_port,
    }


def _broker_service(home: Home, broker: BrokerProcess) -> Service:
    return Service(
        name=broker.name,
        group=BROKERS,
        command=broker.command,
        environment=broker.environment,
        folder=broker.folder,
        log=home.logs / f"{broker.name}.console.log",  # beside the log that the broker writes and rotates itself
        stop_timeout_s=60,
    )


def _rabbitmq_ports(lab: Lab) -> dict[str, int]:
    found = {"rabbitmq-epmd": epmd_port(lab)}
    for number in range(1, lab.rabbitmq_nodes + 1):
        kinds = ("amqp", "stream", "management", "prometheus", "distribution")
        found |= {f"rabbitmq-{number}'s {kind}": getattr(node_ports(lab, number), kind) for kind in kinds}
    return found


def _node_service(process: RabbitProcess) -> Service:
    return Service(
        name=process.name,
        group=BROKERS,
        command=process.command,
        environment=process.environment,
        folder=process.folder,
        log=process.log,
        stop_timeout_s=60,
    )


def _role_service(home: Home, name: str, broker: str) -> Service:
    service = service_name(broker, name)
    told = ("--home", str(home.root), "--broker", broker)
    return Service(
        name=service,
        group=APPLICATION,
        command=(sys.executable, "-m", "orchestration.cli", "role", name, *told),
        environment={"PYTHONUNBUFFERED": "1"},
        folder=PROJECT_ROOT,
        log=log_path(home, service),
        final_exit_codes=FINAL_EXIT_CODES,
    )


def _pages_service(home: Home, lab: Lab) -> Service:
    told = ("--home", str(home.root), "--port", str(lab.pages_port))
    command = (sys.executable, "-m", "orchestration.pages", *told)
    return Service(PAGES, CONTROL_ROOM, command, PROJECT_ROOT, log_path(home, PAGES))


def _dagster_services(home: Home, lab: Lab) -> Iterable[Service]:
    programs = Path(sys.executable).parent
    workspace = ("-w", str(PROJECT_ROOT / "workspace.yaml"))
    commands = {
        "dagster-webserver": ("-h", ports.HOST, "-p", str(lab.web_port), *workspace),
        "dagster-daemon": ("run", *workspace),
    }
    for name, arguments in commands.items():
        command = (str(programs / name), *arguments)
        yield Service(name, CONTROL_ROOM, command, PROJECT_ROOT, log_path(home, name), stop_timeout_s=20)


def write_dagster_yaml(home: Home, *, postgres_service: str | None = None) -> None:
    """Dagster's instance in the lab's home, unless there is one already; on Postgres if a libpq service is named."""
    path = home.dagster / "dagster.yaml"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        storage = _POSTGRES.format(service=postgres_service) if postgres_service else _SQLITE
        path.write_text(_DAGSTER_YAML.format(storage=storage))
