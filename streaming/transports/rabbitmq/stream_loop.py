"""rstream's event loop on one thread, and connections on it that are opened again whenever they are lost.

Invariant: rstream's objects are touched on this thread only; nothing outside this folder sees an event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from rstream import exceptions, schema
from rstream.client import Client

from streaming.errors import BrokerUnavailable, SetupError, StreamgaugeError, UsageError
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.link import CONNECT_TIMEOUT_S, GRANT_TIMEOUT_S

T = TypeVar("T")
FRAME_MAX_BYTES: Final = 1024**2
HEARTBEAT_S: Final = 15
_FAREWELL_S: Final = 2.0
_REFUSED: Final = (exceptions.AccessRefused, exceptions.AuthenticationFailure, exceptions.VirtualHostAccessFailure)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 2.0
# The last is rstream's way to say that a leader or a copy is at a node of which it was not told.
_TRANSIENT: Final = (OSError, exceptions.ServerError, exceptions.ClientError, AssertionError, LookupError)

logging.getLogger("rstream").setLevel(logging.CRITICAL)  # it reports every lost connection; the link does that


class EventLoop:
    """An asyncio loop on a daemon thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="rabbitmq-streams", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(CONNECT_TIMEOUT_S)
        self.loop.close()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Let it run beside everything else."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 60.0) -> T:
        """Its result; BrokerUnavailable when it takes longer."""
        try:
            return self.start(work).result(timeout_s)
        except TimeoutError as error:
            raise BrokerUnavailable(f"RabbitMQ has not answered for {timeout_s:.0f} s") from error


async def connect(address: Address, name: str, stream: str | None = None) -> tuple[Client, asyncio.Event]:
    """A connection to the leader of `stream` (or to a node of `address`), and the event of its end.

    Nodes are tried one after the other; any of them knows where the leader is. UsageError when there is no such stream,
    SetupError when refused, BrokerUnavailable when nobody answers, or the leader does not.
    """
    *others, last = address.nodes
    for node in others:
        with contextlib.suppress(BrokerUnavailable):
            return await _connect_by(node, name, stream)
    return await _connect_by(last, name, stream)


async def _connect_by(node: Address, name: str, stream: str | None) -> tuple[Client, asyncio.Event]:
    where = f"{node}, port {node.stream_port}"
    try:
        client, ended = await _connect(node, name, node.host, int(node.stream_port or 0))
        if stream is None:
            return client, ended
        try:
            leader, _ = await client.query_leader_and_replicas(stream)
        except BaseException:
            await close(client)
            raise
        if not _is_at(client, leader):
            await close(client)
            where = f"{leader.host}:{leader.port}, where {node} says that the leader of {stream} is"
            client, ended = await _connect(node, name, leader.host, leader.port)
    except exceptions.StreamDoesNotExist as error:
        raise UsageError(f"RabbitMQ at {node}: there is no stream {stream}; make the streams first") from error
    except _TRANSIENT as error:
        raise _translated(error, where) from error
    client.add_handler(schema.MetadataUpdate, lambda _: ended.set(), name="ended")
    return client, ended


def _is_at(client: Client, node: schema.Broker) -> bool:
    """Whether it is connected to this node, however it got there: a node says under which address it is known."""
    known = client.server_properties or {}
    return (known.get("advertised_host"), str(known.get("advertised_port"))) == (node.host, str(node.port))


async def close(client: Client) -> None:
    """Close it, whatever state it is in."""
    connection = client._conn
    with contextlib.suppress(Exception):
        await asyncio.wait_for(client.close(), _FAREWELL_S)
    with contextlib.suppress(Exception):  # rstream 1.1 leaves the socket of a lost connection open
        if connection is not None:
            await connection.close()


def translated(error: BaseException, address: Address) -> StreamgaugeError:
    """Rstream's errors as the project's."""
    return _translated(error, f"{address}, port {address.stream_port}")


def _translated(error: BaseException, where: str) -> StreamgaugeError:
    if isinstance(error, _REFUSED):
        return SetupError(f"RabbitMQ at {where} refuses: {error!r}", "check user, password and permissions")
    return BrokerUnavailable(f"no RabbitMQ answers at {where}: {error!r}")


class StreamLink:
    """Calls `on_open(client)` for each connection to a stream's leader and `on_lost()` for each that ends."""

    def __init__(
        self,
        loop: EventLoop,
        address: Address,
        name: str,
        stream: str,
        *,
        on_open: Callable[[Client], Awaitable[None]],
        on_lost: Callable[[], None],
    ) -> None:
        self.failure: StreamgaugeError | None = None  # why there will be no connection again
        self._reason: StreamgaugeError | None = None  # why the last try came to nothing
        self._loop, self._address, self._name, self._stream = loop, address, name, stream
        self._on_open, self._on_lost = on_open, on_lost
        self._opened = threading.Event()
        self._closing = False
        self._ended: asyncio.Event | None = None
        self._serving = loop.start(self._serve())

    def wait_open(self, timeout_s: float = CONNECT_TIMEOUT_S, granted_s: float = GRANT_TIMEOUT_S) -> None:
        """Return when connected for the first time. BrokerUnavailable on time-out, SetupError when refused.

        `timeout_s` is for each node. A node that listens is there, and may only be slow: it gets `granted_s` more.
        """
        if not self._opened.wait(timeout_s * len(self._address.nodes)) and not _is_absence(self._reason):
            self._opened.wait(granted_s)
        if self.failure:
            raise self.failure
        if not self._opened.is_set():
            where = f"{self._address}, port {self._address.stream_port}"
            raise self._reason or BrokerUnavailable(f"no RabbitMQ answers at {where}")

    def call(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run what `function` returns on the loop, soon; errors end the connection."""
        self._loop.start(self._guarded(function))

    def drop(self) -> None:
        """Let go of the connection and open another."""
        self._loop.loop.call_soon_threadsafe(self._end)

    def close(self) -> None:
        """Close the connection for good."""
        self._closing = True
        self.drop()
        with contextlib.suppress(Exception):
            self._serving.result(CONNECT_TIMEOUT_S)

    async def _guarded(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await function()
        except _TRANSIENT:
            self._end()

    def _end(self) -> None:
        if self._ended is not None:
            self._ended.set()

    async def _serve(self) -> None:
        wait_s = _FIRST_WAIT_S
        try:
            while not self._closing and not self.failure:
                wait_s = _FIRST_WAIT_S if await self._serve_once() else min(2 * wait_s, _LONGEST_WAIT_S)
                if not self._closing:
                    await asyncio.sleep(wait_s)
        except Exception as error:
            self.failure = translated(error, self._address)  # a link must not end in silence
            raise
        finally:
            self._opened.set()

    async def _serve_once(self) -> bool:
        """One connection's life; whether it had one."""
        try:
            client, self._ended = await connect(self._address, self._name, self._stream)
        except StreamgaugeError as error:
            self._judge(error)
            return False
        try:
            await self._on_open(client)
            self._opened.set()
            if not self._closing:
                await self._ended.wait()
        except StreamgaugeError as error:
            self.failure = error
        except _TRANSIENT as error:
            self._judge(translated(error, self._address))
        finally:
            self._ended = None
            self._on_lost()
            await close(client)
        return True

    def _judge(self, error: StreamgaugeError) -> None:
        """On a first connection a missing stream or a refusal is final; later it is a node on its way."""
        self._reason = error
        if not self._opened.is_set() and not isinstance(error, BrokerUnavailable):
            self.failure = error


def _is_absence(reason: StreamgaugeError | None) -> bool:
    """Whether nobody listens there; a try that takes its time, or ran out of it, has met somebody."""
    cause = reason and reason.__cause__
    return isinstance(cause, OSError) and not isinstance(cause, TimeoutError)


async def _connect(address: Address, name: str, host: str, port: int) -> tuple[Client, asyncio.Event]:
    ended = asyncio.Event()
    client = Client(
        host,
        port,
        frame_max=FRAME_MAX_BYTES,
        heartbeat=HEARTBEAT_S,
        connection_name=name,
        connection_closed_handler=lambda _: ended.set(),
    )
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):  # rstream waits for ever, and a node may hang
            await client.start()
            await client.authenticate(address.vhost, address.user, address.password)
    except BaseException:
        await close(client)
        raise
    client.add_stream(name)  # without one, rstream does not tell of a lost connection
    return client, ended
