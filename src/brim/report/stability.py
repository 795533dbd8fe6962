"""How steadily a system was trained: how far its validation score fell, how many updates failed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from brim.metrics import spread
from brim.report.systems import Run, SystemRuns, TaskRuns
from brim.report.table import ABSENT
from brim.report.tables import BuiltTable, Row
from brim.support.tables import Cell, PartTable

_COLUMNS = {
    "largest_fall": "largest fall",
    "final_fall": "fall at the end",
    "rise": "rise to the best",
    "skipped_share": "skipped updates, %",
}


def stability_table(tasks: Sequence[TaskRuns]) -> BuiltTable | None:
    """A row a system that has a learning curve; None without any."""
    several = len(tasks) > 1
    rows: list[tuple[Cell, ...]] = []
    tidy: list[Row] = []
    names: dict[str, str] = {}  # of the score, by the label of the task
    for task in tasks:
        metric = stability_score(task)
        for system in task.systems:
            found = {run.seed: stability(run, system, task) for run in system.runs}
            found = {seed: numbers for seed, numbers in found.items() if numbers}
            if not found:
                continue
            names[task.label] = task.example(metric).name
            values = {
                column: [numbers[column] for numbers in found.values() if column in numbers]
                for column in _COLUMNS
            }
            lost = sum(numbers["not_finite"] for numbers in found.values())
            note = f"{lost:,.0f} not finite" if lost else ""
            rows.append(
                (
                    *([Cell(task.label)] if several else []),
                    Cell(system.label),
                    *(
                        Cell(_text(values[column]), note=note * (i == 0))
                        for i, column in enumerate(_COLUMNS)
                    ),
                    Cell(str(len(found))),
                )
            )
            tidy += [
                {
                    "table": "stability",
                    "task": task.label,
                    "system": system.label,
                    "score": metric,
                    "number": column,
                    **_numbers(values[column]),
                    "seeds": " ".join(str(seed) for seed in found if seed is not None),
                }
                for column in _COLUMNS
                if values[column]
            ]
    if not rows:
        return None
    head = ("system", *_COLUMNS.values(), "n")
    same = len(set(names.values())) == 1
    score = [name if same else f"{name} ({label})" for label, name in names.items()]
    caption = (
        f"Of the validation split's {', '.join(dict.fromkeys(score))} while training, mean ± "
        "standard deviation over n seeds. Largest fall: below the best value before it. Fall at "
        "the end: of the last value below the best one. Rise: of the best value above the first "
        "one; what learns nothing never falls. Skipped: updates whose loss or gradient was not "
        "finite."
    )
    part = PartTable(
        "stability",
        "Stability: falls of the learning curves",
        ("task", *head) if several else head,
        tuple(rows),
        caption,
    )
    return BuiltTable(part, tidy)


def stability_score(task: TaskRuns) -> str:
    """The score whose falls are taken: the expected return, or the first that there is."""
    return next(iter((*task.returns, *task.metrics, *task.scores)))


def stability(run: Run, system: SystemRuns, task: TaskRuns) -> Mapping[str, float]:
    """How far the validation score fell in one training.

    Empty without a learning curve, and for the stages, whose curves are of other steps and losses.

    Returns:
        In units of the score, and never below 0: `largest_fall`, max over t of max_{s ≤ t} v_s −
        v_t; `final_fall`, max_t v_t − v_T; `rise`, max_t v_t − v_0. Where a lower score is better,
        v is its negative. `not_finite`: evaluations that are no finite number, and left out.
        `skipped_share`: updates of those that were logged, in per cent, where that is known.
    """
    metric = stability_score(task)
    key = f"eval/{metric}"
    sign = 1.0 if task.example(metric).higher_is_better else -1.0
    values = [sign * value for _, value in run.curve(key)]
    if len(values) < 2 or system.name.family in ("teacher", "student"):
        return {}
    best = list(itertools.accumulate(values, max))
    numbers = {
        "largest_fall": max(top - value for top, value in zip(best, values, strict=True)),
        "final_fall": best[-1] - values[-1],
        "rise": best[-1] - values[0],
        "not_finite": float(sum(key in row for row in run.metrics) - len(values)),
    }
    skipped = [value for _, value in run.curve("optim/skipped")]
    if skipped:
        numbers["skipped_share"] = 100 * math.fsum(skipped) / len(skipped)
    return numbers


def _text(values: Sequence[float]) -> str:
    if not values:
        return ABSENT
    mean, deviation = spread(values)
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def _numbers(values: Sequence[float]) -> Row:
    mean, deviation = spread(values)
    return {"mean": mean, "sd": "" if deviation is None else deviation, "num_runs": len(values)}
