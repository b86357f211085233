"""Kafka through confluent-kafka: the only room that imports its client."""
