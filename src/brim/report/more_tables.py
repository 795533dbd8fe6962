"""The tables of tests and of the best K."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from brim.report import paper_numbers as paper
from brim.report.seed_tests import SeedTest
from brim.report.systems import TaskRuns
from brim.report.table import ABSENT
from brim.report.tables import BuiltTable, Row
from brim.support.tables import Cell, PartTable

TestsByTask = Mapping[str, Sequence[SeedTest]]  # by the label of the task


def significance_tables(
    tasks: Sequence[TaskRuns], tests: TestsByTask, *, alpha: float
) -> list[BuiltTable]:
    """BRIM with the K of the validation split against each competitor; then every other test.

    Empty where nothing was tested.
    """
    first: list[tuple[TaskRuns, SeedTest]] = []
    others: list[tuple[TaskRuns, SeedTest]] = []
    for task in tasks:
        chosen = task.best_brim()
        shown = {*task.metrics[:1], *task.returns[:1]}
        for test in tests[task.label]:
            if test.test.p_value is None:
                continue  # one pair is no test
            main = chosen is not None and test.system == chosen.label and test.metric in shown
            (first if main else others).append((task, test))
    built = []
    for shown_tests, name, title in (
        (first, "significance", "Significance: BRIM, with the K of the validation split"),
        (others, "significance_all", "Significance: every other test"),
    ):
        if shown_tests:
            built.append(_test_table(shown_tests, name=name, title=title, alpha=alpha))
    return built


def _test_table(
    tests: Sequence[tuple[TaskRuns, SeedTest]], *, name: str, title: str, alpha: float
) -> BuiltTable:
    several = len({task.label for task, _ in tests}) > 1
    head = ["system", "against", "score", "difference", "p", "p (Holm)", "d_z", "pairs", "verdict"]
    rows = []
    for task, found in tests:
        test = found.test
        difference = f"{test.difference:+.2f}"
        if test.low is not None and test.high is not None:
            difference += f" [{test.low:+.2f}, {test.high:+.2f}]"
        rows.append(
            (
                *([Cell(task.label)] if several else []),
                Cell(found.system),
                Cell(found.against),
                Cell(task.example(found.metric).name),
                Cell(difference, significant=found.better and found.significant(alpha)),
                Cell(_p(test.p_value)),
                Cell(_p(found.holm)),
                Cell(ABSENT if test.effect_size is None else f"{test.effect_size:+.2f}"),
                Cell(str(test.num_pairs)),
                Cell(found.verdict(alpha)),
            )
        )
    caption = (
        f"Paired two-sided t-tests over shared seeds, difference with its 95 % interval; * better "
        f"with p < {alpha:g} (the paper: p < {paper.ALPHA}). Holm: corrected for all competitors "
        "of one system on one score. d_z: mean difference over its standard deviation."
    )
    part = PartTable(name, title, tuple(["task", *head] if several else head), tuple(rows), caption)
    return BuiltTable(part, [test_row(task.label, test, alpha) for task, test in tests])


def test_row(task: str, found: SeedTest, alpha: float) -> Row:
    """A test as plain values."""
    test = found.test
    return {
        "task": task,
        "system": found.system,
        "against": found.against,
        "score": found.metric,
        "difference": test.difference,
        "low": test.low,
        "high": test.high,
        "confidence": test.confidence,
        "p": test.p_value,
        "p_holm": found.holm,
        "d_z": test.effect_size,
        "num_pairs": test.num_pairs,
        "better": found.better,
        "verdict": found.verdict(alpha),
    }


def _p(value: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def best_k_table(tasks: Sequence[TaskRuns]) -> BuiltTable | None:
    """Table 8: the best K by task, chosen on the validation split; None without BRIM."""
    columns = [c for c in tasks if c.brims]
    if not columns:
        return None
    rows: list[tuple[Cell, ...]] = []
    tidy: list[Row] = []
    for kind, name in (("encoder-decoder", "T5"), ("decoder-only", "Qwen")):
        if any(c.kind == kind for c in columns):
            label = f"best K, {kind}"
            rows.append((Cell(label), *(_best_k_cell(c, kind, name) for c in columns)))
    metrics = [c.metrics[0] if c.metrics else c.criterion for c in columns]
    if any(m != c.criterion for m, c in zip(metrics, columns, strict=True)):
        cells = (_by_other_metric(c, m) for c, m in zip(columns, metrics, strict=True))
        rows.append((Cell("best K by the task's first metric"), *cells))
    rows += [
        (Cell(f"validation score, K = {k}"), *(_validation(c, k) for c in columns))
        for k in sorted({s.name.k for c in columns for s in c.brims if s.name.k is not None})
    ]
    for c in columns:
        best = c.best_brim()
        tidy += [
            {
                "table": "table8",
                "task": c.label,
                "kind": c.kind,
                "k": s.name.k,
                "system": s.label,
                "criterion": c.criterion,
                "validation": c.validation_by_k(c.criterion).get(s.name.k or 0, ""),
                "best": s is best,
                "paper": paper.table8(c.name, c.kind),
            }
            for s in c.brims
        ]
    head = ("", *(f"{c.label}: validation {_name(c, c.criterion)}" for c in columns))
    caption = (
        "The K whose mean validation score, of the checkpoints that are tested and over the seeds "
        "that all K have, is best; the test split has no say. The score is the one that picks "
        "checkpoints."
    )
    part = PartTable("table8", "Table 8: the best K", head, tuple(rows), caption)
    return BuiltTable(part, tidy)


def _best_k_cell(task: TaskRuns, kind: str, name: str) -> Cell:
    number = paper.table8(task.name, kind)
    note = "" if number is None else f"paper, {name}: {number}"
    best = task.best_brim() if task.kind == kind else None
    return Cell(ABSENT if best is None else str(best.name.k), note=note)


def _by_other_metric(task: TaskRuns, metric: str) -> Cell:
    best = task.best_brim(metric)
    name = _name(task, metric)
    return Cell(ABSENT) if best is None else Cell(str(best.name.k), note=name)


def _validation(task: TaskRuns, k: int) -> Cell:
    values, best = task.validation_by_k(task.criterion), task.best_brim()
    if k not in values:
        return Cell(ABSENT)
    return Cell(f"{values[k]:.2f}", best=best is not None and best.name.k == k)


def _name(task: TaskRuns, metric: str) -> str:
    return task.example(metric).name if metric in task.scores else metric
