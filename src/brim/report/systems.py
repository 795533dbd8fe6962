"""What a report compares: systems, a run for each seed of each, task by task."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from brim.compare.measures import other_samples
from brim.metrics import Score, spread
from brim.metrics.regrets import CUT_RETURNS, REGRETS
from brim.objectives.method import is_llmr
from brim.report.folders import Run, Unfinished
from brim.report.labels import PAPERS, Name
from brim.support.tables import ABSENT, interval_text, mean_text

RETURNS = ("expected_return", "return")
# What tells whether a return is of better text or of shorter text.
COMPANIONS = tuple(names[name] for names in (CUT_RETURNS, REGRETS) for name in RETURNS)
NO_METRICS = (*RETURNS, *COMPANIONS, "length")  # scores of every task
LLMR_HERE = "= LLMR here"


def digits_of(metric: str) -> int:
    """Return the digits of a score behind the point, in tables."""
    return 1 if metric == "length" else 3 if metric in REGRETS.values() else 2


@dataclass(frozen=True, eq=False)
class SystemRuns:
    """A method with its settings, and a run for each seed.

    Attributes:
        label: unique within its task.
        name: what the settings make it.
        runs: in the order of the seeds, no seed twice.
        decoding: what of how its texts were decoded is not as in most systems of its task; "" where
            nothing is. It is in the label, too.
    """

    label: str
    name: Name
    runs: tuple[Run, ...]
    decoding: str = ""

    @property
    def is_student(self) -> bool:
        """Whether it competes for the best place: the teacher does not."""
        return self.name.family != "teacher"

    @property
    def has_seeds(self) -> bool:
        """Whether it depends on the seed; what was loaded as it is does not."""
        return self.runs[0].seed is not None

    @cached_property
    def median_length(self) -> float | None:
        """The median number of tokens of its texts; of old results the mean, if they have that."""
        lengths = [run.scores["length"] for run in self.runs if "length" in run.scores]
        known = [length.details.get("median", length.value) for length in lengths]
        return float(np.median(known)) if known else None

    @property
    def is_llmr(self) -> bool:
        """Whether it is BRIM with a K that most texts do not exceed, which is LLMR.

        Neither those that were tested nor those of the first step: one that was trained on long
        texts and ends in short ones was not LLMR. K counts segments where the teacher reads text.
        """
        objective = self.runs[0].settings.get("objective", {})
        changed = any(objective.get(key, value) != value for key, value in PAPERS.items())
        if self.name.stem != "BRIM" or changed or not self.name.k or self.median_length is None:
            return False
        first = [run.curve("rollout/length")[:1] for run in self.runs]
        lengths = [self.median_length, *(length for found in first for _, length in found)]
        segment = [v for run in self.runs for _, v in run.curve("rollout/segment_length")]
        return is_llmr(self.name.k, [max(lengths) / (spread(segment)[0] if segment else 1)])

    def values(self, metric: str) -> list[float]:
        """Return the scores of the runs that have it."""
        return [run.scores[metric].value for run in self.runs if metric in run.scores]

    def by_seed(self, metric: str) -> dict[int, float]:
        """Return score by seed, of the runs that have both."""
        return {
            run.seed: run.scores[metric].value
            for run in self.runs
            if run.seed is not None and metric in run.scores
        }

    def score(self, metric: str) -> Score | None:
        """Return that of the first run which has it: its name, its direction."""
        return next((run.scores[metric] for run in self.runs if metric in run.scores), None)

    def score_text(self, metric: str) -> str:
        """Return `mean ± standard deviation` over the seeds, or a single run's with its interval.

        A dash where no run has the score.
        """
        values, score = self.values(metric), self.score(metric)
        if score is None:
            return ABSENT
        digits = digits_of(metric)
        if len(values) == 1:
            return interval_text(score.value, score.low, score.high, spec=f"z.{digits}f")
        return mean_text(*spread(values), digits=digits)

    def validation(self, name: str, seeds: Collection[int | None]) -> float | None:
        """Return the mean over these seeds' runs of the validation score of what was tested.

        None where there are no such runs, or one of them does not know it.
        """
        found = [run.validation(name) for run in self.runs if run.seed in seeds]
        known = [value for value in found if value is not None]
        return math.fsum(known) / len(known) if known and len(known) == len(found) else None


def with_enough_seeds(systems: Sequence[SystemRuns]) -> list[SystemRuns]:
    """Return those with half as many seeds as any: what fewer chose for all would be their luck."""
    most = max((len(system.runs) for system in systems), default=0)
    return [system for system in systems if 2 * len(system.runs) >= most]


def shared_seeds(systems: Iterable[SystemRuns]) -> set[int | None]:
    """Return the seeds that all of the systems have a run of."""
    seeds = [{run.seed for run in system.runs} for system in systems]
    return set.intersection(*seeds) if seeds else set()


@dataclass(frozen=True, eq=False)
class TaskRuns:
    """Systems that learned the same task from the same teacher with the same student.

    Attributes:
        label: unique among the tasks of a report.
        name: of the task, in the settings.
        kind: of the student: `encoder-decoder`, `decoder-only` or `unknown`.
        systems: in the order of the rows.
        criterion: the score that picks checkpoints, and K, on the validation split.
        decoding: how most systems' texts were decoded, in words.
        cut: tokens of the texts whose returns are compared at a common length; None where no run
            knows its regrets.
    """

    label: str
    name: str
    kind: str
    systems: tuple[SystemRuns, ...]
    criterion: str
    decoding: str = "greedy"
    cut: int | None = None

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The task's own metrics, its first metric first."""
        return tuple(name for name in self.scores if name not in NO_METRICS)

    @cached_property
    def scores(self) -> tuple[str, ...]:
        """All scores that some system has."""
        runs = [run for system in self.systems for run in system.runs]
        return tuple(dict.fromkeys(name for run in runs for name in run.scores))

    @property
    def returns(self) -> tuple[str, ...]:
        """The returns that some system has, the expected one first."""
        return tuple(name for name in RETURNS if name in self.scores)

    @property
    def tested(self) -> tuple[str, ...]:
        """The scores that systems are tested on: all but the length."""
        return (*self.metrics, *self.returns, *(name for name in COMPANIONS if name in self.scores))

    @property
    def num_examples(self) -> int:
        """Examples of the split."""
        return int(self.systems[0].runs[0].results.get("num_examples", 0))

    @cached_property
    def num_seeds(self) -> int:
        """The most seeds that a system has."""
        return max(len(system.runs) for system in self.systems)

    @property
    def with_fewer_seeds(self) -> list[SystemRuns]:
        """Systems whose means are over fewer seeds than others'."""
        return [s for s in self.systems if s.has_seeds and len(s.runs) < self.num_seeds]

    def example(self, metric: str) -> Score:
        """Return some system's score, for its name and direction."""
        return next(score for system in self.systems if (score := system.score(metric)))

    def name_of(self, metric: str) -> str:
        """Return the printed name of a score, or its key where no system has it."""
        return self.example(metric).name if metric in self.scores else metric

    def sampled_otherwise(self, metric: str) -> bool:
        """Return whether a score is of texts that not all systems sampled in one way."""
        first, *others = [run.results for system in self.systems for run in system.runs]
        return any(other_samples(first, other, metric) for other in others)

    def find(self, label: str) -> SystemRuns | None:
        """Return the system of this label."""
        return next((system for system in self.systems if system.label == label), None)

    @property
    def brims(self) -> list[SystemRuns]:
        """BRIM as the paper has it, a system a K; none that was decoded unlike the others."""
        found = [s for s in self.systems if s.name.family == "brim" and s.name.k is not None]
        return [system for system in found if not system.decoding]

    @property
    def choices(self) -> list[SystemRuns]:
        """The systems among whose K the best is sought: each K of BRIM that is not LLMR here."""
        return [system for system in self.brims if not system.is_llmr]

    @property
    def has_a_k_twice(self) -> bool:
        """Whether some K is there with several settings."""
        return len({system.name.k for system in self.choices}) < len(self.choices)

    def validation_by_k(self, metric: str) -> dict[int, float]:
        """Return the mean validation score of each K to choose from, over the seeds that all have.

        Empty where they share none, a run does not know its own, or some K is there twice.
        """
        if self.has_a_k_twice:
            return {}
        values = self.on_validation(self.choices, metric)
        return {s.name.k: value for s, value in values.items() if s.name.k is not None}

    def best_brim(self, metric: str | None = None) -> SystemRuns | None:
        """Return BRIM with the K whose mean validation score is best; the test split has no say.

        Args:
            metric: the score to choose by; the task's criterion by default.

        Returns:
            None without BRIM, or where the validation scores cannot decide. The only one needs
            none. Where a K is there with several settings, the best K with its best setting.
        """
        return self.best_setting(self.choices, metric)

    @property
    def ours(self) -> list[SystemRuns]:
        """What the report is about: BRIM and `anchored`, as the validation split chooses them."""
        anchored = [s for s in self.systems if s.name.family == "anchored" and not s.decoding]
        chosen = [self.best_brim(), self.best_setting(anchored)]
        return [system for system in chosen if system is not None]

    @property
    def with_several_settings(self) -> list[list[SystemRuns]]:
        """The systems of each method that has several, which differ in more than K."""
        methods: dict[str, list[SystemRuns]] = {}
        for system in self.systems:
            apart = system.decoding or not system.has_seeds or system.is_llmr
            if system.name.family not in ("teacher", "student") and not apart:
                methods.setdefault(system.name.stem, []).append(system)
        return [found for found in methods.values() if len({s.name.k for s in found}) < len(found)]

    def on_validation(
        self, systems: Sequence[SystemRuns], metric: str | None = None
    ) -> dict[SystemRuns, float]:
        """Return the mean validation score of each with enough seeds, over those that all have.

        Empty where one of them is not known, or they are no one measure. The score is the task's
        criterion by default.
        """
        if self.sampled_otherwise(metric or self.criterion):
            return {}
        systems = with_enough_seeds(systems)
        shared = shared_seeds(systems)
        values = {s: s.validation(metric or self.criterion, shared) for s in systems}
        known = {system: value for system, value in values.items() if value is not None}
        return known if len(known) == len(systems) else {}

    def best_setting(
        self, systems: Sequence[SystemRuns], metric: str | None = None
    ) -> SystemRuns | None:
        """Return the one with the best mean validation score; None where it is not known.

        One with too few seeds, see `with_enough_seeds`, does not compete.
        """
        systems = with_enough_seeds(systems)
        if len(systems) == 1:
            return systems[0]
        metric = metric or self.criterion
        values = self.on_validation(systems, metric)
        higher = metric not in self.scores or self.example(metric).higher_is_better
        return (max if higher else min)(values, key=lambda s: values[s]) if values else None

    def best_settings(self, systems: Sequence[SystemRuns]) -> list[SystemRuns]:
        """Return the best one, and those equal to it by the digits that are shown."""
        best, values = self.best_setting(systems), self.on_validation(systems)
        digits = digits_of(self.criterion)
        shown = {system: round(value, digits) for system, value in values.items()}
        return [system for system in shown if best and shown[system] == shown[best]]

    def best_students(self, metric: str, systems: Iterable[SystemRuns]) -> list[SystemRuns]:
        """Return the best student of those with the most seeds; none where it has no rival.

        None either where one with fewer seeds has a better mean: more seeds would have to tell.
        Several where they tie: are equal to the digits that are shown. What was decoded unlike the
        others does not compete, and a length is never the best.
        """
        if metric == "length" or self.sampled_otherwise(metric):
            return []
        students = [s for s in systems if s.is_student and not s.decoding and s.values(metric)]
        most = max((len(s.values(metric)) for s in students), default=0)
        means = {s: round(spread(s.values(metric))[0], digits_of(metric)) for s in students}
        rivals = [s for s in students if len(s.values(metric)) == most]
        if len(rivals) < 2:
            return []
        best = (max if self.example(metric).higher_is_better else min)(means.values())
        found = [s for s in students if means[s] == best]
        return found if set(found) <= set(rivals) else []


@dataclass(frozen=True, slots=True)
class Gathered:
    """Everything under the folders of a report.

    Attributes:
        tasks: with their finished runs.
        unfinished: runs without results.
        notes: what else the reader must know, a sentence each.
        extras: other files of interest (`judge.json`, `variance.json`) by name.
        description: what all runs are about; "" where nothing says it of all.
    """

    tasks: tuple[TaskRuns, ...]
    unfinished: tuple[Unfinished, ...]
    notes: tuple[str, ...]
    extras: Mapping[str, tuple[Path, ...]]
    description: str = ""

    def prefix(self, task: TaskRuns) -> str:
        """Return what goes before the label of a system where there are several tasks."""
        return f"{task.label}: " if len(self.tasks) > 1 else ""


def by_task(
    tasks: Sequence[TaskRuns], head: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]:
    """Return head and rows, whose first cell is the task, without it where there is one task."""
    first = 0 if len(tasks) > 1 else 1
    return ("task", *head)[first:], tuple(row[first:] for row in rows)
