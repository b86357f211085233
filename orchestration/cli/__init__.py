"""The command line: `streamgauge`. Starts quickly: Dagster and the brokers' clients are imported when they are needed.

Exit codes: 0 fine; 1 found a problem; 2 wrong use; 3 the machine lacks something; 4 no broker answers; 5 another
experiment runs; 6 not everything has landed yet (verify); 65 a person must decide; 75 start me again (the supervisor
does); 130 interrupted.
"""

from __future__ import annotations

import os
import sys

import typer

from orchestration.cli import broker, containers, doctor, experiment, flow, lab, look, notebook, profile, prune, queues
from streaming.errors import StreamgaugeError

app = typer.Typer(
    name="streamgauge",
    help="A streaming lab on real brokers: data lands exactly once, every number comes from a run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
lab.register(app)
flow.register(app)
experiment.register(app)
containers.register(app)
doctor.register(app)
look.register(app)
queues.register(app)
profile.register(app)
broker.register(app)
notebook.register(app)
prune.register(app)


def main() -> None:
    """Entry point: run the command; an expected error is one clear message and its exit code."""
    try:
        app()
    except StreamgaugeError as error:
        print(f"streamgauge: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
