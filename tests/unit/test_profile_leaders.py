"""Whether two profilers name the same function of ours, and the reasons when they do not."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import CodeType
from typing import Any

import polars as pl
import pytest

from experiments.profiles import calls, hosted, inputs, leaders, scalene_report
from streaming.codecs import json
from streaming.codecs.json import JsonCodec
from streaming.home import PROJECT_ROOT
from streaming.topology import stream
from streaming.transports.kafka.source import KafkaSource

FILE = "streaming/codecs/json.py"
ENCODE, DECODE = f"{FILE} JsonCodec.encode", f"{FILE} JsonCodec.decode"
FREE = 0.0  # seconds of a call


def line_of(function: Any, below: int = 0) -> int:
    return int(function.__code__.co_firstlineno) + below


def sampled(**shares: float) -> pl.DataFrame:
    """Scalene's table: so much of all samples in a line of encode, of decode, and of what waits."""
    places = {
        "encode": (FILE, JsonCodec.encode),
        "decode": (FILE, JsonCodec.decode),
        "poll": (SOURCE, KafkaSource.poll),
    }
    rows = [{"file": places[name][0], "line": line_of(places[name][1], 2), "cpu": cpu} for name, cpu in shares.items()]
    return pl.DataFrame(rows, schema={name: scalene_report.LINES[name] for name in ("file", "line", "cpu")})


def timed(encode: tuple[float, float], decode: tuple[float, float], thread: str = "main") -> pl.DataFrame:
    """cProfile's: seconds and calls of each, encode's in this thread, and a poll that waits longer than both."""
    rows = [
        (thread, FILE, line_of(JsonCodec.encode), "encode", *encode),
        ("main", FILE, line_of(JsonCodec.decode), "decode", *decode),
        ("main", SOURCE, line_of(KafkaSource.poll), "poll", 100.0, 1.0),
    ]
    return pl.DataFrame(rows, schema=calls.CHARGED, orient="row")


SOURCE = "streaming/transports/kafka/source.py"


def test_every_function_is_found_by_the_line_that_cprofile_knows_it_by() -> None:
    def checked(code: CodeType, around: str) -> int:
        found = 0
        for inner in (each for each in code.co_consts if isinstance(each, CodeType)):
            name = inner.co_name
            if name.startswith("<"):
                name = around
            elif f"class {name}" not in lines[inner.co_firstlineno - 1]:
                named = leaders.function_at(FILE, inner.co_firstlineno)
                assert named is not None
                assert named.split(" ")[1].split(".")[-1] == name
                found += 1
            found += checked(inner, name)
        return found

    text = Path(inspect.getfile(json)).read_text()
    lines = text.splitlines()
    assert checked(compile(text, FILE, "exec"), leaders.MODULE) >= 8


def test_a_comprehension_counts_to_the_function_it_is_written_in() -> None:
    file = "streaming/transports/kafka/publisher.py"
    source = (PROJECT_ROOT / file).read_text().splitlines()
    [line] = [number for number, text in enumerate(source, 1) if '{"value": value, "key": key} for' in text]
    assert leaders.function_at(file, line) == f"{file} Sender.send"
    assert leaders.function_at("polars/frame.py", 1) is None
    assert leaders.function_at(file, 1) == f"{file} {leaders.MODULE}"


def test_the_same_function_is_named_though_one_knows_a_line_and_the_other_a_built_in(tmp_path: Path) -> None:
    codec = JsonCodec(stream("positions").schema)
    values, _ = inputs.encoded("positions", 5_000, 5, 1, "json")

    def act() -> None:
        for _ in range(5):
            codec.decode(values)

    hosted._under_cprofile(tmp_path, act)
    charged = calls.charged([tmp_path / "main.prof"])
    parser = next(
        number
        for number, text in enumerate((PROJECT_ROOT / FILE).read_text().splitlines(), 1)
        if "pl.read_ndjson(" in text
    )
    lines = pl.DataFrame({"file": [FILE], "line": [parser], "cpu": [0.9]})
    found = leaders.compared(lines, charged, 10.0, leaders.call_cost_s())
    assert found is not None
    assert found.agree, (found, charged.head(5))
    assert found.why == ""


@pytest.mark.parametrize(
    ("lines", "charged", "wall_s", "call_s", "why"),
    [
        (sampled(encode=0.1, decode=0.3), timed((1.0, 10), (3.0, 10)), 10.0, FREE, ""),
        (sampled(encode=0.2, decode=0.3), timed((9.0, 10), (1.0, 10)), 0.5, FREE, "chance: of 25 samples"),
        (sampled(encode=0.1, decode=0.4), timed((5.2, 10), (4.8, 10)), 60.0, FREE, "close: "),
        (sampled(encode=0.1, decode=0.4), timed((9.0, 4e6), (5.0, 10)), 60.0, 2e-6, "cProfile's own cost: "),
        (sampled(encode=0.1, decode=0.4), timed((9.0, 10), (5.0, 10), "sink"), 60.0, 2e-6, "thread: 100% of"),
        (sampled(encode=0.1, decode=0.4), timed((9.0, 10), (5.0, 10)), 60.0, 2e-6, leaders.UNEXPLAINED),
    ],
    ids=["same", "few samples", "close", "calls", "thread", "unexplained"],
)
def test_a_difference_is_explained_by_the_first_rule_that_holds(
    lines: pl.DataFrame, charged: pl.DataFrame, wall_s: float, call_s: float, why: str
) -> None:
    found = leaders.compared(lines, charged, wall_s, call_s)
    assert found is not None
    assert (found.scalene.name, found.agree) == (DECODE, not why)
    assert found.cprofile.name == (ENCODE if why else DECODE)
    assert found.why.startswith(why)
    assert bool(found.why) == bool(why)


def test_what_waits_leads_nothing() -> None:
    found = leaders.compared(sampled(encode=0.1, poll=0.8), timed((2.0, 1), (1.0, 1)), 10.0, FREE)
    assert found is not None
    assert (found.scalene.name, found.scalene.scalene) == (ENCODE, 1.0)
    assert found.cprofile.cprofile == pytest.approx(2 / 3)
    assert leaders.compared(sampled(poll=0.8), timed((2.0, 1), (1.0, 1)), 10.0, FREE) is None


def test_a_call_costs_cprofile_less_than_a_tenth_of_a_millisecond() -> None:
    assert 0 < leaders.call_cost_s() < 1e-4


def test_calls_are_charged_to_who_made_them(tmp_path: Path) -> None:
    def act() -> None:
        leaders.function_at(FILE, 1)

    hosted._under_cprofile(tmp_path, act)
    charged = calls.charged([tmp_path / "main.prof"])
    own = calls.table([tmp_path / "main.prof"])
    assert charged["calls"].sum() == pytest.approx(own["calls"].sum(), rel=0.05)
