"""One file a deep dive: the question, how it is tried, what is claimed and how that is judged."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from experiments.deep_dives.consumer_groups import CONSUMER_GROUPS
from experiments.deep_dives.distribution import DISTRIBUTION
from experiments.deep_dives.keys import KEYS
from experiments.deep_dives.limits import LIMITS
from experiments.deep_dives.offsets import OFFSETS
from experiments.deep_dives.replication import REPLICATION
from experiments.deep_dives.retention import RETENTION
from experiments.deep_dives.retries import RETRIES
from experiments.deep_dives.streams import STREAMS_DIVE

_DIVES = (CONSUMER_GROUPS, DISTRIBUTION, KEYS, LIMITS, OFFSETS, REPLICATION, RETENTION, RETRIES, STREAMS_DIVE)
DEEP_DIVES: Final = MappingProxyType({each.name: each for each in _DIVES})
