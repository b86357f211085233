"""Profiles' tables, names and judgements, on real measurements of small programs."""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest
from rich.console import Console

from experiments import provenance, verdicts
from experiments.profiles import (
    calls,
    history,
    hosted,
    hotspots,
    inputs,
    patterns,
    performance,
    pictures,
    rendering,
    results,
    runs,
    scalene_report,
    timing,
)
from experiments.profiles.runs import Load, Profiler, Run, Status, Workload
from experiments.profiles.scenarios import SCENARIOS
from experiments.profiles.stage import insist
from streaming.codecs.json import JsonCodec
from streaming.errors import DataError, UsageError
from streaming.home import Home
from streaming.lab import BROKERS
from streaming.progress import Progress
from streaming.topology import RoleKind, stream
from streaming.turns import Turns
from streaming.turns import read as read_turns


@pytest.fixture(scope="module")
def profs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two threads under cProfile: the main one decodes real messages, another one only adds numbers up."""
    folder = tmp_path_factory.mktemp("profs")
    values, _ = inputs.encoded("positions", 2_000, 5, 1, "json")
    codec = JsonCodec(stream("positions").schema)

    def act() -> None:
        beside = threading.Thread(target=lambda: sum(range(200_000)), name="beside")
        beside.start()
        for _ in range(5):
            codec.decode(values)
        beside.join()

    hosted._under_cprofile(folder, act)
    return sorted(folder.glob("*.prof"))


def test_each_thread_has_a_profile_of_its_own(profs: list[Path]) -> None:
    assert [path.stem for path in profs] == ["beside", "main"]
    table = calls.table(profs)
    decodes = table.filter(pl.col("function") == "decode", pl.col("file") == "streaming/codecs/json.py")
    assert decodes.select("thread", "calls").rows() == [("main", 5)]
    assert "beside" in set(table.filter(pl.col("function").str.contains("sum"))["thread"])


def test_a_profile_is_kept_when_what_it_looks_at_fails(tmp_path: Path) -> None:
    def act() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hosted._under_cprofile(tmp_path, act)
    assert (tmp_path / "main.prof").exists()


def test_all_time_of_a_profile_is_charged_to_functions_of_ours_and_none_of_it_twice(profs: list[Path]) -> None:
    main = [path for path in profs if path.stem == "main"]
    total = calls.table(main)["own_s"].sum()
    charged = calls.charged(main)
    assert charged["seconds"].sum() == pytest.approx(total, rel=0.01)
    leader = charged.filter(pl.col("file").str.starts_with("streaming/")).row(0, named=True)
    assert leader["file"] == "streaming/codecs/json.py", "parsing happens in polars, and is charged to who asked for it"


def test_an_event_loops_wait_is_not_charged_to_what_runs_on_it(tmp_path: Path) -> None:
    async def turns() -> None:
        await asyncio.sleep(0.2)
        sum(range(200_000))

    hosted._under_cprofile(tmp_path, lambda: asyncio.run(turns()))
    charged = calls.charged([tmp_path / "main.prof"])
    waited = charged.filter(pl.col("file") == "python:selectors.py", pl.col("function") == "select")
    assert waited["seconds"].sum() >= 0.15
    assert patterns.activity("python:selectors.py", "select") in patterns.WAITING


def test_the_top_three_are_in_the_order_that_was_asked_for(profs: list[Path]) -> None:
    table = calls.table(profs)
    for order in calls.ORDERS:
        top = calls.top(table, order)
        assert len(top) == 3
        assert top[order].to_list() == sorted(calls.of_role(table)[order].to_list(), reverse=True)[:3]


def test_what_dominates_is_named_by_rules(profs: list[Path]) -> None:
    shares = patterns.shares(calls.charged([path for path in profs if path.stem == "main"]))
    assert shares["share"].sum() == pytest.approx(1.0)
    assert patterns.verdict(shares.filter(pl.col("activity") != "other")).bottleneck == "decoding"


def test_a_profile_that_only_waits_is_flagged() -> None:
    ours = pl.DataFrame(
        {
            "file": ["streaming/transports/kafka/source.py", "streaming/codecs/json.py"],
            "function": ["KafkaSource.poll", "JsonCodec.decode"],
            "seconds": [9.0, 1.0],
        }
    )
    verdict = patterns.verdict(patterns.shares(ours))
    assert (verdict.is_mostly_waiting, verdict.bottleneck) == (True, "decoding")
    assert "Mostly waiting (90%)" in verdict.says
    busy = patterns.verdict(patterns.shares(ours.with_columns(seconds=pl.Series([1.0, 9.0]))))
    assert (busy.is_mostly_waiting, busy.pattern) == (False, "one activity dominates")


def test_the_rules_know_every_module_that_the_loops_run_through() -> None:
    for file, function, expected in (
        ("streaming/transports/kafka/source.py", "poll", "waiting for records"),
        ("streaming/landing.py", "Landing._next", "waiting for the other thread"),
        ("streaming/generators/pacing.py", "wait", "waiting for the schedule"),
        ("streaming/transports/kafka/publisher.py", "flush", "waiting for confirmations"),
        ("streaming/transports/kafka/transactions.py", "_run", "committing transactions"),
        ("streaming/transports/kafka/reading.py", "batches_of", "making batches of messages"),
        ("streaming/codecs/avro.py", "encode", "encoding"),
        ("streaming/codecs/avro.py", "decode", "decoding"),
        ("sinks/derive.py", "derive", "deriving columns"),
        ("sinks/formats.py", "write", "writing files"),
        ("sinks/slots.py", "append", "making files durable"),
        ("streaming/transformers/windows.py", "advance", "computing the step"),
        ("streaming/generators/fleet.py", "state", "simulating the fleet"),
        ("streaming/transports/rabbitmq/link.py", "_serve", "serving the connection"),
        ("rstream/connection.py", "_read", "serving the connection"),
        ("python:selectors.py", "select", "waiting for records"),
        ("pika/adapters/select_connection.py", "poll", "waiting for records"),
        ("streaming/transports/rabbitmq/link.py", "wait_open", patterns.START),
        ("streaming/transports/rabbitmq/wire.py", "_take_one", "making batches of messages"),
        ("streaming/transports/rabbitmq/stream_frames.py", "unpack", "making batches of messages"),
        ("streaming/stopping.py", "_handle.wait", "waiting to be told to stop"),
        ("streaming/identities.py", "new_rows", "keeping repeats out"),
        ("streaming/transports/rabbitmq/outbox.py", "write", "keeping the outbox"),
    ):
        assert patterns.activity(file, function) == expected, (file, function)


def test_callees_that_come_to_more_than_their_caller_are_drawn_within_it() -> None:
    caller, one, other = ("a.py", 1, "caller"), ("b.py", 1, "one"), ("c.py", 1, "other")
    stats = {
        caller: (1, 1, 0.1, 1.0, {}),
        one: (1, 1, 0.9, 0.9, {caller: (1, 1, 0.9, 0.9)}),
        other: (1, 1, 0.8, 0.8, {caller: (1, 1, 0.8, 0.8)}),
    }
    below = sorted((block.left, block.width) for block in pictures.blocks(stats) if block.depth == 1)
    assert [round(left + width, 9) for left, width in below] == [round(0.9 / 1.7, 9), 1.0]


def test_an_icicle_is_drawn_whose_rows_never_overlap(profs: list[Path], tmp_path: Path) -> None:
    blocks = list(pictures.blocks(calls.stats(profs[-1])))
    assert max(block.depth for block in blocks) > 3
    for depth in {block.depth for block in blocks}:
        row = sorted((block.left, block.left + block.width) for block in blocks if block.depth == depth)
        assert all(before[1] <= after[0] + 1e-6 for before, after in pairwise(row))
        assert row[-1][1] <= 1 + 1e-6
    assert pictures.icicles(profs, tmp_path / "icicle.png", run()).stat().st_size > 10_000


def test_scalenes_report_becomes_a_table_of_the_lines_that_cost_something() -> None:
    line = {
        "n_cpu_percent_python": 0.0, "n_cpu_percent_c": 0.0, "n_sys_percent": 0.0, "n_core_utilization": 0.0,
        "n_peak_mb": 0.0, "n_avg_mb": 0.0, "n_growth_mb": 0.0, "n_malloc_mb": 0.0, "n_copy_mb_s": 0.0,
    }  # fmt: skip
    report = {
        "samples": [[2_000_000_000, 3.5]],
        "files": {
            f"{runs.__file__}": {
                "functions": [{"lineno": 10, "line": "first"}, {"lineno": 20, "line": "Second.of"}],
                "lines": [
                    {**line, "lineno": 5, "line": "import this\n", "n_peak_mb": 1.5},
                    {**line, "lineno": 12, "line": "    quick()\n", "n_cpu_percent_c": 10.0},
                    {**line, "lineno": 13, "line": "    idle()\n"},
                    {**line, "lineno": 25, "line": "    slow()\n", "n_cpu_percent_python": 30.0, "n_sys_percent": 10.0},
                ],
            }
        },
    }
    table = scalene_report.lines(report)
    assert table.select("file", "line", "function", "source").rows() == [
        ("experiments/profiles/runs.py", 25, "Second.of", "slow()"),
        ("experiments/profiles/runs.py", 12, "first", "quick()"),
        ("experiments/profiles/runs.py", 5, "(module)", "import this"),
    ]
    assert table["cpu"].to_list() == pytest.approx([0.4, 0.1, 0.0])
    assert scalene_report.functions(table)["function"].to_list() == ["Second.of", "first", "(module)"]
    assert scalene_report.footprint(report).rows() == [(2.0, 3.5)]
    assert scalene_report.lines({}).schema == scalene_report.LINES, "a run without samples has a table without rows"


def test_turns_and_their_waiting_add_up_to_the_loops_time(tmp_path: Path) -> None:
    now = [100.0]
    turns = Turns(tmp_path / "role.turns", lambda: now[0])
    progress = Progress("role", tmp_path / "role.json", clock=lambda: now[0], turns=turns)
    progress.begins()
    for wait_s, work_s, records in ((0.5, 0.25, 10), (0.0, 1.0, 0), (2.0, 0.125, 7)):
        with progress.waiting():
            now[0] += wait_s
        now[0] += work_s
        progress.took(records)
        progress.tick()
    now[0] += 0.0625  # what a loop does after its last tick
    progress.ends()
    progress.write()
    found = read_turns(tmp_path / "role.turns")
    assert found.rows() == [(0.5, 0.25, 10), (0.0, 1.0, 0), (2.0, 0.125, 7), (0.0, 0.0625, 0)]
    assert progress.loop_s == sum(found["wait_s"].to_list()) + sum(found["work_s"].to_list())


def test_a_torn_end_of_the_turns_is_left_out(tmp_path: Path) -> None:
    turns = Turns(tmp_path / "role.turns")
    turns.end(0.0, 3)
    turns.write()
    with (tmp_path / "role.turns").open("ab") as file:
        file.write(b"torn")
    assert read_turns(tmp_path / "role.turns")["records"].to_list() == [3]


def test_the_number_of_runs_follows_from_their_deviation() -> None:
    assert timing.runs_needed([10.0, 10.1, 9.9, 10.0]) == timing.RUNS
    assert timing.runs_needed([10.0, 12.0, 8.0, 11.0, 9.0]) == 39  # (1.96 · 1.58 / 0.5)² = 38.4
    assert timing.runs_needed([1.0]) == timing.MOST_RUNS


def test_keeping_a_turn_costs_microseconds() -> None:
    assert 0.0 < timing.instrument_cost_us() < 100.0, "three numbers and two looks at the clock cost something"


def test_loops_are_timed_over_runs(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").open()
    found = []
    for number, work_s in enumerate((0.010, 0.012, 0.011)):
        each = replace(run(), name=f"run-{number}", loop_s=0.12 + 3 * work_s, profiler=Profiler.NONE)
        rows = [("main", turn, 0.04, work_s, 1_000) for turn in range(3)]
        pl.DataFrame(rows, schema=results.TURNS_SCHEMA, orient="row").write_parquet(
            runs.write(home, each) / results.TURNS
        )
        found.append(each)
    [loop] = timing.timings(home, found)
    assert (loop.runs, loop.turns, loop.p99_ms) == (3, 9, None)
    assert loop.mean.estimate == pytest.approx(11.0)
    assert loop.sd_of_runs_ms == pytest.approx(1.0)
    assert loop.work_us_per_record.estimate == pytest.approx(11.0)
    assert loop.worst_gap == pytest.approx(0.0, abs=1e-9)
    for width in (80, 160):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(rendering.timing_table(timing.table([loop]), width))
        shown = console.export_text()
        assert all(word in shown for word in ("positions-parquet", "10 – 12", "runs for ±5 %", "100.00%"))


@pytest.mark.parametrize(("load", "says"), [(0.4, "The machine was quiet."), (7.0, "**The machine was shared.**")])
def test_the_page_tells_the_brokers_apart_and_says_how_busy_the_machine_was(
    tmp_path: Path, profs: list[Path], load: float, says: str
) -> None:
    home, found = Home(tmp_path / "home").open(), performance.Found([], [], [])
    for broker in BROKERS:
        for kind, profiler, scenario in (
            (found.timed, Profiler.NONE, "timing"),
            (found.scenarios, Profiler.CPROFILE, "sink-parquet"),
            (found.scalene, Profiler.SCALENE, ""),
        ):
            each = replace(run(), name=f"{broker}-{profiler}", broker=broker, profiler=profiler, scenario=scenario)
            kind.append(
                replace(each, cpu_s=0.001, loop_s=0.25, peak_rss_mb=300.0, wall_s=1.0, provenance=on_a_machine(load))
            )
            leave_tables(runs.write(home, kind[-1]), profs)
    page = performance.page(home, found, [])
    head, kafka, rabbits, *_ = re.split(r"## (?:Scenarios|On RabbitMQ|Top three)", page)
    assert says in head
    assert re.findall(r"^\| (\S+) \| positions-parquet \|", head, re.MULTILINE) == list(BROKERS)
    assert kafka.count("| sink-parquet |") == 1
    assert re.findall(r"^\| (\S+) \| positions-parquet \| [^|]+ \| 10 \|", rabbits, re.MULTILINE) == list(BROKERS[1:])
    for broker in BROKERS[1:]:
        heads = re.findall(rf"### positions-parquet on {broker}[:\n]", page)
        assert len(heads) == 2, "its calls, and what scalene sees"
    agreed = page.partition("## Do the two profilers agree?")[2].partition("\n## ")[0]
    places = ["positions-parquet", *(f"positions-parquet on {broker}" for broker in BROKERS[1:])]
    assert re.findall(r"^\| (positions-\S+(?: on \S+)?) \| `streaming/codecs/json", agreed, re.MULTILINE) == places
    assert performance.collected(home) == found
    for own in (
        replace(run(), name="own-timing", profiler=Profiler.NONE, scenario="timing", workload=Workload(messages=7)),
        replace(run(), name="own-scalene", profiler=Profiler.SCALENE, workload=Workload(codec="avro")),
    ):
        runs.write(home, own)
    assert performance.collected(home) == found, "what a user has tried beside it is not on the page"


def on_a_machine(load: float) -> dict[str, Any]:
    machine = {"cpu": "any", "cores": 2, "memory_bytes": 2**30, "kernel": "6", "python": "3", "load_before": [load]}
    return {"code": "abc", "machine": machine, "versions": {"polars": "1", "confluent-kafka": "2"}}


def leave_tables(folder: Path, profs: list[Path]) -> None:
    turns = pl.DataFrame([("main", 0, 0.2, 0.05, 100)], schema=results.TURNS_SCHEMA, orient="row")
    turns.write_parquet(folder / results.TURNS)
    calls.table(profs).write_parquet(folder / results.CALLS)
    charged = calls.charged(profs)
    charged.write_parquet(folder / results.CHARGED)
    patterns.shares(charged).write_parquet(folder / results.ACTIVITIES)
    sampled = {name: [0.0] for name, kind in scalene_report.LINES.items() if kind == pl.Float64}
    decode = JsonCodec.decode.__code__.co_firstlineno
    place = {
        "file": ["streaming/codecs/json.py"],
        "line": [decode],
        "function": ["JsonCodec.decode"],
        "source": ["return"],
    }
    pl.DataFrame(place | sampled | {"cpu": [0.5]}, schema=scalene_report.LINES).write_parquet(folder / results.LINES)


def test_the_brokers_that_a_measurement_has_started_itself_do_not_disturb_it(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [sys.executable, "-c", "print(flush=True); input()", "kafka.Kafka"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as own:
        assert own.stdout is not None
        own.stdout.readline()
        [seen] = [each for each in psutil.process_iter(["cmdline"]) if each.pid == own.pid]
        assert provenance._is_broker(seen)
        monkeypatch.setattr(psutil, "process_iter", lambda _: [seen])  # whatever others run meanwhile
        assert not [each for each in provenance.contention() if "broker" in each]
        own.kill()


def test_a_dearer_run_is_worse_only_against_enough_runs_of_the_same_workload() -> None:
    before = [costing(f"before-{number}", 10 + number / 10) for number in range(6)]
    assert history.judged([costing("now", 13.0)], before).is_worse
    assert not history.judged([costing("now", 10.3)], before).is_worse
    assert not history.judged([costing("now", 13.0)], before[:4]).is_worse, "four earlier runs are too few"
    others = [replace(each, workload=Workload(vehicles=7)) for each in before]
    assert "0 earlier runs" in history.judged([costing("now", 13.0)], others).says


def test_where_nothing_has_changed_few_checks_warn() -> None:
    random = np.random.default_rng(1)

    def warns() -> bool:
        costs_us = 10 * np.exp(random.normal(0, 0.2, 23))
        found = [costing(f"{number}", cost_us) for number, cost_us in enumerate(costs_us)]
        return history.judged(found[20:], found[:20]).is_worse

    assert sum(warns() for _ in range(200)) <= 20


def test_a_regression_stands_until_the_role_is_judged_well_again(tmp_path: Path) -> None:
    home = Home(tmp_path).open()
    before = [costing(f"before-{number}", 10 + number / 10) for number in range(6)]

    def standing(cost_us: float, earlier: list[Run]) -> list[str]:
        newest = [costing("now", cost_us)]
        history.keep_verdict(home, newest, history.judged(newest, earlier))
        return [verdict.line for verdict in verdicts.bad(home)]

    [line] = standing(13.0, before)
    assert line.startswith("profile regression: ")
    assert "13 µs a record, before: " in line
    assert standing(10.3, before[:4]) == [line], "too few runs for a verdict"
    assert standing(10.3, before) == []


def test_inputs_are_the_same_in_every_run_and_of_their_streams_schema() -> None:
    for name in ("positions", "diagnostics", "vehicles", "position_means", "alerts", "late_positions"):
        table = inputs.rows(name, 3_000, 4, 7)
        assert len(table) == 3_000
        assert table["sequence"].to_list() == list(range(3_000))
        values, _ = inputs.encoded(name, 300, 4, 7, "json")
        inputs.rows.cache_clear()
        inputs.encoded.cache_clear()
        assert inputs.encoded(name, 300, 4, 7, "json")[0] == values
        assert not JsonCodec(stream(name).schema).decode(values).rejections


def test_a_run_is_found_by_its_name_its_beginning_or_as_the_latest(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").open()
    for name in ("20260101-a", "20260102-b", "20260102-c"):
        runs.write(home, replace(run(), name=name))
    assert [each.name for each in runs.listed(home)] == ["20260101-a", "20260102-b", "20260102-c"]
    assert runs.found(home, "latest").name == "20260102-c"
    assert runs.found(home, "20260101").name == "20260101-a"
    with pytest.raises(UsageError, match="fits several"):
        runs.found(home, "20260102")
    with pytest.raises(UsageError, match="is no run"):
        runs.found(home, "2027")
    assert runs.found(home, "latest") == replace(run(), name="20260102-c"), "what was written is read"
    with pytest.raises(UsageError, match=r"^no runs of codecs yet: streamgauge profile run codecs$"):
        runs.found(home, "latest", role="codecs")


def test_only_the_newest_runs_are_kept(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").open()
    for name in "abcd":
        runs.write(home, replace(run(), name=name))
    assert runs.forget_old(home, kept=2) == 2
    assert [each.name for each in runs.listed(home)] == ["c", "d"]


def test_the_runs_that_a_role_is_judged_by_outlast_those_of_other_roles(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").open()
    for night in range(3):
        for role_name in ("one", "other"):
            for place, profiler in enumerate([Profiler.SCALENE, *[Profiler.NONE] * 3]):
                runs.write(home, replace(run(), name=f"{night}-{role_name}-{place}", role=role_name, profiler=profiler))
    runs.forget_old(home, kept=2, kept_alike=5)
    left = runs.listed(home)
    for role_name in ("one", "other"):
        undisturbed = [each.name for each in left if each.role == role_name and each.profiler is Profiler.NONE]
        assert undisturbed == [
            f"{night}-{role_name}-{place}" for night, place in ((1, 2), (1, 3), *((2, n) for n in (1, 2, 3)))
        ]
    assert not [each for each in left if each.profiler is Profiler.SCALENE]
    assert runs.KEPT_ALIKE >= history.LOOKED_BACK + 10, "a week's own ten runs push none out that it is judged by"


@pytest.mark.parametrize("name", ["", "..", "../../victim", "a", 7])
def test_a_run_that_names_another_folder_is_no_run_and_deletes_none(tmp_path: Path, name: Any) -> None:
    home = Home(tmp_path / "home").open()
    (tmp_path / "victim").mkdir()
    for each in "abc":
        runs.write(home, replace(run(), name=each))
    said = json.loads((runs.root(home) / "a" / runs.META).read_text())
    (runs.root(home) / "a-copy").mkdir()
    (runs.root(home) / "a-copy" / runs.META).write_text(json.dumps(said | {"name": name}))
    assert [each.name for each in runs.listed(home)] == ["a", "b", "c"]
    assert runs.found(home, "a").name == "a"
    assert runs.forget_old(home, kept=3) == 0
    assert (tmp_path / "victim").exists()
    assert (runs.root(home) / "a-copy").exists()


@pytest.mark.parametrize("damage", [{"workload": []}, {"workload": {"load": "backlog", "tuning": 7}}, {"status": "so"}])
def test_a_run_whose_file_is_damaged_is_left_out(tmp_path: Path, damage: dict[str, Any]) -> None:
    home = Home(tmp_path / "home").open()
    for each in "ab":
        runs.write(home, replace(run(), name=each))
    path = runs.root(home) / "a" / runs.META
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    assert [each.name for each in runs.listed(home)] == ["b"]


def test_a_damaged_table_is_named_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / results.LINES).write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=results.LINES):
        results.read(tmp_path, results.LINES)


@pytest.mark.parametrize(("width", "left_out"), [(80, {"broker", "records", "seconds"}), (160, set())])
def test_in_a_narrow_terminal_the_list_has_fewer_columns_and_none_of_them_cut(width: int, left_out: set[str]) -> None:
    name = "20261127-193902-diagnostics-generator-cprofile"
    found = [replace(run(), name=name, cpu_s=0.5, wall_s=2.0, loop_s=1.0, waited_s=0.25)]
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(rendering.listing(found, width))
    shown = console.export_text()
    assert all(word in shown for word in (name, "complete", "5,000"))
    assert "…" not in shown
    assert not {word for word in left_out if word in shown}


LONG = "<method 'flush' of 'rabbitmq.transports.queues.Publisher' objects>"


@pytest.mark.parametrize("width", [80, 160])
def test_where_the_time_went_is_told_apart_in_a_narrow_terminal_too(width: int) -> None:
    lines = pl.DataFrame(
        [
            {"file": "streaming/transports/rabbitmq/stream_source.py", "line": line, "source": "x = 1", "cpu": 0.5}
            | dict.fromkeys(("python", "native", "system", "peak_mb", "growth_mb", "copied_mb_s"), 0.25)
            for line in (168, 169)
        ]
    )
    called = pl.DataFrame(
        [
            ("rabbitmq-link", file, 113, function, 1_155_383, 1, 12.3456, 123.4567)
            for file, function in (("streaming/transports/rabbitmq/queue_publisher.py", "_run"), ("~", LONG))
        ],
        schema=calls.CALLS,
        orient="row",
    )
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(rendering.hot_lines(lines, width=width), rendering.top(called, "own_s", width))
    shown = console.export_text()
    for word in ("source.py:168", "source.py:169", "x = 1", "50.0%", "py:113(_run)", "flush", "rabbitmq-link"):
        assert word in shown
    assert shown.count("1,155,383") == shown.count("12.3456") == shown.count("123.4567") == 2


@pytest.mark.parametrize(("turns", "p99"), [(99, ""), (100, "5")])
def test_a_p99_of_too_few_turns_is_not_shown(turns: int, p99: str) -> None:
    rows = [("main", turn, 0.0, 0.005, 1) for turn in range(turns)]
    table = rendering.loops(pl.DataFrame(rows, schema=results.TURNS_SCHEMA, orient="row"))
    assert list(table.columns[-1].cells) == [p99]


def test_why_a_run_failed_is_shown_as_it_was_said(tmp_path: Path) -> None:
    failed = replace(run(), status=Status.FAILED, reason="could not read [/etc/hosts] [bold]", provenance={})
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(rendering.view(failed, tmp_path))
    assert "could not read [/etc/hosts] [bold]" in console.export_text()


def test_a_workload_is_set_in_words_and_refused_in_words() -> None:
    assert Workload().changed({"load": "steady", "rate_hz": "50", "vehicles": "3"}) == Workload(
        load=Load.STEADY, rate_hz=50.0, vehicles=3
    )
    with pytest.raises(UsageError, match="rate_hz"):
        Workload().changed({"rate": "5"})
    with pytest.raises(UsageError, match="backlog, steady, burst"):
        Workload().changed({"load": "heavy"})
    for endless in ("nan", "inf", "-1"):
        with pytest.raises(UsageError, match="above 0"):
            insist("positions-parquet", "kafka", Workload().changed({"rate_hz": endless}))
        with pytest.raises(UsageError, match="above 0"):
            insist("positions-parquet", "kafka", Workload(messages=None, seconds=float(endless)))
    with pytest.raises(UsageError, match="120,000,000 records"):
        insist("positions-parquet", "kafka", Workload(messages=None, seconds=600.0))
    insist("positions-parquet", "kafka", Workload(messages=None, seconds=600.0, load=Load.STEADY, rate_hz=500.0))
    insist("positions-generator", "kafka", Workload(messages=None, seconds=600.0))
    with pytest.raises(UsageError, match="kafka"):
        insist("positions-parquet", "pigeon", Workload())
    with pytest.raises(UsageError, match="codecs"):
        insist("positions-csv", "kafka", Workload())
    with pytest.raises(UsageError, match="no load"):
        insist("codecs", "none", Workload(load=Load.STEADY))
    with pytest.raises(UsageError, match="no burst"):
        insist("positions-generator", "kafka", Workload(load=Load.BURST))


def test_each_kind_of_role_has_at_least_four_scenarios() -> None:
    for kind in RoleKind:
        chosen = [each for each in SCENARIOS if each.kind is kind]
        assert len({each.workload for each in chosen}) + len({each.role for each in chosen}) > 4
        assert len(chosen) >= 4
    assert len({each.name for each in SCENARIOS}) == len(SCENARIOS)


def test_what_was_mended_gives_what_it_gave_before() -> None:
    for spot in hotspots.hot_spots():
        gain = hotspots.measure(spot, rounds=1)
        assert gain.before_ms.estimate > 0


def test_activities_of_two_runs_are_compared_by_record() -> None:
    shares = [
        pl.DataFrame([("decoding", False, 1.0, seconds)], schema=patterns.SHARES, orient="row")
        for seconds in (2.0, 1.0)
    ]
    compared = rendering.compared(replace(run(), records=1_000), replace(run(), records=1_000), (shares[0], shares[1]))
    assert compared.rows() == [("decoding", False, 2_000.0, 1_000.0)]


def run() -> Run:
    return Run(
        name="a-run",
        role="positions-parquet",
        broker="kafka",
        profiler=Profiler.CPROFILE,
        workload=Workload(),
        began="2026-01-01T00:00:00+00:00",
        status=Status.COMPLETE,
        records=100,
    )


def costing(name: str, us: float) -> Run:
    return replace(run(), name=name, profiler=Profiler.NONE, records=1_000_000, cpu_s=us)


def test_lines_that_wait_are_left_out_of_the_hottest() -> None:
    lines = pl.DataFrame(
        {"file": ["streaming/stopping.py", "streaming/codecs/json.py"], "function": ["_handle.wait", "_rows"]}
    )
    assert patterns.working(lines)["function"].to_list() == ["_rows"]
    assert patterns.working(lines.clear()).is_empty()
