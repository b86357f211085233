"""Kafka as a transport, by confluent-kafka (librdkafka): the only package of the application that imports it."""

from streaming.transports.kafka.transport import KafkaTransport

__all__ = ["KafkaTransport"]
