"""What the systems wrote, example by example: the first seed of each, as many as one will read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from brim.errors import RunError
from brim.metrics import METRICS, sentence_scores
from brim.report.evidence import Evidence
from brim.report.systems import Run, TaskRuns
from brim.runs.directory import RunDirectory
from brim.support.tables import Output, escape_markdown, markdown_table
from brim.training.predictions import Prediction


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
                rows = RunDirectory(run.directory).predictions(
                    run.split, count=counts[label], at=set(positions)
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
    task: TaskRuns, found: Mapping[str, list[Prediction]], prefix: str, notes: list[str]
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


def _numbers(row: Prediction) -> dict[str, float]:
    numbers = {"return": row.teacher_return, "length": row.num_tokens}
    return {name: value for name, value in numbers.items() if value is not None}


def _scores(rows: Sequence[Prediction], metrics: Sequence[str]) -> dict[str, list[float]]:
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


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples and how they were chosen.

    Attributes:
        rows: in the split's order.
        choice: a sentence for the reader.
    """

    rows: tuple[Output, ...]
    choice: str

    def as_markdown(self) -> str:
        """A small table a sample."""
        parts = [self.choice + "\n"]
        for number, sample in enumerate(self.rows, start=1):
            parts.append(f"### {number}. {escape_markdown(sample.id)}\n")
            references = [("reference", text) for text in sample.references]
            rows = [("prompt", sample.prompt), *references, *sample.texts.items()]
            parts.append(markdown_table([("", "text"), *rows]))
        return "\n".join(parts)


def choose_samples(evidence: Sequence[Evidence], num_samples: int) -> Samples:
    """The same samples for the same predictions: half from all examples, half where texts differ.

    Both halves are evenly spaced; the second leaves out what is in the first.
    """
    columns = [system.predictions for system in evidence]
    num_examples = len(columns[0])
    spaced = evenly_spaced(range(num_examples), num_samples // 2)
    differing = [i for i in range(num_examples) if len({column[i].text for column in columns}) > 1]
    more = evenly_spaced([i for i in differing if i not in spaced], num_samples - len(spaced))
    rows = [
        Output(
            id=columns[0][i].id,
            prompt=columns[0][i].prompt,
            references=columns[0][i].references,
            texts={
                system.label: column[i].text
                for system, column in zip(evidence, columns, strict=True)
            },
            numbers={
                system.label: {"return": value}
                for system, column in zip(evidence, columns, strict=True)
                if (value := column[i].teacher_return) is not None
            },
        )
        for i in sorted([*spaced, *more])
    ]
    choice = (
        f"{len(spaced)} examples evenly spaced over all {num_examples:,} of the split, and "
        f"{len(more)} over the {len(differing):,} where the texts of the systems differ."
    )
    return Samples(tuple(rows), choice)


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, from the first to the last."""
    count = min(count, len(items))
    return [items[i * (len(items) - 1) // max(count - 1, 1)] for i in range(count)]
