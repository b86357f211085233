"""A run from a request in plain values: the same from the command line, from Dagster and from Python.

`python -m experiments.launch REQUEST` (JSON) is a run in a process of its own; it tells its progress line by line on
standard output, each line JSON. SIGTERM makes it keep what is measured, clean up and end with 130.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

from experiments import provenance, workload
from experiments.containers import container_brokers
from experiments.deep_dives import DEEP_DIVES
from experiments.experiment import Experiment, Preset
from experiments.lab import given_brokers, own_brokers
from experiments.measurements import SKIPPED, Level
from experiments.run import OpenLab, Progress, Report, Run, find_runs, run
from streaming.codecs.json import JsonCodec
from streaming.errors import StreamgaugeError, UsageError
from streaming.events import POSITIONS
from streaming.home import Home

FINE: Final = 0
FOUND_TROUBLE: Final = 1
INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class Request:
    """What a person can choose. None and empty mean: as the preset says; all scenes; brokers of its own; simulated."""

    experiment: str
    preset: Preset = Preset.STANDARD
    seed: int = 1
    factors: Mapping[str, Sequence[Level]] = field(default_factory=dict)
    repetitions: int | None = None
    scenes: Sequence[str] = ()
    bootstrap_servers: str | None = None
    compose_project: str | None = None  # those servers' containers here, which may be stopped, killed and paused
    recording: str | None = None
    wait_s: float = 0.0  # how long it may queue behind another run
    pauses: bool = True  # whether this home's live application rests meanwhile; if not, the findings say so

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Request:
        """From JSON."""
        values = json.loads(text)
        return cls(**{**values, "preset": Preset(values["preset"])})


def named(name: str) -> Experiment:
    """The experiment of this name, or UsageError."""
    if name not in DEEP_DIVES:
        raise UsageError(f"there is no experiment {name!r}; there are {', '.join(DEEP_DIVES)}")
    return DEEP_DIVES[name]


def expected_s(request: Request) -> float:
    """About how long the run will take, without queueing."""
    scenes = request.scenes or None
    return named(request.experiment).expected_s(request.preset, request.factors, request.repetitions, scenes)


def carry_out(request: Request, home: Home, progress: Report = lambda _: None) -> Run:
    """Do what is asked and return the run: complete, or partial when a signal has ended it. As experiments.run.run."""
    experiment = named(request.experiment)
    return run(
        experiment,
        home=home,
        open_lab=_lab(experiment, request),
        preset=request.preset,
        seed=request.seed,
        overrides=request.factors,
        repetitions=request.repetitions,
        scenes=request.scenes or None,
        progress=progress,
        wait_s=request.wait_s,
        pauses=request.pauses,
        compose_project=request.compose_project,
    )


def exit_code(done: Run) -> int:
    """0: all was measured; 1: trials failed, lost messages, or the run is partial; 130: a signal has ended it."""
    stamp = done.provenance
    if (stamp["reason"] or "").startswith(provenance.INTERRUPTED):
        return INTERRUPTED
    is_clean = done.measured.troubles().filter(metric=SKIPPED).height == done.measured.troubles().height
    return FINE if done.is_complete and is_clean else FOUND_TROUBLE


def find(home: Home, name: str, experiment: str | None = None) -> Run:
    """The run of this id or part of it, or the newest that has ended: of all for “latest”, or of an experiment.

    Only runs of `experiment`, when it is given. UsageError if there is none, or are several.
    """
    asks_newest = name in ("latest", experiment) or name in DEEP_DIVES
    runs = find_runs(home, name if name in DEEP_DIVES else experiment)
    if asks_newest:
        found = [each for each in runs if each.provenance["status"] != provenance.RUNNING][-1:]
    else:
        found = [each for each in runs if name in each.run_id]
    if len(found) != 1:
        raise UsageError(f"{len(found) or 'no'} runs {name!r}; `streamgauge experiment runs` lists them")
    return found[0]


def _lab(experiment: Experiment, request: Request) -> OpenLab:
    coding = JsonCodec(POSITIONS)
    sent = workload.recorded(coding, Path(request.recording)) if request.recording else workload.fleet(coding)
    if request.compose_project:
        if not request.bootstrap_servers:
            raise UsageError("brokers in containers: name their addresses too, --bootstrap-servers")
        return container_brokers(sent, request.compose_project, request.bootstrap_servers)
    if request.bootstrap_servers:
        return given_brokers(sent, request.bootstrap_servers)
    return own_brokers(sent, experiment.broker_settings)


def _tell(progress: Progress) -> None:
    print(json.dumps(asdict(progress)), flush=True)


def _end(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def main() -> int:
    """Entry point of the process; returns its exit code."""
    signal.signal(signal.SIGTERM, _end)  # until the engine has its own way, and after it
    home, request = Home(Path(sys.argv[1])), Request.load(sys.argv[2])
    try:
        done = carry_out(request, home.open(), _tell)
    except KeyboardInterrupt:
        return INTERRUPTED
    except StreamgaugeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps({"run": done.run_id}), flush=True)
    return exit_code(done)


if __name__ == "__main__":
    sys.exit(main())
