"""The tables of a report, in the layout of the paper's, with its numbers beside ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from brim.metrics import spread
from brim.report import paper_numbers as paper
from brim.report.labels import Name
from brim.report.seed_tests import SeedTest, seed_test
from brim.report.systems import SystemRuns, TaskRuns
from brim.report.table import ABSENT, with_interval
from brim.support.tables import Cell, PartTable

Row = dict[str, Any]
Published = Callable[[str, str, str], float | None]


@dataclass(frozen=True, slots=True)
class BuiltTable:
    """A table to look at, and the same numbers unrounded, a row a number."""

    part: PartTable
    rows: list[Row]


def main_table(tasks: Sequence[TaskRuns], *, baseline: str, alpha: float) -> BuiltTable | None:
    """Table 1: every metric of every task for every system; None without metrics."""
    columns = [(c, metric) for c in tasks for metric in c.metrics]
    return _score_table(
        columns,
        name="table1",
        title="Table 1: main results",
        published=paper.table1,
        baseline=baseline,
        alpha=alpha,
    )


def decoder_only_table(
    tasks: Sequence[TaskRuns], *, baseline: str, alpha: float
) -> BuiltTable | None:
    """Table 7: the first metric of every task for decoder-only students; None without any."""
    columns = [(c, c.metrics[0]) for c in tasks if c.kind == "decoder-only" and c.metrics]
    return _score_table(
        columns,
        name="table7",
        title="Table 7: decoder-only students",
        published=paper.table7,
        baseline=baseline,
        alpha=alpha,
        one_brim=True,
    )


def return_table(tasks: Sequence[TaskRuns], *, baseline: str, alpha: float) -> BuiltTable | None:
    """The numbers of Figure 1: returns, and the length beside them; None without either."""
    wanted = ("expected_return", "return", "length")
    columns = [(c, name) for c in tasks for name in wanted if name in c.scores]
    return _score_table(
        columns,
        name="returns",
        title="Figure 1 in numbers: average return by method",
        published=lambda task, metric, label: None,
        baseline=baseline,
        alpha=alpha,
        more="Return is Eq 10 in the teacher's logits: of greedy text, or, expected, of sampled "
        "text. It is a sum of negative regrets, so shorter text has the higher one: see length.",
    )


def _score_table(
    columns: Sequence[tuple[TaskRuns, str]],
    *,
    name: str,
    title: str,
    published: Published,
    baseline: str,
    alpha: float,
    one_brim: bool = False,
    more: str = "",
) -> BuiltTable | None:
    """A row a system, a column a score of a task; None without columns."""
    if not columns:
        return None
    several = len({c.label for c, _ in columns}) > 1
    head = ["system"]
    grid: list[dict[str, tuple[Cell, Row]]] = []
    names: dict[str, Name] = {}
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
        numbers = _published(task, metric, published)
        names |= {label: _paper_name(label) for label in numbers if label not in names}
        grid.append(
            _column(task, metric, systems, numbers, baseline=baseline, alpha=alpha, table=name)
        )
    labels = sorted(names, key=lambda label: names[label].place)
    rows = [
        (Cell(label), *(column.get(label, (Cell(ABSENT), {}))[0] for column in grid))
        for label in labels
    ]
    tidy = [column[label][1] for column in grid for label in labels if label in column]
    caption = _caption([c for c, _ in columns], baseline, alpha)
    if any("paper" in row and row["paper"] != "" for row in tidy):
        pair = "Qwen1.5-4B into Qwen1.5-0.5B" if one_brim else "FLAN-T5-XL into T5-base"
        caption += f" In small print the paper's number ({pair})."
    if one_brim:
        caption += " BRIM is the K that is best on the validation split."
    return BuiltTable(
        PartTable(name, title, tuple(head), tuple(rows), f"{caption} {more}".strip()), tidy
    )


def _column(
    task: TaskRuns,
    metric: str,
    systems: dict[str, SystemRuns],
    numbers: dict[str, float],
    *,
    baseline: str,
    alpha: float,
    table: str,
) -> dict[str, tuple[Cell, Row]]:
    """Cell and unrounded numbers of each system."""
    best = best_student(task, metric, systems.values())
    base = task.find(baseline)
    column: dict[str, tuple[Cell, Row]] = {}
    for label in dict.fromkeys([*systems, *numbers]):
        system, number = systems.get(label), numbers.get(label)
        notes = [] if number is None else [f"paper {number:.2f}"]
        row: Row = {"table": table, "task": task.label, "system": label, "score": metric}
        if system is None or not system.values(metric):
            column[label] = (Cell(ABSENT, note=", ".join(notes)), {**row, "paper": number or ""})
            continue
        values = system.values(metric)
        if len(values) < task.num_seeds and system.runs[0].seed is not None:
            notes.insert(0, f"n = {len(values)}")
        if label == "BRIM" and system.name.k is not None:
            notes.insert(0, f"K = {system.name.k}")
        test = None
        if base is not None and system is not base and system.is_student and metric != "length":
            test = seed_test(task, system, base, metric)
        marked = test is not None and test.better and test.significant(alpha)
        cell = Cell(
            score_text(system, metric),
            best=system is best,
            significant=marked,
            note=", ".join(notes),
        )
        row |= {**numbers_of(system, metric), "paper": "" if number is None else number}
        column[label] = (cell, {**row, "best": system is best, **_test_columns(test, baseline)})
    return column


def best_student(task: TaskRuns, metric: str, systems: Iterable[SystemRuns]) -> SystemRuns | None:
    """The best student of those with the most seeds; None where it has no rival.

    What was decoded unlike the others does not compete.
    """
    if metric == "length":
        return None
    students = [s for s in systems if s.is_student and not s.decoding and s.values(metric)]
    most = max((len(s.values(metric)) for s in students), default=0)
    rivals = [s for s in students if len(s.values(metric)) == most]
    if len(rivals) < 2:
        return None
    choose = max if task.example(metric).higher_is_better else min
    return choose(rivals, key=lambda s: spread(s.values(metric))[0])


def score_text(system: SystemRuns, metric: str) -> str:
    """`mean ± standard deviation` over the seeds, or one run's score with its interval."""
    values, score = system.values(metric), system.score(metric)
    if not values:
        return ABSENT
    mean, deviation = spread(values)
    digits = 1 if metric == "length" else 2
    if deviation is None:
        return with_interval(score, digits)
    return f"{mean:z.{digits}f} ± {deviation:.{digits}f}"


def numbers_of(system: SystemRuns, metric: str) -> Row:
    """The same unrounded; the interval is that of one run."""
    values, score = system.values(metric), system.score(metric)
    if not values or score is None:
        return {}
    mean, deviation = spread(values)
    alone = len(values) == 1
    return {
        "mean": mean,
        "sd": "" if deviation is None else deviation,
        "low": score.low if alone else "",
        "high": score.high if alone else "",
        "num_runs": len(values),
        "seeds": " ".join(str(run.seed) for run in system.runs if run.seed is not None),
    }


def _test_columns(test: SeedTest | None, baseline: str) -> Row:
    if test is None:
        return {"baseline": "", "difference": "", "p": "", "d_z": "", "num_pairs": ""}
    found = test.test
    return {
        "baseline": baseline,
        "difference": found.difference,
        "p": "" if found.p_value is None else found.p_value,
        "d_z": "" if found.effect_size is None else found.effect_size,
        "num_pairs": found.num_pairs,
    }


def _published(task: TaskRuns, metric: str, published: Published) -> dict[str, float]:
    """The paper's numbers of a column, if the task and the kind of student are the paper's."""
    table, kind = paper.TABLE1, "encoder-decoder"
    if published is paper.table7:
        table, kind = paper.TABLE7, "decoder-only"
    if task.kind != kind:
        return {}
    found = {label: published(task.name, metric, label) for label in table}
    return {label: number for label, number in found.items() if number is not None}


def _paper_name(label: str) -> Name:
    """The place of a row that only the paper has."""
    k = re.search(r"K = (\d+)", label)
    return Name(label, "other", re.sub(r" \(K = \d+\)", "", label), int(k[1]) if k else None)


def _caption(tasks: Sequence[TaskRuns], baseline: str, alpha: float) -> str:
    tasks = list({c.label: c for c in tasks}.values())
    run = tasks[0].systems[0].runs[0]
    counts = [f"{c.systems[0].runs[0].results.get('num_examples', 0):,}" for c in tasks]
    sizes = counts[0]
    if len(set(counts)) > 1:
        sizes = ", ".join(f"{n} ({c.label})" for n, c in zip(counts, tasks, strict=True))
    most = max(c.num_seeds for c in tasks)
    spread_text = f"mean ± standard deviation over {most} seeds" if most > 1 else "one seed"
    text = (
        f"{run.split.capitalize()} split, {sizes} examples; {spread_text}; a single run with its "
        "bootstrap interval over examples. Best student in bold."
    )
    if any(c.find(baseline) for c in tasks) and most > 1:
        text += (
            f" * better than {baseline}: p < {alpha:g} in a paired two-sided t-test over the seeds "
            f"(the paper: p < {paper.ALPHA})."
        )
    for c in tasks:
        if any(system.decoding for system in c.systems):
            text += f" {c.label}:" if len(tasks) > 1 else ""
            text += f" {decoded_otherwise(c)}"
    return text


def decoded_otherwise(task: TaskRuns) -> str:
    """A sentence on systems whose texts were decoded unlike those of most."""
    labels = ", ".join(system.label for system in task.systems if system.decoding)
    return (
        f"{labels}: decoded otherwise than the rest ({task.decoding}), so not tested against them, "
        "and never the best."
    )
