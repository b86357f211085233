"""What librdkafka's errors mean to us: the one place where the vendor's codes become the project's errors."""

from __future__ import annotations

from typing import Final

from confluent_kafka import KafkaError, KafkaException

from streaming.errors import BrokerUnavailable, Fenced, OutcomeUnknown, StreamgaugeError

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
        KafkaError._RESOLVE,
        KafkaError.REQUEST_TIMED_OUT,
    }
)


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


def unavailable(address: str, error: KafkaError) -> BrokerUnavailable:
    """Nobody answers at this address."""
    return BrokerUnavailable(f"no Kafka broker answers at {address}: {error.str()}")


def asking(address: str, exception: KafkaException) -> StreamgaugeError:
    """A question that changes nothing has failed."""
    error = error_of(exception)
    if is_absence(error):
        return unavailable(address, error)
    return StreamgaugeError(f"{address} answers: {error.name()}: {error.str()}")


def writing(who: str, error: KafkaError) -> Fenced | OutcomeUnknown:
    """A send or a transaction has failed for good."""
    if is_fencing(error):
        return Fenced(f"{who}: another instance has taken over: {error.str()}")
    return OutcomeUnknown(f"{who}: {error.name()}: {error.str()}")
