"""What roles can be set to beyond their presets: how much at once, how compressed, how much unacknowledged.

Invariant: no setting here can lose or double a record; each trades latency, memory, disk and processor time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Final

from streaming.errors import UsageError

COMPRESSIONS: Final = ("none", "gzip", "snappy", "lz4", "zstd")  # of librdkafka
PARQUET_COMPRESSIONS: Final = ("uncompressed", "snappy", "gzip", "lz4", "zstd")
MOST: Final = MappingProxyType({"prefetch": 65_535, "partitions": 100})  # AMQP's own limit; and ours


@dataclass(frozen=True, slots=True)
class Tuning:
    """Settings by name; None leaves a role as it is."""

    compression: str | None = None  # of what generators send to Kafka
    batch_bytes: int | None = None  # of what generators send to Kafka at once, at most
    poll_records: int | None = None  # of a poll from Kafka, at most
    commit_records: int | None = None  # what a transformer gathers for a commit, about
    file_rows: int | None = None  # what a sink gathers for a file, at least
    parquet: str | None = None  # the compression of a sink's Parquet files
    prefetch: int | None = None  # messages of a RabbitMQ queue that may be unacknowledged
    partitions: int | None = None  # of each of Kafka's topics but reference data

    @property
    def given(self) -> Mapping[str, str | int]:
        """What is set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def insist(self) -> None:
        """UsageError for a value that nothing can be set to."""
        names = {"compression": COMPRESSIONS, "parquet": PARQUET_COMPRESSIONS}
        for name, value in self.given.items():
            if name in names:
                if value not in names[name]:
                    raise UsageError(f"{name} {value}: there is {', '.join(names[name])}")
            elif not 1 <= int(value) <= MOST.get(name, int(value)):
                raise UsageError(f"{name} {value}: from 1{f' to {MOST[name]:,}' if name in MOST else ' on'}")
