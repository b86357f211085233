"""Watermarks: the running maximum per producer, before and after each row."""

from __future__ import annotations

import polars as pl

from streaming.transformers.watermarks import UNSEEN, WATERMARKS, advanced, with_watermarks


def _rows(*rows: tuple[str, int]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"producer": pl.String, "event_time_us": pl.Int64}, orient="row")


def _marks(*rows: tuple[str, int]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=WATERMARKS, orient="row")


def test_a_row_sees_only_its_own_producers_earlier_rows() -> None:
    seen = with_watermarks(_rows(("a", 5), ("b", 9), ("a", 3), ("a", 7)), _marks())
    assert seen["before_us"].to_list() == [UNSEEN, UNSEEN, 5, 5]
    assert seen["after_us"].to_list() == [5, 9, 5, 7]


def test_a_watermark_goes_on_from_the_batch_before_and_never_back() -> None:
    known = _marks(("a", 6), ("c", 1))
    seen = with_watermarks(_rows(("a", 5), ("a", 8)), known)
    assert seen["before_us"].to_list() == [6, 6]
    assert advanced(known, seen).rows() == [("a", 8), ("c", 1)]
