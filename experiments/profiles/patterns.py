"""What a role spends its time on, named by rules over the functions of our own code, and what that says of it.

Invariant: every second of a profile is in exactly one activity; a name comes from a rule here, never from a reader of
the profile. Time in a library is charged to the function of ours that called it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import polars as pl

MOSTLY_WAITING: Final = 0.8
DOMINATES: Final = 0.5
BALANCED_BELOW: Final = 0.35
OTHER: Final = "other"
START: Final = "starting: topics, groups, metadata"


@dataclass(frozen=True, slots=True)
class Activity:
    """A kind of work or of waiting: which functions do it (`file:function`, a regular expression), and what to try."""

    name: str
    where: str
    is_waiting: bool = False
    advice: str = ""


ACTIVITIES: Final = (
    Activity(
        "waiting for records",
        r"^streaming/transports/kafka/source\.py:.*\bpoll$|^streaming/transports/kafka/transactions\.py:.*\bpoll$"
        r"|^streaming/transports/rabbitmq/.*:.*\bpoll$"
        r"|^python:selectors\.py:select$|^pika/adapters/select_connection\.py:poll$",
        is_waiting=True,
        advice="nothing to do is nothing to speed up: give it more, or let one process read more partitions",
    ),
    Activity(
        "waiting for the other thread",
        r"^streaming/landing\.py:.*(_next|_ask|offer|__init__|finish|close)$|^streaming/service\.py:.*_hand_over$",
        is_waiting=True,
        advice="look at the other thread's own activities",
    ),
    Activity(
        "waiting for the schedule",
        r"^streaming/generators/pacing\.py:|^streaming/generators/vehicles\.py:.*chunks$|wait_for_own_mark",
        is_waiting=True,
        advice="the role keeps its pace: it has time to spare",
    ),
    Activity(
        "waiting to be told to stop",
        r"^streaming/stopping\.py:",
        is_waiting=True,
        advice="a thread that does nothing until a signal comes",
    ),
    Activity(
        "waiting for confirmations",
        r"^streaming/transports/.*publisher\.py:.*\b(flush|close)$|^streaming/generators/run\.py:.*_flush$",
        is_waiting=True,
        advice="confirm less often, or keep more in flight: it costs latency, never safety",
    ),
    Activity(
        "committing transactions",
        r"^streaming/transports/kafka/transactions\.py:.*(_run|_new_sender|_begin_anew|_snapshots|commit)$",
        is_waiting=True,
        advice="fewer, larger transactions: each costs the same 100 ms whatever is in it",
    ),
    Activity(
        "serving the connection",
        r"^streaming/transports/rabbitmq/link\.py:_serve$|^rstream/|^pika/|^python:base_events\.py:",
        advice="the client library's own work on frames: fewer, larger records",
    ),
    Activity(
        START,
        r"^streaming/transports/.*(topics|transport|failures)\.py:|^orchestration/roles\.py:"
        r"|^streaming/transports/kafka/source\.py:"
        r"|^streaming/transports/kafka/transactions\.py:.*(__init__|_committed|_snapshot|resume|close|<lambda>)$"
        r"|^streaming/transports/kafka/reading\.py:.*(__init__|polls|_until_end|reader|last_snapshot|all|close)$"
        r"|^streaming/transports/kafka/publisher\.py:.*__init__$"
        r"|^streaming/transports/rabbitmq/(link|declaring|stream_loop|streams|queues)\.py:",
        is_waiting=True,
        advice="paid once a life; a longer run dilutes it",
    ),
    Activity(
        "making batches of messages",
        r"^streaming/transports/kafka/(reading|runs)\.py:"
        r"|^streaming/transports/rabbitmq/.*(wire|stream_frames|source)\.py:"
        r"|^streaming/batch\.py:",
        advice="one Python object a message: only a client that hands over buffers would avoid it",
    ),
    Activity(
        "encoding",
        r"^streaming/codecs/.*:.*\b(encode|_datums|_encoded)",
        advice="another codec, fewer or flatter fields",
    ),
    Activity(
        "decoding",
        r"^streaming/codecs/|^streaming/service\.py:.*_Flow\.decode",
        advice="another codec, fewer or flatter fields, larger polls",
    ),
    Activity(
        "deriving columns",
        r"^sinks/(derive|derivations)\.py:",
        advice="derive once a slot instead of once a batch, or downstream",
    ),
    Activity("writing files", r"^sinks/formats\.py:", advice="another format or compression; larger slots"),
    Activity(
        "making files durable",
        r"^sinks/slots\.py:|^streaming/durability\.py:",
        advice="larger slots: fsync, link and fsync of the folder are paid once a slot and partition",
    ),
    Activity(
        "keeping repeats out",
        r"^streaming/identities\.py:|^streaming/transports/rabbitmq/queue_flow\.py:",
        advice="a queue delivers again what it was not told is done: fewer, larger batches cost fewer joins",
    ),
    Activity(
        "keeping the outbox",
        r"^streaming/transports/rabbitmq/(outbox|stream_flow)\.py:",
        advice="fewer, larger commits: each is a file made durable",
    ),
    Activity("gathering rows for a slot", r"^sinks/", advice="larger batches from the broker"),
    Activity(
        "computing the step",
        r"^streaming/transformers/",
        advice="one plan over all partitions, or rows kept in the types that the next batch needs",
    ),
    Activity(
        "sending",
        r"^streaming/transports/.*publisher\.py:|^streaming/transports/positions\.py:",
        advice="fewer, larger records; batches instead of calls",
    ),
    Activity("keeping the ledger", r"^streaming/generators/ledger\.py:", advice="reserve more sequences at once"),
    Activity("simulating the fleet", r"^streaming/generators/", advice="more vehicles a block: it is vectorised"),
    Activity(
        "comparing what came back",
        r"^experiments/profiles/alone\.py:.*\bturn$",
        advice="the codecs alone are checked as they go: no role pays this",
    ),
    Activity("keeping the loop", r"^streaming/(service|landing|progress|turns)\.py:", advice="larger polls"),
)
_RULES: Final = [(each, re.compile(each.where)) for each in ACTIVITIES]
WAITING: Final = frozenset(each.name for each in ACTIVITIES if each.is_waiting)
SHARES: Final = pl.Schema({"activity": pl.String, "is_waiting": pl.Boolean, "share": pl.Float64, "seconds": pl.Float64})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a profile says: the largest activity that is work, and whether there was much work at all."""

    bottleneck: str
    share_of_work: float
    waiting: float
    is_mostly_waiting: bool
    pattern: str
    says: str


def activity(file: str, function: str) -> str:
    """The activity of a function of ours; `other` when no rule knows it."""
    name = f"{file}:{function}"
    return next((each.name for each, pattern in _RULES if pattern.search(name)), OTHER)


def working(rows: pl.DataFrame) -> pl.DataFrame:
    """Of rows with a `file` and a `function` those that do not wait."""
    names = [activity(file, function) for file, function in rows.select("file", "function").iter_rows()]
    return rows.filter(pl.Series([name not in WAITING for name in names], dtype=pl.Boolean))


def shares(ours: pl.DataFrame) -> pl.DataFrame:
    """Activities with their share of all time and seconds; `ours` has file, function and `seconds`."""
    if ours.is_empty() or not ours["seconds"].sum():
        return pl.DataFrame(schema=SHARES)
    named = [activity(file, function) for file, function in ours.select("file", "function").iter_rows()]
    added = (
        ours.with_columns(activity=pl.Series(named, dtype=pl.String)).group_by("activity").agg(pl.col("seconds").sum())
    )
    return (
        added.with_columns(
            share=pl.col("seconds") / pl.col("seconds").sum(), is_waiting=pl.col("activity").is_in(list(WAITING))
        )
        .select(SHARES.names())
        .sort(["share", "activity"], descending=[True, False])
    )


def verdict(found: pl.DataFrame) -> Verdict:
    """The pattern by its name, from the shares alone."""
    waiting = float(found.filter("is_waiting")["share"].sum())
    work = found.filter(~pl.col("is_waiting"), pl.col("share") > 0)
    if work.is_empty():
        return Verdict("none", 0.0, waiting, is_mostly_waiting=True, pattern="idle", says="It did nothing but wait.")
    name, share = str(work["activity"][0]), float(work["share"][0] / work["share"].sum())
    is_idle = waiting >= MOSTLY_WAITING
    pattern = _pattern(found, share, is_idle=is_idle)
    advice = next((each.advice for each in ACTIVITIES if each.name == name), "")
    warning = f"Mostly waiting ({waiting:.0%}): the shares of work are of little time. " if is_idle else ""
    return Verdict(
        name,
        share,
        waiting,
        is_idle,
        pattern,
        f"{warning}{share:.0%} of its work is {name}{f'; what would help: {advice}' if advice else ''}.",
    )


def _pattern(found: pl.DataFrame, share: float, *, is_idle: bool) -> str:
    if is_idle:
        by = str(found.filter("is_waiting")["activity"][0])
        return f"paced: {by}" if by == "waiting for the schedule" else f"starved: {by}"
    if share >= DOMINATES:
        return "one activity dominates"
    return "evenly spread" if share < BALANCED_BELOW else "one activity leads"
