"""What librdkafka's errors mean to us: the one place where the vendor's codes become the project's errors."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Final, TypeVar

from confluent_kafka import KafkaError, KafkaException

from streaming.errors import BrokerUnavailable, Fenced, OutcomeUnknown, StreamgaugeError

T = TypeVar("T")
_FENCED: Final = frozenset(
    {
        KafkaError._FENCED,
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.TRANSACTION_COORDINATOR_FENCED,
    }
)
_ABSENT: Final = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._RESOLVE,
        KafkaError.REQUEST_TIMED_OUT,
    }
)
_CHANGING: Final = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
        KafkaError.UNKNOWN_TOPIC_OR_PART,  # whether the topic exists at all is asked elsewhere
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._WAIT_COORD,
        KafkaError._NOENT,  # list_offsets, delete_records: the client knows of no leader (`patiently`: refresh)
        KafkaError._DESTROY_BROKER,  # asked just as the client let go of a broker that left the cluster's metadata
    }
)
_RETRY_S: Final = 0.2


def error_of(exception: KafkaException) -> KafkaError:
    """The vendor's error inside its exception."""
    error: KafkaError = exception.args[0]
    return error


def is_fencing(error: KafkaError) -> bool:
    """Whether another instance has taken this one's place."""
    # A consumer's fatal error hides its cause in its text.
    return error.code() in _FENCED or (is_fatal(error) and "fenced" in error.str())


def is_fatal(error: KafkaError) -> bool:
    """Whether the client can't go on."""
    return error.fatal() or error.code() == KafkaError._FATAL


def is_absence(error: KafkaError) -> bool:
    """Whether nobody answered."""
    return error.code() in _ABSENT


def is_passing(error: KafkaError) -> bool:
    """Whether leadership is on its way from one broker to another, or nobody answered: the same question may help."""
    return error.retriable() or error.code() in _ABSENT | _CHANGING


def patiently(address: str, patience_s: float, ask: Callable[[], T], refresh: Callable[[], object] = lambda: None) -> T:
    """The answer to what may be asked twice, asked again while trouble looks passing, for `patience_s`.

    `refresh` comes before each further time. What asks leaders needs one that lists the topics: a client that has once
    heard that a partition has no leader believes it for good in librdkafka's `list_offsets` and `delete_records`.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return ask()
        except BrokerUnavailable:
            if time.monotonic() > deadline:
                raise
        except KafkaException as exception:
            if time.monotonic() > deadline or not is_passing(error_of(exception)):
                raise asking(address, exception) from exception
        time.sleep(_RETRY_S)
        with contextlib.suppress(BrokerUnavailable, KafkaException):
            refresh()


def unavailable(address: str, error: KafkaError) -> BrokerUnavailable:
    """Nobody answers at this address."""
    return BrokerUnavailable(f"no usable answer from Kafka at {address}: {error.str()}")


def asking(address: str, exception: KafkaException) -> StreamgaugeError:
    """A question that changes nothing has failed."""
    error = error_of(exception)
    if is_passing(error):
        return unavailable(address, error)
    return StreamgaugeError(f"{address} answers: {error.name()}: {error.str()}")


def writing(who: str, error: KafkaError) -> Fenced | OutcomeUnknown:
    """A send or a transaction has failed for good."""
    if is_fencing(error):
        return Fenced(f"{who}: another instance has taken over: {error.str()}")
    return OutcomeUnknown(f"{who}: {error.name()}: {error.str()}")
