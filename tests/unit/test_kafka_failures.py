"""A question that failed by an outage is asked again; one that was understood and refused is not."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError, KafkaException

from streaming.errors import BrokerUnavailable, StreamgaugeError
from streaming.transports.kafka.failures import patiently

# Seen in the fault tests: the answers of brokers and client while a broker is down or comes back.
OUTAGES = [
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._DESTROY_BROKER,
    KafkaError._NOENT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._WAIT_COORD,
    KafkaError.NOT_COORDINATOR,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.OFFSET_NOT_AVAILABLE,
]


class Question:
    """Fails with an error of this code `failures` times, then answers 42."""

    def __init__(self, code: int, failures: int = 1) -> None:
        self.code = code
        self.failures = failures

    def __call__(self) -> int:
        self.failures -= 1
        if self.failures >= 0:
            raise KafkaException(KafkaError(self.code))
        return 42


@pytest.mark.parametrize("code", OUTAGES)
def test_a_question_is_asked_again_in_an_outage(code: int) -> None:
    assert patiently("nowhere", 60, Question(code)) == 42


def test_an_outage_that_outlasts_the_patience_is_reported_as_one() -> None:
    with pytest.raises(BrokerUnavailable, match="nowhere"):
        patiently("nowhere", 0, Question(KafkaError._DESTROY_BROKER, failures=1_000))


def test_a_refusal_is_not_asked_again() -> None:
    with pytest.raises(StreamgaugeError, match="TOPIC_AUTHORIZATION_FAILED") as refusal:
        patiently("nowhere", 60, Question(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    assert not isinstance(refusal.value, BrokerUnavailable)
