"""A deep dive's page in the documentation, written from a run's tables: question, method, tables, figures, findings.

`python -m experiments.pages FOLDER` (make deep-dives) writes a page for each dive that has been measured in the lab's
home, and an index; dives without a sound run are named in the index, not invented.

Invariant: no number on a page is typed by hand; whatever is said of the measurements comes from the measurements.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import polars as pl

from experiments.agreement import Agreement, is_whole, over_seeds
from experiments.deep_dives import DEEP_DIVES
from experiments.experiment import Experiment, Scene
from experiments.findings import Verdict
from experiments.measurements import Measured, NotMeasured
from experiments.run import Run, find_runs
from experiments.statistics import median_interval
from streaming.home import Home

_NAMES_OF_THE_RUN = ("group.id",)
VERDICTS: Final = "verdicts.md"
SIGNS = {"holds": "✔ holds", "refuted": "✘ refuted", "unknown": "? unknown"}


def write(experiment: Experiment, run: Run, folder: Path) -> Path:
    """Write <folder>/<experiment>.md with its figures beside it, and return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = folder / "figures"
    pictures.mkdir(exist_ok=True)
    for path in run.figures:
        shutil.copyfile(path, pictures / f"{experiment.name}-{path.name}")
    page = folder / f"{experiment.name}.md"
    page.write_text(render(experiment, run), encoding="utf-8")
    return page


def write_all(home: Home, folder: Path, experiments: Mapping[str, Experiment] = DEEP_DIVES) -> list[Path]:
    """Write the page of every dive that has a sound run in this home, and the index of all; returns what was written.

    Sound: complete, in a preset that can decide something, with all of its levels. The newest one counts.
    """
    chosen = {name: run for name in experiments if (run := _newest_sound(home, experiments[name]))}
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / "README.md"
    index.write_text(_index(experiments, chosen), encoding="utf-8")
    verdicts = folder / VERDICTS
    verdicts.write_text(render_verdicts([over_seeds(home, each) for each in experiments.values()]), encoding="utf-8")
    return [index, verdicts, *(write(experiments[name], run, folder) for name, run in chosen.items())]


def _newest_sound(home: Home, experiment: Experiment) -> Run | None:
    return next((run for run in reversed(find_runs(home, experiment.name)) if is_whole(run, experiment)), None)


def render_verdicts(agreements: Sequence[Agreement]) -> str:
    """The page “verdicts over seeds” as Markdown."""
    measured = [each for each in agreements if each.runs]
    missing = [each.experiment.name for each in agreements if not each.runs]
    parts = [
        "# Verdicts over seeds",
        _WHAT_IS_COMPARED,
        _table(_HEADS, [_agreement_row(each) for each in measured]) if measured else "No run yet.",
        *(f"## {each.experiment.title}\n\n{_verdict_table(each)}" for each in measured),
    ]
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}. `streamgauge experiment run NAME --seed N` measures.")
    return "\n\n".join(parts) + "\n"


_WHAT_IS_COMPARED: Final = (
    "Whole runs of the preset `standard`, the newest of each seed; written by code (`make deep-dives`). A seed sets "
    "the order of the trials and all that is drawn at random. *Unknown* beside a definite verdict is no contradiction; "
    "*holds* beside *refuted* is one."
)
_HEADS: Final = ("dive", "seeds", "claims", "definite and the same on all", "contradicted")


def _agreement_row(found: Agreement) -> list[str]:
    seeds = ", ".join(map(str, found.runs))
    contradicted = ", ".join(found.contradicted) or "none"
    return [found.experiment.title, seeds, str(len(found.verdicts)), str(len(found.definite)), contradicted]


def _verdict_table(found: Agreement) -> str:
    heads = ["claim", *(f"seed {seed}, run `{run.run_id}`" for seed, run in found.runs.items())]
    texts = {claim.name: claim.text for claim in found.experiment.claims}
    return _table(heads, [[texts[name], *(SIGNS[each] for each in row)] for name, row in found.verdicts.items()])


def _index(experiments: Mapping[str, Experiment], chosen: Mapping[str, Run]) -> str:
    rows = [_index_row(each, chosen.get(name)) for name, each in experiments.items()]
    heads = ["dive", "question", *Verdict, "run", "measured beside"]
    origin = f"Written by code from the runs named here (`make deep-dives`). [Verdicts over seeds]({VERDICTS})."
    return f"# Deep dives\n\n{origin}\n\n{_table(heads, rows)}\n"


def _index_row(experiment: Experiment, run: Run | None) -> list[str]:
    if run is None:
        again = f"not measured yet: `streamgauge experiment run {experiment.name}`"
        return [experiment.title, experiment.question, *("–" for _ in Verdict), again, ""]
    counts = [str(run.findings.filter(verdict=verdict).height) for verdict in Verdict]
    beside = "; ".join(run.provenance["contention"]) or "nothing seen"
    return [f"[{experiment.title}]({experiment.name}.md)", experiment.question, *counts, f"`{run.run_id}`", beside]


def render(experiment: Experiment, run: Run) -> str:
    """The page as Markdown."""
    measured, stamp = run.measured, run.provenance
    parts = [
        f"# {experiment.title}",
        _origin(experiment, stamp),
        f"## Question\n\n{experiment.question}",
        "## Findings\n\n" + findings_table(run.findings),
        *_pictures(experiment, run),
        "## Method and measurements\n\n" + "\n\n".join(_scene(scene, measured) for scene in experiment.scenes),
        f"## Effective use\n\n{experiment.use_cases}",
        "## The run\n\n" + _machine(stamp) + _troubles(measured),
    ]
    return "\n\n".join(parts) + "\n"


def _origin(experiment: Experiment, stamp: dict[str, Any]) -> str:
    again = f"streamgauge experiment run {experiment.name} --preset {stamp['preset']} --seed {stamp['seed']}"
    return f"Demand {experiment.demand}. Written by code from run `{stamp['run_id']}`; again with `{again}`."


def findings_table(findings: pl.DataFrame) -> str:
    """Each claim with its verdict, source and numbers, in Markdown."""
    rows = findings.iter_rows(named=True)
    cells = [[SIGNS[row["verdict"]], f"{row['text']} *({row['source']})*", row["says"]] for row in rows]
    return _table(["", "claim", "measured"], cells)


def _pictures(experiment: Experiment, run: Run) -> list[str]:
    drawn = {path.stem for path in run.figures}
    shown = [figure for figure in experiment.figures if figure.name in drawn]
    return [f"![{each.caption}](figures/{experiment.name}-{each.name}.png)\n\n*{each.caption}*" for each in shown]


def _scene(scene: Scene, measured: Measured) -> str:
    parts = [f"### {scene.name.replace('_', ' ').capitalize()}\n\n{scene.method}"]
    try:
        frame = measured.trials(scene.name, with_void=scene.allows_loss)
    except NotMeasured:
        return parts[0] + "\n\nNot measured in this run."
    known = [each.name for each in scene.factors if each.name in frame.columns]
    varied = [name for name in known if frame[name].n_unique() > 1]
    held = ", ".join(f"{name} = {frame[name][0]}" for name in known if name not in varied)
    parts.append(f"Trials: {frame.height}, repetitions: {frame['repetition'].n_unique()}. Held: {held or 'nothing'}.")
    parts.append(summary(scene, frame, varied, measured.units(scene.name)))
    return "\n\n".join(parts)


def summary(scene: Scene, frame: pl.DataFrame, varied: Sequence[str], units: dict[str, str]) -> str:
    """Median and 95 % interval of the scene's columns for each design."""
    metrics = [each for each in scene.columns if each in frame.columns]
    rows: list[list[str]] = []
    groups = frame.sort(varied).group_by(varied, maintain_order=True) if varied else [((), frame)]
    for levels, group in groups:
        rows.append([str(level) for level in levels] + [_cell(group[metric]) for metric in metrics])
    heads = [each.replace("_", " ") for each in varied]
    heads += [f"{each.replace('_', ' ')}{f' ({units[each]})' if units[each] else ''}" for each in metrics]
    return _table(heads, rows)


def _cell(values: pl.Series) -> str:
    found = values.drop_nulls().to_numpy()
    if not len(found):
        return "–"
    interval = median_interval(found)
    if interval.low == interval.high:
        return _number(interval.estimate)
    return f"{_number(interval.estimate)} [{_number(interval.low)}, {_number(interval.high)}]"


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value)}"
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"


def _machine(stamp: dict[str, Any]) -> str:
    machine, disk = stamp["machine"], stamp["machine"]["disk"]
    host = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB"
    latency = f"median {disk['median_ms']:.2g} ms, slowest {disk['slowest_ms']:.2g} ms of {disk['writes']}"
    facts = [
        ["status", stamp["status"] + (f" ({stamp['reason']})" if stamp["reason"] else "")],
        ["preset, seed, trials", f"{stamp['preset']}, {stamp['seed']}, {stamp['trials']}"],
        ["began, ended", f"{stamp['began']}, {stamp['ended']}"],
        ["expected, took", f"{stamp['expected_s']:.0f} s, {took_s(stamp):.0f} s"],
        ["code", f"`{stamp['code']}`"],
        ["versions", ", ".join(f"{name} {version}" for name, version in stamp["versions"].items())],
        ["workload", stamp["workload"]],
        ["warm-up", stamp["settings"].get("warm_up", "–")],
        ["machine", f"{host}, Linux {machine['kernel']}"],
        ["disk, 4 KiB and fsync", latency],
        ["contention before", "; ".join(stamp["contention"]) or "none seen"],
        ["paused meanwhile", ", ".join(stamp.get("paused", [])) or "nothing: no live lab in this home"],
    ]
    for kind in ("topics", "clients"):
        facts += [[f"{kind[:-1]} *{name}*", _settings(used)] for name, used in stamp["settings"].get(kind, {}).items()]
    return _table(["", ""], facts)


def took_s(stamp: Mapping[str, Any]) -> float:
    """Seconds from a run's beginning to its end."""
    began, ended = (datetime.fromisoformat(stamp[name]) for name in ("began", "ended"))
    return (ended - began).total_seconds()


def _settings(used: dict[str, Any]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in used.items() if name not in _NAMES_OF_THE_RUN)


def _troubles(measured: Measured) -> str:
    troubles = measured.troubles()
    if troubles.is_empty():
        return "\n\nNo trial failed, was void or was skipped."
    rows = troubles.select(
        "scene", "factors", pl.col("metric").str.replace("_", " "), pl.col("note").fill_null("")
    ).rows()
    return "\n\nTrials that failed, were void or skipped:\n\n" + _table(["scene", "levels", "what", "why"], rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    for written in write_all(Home.locate(os.environ), Path(sys.argv[1])):
        print(written)
