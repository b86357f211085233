"""Roles put together: a role's name and the lab's settings become transport, codec, step or sink, and run.

The command line, the supervisor and the tests all start roles here. Nothing here imports Dagster. A role ends cleanly
on SIGTERM and SIGINT: what it holds is flushed and committed first. On SIGUSR1 it writes to its log where it is.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from orchestration.brokers import Wired, transport_of
from orchestration.injection import checkpoint_of, rotation_of
from sinks.arrivals import ArrivalSink
from sinks.files import FileSink
from streaming.codecs import codec
from streaming.declarations import made
from streaming.errors import UsageError
from streaming.generators.diagnostics import Diagnostics
from streaming.generators.ledger import Ledger, fresh_name
from streaming.generators.positions import Positions
from streaming.generators.recording import read
from streaming.generators.replay import SHIPPED, Rebase, Replay, producer_name
from streaming.generators.run import Generator, Sent, produce
from streaming.generators.vehicles import Vehicles, recorded_reference_data, reference_data
from streaming.home import Home
from streaming.interfaces import Codec, Replayable, Transport
from streaming.lab import KAFKA, Lab, service_name
from streaming.progress import Progress
from streaming.service import RECORDS_PER_COMMIT, Limits, run_flow, run_sink
from streaming.stopping import answer_where_it_is, stop_on_signals
from streaming.topology import STREAMS, Role, RoleKind, StreamKind, stream
from streaming.transformers.flows import reference_table, step_for
from streaming.transports.kafka import KafkaTransport
from streaming.turns import SUFFIX, Turns

_LOOK_AGAIN_S: Final = 0.5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """What to replay and how. `speed` None: as fast as possible. `mapping`: our column → the file's."""

    path: Path
    speed: float | None = 1.0
    rebase: Rebase = Rebase.NOW
    mapping: Mapping[str, str] | None = None
    loop: bool = False
    producer: str | None = None


def connect(lab: Lab) -> KafkaTransport:
    """The lab's transport. BrokerUnavailable with the address when nobody answers."""
    return KafkaTransport(lab.kafka, prefix=lab.prefix)


def create_topics(lab: Lab) -> None:
    """Make the application's topics where they are missing."""
    streams = [each.shaped(lab.tuning.partitions) for each in STREAMS.values()]
    connect(lab).create(streams, replication=lab.replication)


def run(chosen: Role, home: Home, lab: Lab, *, broker: str = KAFKA) -> None:
    """Run a role as the lab configured it, until told to stop: what the supervisor starts."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    answer_where_it_is()
    if chosen.name == "recording-replay":
        options = ReplayOptions(recording_of(lab), loop=True)
        replay(home, lab, options, Limits(), role_name=chosen.name, broker=broker)
    elif chosen.kind is RoleKind.GENERATOR:
        generate(chosen, home, lab, Limits(), broker=broker)
    elif chosen.kind is RoleKind.TRANSFORMER:
        transform(chosen, home, lab, Limits(), broker=broker)
    else:
        sink(chosen, home, lab, Limits(), broker=broker)


def generate(
    chosen: Role,
    home: Home,
    lab: Lab,
    limits: Limits,
    *,
    producer: str | None = None,
    is_paced: bool = True,
    broker: str = KAFKA,
) -> Sent:
    """Run a simulating generator in this process. Unpaced ones live in simulated time, under a name of their own."""
    name = producer or (chosen.name if is_paced else fresh_name(chosen.name))
    made_by = _Producer(name, chosen.name, chosen.name, broker)
    return _produce(_generator(chosen, lab, is_paced=is_paced), made_by, home, lab, limits)


def replay(
    home: Home, lab: Lab, options: ReplayOptions, limits: Limits, *, role_name: str | None = None, broker: str = KAFKA
) -> Sent:
    """Replay a recording into `positions`. Rows that can't be read are put aside in the home; how many is logged."""
    recording = read(options.path, options.mapping, aside=home.root / "rejected")
    if recording.rejected:
        _log.warning("%s: %d rows can't be read; see %s", options.path, recording.rejected, recording.aside)
    generator = Replay(recording, speed=options.speed, rebase=options.rebase, is_looped=options.loop)
    name = options.producer or producer_name(options.path)
    return _produce(generator, _Producer(name, role_name or name, "recording-replay", broker), home, lab, limits)


def transform(chosen: Role, home: Home, lab: Lab, limits: Limits, *, instance: int = 0, broker: str = KAFKA) -> None:
    """Run a transformer in this process; it waits for its reference data.

    UsageError for a second instance on RabbitMQ: its state would be another's, for the input is one partition.
    """
    if instance and broker != KAFKA:
        raise UsageError(f"--instance {instance}: on {broker} a transformer's input is one partition, so there is one")
    stop = stop_on_signals()
    transport = _joined(home, lab, broker, chosen.name)
    codecs = {name: _codec(lab, name) for name in (*chosen.reads, *chosen.writes) if name in _WITH_SCHEMA}
    vehicles = _vehicles(transport, lab, stop) if "vehicles" in chosen.looks_up else None
    if stop.is_set():
        return
    run_flow(
        transport,
        chosen,
        step_for(chosen, vehicles=vehicles),
        codecs,
        stop=stop,
        progress=_progress(home, service_name(broker, chosen.name), instance),
        limits=limits,
        instance=instance,
        records_per_commit=lab.tuning.commit_records or RECORDS_PER_COMMIT,
    )


def sink(chosen: Role, home: Home, lab: Lab, limits: Limits, *, instance: int = 0, broker: str = KAFKA) -> None:
    """Run a sink in this process."""
    stop = stop_on_signals()
    transport = _joined(home, lab, broker, chosen.name)
    source, progress = chosen.reads[0], _progress(home, service_name(broker, chosen.name), instance)
    # Where positions of the input last, they name the slots; of a queue, the rows are numbered as they arrive.
    lands: type[FileSink | ArrivalSink] = FileSink if isinstance(transport, Replayable) else ArrivalSink
    files = lands(
        home,
        broker,
        chosen,
        _codec(lab, source),
        transport.identity(source),
        writer=f"{chosen.name}-{instance}",
        checkpoint=checkpoint_of(os.environ, progress.write),
        compression=lab.tuning.parquet,
        **rotation_of(os.environ, lab.tuning.file_rows),
    )
    run_sink(
        transport,
        chosen,
        files,
        stop=stop,
        progress=progress,
        limits=limits,
        instance=instance,
    )


def recording_of(lab: Lab) -> Path:
    """The recording that this lab replays: the one it was told, or the one that ships."""
    return Path(lab.recording) if lab.recording else SHIPPED


def limits_of(duration: str | None, messages: int | None) -> Limits:
    """When to stop, from the command line's words."""
    return Limits(None if duration is None else seconds(duration), messages)


def rebase_of(text: str) -> Rebase:
    """`now` or `keep`; UsageError for anything else."""
    try:
        return Rebase(text)
    except ValueError:
        raise UsageError(f"--rebase {text}: now, or keep") from None


def seconds(text: str) -> float:
    """`30`, `30s`, `5m`, `1h` in seconds; UsageError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)?", text.strip())
    if found is None:
        raise UsageError(f"{text!r} is no duration: write 30s, 5m or 1h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2] or "s"]


_WITH_SCHEMA: Final = frozenset(each.name for each in STREAMS.values() if each.kind is not StreamKind.STATE)


def _joined(home: Home, lab: Lab, broker: str, role: str) -> Wired:
    """The broker as a role sees it. Kafka's topics are made where missing; RabbitMQ lets nobody but `up` do that."""
    if broker == KAFKA:
        create_topics(lab)
    return transport_of(home, lab, broker, role)


@dataclass(frozen=True, slots=True)
class _Producer:
    """Under which name something is produced, whose progress that is, and as which role the broker knows it."""

    name: str
    reported_as: str
    user: str
    broker: str


def _produce(generator: Generator, producer: _Producer, home: Home, lab: Lab, limits: Limits) -> Sent:
    stop = stop_on_signals()
    transport = _joined(home, lab, producer.broker, producer.user)
    parameters = getattr(generator, "parameters", {})
    ledgers = home.ledgers(producer.broker)
    with Ledger.open(ledgers, producer.name, generator.stream, seed=lab.seed, parameters=parameters) as ledger:
        publisher = transport.publisher(producer.name)
        try:
            return produce(
                generator,
                publisher,
                _codec(lab, generator.stream),
                ledger,
                stop=stop,
                limits=limits,
                progress=_progress(home, service_name(producer.broker, producer.reported_as), 0),
            )
        finally:
            publisher.close()


def _generator(chosen: Role, lab: Lab, *, is_paced: bool) -> Generator:
    name = chosen.writes[0]
    if chosen.made_by:
        own: Generator = made(chosen.made_by, lab, is_paced=is_paced)
        return own
    if name == "positions":
        return Positions(lab.seed, lab.vehicles, lab.rate_hz, is_paced=is_paced)
    if name == "diagnostics":
        return Diagnostics(lab.seed, lab.vehicles, is_paced=is_paced)
    recorded = recorded_reference_data(read(recording_of(lab)).frame)
    return Vehicles(pl.concat([reference_data(lab.seed, lab.vehicles), recorded]))


def _vehicles(transport: Transport, lab: Lab, stop: threading.Event) -> tuple[pl.DataFrame, int]:
    """The vehicles table, as soon as there is one."""
    while not stop.is_set():
        table, version = reference_table(transport.read_all("vehicles"), _codec(lab, "vehicles"))
        if len(table):
            return table, version
        _log.info("no vehicles yet: waiting for the vehicles-generator")
        stop.wait(_LOOK_AGAIN_S)
    return pl.DataFrame(), 0


def _codec(lab: Lab, name: str) -> Codec:
    return codec(lab.codec, stream(name).schema)


def _progress(home: Home, name: str, instance: int) -> Progress:
    suffix = f"-{instance}" if instance else ""
    path = home.run / f"{name}{suffix}.json"
    turns = Turns(path.with_suffix(SUFFIX)) if os.environ.get("STREAMGAUGE_TURNS") else None  # when it is profiled
    progress = Progress(name, path, turns=turns)
    if port := os.environ.get("STREAMGAUGE_METRICS_PORT"):  # in containers; here `status` reads the same numbers
        from streaming import metrics  # noqa: PLC0415 - only when somebody scrapes

        metrics.serve(progress, int(port))
    return progress
