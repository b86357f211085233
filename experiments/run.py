"""Running an experiment: plan → lab → trials → measurements → findings → figures, each on disk before the next.

Invariant: however a run ends (done, interrupted, an error), its folder says so and holds all that was measured; one
file lock keeps runs apart, whoever starts them. A run that was killed is sealed as partial by the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self
from uuid import uuid4

import polars as pl
from filelock import FileLock, Timeout

from experiments import figures, findings, measurements, pausing, provenance
from experiments.experiment import LAB_START_S, Experiment, Planned, Preset, Scene, plan
from experiments.lab import Lab, forget_brokers
from experiments.measurements import FAILED, SKIPPED, Level, Measured, NotMeasured, Recorder
from experiments.trial import Trial, TrialTimedOut
from streaming.errors import StreamgaugeError, UsageError
from streaming.home import Home

FINDINGS: Final = "findings.parquet"
FIGURES: Final = "figures"
GRACE_S: Final = 5.0  # after a trial's deadline, for its own waits to notice


class ExperimentRunning(StreamgaugeError):
    """Another experiment has the brokers and the machine: wait for it, or end it."""

    exit_code = 5


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM: keep what is measured, clean up, end."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Told before each trial and at each change of phase."""

    phase: str
    done: int
    total: int
    remaining_s: float
    says: str


Report = Callable[[Progress], None]


OpenLab = Callable[[str, Path], Lab]  # run id and the run's folder → a lab, ready for the first trial


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder, read on demand."""

    run_id: str
    experiment: str
    folder: Path

    @property
    def provenance(self) -> dict[str, Any]:
        """Code, versions, settings, machine, status."""
        return provenance.read(self.folder)

    @property
    def is_complete(self) -> bool:
        """Whether every planned trial was carried out (some may have failed, which is a row)."""
        return bool(self.provenance["status"] == provenance.COMPLETE)

    @property
    def measurements(self) -> pl.DataFrame:
        """The tidy table."""
        return measurements.read(self.folder)

    @property
    def measured(self) -> Measured:
        """The tidy table, for judges and figures."""
        return Measured(self.measurements)

    @property
    def findings(self) -> pl.DataFrame:
        """A row a claim."""
        path = self.folder / FINDINGS
        return pl.read_parquet(path) if path.exists() else findings.FINDINGS.to_frame()

    @property
    def figures(self) -> list[Path]:
        """The drawn figures."""
        return sorted((self.folder / FIGURES).glob("*.png"))


def runs_folder(home: Home, experiment: str | None = None) -> Path:
    """Where runs are kept: <experiment>/<run id>."""
    folder = home.root / "experiments"
    return folder / experiment if experiment else folder


def find_runs(home: Home, experiment: str | None = None) -> list[Run]:
    """All runs, oldest first."""
    stamps = runs_folder(home).glob(f"{experiment or '*'}/*/{provenance.FILE}")
    runs = [Run(stamp.parent.name, stamp.parent.parent.name, stamp.parent) for stamp in stamps]
    return sorted(runs, key=lambda each: each.run_id)


def run(  # noqa: PLR0913 - what a person can choose about a run
    experiment: Experiment,
    *,
    home: Home,
    open_lab: OpenLab,
    preset: Preset = Preset.STANDARD,
    seed: int = 1,
    overrides: Mapping[str, Sequence[Level]] | None = None,
    repetitions: int | None = None,
    scenes: Sequence[str] | None = None,
    progress: Report = lambda _: None,
    wait_s: float = 0.0,
    pauses: bool = True,
    compose_project: str | None = None,
) -> Run:
    """Carry out the experiment and return its run, complete or (after SIGINT or SIGTERM) partial.

    Where this home's lab is up, its application rests meanwhile, unless `pauses` is False: the findings say so then.
    So do the roles' containers of `compose_project`, whose brokers run again afterwards, whatever ends this process.

    Raises ExperimentRunning when another run holds the lock for longer than `wait_s`, UsageError for levels or scenes
    that there are not, and what the lab raises when it cannot be opened (the run is kept as partial then).
    """
    planned = plan(experiment, preset, seed=seed, overrides=overrides, repetitions=repetitions, scenes=scenes)
    if not planned:
        raise UsageError(f"{experiment.name}: no trial is left with these levels")
    with only_run(home, experiment.name, wait_s, progress):
        recover(home)
        with pausing.at_rest(home, compose_project, pauses=pauses) as paused:
            contention = provenance.contention(home, compose_project=compose_project)
            began = _begin(home, experiment, preset, seed, planned, overrides or {}, repetitions, paused, contention)
            return _carry_out(experiment, planned, *began, open_lab, progress)


def analyse(experiment: Experiment, folder: Path) -> Run:
    """Judge and draw again from the measurements on disk; no broker is needed."""
    run_id = folder.name
    measured = Measured(measurements.read(folder))
    stamp = provenance.read(folder)
    table = findings.judge(
        experiment.claims, measured, run_id=run_id, experiment=experiment.name, contention=stamp["contention"]
    )
    table.write_parquet(folder / FINDINGS)
    remark = _remark(stamp)
    with figures.style():
        for each in experiment.figures:
            path = folder / FIGURES / f"{each.name}.png"
            try:
                figures.save(each.draw(measured), path, run_id, remark)
            except (NotMeasured, pl.exceptions.ColumnNotFoundError):
                continue
            except Exception as error:  # noqa: BLE001 - chosen levels may leave out what the figure shows
                path.parent.mkdir(exist_ok=True)
                path.with_suffix(".txt").write_text(f"not drawn: {type(error).__name__}: {error}\n")
    return Run(run_id, experiment.name, folder)


def _remark(stamp: Mapping[str, Any]) -> str:
    """What must be said beside every figure of this run."""
    partial = "" if stamp["status"] == provenance.COMPLETE else f"{stamp['status']} run"
    return " · ".join(filter(None, [partial, "measured beside other load" if stamp["contention"] else ""]))


def recover(home: Home) -> list[Run]:
    """Seal runs that were killed, as partial, and delete their brokers' data.

    Call it with the lock held: then nothing that is "running" runs. Returns those runs.
    """
    dead = [each for each in find_runs(home) if each.provenance["status"] == provenance.RUNNING]
    for each in dead:
        measurements.seal(each.folder)
        forget_brokers(each.folder)
        stamp = each.provenance | {"status": provenance.PARTIAL, "reason": "the run's process was killed"}
        (each.folder / provenance.FILE).write_text(json.dumps(stamp, indent=2) + "\n")
    return dead


@contextlib.contextmanager
def only_run(home: Home, name: str, wait_s: float, progress: Report) -> Iterator[None]:
    """Hold the one lock; while another run has it, say whose turn it is. ExperimentRunning after `wait_s`."""
    runs_folder(home).mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(runs_folder(home) / "lock"), runs_folder(home) / "holder.json"
    give_up = time.monotonic() + wait_s
    while True:
        try:
            lock.acquire(timeout=min(1.0, max(0.0, give_up - time.monotonic())))
            break
        except Timeout:
            says = _who(holder)
            if time.monotonic() >= give_up:
                raise ExperimentRunning(says) from None
            progress(Progress("queued", 0, 0, give_up - time.monotonic(), says))
    try:
        holder.write_text(json.dumps({"experiment": name, "process": os.getpid(), "since": provenance.now()}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _who(holder: Path) -> str:
    try:
        other = json.loads(holder.read_text())
    except (OSError, ValueError):
        return "another experiment is starting"
    return f"experiment {other['experiment']} runs (process {other['process']}, since {other['since']})"


def _begin(  # noqa: PLR0913, PLR0917 - all that a run's first stamp says
    home: Home,
    experiment: Experiment,
    preset: Preset,
    seed: int,
    planned: Sequence[Planned],
    overrides: Mapping[str, Sequence[Level]],
    repetitions: int | None,
    paused: Sequence[str],
    contention: list[str],
) -> tuple[Path, provenance.Provenance]:
    now = datetime.now(UTC)  # to the millisecond, so that ids sort as the runs began
    run_id = f"{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03}{uuid4().hex[:3]}"
    folder = runs_folder(home, experiment.name) / run_id
    folder.mkdir(parents=True)
    stamp = provenance.Provenance(
        run_id=run_id,
        experiment=experiment.name,
        preset=str(preset),
        seed=seed,
        overrides={name: list(levels) for name, levels in overrides.items()},
        repetitions=repetitions,
        trials=len(planned),
        expected_s=LAB_START_S + sum(each.scene.trial_s for each in planned),
        status=provenance.RUNNING,
        began=provenance.now(),
        ended=None,
        code=provenance.code_version(),
        versions=provenance.versions(),
        machine=provenance.machine(folder),
        contention=contention,
        paused=list(paused),
        workload="",
    )
    stamp.write(folder)
    return folder, stamp


def _carry_out(
    experiment: Experiment,
    planned: Sequence[Planned],
    folder: Path,
    stamp: provenance.Provenance,
    open_lab: OpenLab,
    progress: Report,
) -> Run:
    status, reason = provenance.PARTIAL, None
    settings: dict[str, Any] = {}
    with _Signals() as signals:
        try:
            with Recorder(folder, stamp.run_id, experiment.name) as recorder:
                progress(Progress("starting brokers", 0, len(planned), stamp.expected_s, experiment.name))
                lab = open_lab(stamp.run_id, folder)
                try:
                    settings = lab.settings
                    settings["warm_up"] = lab.warm_up()
                    stamp = replace(stamp, workload=lab.workload.says, settings=settings)
                    stamp.write(folder)  # a run that is killed says under which settings it was
                    _trials(planned, lab, recorder, stamp.seed, progress)
                finally:
                    signals.shield()
                    lab.close()
            status = provenance.COMPLETE
        except Interrupted as interruption:
            reason = f"{provenance.INTERRUPTED} by {interruption}"
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
            raise
        finally:
            signals.shield()
            measurements.seal(folder)
            forget_brokers(folder)
            stamp.closed(status, reason, settings).write(folder)
        progress(Progress("judging and drawing", len(planned), len(planned), 0, experiment.name))
        return analyse(experiment, folder)


def _trials(planned: Sequence[Planned], lab: Lab, recorder: Recorder, seed: int, progress: Report) -> None:
    skipped: set[str] = set()
    for number, each in enumerate(planned):
        remaining_s = sum(later.scene.trial_s for later in planned[number:])
        levels = ", ".join(f"{name}={level}" for name, level in each.place.levels.items())
        progress(Progress("measuring", number, len(planned), remaining_s, f"{each.scene.name}: {levels}"))
        if (reason := unmet(each.scene, lab)) is None:
            _one_trial(each, lab, recorder, seed)
        elif each.scene.name not in skipped:
            skipped.add(each.scene.name)
            recorder.write(each.place, SKIPPED, 1, "", note=reason)


def unmet(scene: Scene, lab: Lab) -> str | None:
    """Why this lab cannot carry the scene out; None when it can."""
    if scene.needs.broker_control and lab.brokers is None:
        return "needs brokers of its own: these are not the lab's"
    if (found := lab.broker_count) < scene.needs.brokers:
        return f"needs {scene.needs.brokers} brokers, the cluster has {found}"
    return None


def _one_trial(planned: Planned, lab: Lab, recorder: Recorder, seed: int) -> None:
    scene, place = planned.scene, planned.place
    trial = Trial(place, lab, recorder, seed, scene.timeout_s, allows_loss=scene.allows_loss)
    reason: str | None = None
    try:
        with _alarm(scene.timeout_s):
            scene.trial(trial)
    except Exception as error:  # noqa: BLE001 - whatever stops a trial is a row of its table, never a gap
        reason = f"{type(error).__name__}: {error}"
    recorder.write(place, "trial_duration", trial.elapsed_s, "s", at_s=trial.elapsed_s)
    recorder.write(place, FAILED, reason is not None, "", at_s=trial.elapsed_s, note=reason)
    lab.tidy()


@contextlib.contextmanager
def _alarm(timeout_s: float) -> Iterator[None]:
    """Interrupt a trial that waits for something without a deadline (possible only in the main thread)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_: int, __: FrameType | None) -> None:
        raise TrialTimedOut(f"still busy {GRACE_S:g} s after its {timeout_s:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, timeout_s + GRACE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Signals:
    """Turns the first SIGINT or SIGTERM into Interrupted; cleaning up is shielded from all of them."""

    def __init__(self) -> None:
        self._is_shielded = False
        self._before: dict[int, Any] = {}

    def shield(self) -> None:
        """From here on signals change nothing: cleaning up takes seconds and must not be cut short."""
        self._is_shielded = True

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _interrupt(self, number: int, _: FrameType | None) -> None:
        if not self._is_shielded:
            self._is_shielded = True
            raise Interrupted(signal.Signals(number).name)
