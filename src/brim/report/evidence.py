"""What a run directory says about a system, read and checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brim.errors import ConfigError, RunError
from brim.metrics import Score
from brim.runs.directory import RunDirectory
from brim.training.predictions import Prediction


@dataclass(frozen=True, slots=True)
class System:
    """A model in a report.

    Attributes:
        label: its name in every table and figure.
        directory: holds `results.json` and `predictions/{split}.jsonl`.
        train: draw its learning curves, from the directory's `metrics.jsonl`.
    """

    label: str
    directory: Path
    train: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """A system with all that its directory holds.

    Attributes:
        label, directory: of the system.
        results: counts and training facts of the split, as `results.json` has them.
        scores: by metric, `return` and `length` among them.
        predictions: one an example, in the split's order.
        metrics: the lines of `metrics.jsonl`; none for a system without learning curves.
        settings: the text of `config.yaml`, or of a stage's `inputs.json`; None without either.
        manifest: the run's provenance; empty where there is none.
    """

    label: str
    directory: Path
    results: Mapping[str, Any]
    scores: Mapping[str, Score]
    predictions: Sequence[Prediction]
    metrics: Sequence[Mapping[str, Any]]
    settings: str | None
    manifest: Mapping[str, Any]

    def curve(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of each line of `metrics.jsonl` with a finite number under `key`."""
        # A number that is not finite is there as the text "nan" or "inf", which float reads.
        points = [(row["step"], float(row[key])) for row in self.metrics if key in row]
        return [(step, value) for step, value in points if math.isfinite(value)]


def read_evidence(
    systems: Sequence[System], *, metric: str, baseline: str, split: str
) -> list[Evidence]:
    """Read the directories of all systems and make sure that they can stand in one table.

    Raises:
        ConfigError: a label twice, or `baseline` is not the label of a system.
        RunError: a directory or file is missing or damaged, there is no score called `metric`, or
            the systems were not evaluated on the same examples in the same way.
    """
    labels = [system.label for system in systems]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"systems: each needs a label of its own, not {', '.join(labels)}")
    if baseline not in labels:
        raise ConfigError(f"baseline: {baseline!r} is none of the systems: {', '.join(labels)}")
    evidence = [_read_system(system, split) for system in systems]
    first = evidence[0]
    for other in evidence:
        if metric not in other.scores:
            raise RunError(
                f"{other.directory / 'results.json'}: no score {metric!r} of the {split} split; "
                f"there are {', '.join(other.scores)}"
            )
        if other.scores[metric].confidence != first.scores[metric].confidence:
            raise RunError(
                f"{other.directory / 'results.json'}: intervals of another confidence than in "
                f"{first.directory}; evaluate both with the same evaluation.confidence"
            )
        if [p.id for p in other.predictions] != [p.id for p in first.predictions]:
            raise RunError(
                f"{RunDirectory(other.directory).predictions_path(split)}: other examples than in "
                f"{first.directory}; evaluate both on the same data"
            )
    return evidence


def _read_system(system: System, split: str) -> Evidence:
    directory, run = system.directory, RunDirectory(system.directory)
    results = run.results(split)
    return Evidence(
        label=system.label,
        directory=directory,
        results=results.facts,
        scores=results.scores,
        predictions=list(run.predictions(split, count=results.num_examples)),
        metrics=_read_metrics(directory) if system.train else [],
        settings=run.settings_text() or None,
        manifest=run.manifest(),
    )


def _read_metrics(directory: Path) -> list[dict[str, Any]]:
    path = directory / "metrics.jsonl"
    if not path.exists():
        raise RunError(f"{path}: missing, and learning curves are drawn from it; check the path")
    return RunDirectory(directory).log(path.name)
