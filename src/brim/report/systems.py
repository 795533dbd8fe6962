"""What the runs of a report are: read once from their directories, grouped into systems."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from brim.errors import RunError
from brim.metrics import Score
from brim.report.labels import Name, name_of
from brim.report.paper_numbers import SEEDS
from brim.runs.directory import RunDirectory

RETURNS = ("expected_return", "return")
NO_METRICS = (*RETURNS, "length")  # scores of every task


@dataclass(frozen=True, eq=False)
class Run:
    """A directory with results of the split: a run's, a stage's, or a model's that was evaluated.

    Attributes:
        directory: of all of it.
        seed: of the training; None where there was none.
        settings: of `config.yaml`; empty without one.
        text: `config.yaml`, or a stage's `inputs.json`, as it is written.
        manifest: the provenance; empty without one.
        results: counts and training facts of the split.
        scores: by metric, `return`, `expected_return` and `length` among them.
        split: of the data.
    """

    directory: Path
    seed: int | None
    settings: Mapping[str, Any]
    text: str
    manifest: Mapping[str, Any]
    results: Mapping[str, Any]
    scores: Mapping[str, Score]
    split: str

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; none without one."""
        return RunDirectory(self.directory).log("metrics.jsonl")

    def curve(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of each line of `metrics.jsonl` with a finite number under `key`."""
        # A number that is not finite is there as the text "nan" or "inf", which float reads.
        points = [(row["step"], float(row[key])) for row in self.metrics if key in row]
        return [(step, value) for step, value in points if math.isfinite(value)]

    def validation(self, name: str) -> float | None:
        """The validation score of the checkpoint that was tested; None where it is not known."""
        best = self.results.get("best_step")
        return dict(self.curve(f"eval/{name}")).get(best) if best is not None else None


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

    def values(self, metric: str) -> list[float]:
        """Of the runs that have the score."""
        return [run.scores[metric].value for run in self.runs if metric in run.scores]

    def by_seed(self, metric: str) -> dict[int, float]:
        """Score by seed, of the runs that have both."""
        return {
            run.seed: run.scores[metric].value
            for run in self.runs
            if run.seed is not None and metric in run.scores
        }

    def score(self, metric: str) -> Score | None:
        """That of the first run which has it: its name, its direction."""
        return next((run.scores[metric] for run in self.runs if metric in run.scores), None)

    def validation(self, name: str, seeds: Collection[int | None]) -> float | None:
        """Mean over the runs of these seeds of the validation score of what was tested.

        None where there are no such runs, or one of them does not know it.
        """
        found = [run.validation(name) for run in self.runs if run.seed in seeds]
        known = [value for value in found if value is not None]
        return math.fsum(known) / len(known) if known and len(known) == len(found) else None

    def curves(self, key: str) -> list[list[tuple[int, float]]]:
        """A curve a run that has one."""
        return [curve for run in self.runs if (curve := run.curve(key))]


@dataclass(frozen=True, eq=False)
class TaskRuns:
    """Systems that learnt the same task from the same teacher with the same student.

    Attributes:
        label: unique among the tasks of a report.
        name: of the task, in the settings.
        kind: of the student.
        settings: what the systems share.
        systems: in the order of the rows.
        criterion: the score that picks checkpoints, and K, on the validation split.
        decoding: how most systems' texts were decoded, in words.
    """

    label: str
    name: str
    kind: str
    settings: Mapping[str, Any]
    systems: tuple[SystemRuns, ...]
    criterion: str
    decoding: str = "greedy"

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

    @cached_property
    def num_seeds(self) -> int:
        """The most seeds that a system has; what has fewer says so."""
        return max(len(system.runs) for system in self.systems)

    def example(self, metric: str) -> Score:
        """Some system's score, for its name and direction."""
        return next(score for system in self.systems if (score := system.score(metric)))

    def find(self, label: str) -> SystemRuns | None:
        """The system of this label."""
        return next((system for system in self.systems if system.label == label), None)

    @property
    def brims(self) -> list[SystemRuns]:
        """BRIM as the paper has it, a system a K; none that was decoded unlike the others."""
        found = [s for s in self.systems if s.name.family == "brim" and s.name.k is not None]
        return [system for system in found if not system.decoding]

    def validation_by_k(self, metric: str) -> dict[int, float]:
        """The mean validation score of each K, over the seeds that all K have.

        Empty where they share none, or a run does not know its own.
        """
        systems = {system.name.k: system for system in self.brims}
        seeds = [{run.seed for run in system.runs} for system in self.brims]
        shared = set.intersection(*seeds) if seeds else set()
        values = {k: system.validation(metric, shared) for k, system in systems.items()}
        known = {k: v for k, v in values.items() if k is not None and v is not None}
        return known if len(known) == len(self.brims) else {}

    def best_brim(self, metric: str | None = None) -> SystemRuns | None:
        """BRIM with the K whose mean validation score is best; the test split has no say.

        Args:
            metric: the score to choose by; the task's criterion by default.

        Returns:
            None without BRIM, or where the validation scores cannot decide. The only K needs none.
        """
        metric = metric or self.criterion
        if len(self.brims) == 1:
            return self.brims[0]
        values = self.validation_by_k(metric)
        if not values:
            return None
        higher = metric not in self.scores or self.example(metric).higher_is_better
        best = (max if higher else min)(values, key=lambda k: values[k])
        return next(system for system in self.brims if system.name.k == best)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A run directory without results of the split.

    Attributes:
        directory, label, seed: which it is, as far as known.
        state: how far it came, or how it failed.
    """

    directory: Path
    label: str
    seed: int | None
    state: str


@dataclass(frozen=True, slots=True)
class Gathered:
    """Everything under the folders of a report.

    Attributes:
        tasks: with their finished runs.
        unfinished: runs without results.
        notes: what else the reader must know, a sentence each.
        extras: other files of interest (`judge.json`, `variance.json`) by name.
    """

    tasks: tuple[TaskRuns, ...]
    unfinished: tuple[Unfinished, ...]
    notes: tuple[str, ...]
    extras: Mapping[str, tuple[Path, ...]]


def in_seed_order(runs: Iterable[Run]) -> list[Run]:
    """The paper's five seeds first and in its order, then others ascending."""

    def place(run: Run) -> tuple[int, int]:
        seed = -1 if run.seed is None else run.seed
        return (SEEDS.index(seed) if seed in SEEDS else len(SEEDS)), seed

    return sorted(runs, key=place)


# Folders with nothing to find in them; stages are found by the manifests of their runs.
_SKIPPED = {"checkpoints", "best", "predictions", "data", "stages"}
# What `brim sweep` writes into the log of a run that has failed.
_FAILED = re.compile(r"^brim sweep: (.*)$", re.MULTILINE)


def folders(roots: Sequence[Path]) -> Iterator[tuple[Path, set[str]]]:
    """Each folder under these once, in the order of the names, and the files in it.

    Raises:
        RunError: one of them is no folder.
    """
    seen: set[Path] = set()
    for root in roots:
        if not root.is_dir():
            raise RunError(f"{root}: no such folder; check the path")
        for place, below, files in os.walk(root):
            below[:] = sorted(f for f in below if f not in _SKIPPED and not f.startswith("."))
            directory = Path(place)
            if directory.resolve() not in seen:
                seen.add(directory.resolve())
                yield directory, set(files)


def read_run(directory: Path, split: str) -> Run:
    """A directory; without scores where there are no results of the split.

    Raises:
        RunError: a file is damaged.
    """
    run = RunDirectory(directory)
    found, settings = run.find_results(split), run.settings()
    return Run(
        directory=directory,
        seed=settings.get("seed"),
        settings=settings,
        text=run.settings_text(),
        manifest=run.manifest(),
        results=found.facts if found else {},
        scores=found.scores if found else {},
        split=split,
    )


def is_run(directory: Path, files: Collection[str]) -> bool:
    """Whether a folder with these files is a run's, finished or not.

    Raises:
        RunError: it is, and one of the files that make it one is missing.
    """
    missing = [name for name in ("config.yaml", "manifest.json") if name not in files]
    if len(missing) == 1 and not {"results.json", "metrics.jsonl"}.isdisjoint(files):
        raise RunError(f"{directory}: {missing[0]} is missing; bring it back, or remove the run")
    return not missing


def unfinished(run: Run) -> Unfinished:
    """How far a run came that has no results, or none of its end."""
    planned = RunDirectory(run.directory).planned_steps()
    try:
        step = max((row["step"] for row in run.metrics), default=0)
        state = f"at step {step:,}" + (f" of {planned:,}" if planned else "")
    except RunError as error:
        step, state = -1, str(error)
    if step == planned:
        state = f"trained, without results of the {run.split} split"
        stop = RunDirectory(run.directory).stopped_at(run.results)
        if stop:
            state = f"trained, but its results of the {run.split} split are of {stop}"
    label = name_of(run.settings.get("objective", {})).label
    return Unfinished(run.directory, label, run.seed, failure(run.directory) or state)


def not_begun(directory: Path) -> Unfinished:
    """A run that is held or was left before its own training began."""
    seed = re.fullmatch(r"seed=(\d+)", directory.name)
    label = directory.parent.name if seed else directory.name
    state = failure(directory) or "in the stages before its own training"
    return Unfinished(directory, label, int(seed[1]) if seed else None, state)


def failure(directory: Path) -> str | None:
    """What a sweep's log says of a run in it that has failed; None where it has not."""
    directory = directory.absolute()
    log = directory.parents[1] / "logs" / f"{directory.parent.name}-{directory.name}.log"
    if not log.is_file():
        return None
    words = _FAILED.findall(log.read_text(encoding="utf-8", errors="replace"))
    return f"{words[-1]} (see {log})" if words and words[-1].startswith("failed") else None
