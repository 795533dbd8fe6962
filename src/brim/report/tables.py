"""The tables of a report; where it is to be the paper's, with its numbers for comparison."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from brim.metrics import spread
from brim.report import paper_numbers as the_paper
from brim.report.folders import Run
from brim.report.labels import Name
from brim.report.seed_tests import SeedTest, seed_test
from brim.report.systems import (
    COMPANIONS,
    LLMR_HERE,
    RETURNS,
    SystemRuns,
    TaskRuns,
    by_task,
)
from brim.support.tables import ABSENT, Cell, Table, mean_text

Row = dict[str, Any]
Published = Callable[[str, str], Mapping[str, float]]
"""Task and metric to the paper's numbers by label."""


def main_table(
    tasks: Sequence[TaskRuns], *, baseline: str, alpha: float, paper: bool = False
) -> Table | None:
    """Return every metric of every task for every system (Table 1); None without metrics."""
    columns = [(c, metric) for c in tasks for metric in c.metrics]
    return _score_table(
        columns,
        name="table1",
        title="Scores",
        published=the_paper.table1 if paper else None,
        baseline=baseline,
        alpha=alpha,
    )


def decoder_only_table(
    tasks: Sequence[TaskRuns], *, baseline: str, alpha: float, paper: bool = False
) -> Table | None:
    """Return the first metric of tasks with decoder-only students (Table 7); None without any."""
    columns = [(c, c.metrics[0]) for c in tasks if c.kind == "decoder-only" and c.metrics]
    return _score_table(
        columns,
        name="table7",
        title="Scores of decoder-only students, with one BRIM",
        published=the_paper.table7 if paper else None,
        baseline=baseline,
        alpha=alpha,
    )


def return_table(tasks: Sequence[TaskRuns], *, baseline: str, alpha: float) -> Table | None:
    """Return the returns (the paper's Figure 1) with what explains them; None without any."""
    wanted = (*RETURNS, *COMPANIONS, "length")
    columns = [(c, name) for c in tasks for name in wanted if name in c.scores]
    return _score_table(
        columns,
        name="returns",
        title="Return and length in numbers",
        published=None,
        baseline=baseline,
        alpha=alpha,
        more="Return is in the teacher's logits: of greedy text, or, expected, of sampled "
        "text. It is a sum of negative regrets, so shorter text has the higher one: see regret per "
        "token, length, and the return of the first tokens, as many as half of each system's texts "
        "have.",
    )


def _score_table(
    columns: Sequence[tuple[TaskRuns, str]],
    *,
    name: str,
    title: str,
    published: Published | None,
    baseline: str,
    alpha: float,
    more: str = "",
) -> Table | None:
    """A row a system, a column a score of a task; None without columns."""
    if not columns:
        return None
    one_brim = name == "table7"
    several = len({c.label for c, _ in columns}) > 1
    head = ["system"]
    grid: list[dict[str, tuple[Cell, Row]]] = []
    names: dict[str, Name] = {}
    marks: dict[str, str] = {}
    for task, metric in columns:
        example = task.example(metric)
        arrow = "" if metric == "length" else " ↑" if example.higher_is_better else " ↓"
        head.append(f"{task.label}: {example.name}{arrow}" if several else example.name + arrow)
        chosen = task.best_brim() if one_brim else None
        systems = {
            "BRIM" if s is chosen else s.label: s
            for s in task.systems
            if not (one_brim and s in task.brims and s is not chosen)
        }
        names |= {
            label: Name(label, s.name.family, s.name.stem, None if label == "BRIM" else s.name.k)
            for label, s in systems.items()
        }
        marks |= {label: LLMR_HERE for label, s in systems.items() if s.is_llmr}
        kind = "decoder-only" if one_brim else "encoder-decoder"
        theirs = published(task.name, metric) if published and task.kind == kind else {}
        names |= {label: _paper_name(label) for label in theirs if label not in names}
        grid.append(
            _column(task, metric, systems, theirs, baseline=baseline, alpha=alpha, table=name)
        )
    labels = sorted(names, key=lambda label: names[label].place)
    rows = [
        (
            Cell(label, note=marks.get(label, "")),
            *(column.get(label, (Cell(ABSENT), {}))[0] for column in grid),
        )
        for label in labels
    ]
    data = [column[label][1] for column in grid for label in labels if label in column]
    caption = _caption([c for c, _ in columns], baseline, alpha, paper=published is not None)
    if any(row["paper"] is not None for row in data):
        pair = "Qwen1.5-4B into Qwen1.5-0.5B" if one_brim else "FLAN-T5-XL into T5-base"
        caption += f" In small print the paper's number ({pair})."
    if one_brim:
        caption += " BRIM is the K that is best on the validation split."
    return Table(name, title, tuple(head), tuple(rows), f"{caption} {more}".strip(), data)


def _column(
    task: TaskRuns,
    metric: str,
    systems: Mapping[str, SystemRuns],
    numbers: Mapping[str, float],
    *,
    baseline: str,
    alpha: float,
    table: str,
) -> dict[str, tuple[Cell, Row]]:
    """Cell and unrounded numbers of each system."""
    best = task.best_students(metric, systems.values())
    base = task.find(baseline)
    column: dict[str, tuple[Cell, Row]] = {}
    for label in dict.fromkeys([*systems, *numbers]):
        system, number = systems.get(label), numbers.get(label)
        notes = [] if number is None else [f"paper {number:.2f}"]
        row: Row = {"table": table, "task": task.label, "system": label, "score": metric}
        if system is None or not system.values(metric):
            column[label] = (Cell(ABSENT, note=", ".join(notes)), {**row, "paper": number})
            continue
        count = len(system.values(metric))
        if count < task.num_seeds and system.has_seeds:
            notes.insert(0, f"n = {count}")
        if label == "BRIM" and system.name.k is not None:
            notes.insert(0, f"K = {system.name.k}")
        test = None
        if base is not None and system is not base and system.is_student and metric != "length":
            test = seed_test(task, system, base, metric, alpha)
        cell = Cell(
            system.score_text(metric),
            best=system in best,
            significant=test is not None and test.better and test.significant(alpha),
            note=", ".join(notes),
        )
        row |= {**_numbers_of(system, metric), "paper": number}
        column[label] = (cell, {**row, "best": system in best, **_test_columns(test, baseline)})
    return column


def _numbers_of(system: SystemRuns, metric: str) -> Row:
    """Unrounded; the interval is that of one run."""
    values, score = system.values(metric), system.score(metric)
    alone = score if len(values) == 1 else None
    mean, deviation = spread(values)
    return {
        "mean": mean,
        "sd": deviation,
        "low": alone and alone.low,
        "high": alone and alone.high,
        "num_runs": len(values),
        "seeds": " ".join(str(run.seed) for run in system.runs if run.seed is not None),
    }


def _test_columns(found: SeedTest | None, baseline: str) -> Row:
    test = found and found.test
    return {
        "baseline": test and baseline,
        "difference": test and test.difference,
        "p": test and test.p_value,
        "d_z": test and test.effect_size,
        "num_pairs": test and test.num_pairs,
        "detectable": test and test.detectable,
    }


def _paper_name(label: str) -> Name:
    """The place of a row that only the paper has."""
    k = re.search(r"K = (\d+)", label)
    return Name(label, "other", re.sub(r" \(K = \d+\)", "", label), int(k[1]) if k else None)


def _caption(tasks: Sequence[TaskRuns], baseline: str, alpha: float, *, paper: bool) -> str:
    tasks = list({c.label: c for c in tasks}.values())
    sizes = f"{tasks[0].num_examples:,}"
    if len({c.num_examples for c in tasks}) > 1:
        sizes = ", ".join(f"{c.num_examples:,} ({c.label})" for c in tasks)
    most = max(c.num_seeds for c in tasks)
    seeds = f"mean ± standard deviation over {most} seeds" if most > 1 else "one seed"
    kind, _, _ = tasks[0].systems[0].runs[0].split.partition(".")
    text = (
        f"{kind.capitalize()} split, {sizes} examples; {seeds}; a "
        "single run with its interval over examples. Best student, or those that tie, in bold."
    )
    if any(c.find(baseline) for c in tasks):
        test = "paired two-sided t-test over the seeds" if most > 1 else "test over the sentences"
        if most > 1 and any(c.num_seeds == 1 for c in tasks):
            test += ", of one seed over its sentences"
        theirs = f" (the paper: p < {the_paper.ALPHA}, over seeds)" if paper else ""
        text += f" * better than {baseline}: p < {alpha:g} in a {test}{theirs}."
    for c in tasks:
        if any(system.decoding for system in c.systems):
            text += f" {c.label}:" if len(tasks) > 1 else ""
            text += f" {decoded_otherwise(c)}"
        if c.sampled_otherwise("expected_return"):
            text += f" {SAMPLED_OTHERWISE}"
    return text


SAMPLED_OTHERWISE = (
    "Expected returns are of texts sampled in several ways (temperature, top_k, top_p): none is "
    "tested against one of another way, and none is the best."
)


def decoded_otherwise(task: TaskRuns) -> str:
    """Return a sentence on systems whose texts were decoded unlike those of most."""
    labels = ", ".join(system.label for system in task.systems if system.decoding)
    return (
        f"{labels}: decoded otherwise than the rest ({task.decoding}), so not tested against them, "
        "and never the best."
    )


_FALLS = {
    "largest_fall": "largest fall",
    "final_fall": "fall at the end",
    "rise": "rise to the best",
    "skipped_share": "skipped updates, %",
}


def stability_table(tasks: Sequence[TaskRuns]) -> Table | None:
    """Return a row a system that has a learning curve; None without any."""
    rows: list[tuple[Cell, ...]] = []
    data: list[Row] = []
    names: dict[str, str] = {}  # of the score, by the label of the task
    for task in tasks:
        for system in task.systems:
            found = {run.seed: n for run in system.runs if (n := stability(run, system, task))}
            if not found:
                continue
            metric = _stability_score(task)
            names[task.label] = task.name_of(metric)
            lost = sum(numbers["not_finite"] for numbers in found.values())
            cells: list[Cell] = []
            for column in _FALLS:
                values = [numbers[column] for numbers in found.values() if column in numbers]
                note = f"{lost:,.0f} not finite" if lost and not cells else ""
                cells.append(Cell(mean_text(*spread(values)) if values else ABSENT, note=note))
                if values:
                    mean, deviation = spread(values)
                    data.append(
                        {
                            "table": "stability",
                            "task": task.label,
                            "system": system.label,
                            "score": metric,
                            "number": column,
                            "mean": mean,
                            "sd": deviation,
                            "num_runs": len(values),
                            "seeds": " ".join(str(seed) for seed in found if seed is not None),
                        }
                    )
            rows.append((Cell(task.label), Cell(system.label), *cells, Cell(str(len(found)))))
    same = len(set(names.values())) == 1
    score = [name if same else f"{name} ({label})" for label, name in names.items()]
    caption = (
        f"Of the validation split's {', '.join(dict.fromkeys(score))} while training, mean ± "
        "standard deviation over n seeds. Largest fall: below the best value before it. Fall at "
        "the end: of the last value below the best one. Rise: of the best value above the first "
        "one; what learns nothing never falls. Skipped: updates whose loss or gradient was not "
        "finite."
    )
    head = ("system", *_FALLS.values(), "n")
    title = "How steady training was"
    return Table("stability", title, *by_task(tasks, head, rows), caption, data) if rows else None


def _stability_score(task: TaskRuns) -> str:
    """The score whose falls are taken: the expected return, or the first that there is."""
    return next(iter((*task.returns, *task.metrics, *task.scores)))


def stability(run: Run, system: SystemRuns, task: TaskRuns) -> Mapping[str, float]:
    """Return how far the validation score fell in one training.

    Empty without a learning curve, and for the stages, whose curves are of other steps and losses.

    Returns:
        In units of the score, and never below 0: `largest_fall`, max over t of max_{s ≤ t} v_s −
        v_t; `final_fall`, max_t v_t − v_T; `rise`, max_t v_t − v_0. Where a lower score is better,
        v is its negative. `not_finite`: evaluations that are no finite number, and left out.
        `skipped_share`: updates of those that were logged, in per cent, where that is known.
    """
    metric = _stability_score(task)
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
