"""Every claim's judge, on synthetic measurements: it can hold, be refuted, and stay unknown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl
import pytest

from experiments import measurements
from experiments.deep_dives import DEEP_DIVES
from experiments.findings import Claim, Verdict, decide
from experiments.measurements import Measured

Row = Mapping[str, Any]
# claim → scene, then for each kind of trial its factors, a metric that speaks for the claim, one that speaks against it
Case = tuple[str, list[tuple[Row, Row, Row]]]

CLEAN = {"lost": 0, "duplicated": 0, "reordered": 0}


def one(scene: str, levels: Row, good: Row, bad: Row) -> Case:
    return scene, [(levels, good, bad)]


def setting(name: str, metric: str, good: float, bad: float) -> Case:
    """A setting against the usual one, which measures 100."""
    usual = {f"usual_{metric}": 100.0}
    return one("settings", {"setting": name}, {metric: good, **usual}, {metric: bad, **usual})


CASES: dict[str, dict[str, Case]] = {
    "keys": {
        "entity-key-keeps-order": one("distribution", {"key": "vehicle"}, {"reordered": 0}, {"reordered": 3}),
        "order-without-key": one("distribution", {"key": "none", "partitions": 6}, {"reordered": 0}, {"reordered": 3}),
        "entity-key-spreads-evenly": one(
            "distribution", {"key": "vehicle", "partitions": 6}, {"fullest": 1.05}, {"fullest": 1.3}
        ),
        "skew-makes-one-hot": (
            "hot_partition",
            [
                ({"key": "skewed vehicle"}, {"hottest_lag": 900}, {"hottest_lag": 90}),
                ({"key": "vehicle"}, {"hottest_lag": 80}, {"hottest_lag": 80}),
            ],
        ),
        "hot-partition-spares-others": one(
            "hot_partition",
            {"key": "skewed vehicle"},
            {"hottest_lag": 900, "other_lag": 9},
            {"hottest_lag": 900, "other_lag": 600},
        ),
        "hot-partition-hurts-only-itself": one(
            "hot_partition",
            {"key": "skewed vehicle"},
            {"hottest_lag": 900, "neighbour_lag": 9},
            {"hottest_lag": 900, "neighbour_lag": 600},
        ),
        "sticky-makes-larger-batches": (
            "sticky",
            [
                ({"sticky_ms": 10}, {"batch_size": 50}, {"batch_size": 5}),
                ({"sticky_ms": 0}, {"batch_size": 5}, {"batch_size": 5}),
            ],
        ),
        "same-key-same-partition-from-any-client": one(
            "disagreement", {}, {"python_agrees": 1}, {"python_agrees": 0.2}
        ),
        "murmur2-agrees-with-java": one(
            "disagreement", {}, {"python_murmur2_agrees": 1}, {"python_murmur2_agrees": 0.99}
        ),
        "one-more-partition-moves-few-keys": one(
            "growth", {"partitions": 6, "grown_to": 7}, {"moved": 0.14}, {"moved": 0.86}
        ),
        "doubling-moves-half": one("growth", {"partitions": 6, "grown_to": 12}, {"moved": 0.5}, {"moved": 0.8}),
    },
    "consumer_groups": {
        "auto-commit-is-exactly-once": one("crash", {"policy": "auto-commit"}, {"is_exact": 1}, {"is_exact": 0}),
        "commit-before-work-never-doubles": one(
            "crash", {"policy": "commit before work"}, {"duplicated": 0}, {"duplicated": 1}
        ),
        "commit-after-work-never-loses": one("crash", {"policy": "commit after work"}, {"lost": 0}, {"lost": 1}),
        "surplus-members-are-idle": one(
            "assignment", {"members": 4, "partitions": 3}, {"idle_members": 1}, {"idle_members": 2}
        ),
        "a-group-shares-evenly": one(
            "hundred", {"groups": "one group"}, {"fewest": 30, "most": 37}, {"fewest": 26, "most": 38}
        ),
        "each-group-gets-a-copy": one(
            "hundred", {"groups": "a group each", "records": 100}, {"fewest": 100}, {"fewest": 99}
        ),
        "a-shared-group-id-shows": one(
            "silent_mistakes",
            {"mistake": "one group id for all"},
            {"share_read": 0.3, "complaints": 1},
            {"share_read": 0.3, "complaints": 0},
        ),
        "cooperative-spares-what-stays": (
            "rebalance",
            [
                ({"protocol": "classic, cooperative"}, {"stall_kept": 0.1}, {"stall_kept": 2}),
                ({"protocol": "classic, eager"}, {"stall_kept": 1}, {"stall_kept": 1}),
            ],
        ),
        "kip-848-is-faster": (
            "rebalance",
            [
                ({"protocol": "consumer (KIP-848)"}, {"rebalance_time": 0.1}, {"rebalance_time": 2}),
                ({"protocol": "classic, cooperative"}, {"rebalance_time": 1}, {"rebalance_time": 1}),
            ],
        ),
        "failover-takes-a-session": one("failover", {"session_ms": 1000}, {"in_sessions": 1.1}, {"in_sessions": 5}),
        "static-restart-is-quiet": one("restart", {"membership": "static"}, {"disturbances": 0}, {"disturbances": 2}),
        "share-group-uses-all-members": one(
            "sharing", {"kind": "share group", "members": 4}, {"busy_members": 4}, {"busy_members": 2}
        ),
        "share-group-keeps-order": one("sharing", {"kind": "share group"}, {"reordered": 0}, {"reordered": 9}),
        "share-group-redelivers": one("redelivery", {}, {"lost": 0}, {"lost": 1}),
    },
    "retries": {
        "retries-are-harmless": one(
            "faults",
            {"fault": "acknowledgements late", "producer": "5 in flight"},
            {"duplicated": 0},
            {"duplicated": 7},
        ),
        "idempotence-is-clean": one("faults", {"producer": "idempotent"}, CLEAN, CLEAN | {"duplicated": 1}),
        "one-in-flight-suffices": one(
            "faults",
            {"fault": "acknowledgements late", "producer": "1 in flight"},
            {"duplicated": 0},
            {"duplicated": 7},
        ),
        "confirmed-is-kept": one("faults", {"producer": "no retries"}, {"lost": 0}, {"lost": 1}),
        "delivery-timeout-is-kept": one(
            "give_up", {"timeout_ms": 1000}, {"gave_up_after": 1.1}, {"gave_up_after": 2.1}
        ),
        "failed-means-not-written": one(
            "give_up", {"timeout_ms": 1000}, {"arrived_all_the_same": 0}, {"arrived_all_the_same": 99}
        ),
        "in-place-retries-block-the-rest": (
            "poison",
            [
                ({"strategy": "in place"}, {"delay_p95": 900}, {"delay_p95": 20}),
                ({"strategy": "retry topic"}, {"delay_p95": 20}, {"delay_p95": 20}),
            ],
        ),
        "retry-topic-keeps-order": one("poison", {"strategy": "retry topic"}, {"reordered": 0}, {"reordered": 4}),
        "dead-letters-account-for-all": one("poison", {"strategy": "in place"}, CLEAN, CLEAN | {"lost": 1}),
    },
    "retention": {
        "records-go-after-retention-ms": one("by_time", {}, {"overstay": 1.1}, {"overstay": 3}),
        "overstay-is-bounded": one(
            "by_time", {"retention_ms": 1000, "segment_ms": 250}, {"oldest_ever": 1.5}, {"oldest_ever": 9}
        ),
        "retention-bytes-bounds-disk": one("by_size", {}, {"peak_disk": 1.0}, {"peak_disk": 2.5}),
        "compaction-leaves-one-value": one("compaction", {"policy": "compact"}, {"stale": 0}, {"stale": 3}),
        "compaction-keeps-the-latest": one(
            "compaction", {"policy": "compact"}, {"latest_kept": 1}, {"latest_kept": 0.99}
        ),
        "compact-and-delete-keeps-the-latest": one(
            "compaction", {"policy": "compact,delete"}, {"latest_kept": 1}, {"latest_kept": 0}
        ),
        "offsets-are-never-renumbered": one(
            "compaction", {"policy": "compact"}, {"removed": 0.5, "has_gaps": 1}, {"removed": 0.5, "has_gaps": 0}
        ),
        "a-late-reader-is-told": one("late_reader", {"reset": "earliest"}, {"was_told": 1}, {"was_told": 0}),
        "reset-error-names-the-gap": one("late_reader", {"reset": "error"}, {"was_told": 1}, {"was_told": 0}),
        "latest-misses-only-the-deleted": one(
            "late_reader",
            {"reset": "latest"},
            {"missed": 100, "deleted_unread": 100},
            {"missed": 300, "deleted_unread": 100},
        ),
        "connected-readers-lose-nothing": one("overtaken", {}, {"skipped": 0}, {"skipped": 5}),
    },
    "limits": {
        "full-speed-can-be-kept-up": one(
            "sustainable",
            {"what": "bare producer"},
            {"full_speed": 100, "sustainable": 97},
            {"full_speed": 100, "sustainable": 60},
        ),
        "the-application-keeps-half": (
            "sustainable",
            [
                ({"what": "application's publisher"}, {"sustainable": 80}, {"sustainable": 20}),
                ({"what": "bare producer"}, {"sustainable": 100}, {"sustainable": 100}),
            ],
        ),
        "consumers-are-faster": one(
            "backlog",
            {"what": "bare consumer"},
            {"drain_rate": 500, "built_up_at": 100},
            {"drain_rate": 90, "built_up_at": 100},
        ),
        "the-sink-is-faster-too": one(
            "backlog",
            {"what": "application's sink"},
            {"drain_rate": 300, "built_up_at": 100},
            {"drain_rate": 90, "built_up_at": 100},
        ),
        "a-backlog-drains-beside-load": (
            "backlog",
            [
                ({"what": "bare consumer, load going on"}, {"drain_time": 0.3}, {"drain_time": 0.9}),
                ({"what": "bare consumer"}, {"drain_time": 0.25}, {"drain_time": 0.25}),
            ],
        ),
        "latency-is-flat-to-half": one(
            "sustainable",
            {"what": "bare producer and consumer"},
            {"p95_at_10": 10, "p95_at_50": 11},
            {"p95_at_10": 10, "p95_at_50": 50},
        ),
        "latency-rises-near-the-limit": one(
            "sustainable",
            {"what": "bare producer and consumer"},
            {"p95_at_10": 10, "p95_at_90": 90},
            {"p95_at_10": 10, "p95_at_90": 11},
        ),
        "linger-brings-rate": setting("linger 0", "rate", 70, 99),
        "large-batches-bring-rate": setting("batches of 16 KiB", "rate", 70, 99),
        "compression-pays": setting("no compression", "rate", 80, 120),
        "acks-1-is-faster": setting("acks 1", "rate", 130, 100),
        "producers-add-up": setting("two producers", "rate", 180, 110),
        "large-records-bring-bytes": setting("10 KB a record", "bytes", 400, 150),
        "limits-are-of-the-value": one(
            "sizes",
            {"limit": "topic's limit", "bytes": 20_000},
            {"largest": 20_000},
            {"largest": 19_930},
        ),
        "only-large-records-are-refused": one(
            "sizes",
            {"limit": "topic's limit, small records"},
            {"refused_by_client": 0, "refused_by_broker": 0},
            {"refused_by_client": 0, "refused_by_broker": 200},
        ),
        "the-limit-counts-compressed": one(
            "sizes", {"limit": "topic's limit, compressed"}, {"accepted": 1}, {"accepted": 0}
        ),
        "each-side-enforces-its-limit": (
            "sizes",
            [
                (
                    {"limit": "client's limit"},
                    {"refused_by_client": 4, "refused_by_broker": 0},
                    {"refused_by_client": 4, "refused_by_broker": 0},
                ),
                (
                    {"limit": "topic's limit"},
                    {"refused_by_client": 0, "refused_by_broker": 4},
                    {"refused_by_client": 1, "refused_by_broker": 4},
                ),
            ],
        ),
        "small-fetches-stick": one("sizes", {"limit": "consumer's limit"}, {"delivered": 0}, {"delivered": 1}),
    },
    "offsets": {
        "timestamp-misses-nothing": one("resets", {"way": "timestamp"}, {"missed": 0}, {"missed": 5}),
        "timestamp-is-exact": one("resets", {"way": "timestamp", "disorder_ms": 500}, {"extra": 0}, {"extra": 5}),
        "auto-offset-reset-rewinds": one(
            "resets", {"way": "auto.offset.reset=earliest"}, {"missed": 0}, {"missed": 600}
        ),
        "running-groups-refuse": one("resets", {}, {"refused_while_running": 1}, {"refused_while_running": 0}),
        "replay-equals-original": one(
            "replay", {"into": "a fresh sink, killed"}, {"differing_rows": 0}, {"differing_rows": 1}
        ),
        "rewinding-doubles": one("replay", {"into": "the same sink"}, {"rows_more": 100}, {"rows_more": 0}),
        "commit-before-never-doubles": one(
            "crashes", {"guarantee": "commit before work"}, {"duplicated": 0}, {"duplicated": 1}
        ),
        "commit-before-loses-an-interval": one(
            "crashes",
            {"guarantee": "commit before work", "batch": 50},
            {"lost": 60, "lost_a_kill": 30},
            {"lost": 160, "lost_a_kill": 80},
        ),
        "commit-after-never-loses": one("crashes", {"guarantee": "commit after work"}, {"lost": 0}, {"lost": 1}),
        "transactions-are-exactly-once": one("crashes", {"guarantee": "transaction"}, {"is_exact": 1}, {"is_exact": 0}),
        "duplicates-follow-the-interval": (
            "crashes",
            [
                ({"guarantee": "commit after work", "batch": 100}, {"duplicated": 90}, {"duplicated": 9}),
                ({"guarantee": "commit after work", "batch": 10}, {"duplicated": 9}, {"duplicated": 9}),
            ],
        ),
        "earliest-skips-nothing": one("lost_position", {"reset": "earliest"}, {"unread": 0}, {"unread": 9}),
        "latest-goes-on": one("lost_position", {"reset": "latest"}, {"unread": 0}, {"unread": 9}),
        "error-stops": one("lost_position", {"reset": "error"}, {"was_told": 1}, {"was_told": 0}),
        "transactions-cost-three-percent": (
            "cost",
            [
                ({"commit_every_ms": 100}, {"rate": 99}, {"rate": 80}),
                ({"commit_every_ms": 0}, {"rate": 100}, {"rate": 100}),
            ],
        ),
        "short-transactions-cost-more": (
            "cost",
            [
                ({"commit_every_ms": 10}, {"rate": 30}, {"rate": 90}),
                ({"commit_every_ms": 100}, {"rate": 100}, {"rate": 100}),
            ],
        ),
        "orphans-end-by-the-time-out": one(
            "orphan",
            {"ends": "the time-out", "timeout_ms": 1000},
            {"committed_shared": 1.4},
            {"committed_shared": 9},
        ),
        "orphans-block-their-partitions-only": one(
            "orphan",
            {"ends": "the time-out"},
            {"committed_shared": 1.4, "committed_other": 0.01},
            {"committed_shared": 1.4, "committed_other": 1.4},
        ),
        "uncommitted-readers-do-not-wait": one(
            "orphan",
            {"ends": "the time-out"},
            {"committed_shared": 1.4, "uncommitted_shared": 0.01},
            {"committed_shared": 1.4, "uncommitted_shared": 1.4},
        ),
        "a-successor-ends-it": one(
            "orphan",
            {"ends": "a successor", "successor_s": 0.3},
            {"committed_shared": 0.4},
            {"committed_shared": 1.5},
        ),
    },
    "replication": {
        "copies-cost-less-than-half": (
            "cost",
            [
                ({"acks": "all", "replication": 3, "partitions": 1}, {"rate": 80}, {"rate": 20}),
                ({"acks": "all", "replication": 1, "partitions": 1}, {"rate": 100}, {"rate": 100}),
            ],
        ),
        "acks-1-answers-sooner": (
            "cost",
            [
                ({"acks": "all", "replication": 3}, {"wait_p50": 3}, {"wait_p50": 1}),
                ({"acks": "1", "replication": 3}, {"wait_p50": 1}, {"wait_p50": 1}),
            ],
        ),
        "partitions-bring-rate": (
            "cost",
            [
                ({"acks": "all", "replication": 3, "partitions": 12}, {"rate": 200}, {"rate": 90}),
                ({"acks": "all", "replication": 3, "partitions": 1}, {"rate": 100}, {"rate": 100}),
            ],
        ),
        "acks-1-survives": one("lagging", {"acks": "1"}, {"lost": 0}, {"lost": 9}),
        "acks-all-survives": one("lagging", {"acks": "all"}, {"lost": 0}, {"lost": 9}),
        "three-copies-survive-one": one(
            "survival", {"replication": 3, "min_insync": 2, "deaths": 1}, {"is_written": 1}, {"is_written": 0}
        ),
        "n-copies-survive-all-but-one": one(
            "survival", {"replication": 3, "min_insync": 1, "deaths": 2}, {"is_written": 1}, {"is_written": 0}
        ),
        "two-copies-both-required": one(
            "survival", {"replication": 2, "min_insync": 2, "deaths": 1}, {"is_written": 1}, {"is_written": 0}
        ),
        "kills-lose-nothing-confirmed": one("survival", {"replication": 3}, {"lost": 0}, {"lost": 1}),
        "unclean-election-keeps-confirmed": one("unclean", {"unclean_election": "true"}, {"lost": 0}, {"lost": 9}),
        "clean-election-waits": one(
            "unclean", {"unclean_election": "false"}, {"lost": 0, "is_available": 0}, {"lost": 0, "is_available": 1}
        ),
        "two-maps-a-copy": one("footprint", {}, {"memory_mapped": 2.0}, {"memory_mapped": 0.5}),
    },
    "distribution": {
        "one-topic-is-spread-evenly": one("placement", {"shape": "one topic"}, {"leader_gap": 1}, {"leader_gap": 2}),
        "many-topics-are-spread-evenly": one(
            "placement", {"shape": "many topics"}, {"leader_gap": 0}, {"leader_gap": 5}
        ),
        "a-broker-takes-its-leaders-back": one(
            "outage", {}, {"led_before": 2, "led_after_return": 2}, {"led_before": 2, "led_after_return": 0}
        ),
        "election-restores-balance": one(
            "outage", {}, {"led_before": 2, "led_after_election": 2}, {"led_before": 2, "led_after_election": 1}
        ),
        "shutdown-in-order-is-gentle": (
            "outage",
            [
                ({"outage": "one stopped"}, {"longest_wait": 0.2}, {"longest_wait": 3}),
                ({"outage": "one killed"}, {"longest_wait": 3}, {"longest_wait": 3}),
            ],
        ),
        "outages-lose-nothing": one("outage", {}, {"lost": 0}, {"lost": 1}),
        "a-move-is-unnoticed": one(
            "reassignment", {}, {"lost": 0, "longest_wait": 0.1}, {"lost": 0, "longest_wait": 2}
        ),
        "racks-separate-copies": one("racks", {"racks": True}, {"in_both_racks": 1}, {"in_both_racks": 0.7}),
        "racks-keep-balance": one("racks", {"racks": True}, {"busiest_broker": 1}, {"busiest_broker": 1.5}),
    },
    "streams": {
        "a-window-is-a-definition": one("catch_up", {"system": "Quix Streams"}, {"is_exact": 1}, {"is_exact": 0}),
        "python-keeps-half-the-rate": (
            "catch_up",
            [
                ({"system": "Quix Streams"}, {"rate": 60}, {"rate": 10}),
                ({"system": "Kafka Streams"}, {"rate": 100}, {"rate": 100}),
            ],
        ),
        "batches-keep-half-the-rate": (
            "catch_up",
            [
                ({"system": "Streamgauge"}, {"rate": 300}, {"rate": 10}),
                ({"system": "Kafka Streams"}, {"rate": 100}, {"rate": 100}),
            ],
        ),
        "lost-state-is-back-soon": one("catch_up", {"system": "Kafka Streams"}, {"recovery": 4}, {"recovery": 14}),
        "the-clock-closes-windows": one(
            "catch_up",
            {"system": "Kafka Streams"},
            {"held_back": 40, "in_silence": 40},
            {"held_back": 40, "in_silence": 0},
        ),
        "late-records-leave-a-trace": one(
            "catch_up", {"system": "Kafka Streams"}, {"late": 12, "late_kept": 12}, {"late": 12, "late_kept": 0}
        ),
        "the-changelog-is-smaller": one(
            "catch_up", {"system": "Kafka Streams"}, {"state_records": 0.1}, {"state_records": 1.4}
        ),
        "at-least-once-is-enough": one(
            "crash",
            {"system": "Kafka Streams, at least once"},
            {"doubled": 0, "differing": 0},
            {"doubled": 0, "differing": 3},
        ),
        "at-least-once-loses-nothing": one(
            "crash", {"system": "Kafka Streams, at least once"}, {"missing": 0}, {"missing": 1}
        ),
        "exactly-once-v2-is-exact": one("crash", {"system": "Kafka Streams"}, {"is_exact": 1}, {"is_exact": 0}),
        "state-beside-offsets-is-exact": one("crash", {"system": "Streamgauge"}, {"is_exact": 1}, {"is_exact": 0}),
    },
}


def measured(case: Case, *, speaks_for: bool, repetitions: int) -> Measured:
    scene, kinds = case
    rows = [
        {
            "scene": scene,
            "trial": repetition * len(kinds) + place,
            "repetition": repetition,
            "factors": json.dumps(levels or {"level": 1}),
            "metric": metric,
            "value": float(value),
        }
        for repetition in range(repetitions)
        for place, (levels, good, bad) in enumerate(kinds)
        for metric, value in (good if speaks_for else bad).items()
    ]
    frame = pl.DataFrame(rows, schema_overrides=measurements.SCHEMA)
    return Measured(frame.with_columns(subject=pl.lit(None, pl.String)))


def claims() -> list[Any]:
    return [
        pytest.param(name, claim, id=f"{name}: {claim.name}")
        for name, dive in DEEP_DIVES.items()
        for claim in dive.claims
    ]


@pytest.mark.parametrize(("dive", "claim"), claims())
def test_a_claim_holds_is_refuted_or_stays_unknown_as_the_numbers_say(dive: str, claim: Claim) -> None:
    case = CASES[dive][claim.name]
    assert decide(claim, measured(case, speaks_for=True, repetitions=6)).verdict is Verdict.HOLDS
    assert decide(claim, measured(case, speaks_for=False, repetitions=6)).verdict is Verdict.REFUTED
    assert decide(claim, measured(case, speaks_for=True, repetitions=4)).verdict is Verdict.UNKNOWN
    assert decide(claim, Measured(measurements.SCHEMA.to_frame())).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("name", DEEP_DIVES)
def test_a_deep_dive_says_all_that_its_page_needs(name: str) -> None:
    dive = DEEP_DIVES[name]
    assert len(dive.claims) >= 3
    assert all(claim.source for claim in dive.claims)
    assert len({claim.name for claim in dive.claims}) == len(dive.claims)
    assert len(dive.use_cases.split()) > 60
    assert dive.question.endswith("?")
    assert dive.figures
    assert dive.demand.startswith("D")
    assert all(scene.columns for scene in dive.scenes)
    assert set(CASES[name]) == {claim.name for claim in dive.claims}
