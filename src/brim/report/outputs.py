"""What the systems wrote, example by example: the first seed of each, as many as one will read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from brim.errors import RunError
from brim.metrics import METRICS, sentence_scores
from brim.report.folders import Run
from brim.report.systems import Gathered, TaskRuns
from brim.training.predictions import Prediction


@dataclass(frozen=True, slots=True)
class Output:
    """One example with the text of each system.

    Attributes:
        id, prompt, references: of the example.
        texts: by the label of the system.
        numbers: by the label of the system, numbers of its text by name (`return`, `bleu`, …).
    """

    id: str
    prompt: str
    references: tuple[str, ...]
    texts: Mapping[str, str]
    numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def choose_outputs(found: Gathered, max_outputs: int, notes: list[str]) -> tuple[list[Output], str]:
    """Return examples evenly spaced over the split of each task, with the text of every system.

    Args:
        found: the runs.
        max_outputs: of all tasks together; 0 for none.
        notes: takes a sentence about each system whose predictions cannot be shown.

    Returns:
        The examples, and a sentence that says how they were chosen.
    """
    outputs: list[Output] = []
    chosen = []
    for task in found.tasks:
        runs = _first_runs(task)
        counts = {label: run.results["num_examples"] for label, run in runs.items()}
        count = min(counts.values())
        positions = evenly_spaced(range(count), max_outputs // len(found.tasks))
        written = {}
        for label, run in runs.items():
            try:
                written[label] = list(run.predictions(counts[label], positions))
            except RunError as error:
                notes.append(f"{label}: outputs not shown: {error}.")
        outputs += _aligned(task, written, found.prefix(task), notes)
        seeds = sorted({str(run.seed) for run in runs.values() if run.seed is not None})
        of = f"seed {', '.join(seeds)}" if seeds else "no seed"
        chosen.append(f"{len(positions):,} of {count:,} examples of {task.label} ({of})")
    return outputs, f"Evenly spaced over the split: {'; '.join(chosen)}." if outputs else ""


def _first_runs(task: TaskRuns) -> dict[str, Run]:
    """A run a system: that of the first seed which the most systems have, or else its own first."""
    seeds = [run.seed for system in task.systems for run in system.runs if run.seed is not None]
    first = max(dict.fromkeys(seeds), key=seeds.count, default=None)
    return {
        system.label: next((run for run in system.runs if run.seed == first), system.runs[0])
        for system in task.systems
    }


def _aligned(
    task: TaskRuns, written: Mapping[str, list[Prediction]], prefix: str, notes: list[str]
) -> list[Output]:
    if not written:
        return []
    first = next(iter(written.values()))
    ids = [row.id for row in first]
    same = {label: rows for label, rows in written.items() if [row.id for row in rows] == ids}
    notes += [
        f"{label}: outputs not shown, for they are of other examples."
        for label in written
        if label not in same
    ]
    scores = {label: _scores(rows, task.metrics[:1]) for label, rows in same.items()}
    return [
        Output(
            id=f"{prefix}{row.id}",
            prompt=row.prompt,
            references=row.references,
            texts={label: rows[i].text for label, rows in same.items()},
            numbers={
                label: _numbers(rows[i]) | {name: s[i] for name, s in scores[label].items()}
                for label, rows in same.items()
            },
        )
        for i, row in enumerate(first)
    ]


def _numbers(row: Prediction) -> dict[str, float]:
    """Of the text that is shown, the first of several samples."""
    shown = row.completions[0]
    numbers = {"return": shown.teacher_return, "length": shown.num_tokens}
    return {name: value for name, value in numbers.items() if value is not None}


def _scores(rows: Sequence[Prediction], metrics: Sequence[str]) -> dict[str, list[float]]:
    """Of each text that is shown; by statistics in the predictions that are of it alone."""
    scores: dict[str, list[float]] = {}
    for name in metrics:
        metric = METRICS.get(name)
        if metric is None or not rows or not all(row.references for row in rows):
            continue
        alone = all(len(row.completions) == 1 for row in rows)
        known = [row.statistics.get(name) if alone else None for row in rows]
        if all(known):
            formula = metric.sentence_score or metric.corpus_score
            values = formula(np.array(known, dtype=np.float64))
        else:
            values = sentence_scores(
                name, [row.text for row in rows], [row.references for row in rows]
            )
        scores[metric.label] = [float(value) for value in values]
    return scores


T = TypeVar("T")


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """Return at most `count` of the items, from the first to the last."""
    count = min(count, len(items))
    return [items[i * (len(items) - 1) // max(count - 1, 1)] for i in range(count)]
