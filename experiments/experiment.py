"""An experiment as a value: question, scenes with their factors, claims, figures, use cases; free of any orchestrator.

Invariant: the plan is a pure function of experiment, preset, overrides and seed, and interleaved: each repetition is a
shuffled pass over the whole grid, so that a drift of the machine hits all levels alike.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Generic, TypeVar

import polars as pl
from matplotlib.figure import Figure as Drawing

from experiments.findings import Claim
from experiments.measurements import Level, Levels, Measured, Place
from experiments.trial import Trial
from streaming.errors import UsageError

T = TypeVar("T")
LAB_START_S: Final = 8.0  # three brokers, topics and the warm-up


class Preset(StrEnum):
    """How much is spent: seconds for a test, minutes for a table, an evening for a publication."""

    SMOKE = "smoke"
    STANDARD = "standard"
    THOROUGH = "thorough"


@dataclass(frozen=True, slots=True)
class Sized(Generic[T]):
    """A value per preset; what `thorough` doesn't name is as in `standard`."""

    smoke: T
    standard: T
    thorough: T | None = None

    def at(self, preset: Preset) -> T:
        """The value for this preset."""
        if preset is Preset.SMOKE:
            return self.smoke
        return self.thorough if preset is Preset.THOROUGH and self.thorough is not None else self.standard


@dataclass(frozen=True, slots=True)
class Factor:
    """What is varied, or held: a factor of one level is a fixed setting, and can be overridden like any other.

    No level in a preset leaves the scene out of it.
    """

    name: str
    says: str
    levels: Sized[tuple[Level, ...]]

    @property
    def is_fixed(self) -> bool:
        """Whether no preset varies it."""
        return all(len(self.levels.at(preset)) == 1 for preset in Preset)


def factor(
    name: str, says: str, smoke: Sequence[Level], standard: Sequence[Level], thorough: Sequence[Level] | None = None
) -> Factor:
    """A factor with its levels per preset."""
    return Factor(name, says, Sized(tuple(smoke), tuple(standard), tuple(thorough) if thorough else None))


def fixed(name: str, says: str, smoke: Level, standard: Level | None = None, thorough: Level | None = None) -> Factor:
    """A setting that is not varied within a run; the presets may still differ."""
    usual = smoke if standard is None else standard
    return Factor(name, says, Sized((smoke,), (usual,), (usual if thorough is None else thorough,)))


@dataclass(frozen=True, slots=True)
class Needs:
    """What a scene asks of the lab. What needs broker control is skipped, not failed, on somebody else's cluster."""

    broker_control: bool = False  # stops, kills, pauses or reconfigures brokers
    brokers: int = 1  # at least so many
    features: frozenset[str] = frozenset()  # of the cluster: "share-groups"


@dataclass(frozen=True, slots=True)
class Scene:
    """One design within an experiment: factors, the trial they parametrise, and how often it is repeated."""

    name: str
    method: str  # a paragraph: what a trial does and what it records
    trial: Callable[[Trial], None]
    factors: tuple[Factor, ...]
    trial_s: float  # about how long a trial takes, for the expected duration
    repetitions: Sized[int] = Sized(1, 5, 10)
    keep: Callable[[Levels], bool] = lambda _: True
    timeout_s: float = 60.0
    needs: Needs = Needs()
    allows_loss: bool = False  # whether losing messages is what the trial is about
    columns: tuple[str, ...] = ()  # metrics of the table on the scene's page

    def grid(self, preset: Preset, overrides: Mapping[str, Sequence[Level]]) -> list[Levels]:
        """Every kept combination of levels."""
        names = [each.name for each in self.factors]
        levels = [tuple(overrides.get(each.name, each.levels.at(preset))) for each in self.factors]
        points = [dict(zip(names, combination, strict=True)) for combination in itertools.product(*levels)]
        return [MappingProxyType(point) for point in points if self.keep(point)]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure: `draw` makes it from the measurements; the run's id is written below it by whoever saves it."""

    name: str
    caption: str
    draw: Callable[[Measured], Drawing]


@dataclass(frozen=True, slots=True)
class Experiment:
    """A question with everything that answers it."""

    name: str
    title: str
    question: str
    demand: str  # its id in the demands
    scenes: tuple[Scene, ...]
    claims: tuple[Claim, ...]
    figures: tuple[Figure, ...]
    use_cases: str
    broker_settings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    analysis: Mapping[str, Callable[[Measured], pl.DataFrame]] = field(default_factory=lambda: MappingProxyType({}))

    def scene(self, name: str) -> Scene:
        """The scene of this name."""
        return next(each for each in self.scenes if each.name == name)

    def expected_s(
        self,
        preset: Preset,
        overrides: Mapping[str, Sequence[Level]] | None = None,
        repetitions: int | None = None,
        scenes: Sequence[str] | None = None,
    ) -> float:
        """About how long a run takes, brokers' start included."""
        chosen = overrides or {}
        times = [
            len(each.grid(preset, chosen)) * (repetitions or each.repetitions.at(preset)) * each.trial_s
            for each in self.scenes
            if scenes is None or each.name in scenes
        ]
        return LAB_START_S + sum(times)


@dataclass(frozen=True, slots=True)
class Planned:
    """One trial to be done."""

    scene: Scene
    place: Place


def plan(
    experiment: Experiment,
    preset: Preset,
    *,
    seed: int,
    overrides: Mapping[str, Sequence[Level]] | None = None,
    repetitions: int | None = None,
    scenes: Sequence[str] | None = None,
) -> list[Planned]:
    """All trials in their order of execution: scene after scene, repetition by repetition, each pass shuffled."""
    chosen = overrides or {}
    _check(experiment, chosen, scenes)
    order = random.Random(seed)  # noqa: S311 - an order, not a secret
    places: list[tuple[Scene, int, Levels]] = []
    for scene in experiment.scenes:
        if scenes is not None and scene.name not in scenes:
            continue
        points = scene.grid(preset, chosen)
        for repetition in range(repetitions or scene.repetitions.at(preset)):
            places += [(scene, repetition, point) for point in order.sample(points, len(points))]
    return [
        Planned(scene, Place(scene.name, number, repetition, point))
        for number, (scene, repetition, point) in enumerate(places)
    ]


def parse_overrides(experiment: Experiment, settings: Sequence[str]) -> dict[str, tuple[Level, ...]]:
    """`["partitions=1,6", "acks=all"]` as levels, typed by the factors. UsageError for what there is not."""
    factors = {each.name: each for scene in experiment.scenes for each in scene.factors}
    chosen: dict[str, tuple[Level, ...]] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in factors:
            raise UsageError(f"{setting!r}: want name=level,… with a name among {', '.join(sorted(factors))}")
        example = factors[name].levels.standard[0]
        chosen[name] = tuple(_level(name, part.strip(), example) for part in text.split(","))
    return chosen


def _level(name: str, text: str, example: Level) -> Level:
    if isinstance(example, bool):
        if text not in ("true", "false"):
            raise UsageError(f"{name}={text}: true or false")
        return text == "true"
    try:
        return type(example)(text)
    except ValueError:
        raise UsageError(f"{name}={text}: not a {type(example).__name__}") from None


def _check(experiment: Experiment, overrides: Mapping[str, Sequence[Level]], scenes: Sequence[str] | None) -> None:
    known = {each.name for scene in experiment.scenes for each in scene.factors}
    if unknown := set(overrides) - known:
        raise UsageError(
            f"{experiment.name} has no factor {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}"
        )
    names = {scene.name for scene in experiment.scenes}
    if missing := set(scenes or ()) - names:
        raise UsageError(
            f"{experiment.name} has no scene {', '.join(sorted(missing))}; it has {', '.join(sorted(names))}"
        )
