"""`python -m experiments.processors`: install the other stream processors; `--lock`: pin what they need anew.

What can't be installed is said, and is no reason to fail: the deep dive about them says it again, and the rest runs.
"""

from __future__ import annotations

import sys

from experiments.processors import kafka_streams, quix
from streaming.errors import SetupError


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    for each in (kafka_streams, quix):
        if arguments == ["--lock"]:
            each.lock()
            continue
        try:
            each.install(lambda says: print(says, file=sys.stderr))
        except SetupError as error:
            print(f"going on without it: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
