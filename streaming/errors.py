"""Everything that can go wrong, as one tree; an error says what happened and what to do now.

StreamgaugeError
├── UsageError             a wrong option or an unreadable input                              exit 2
├── SetupError             the machine lacks something: a port, disk, a package; has a remedy exit 3
├── BrokerUnavailable      no broker answers                                                  exit 4
├── DataError              going on would lose or double data: a person decides               exit 65
│   ├── RetentionGap       the broker deleted records before they were read
│   ├── TopicRecreated     the topic of this name is another one than the files came from
│   └── ChainBroken        a committed slot is missing, moved or unreadable
├── RestartRequired        this process cannot go on, a fresh one can (the supervisor starts it)  exit 75
│   ├── Fenced             another instance has taken this one's place
│   └── OutcomeUnknown     a send or a transaction may or may not have happened
└── SlotTaken              another owner committed this slot first: drop, look again, go on (never leaves the sinks)

Vendor errors are translated at the transport's boundary; nothing above it catches a vendor's class.
"""

from __future__ import annotations

from typing import ClassVar


class StreamgaugeError(Exception):
    """Root of the tree. `exit_code` is what the process ends with when nobody catches it."""

    exit_code: ClassVar[int] = 1


class UsageError(StreamgaugeError):
    """The caller asked for something that cannot be: correct the option or the input and call again."""

    exit_code = 2


class SetupError(StreamgaugeError):
    """The machine lacks something; nothing was started. `remedy` is the line to type or to change."""

    exit_code = 3

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}\n  what to do: {remedy}")
        self.problem = problem
        self.remedy = remedy


class BrokerUnavailable(StreamgaugeError):
    """No broker answered in time. Nothing happened; start the broker or correct the address, then retry."""

    exit_code = 4


class DataError(StreamgaugeError):
    """Going on would lose or double data. The process stops and stays stopped until a person decides."""

    exit_code = 65


class RetentionGap(DataError):
    """The broker has deleted records that were never committed: the next position lies before its oldest record."""

    def __init__(self, stream: str, partition: int, next_offset: int, low: int) -> None:
        super().__init__(
            f"{stream}[{partition}]: the files end before offset {next_offset}, the broker's oldest record is {low}: "
            f"{low - next_offset} offsets were deleted unread. Raise the retention, or accept the gap by moving the "
            f"table's folder away and starting a new one."
        )


class TopicRecreated(DataError):
    """The topic was deleted and made anew, so its offsets mean other records than the files'."""


class ChainBroken(DataError):
    """A committed slot is missing, moved or unreadable, so the resume position cannot be proven."""


class RestartRequired(StreamgaugeError):
    """This process cannot continue, a fresh one can: exit and let the supervisor start it again."""

    exit_code = 75


class Fenced(RestartRequired):
    """Another instance with this identity is alive; what this one had in flight did not happen."""


class OutcomeUnknown(RestartRequired):
    """The broker may or may not have done it. Never retry on the same producer (KIP-890, librdkafka #5423)."""


class SlotTaken(StreamgaugeError):
    """Another owner has committed this slot: drop what is buffered, read the chain again, go on from its end."""
