"""Do findings reproduce? The verdicts of whole standard runs on different seeds, side by side.

Invariant: what is compared asked the same: complete runs of one preset, with the preset's own levels and repetitions.
Two verdicts contradict each other when one is *holds* and the other *refuted*; *unknown* contradicts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.experiment import Experiment, Preset, plan
from experiments.findings import Verdict
from experiments.run import Run, find_runs
from streaming.home import Home


@dataclass(frozen=True, slots=True)
class Agreement:
    """An experiment's runs by seed, and each claim's verdict in each of them."""

    experiment: Experiment
    runs: Mapping[int, Run]  # by seed, ascending
    verdicts: Mapping[str, Sequence[str]]  # by claim, in the order of the seeds

    @property
    def contradicted(self) -> list[str]:
        """Claims that hold on one seed and are refuted on another."""
        return [name for name, found in self.verdicts.items() if {Verdict.HOLDS, Verdict.REFUTED} <= set(found)]

    @property
    def definite(self) -> list[str]:
        """Claims that came out as one and the same definite verdict on every seed."""
        return [name for name, found in self.verdicts.items() if Verdict.UNKNOWN not in found and len(set(found)) <= 1]


def is_whole(run: Run, experiment: Experiment) -> bool:
    """Whether the run is complete, in a preset that can decide something, and left nothing of it out."""
    stamp = run.provenance
    if not run.is_complete or stamp["preset"] == Preset.SMOKE or stamp["overrides"] or stamp["repetitions"]:
        return False
    return bool(stamp["trials"] == len(plan(experiment, Preset(stamp["preset"]), seed=stamp["seed"])))


def over_seeds(home: Home, experiment: Experiment, preset: Preset = Preset.STANDARD) -> Agreement:
    """The newest whole run of each seed; no runs at all is an agreement of nothing."""
    whole = [run for run in find_runs(home, experiment.name) if is_whole(run, experiment)]
    newest = {run.provenance["seed"]: run for run in whole if run.provenance["preset"] == preset}
    runs = dict(sorted(newest.items()))
    found = [dict(run.findings.select("claim", "verdict").iter_rows()) for run in runs.values()]
    return Agreement(
        experiment,
        runs,
        {claim.name: [each.get(claim.name, str(Verdict.UNKNOWN)) for each in found] for claim in experiment.claims},
    )
