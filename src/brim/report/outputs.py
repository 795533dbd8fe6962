"""What the systems wrote, example by example: the first seed of each, as many as one will read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from brim.errors import RunError
from brim.metrics import METRICS, sentence_scores
from brim.report.parts import Output
from brim.report.samples import evenly_spaced
from brim.report.systems import Run, TaskRuns
from brim.written import Written, read_written


def choose_outputs(
    tasks: Sequence[TaskRuns], max_outputs: int, notes: list[str]
) -> tuple[list[Output], str]:
    """Examples evenly spaced over the split of each task, with the text of every system.

    Args:
        tasks: of the report.
        max_outputs: of all tasks together; 0 for none.
        notes: takes a sentence about each system whose predictions cannot be shown.

    Returns:
        The examples, and a sentence that says how they were chosen.
    """
    outputs: list[Output] = []
    chosen = []
    for task in tasks:
        runs = _first_runs(task)
        counts = {label: run.results["num_examples"] for label, run in runs.items()}
        count = min(counts.values())
        positions = evenly_spaced(range(count), max_outputs // len(tasks))
        found = {}
        for label, run in runs.items():
            try:
                rows = read_written(
                    run.directory, run.split, count=counts[label], at=set(positions)
                )
                found[label] = list(rows)
            except RunError as error:
                notes.append(f"{label}: outputs not shown: {error}.")
        prefix = f"{task.label}: " if len(tasks) > 1 else ""
        outputs += _side_by_side(task, found, prefix, notes)
        seeds = sorted({str(run.seed) for run in runs.values() if run.seed is not None})
        of = f"seed {', '.join(seeds)}" if seeds else "no seed"
        chosen.append(f"{len(positions):,} of {count:,} examples of {task.label} ({of})")
    return outputs, f"Evenly spaced over the split: {'; '.join(chosen)}." if outputs else ""


def _first_runs(task: TaskRuns) -> dict[str, Run]:
    """A run a system: that of the first seed which the most systems have, or else its own first."""
    seeds = [run.seed for system in task.systems for run in system.runs if run.seed is not None]
    first = max(dict.fromkeys(seeds), key=seeds.count, default=None)
    chosen = {}
    for system in task.systems:
        same = [run for run in system.runs if run.seed == first]
        chosen[system.label] = (same or list(system.runs))[0]
    return chosen


def _side_by_side(
    task: TaskRuns, found: Mapping[str, list[Written]], prefix: str, notes: list[str]
) -> list[Output]:
    if not found:
        return []
    first = next(iter(found.values()))
    ids = [row.id for row in first]
    same = {label: rows for label, rows in found.items() if [row.id for row in rows] == ids}
    notes += [
        f"{label}: outputs not shown, for they are of other examples."
        for label in found
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


def _numbers(row: Written) -> dict[str, float]:
    numbers = {"return": row.teacher_return, "length": row.num_tokens}
    return {name: value for name, value in numbers.items() if value is not None}


def _scores(rows: Sequence[Written], metrics: Sequence[str]) -> dict[str, list[float]]:
    """Of each sentence; from the predictions' own statistics where they have them."""
    scores: dict[str, list[float]] = {}
    for name in metrics:
        metric = METRICS.get(name)
        if metric is None or not rows or not all(row.references for row in rows):
            continue
        known = [row.statistics.get(name) for row in rows]
        if all(known):
            formula = metric.sentence_score or metric.corpus_score
            values = formula(np.array(known, dtype=np.float64))
        else:
            values = sentence_scores(
                name, [row.text for row in rows], [row.references for row in rows]
            )
        scores[metric.label] = [float(value) for value in values]
    return scores
