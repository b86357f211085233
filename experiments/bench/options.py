"""Types of the benchmarks' options, for argparse."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection


def count(text: str) -> int:
    """A whole number from 1 on; thousands may be marked."""
    number = int(text.replace(",", "").replace("_", ""))
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return number


def some_of(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Names with commas between them, each among the known."""

    def names(text: str) -> tuple[str, ...]:
        found = tuple(name.strip() for name in text.split(","))
        if unknown := set(found) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: some of {', '.join(known)}")
        return found

    return names
