"""What the validation split chooses: the K of BRIM, and each method's settings."""

from __future__ import annotations

from collections.abc import Sequence

from brim.report import paper_numbers as the_paper
from brim.report.systems import (
    LLMR_HERE,
    TaskRuns,
    by_task,
    digits_of,
    shared_seeds,
    with_enough_seeds,
)
from brim.support.tables import ABSENT, Cell, Table


def best_k_table(tasks: Sequence[TaskRuns], *, paper: bool = False) -> Table | None:
    """Return the best K by task, chosen on the validation split (Table 8); None without BRIM."""
    columns = [c for c in tasks if c.brims]
    if not columns:
        return None
    rows: list[tuple[Cell, ...]] = []
    for kind, name in (("encoder-decoder", "T5"), ("decoder-only", "Qwen")):
        if any(c.kind == kind for c in columns):
            cells = (_best_k_cell(c, kind, name, paper=paper) for c in columns)
            rows.append((Cell(f"best K, {kind}"), *cells))
    metrics = [c.metrics[0] if c.metrics else c.criterion for c in columns]
    if any(m != c.criterion for m, c in zip(metrics, columns, strict=True)):
        best = [(c.best_brim(m), c.name_of(m)) for c, m in zip(columns, metrics, strict=True)]
        cells = (Cell(str(s.name.k), note=name) if s else Cell(ABSENT) for s, name in best)
        rows.append((Cell("best K by the task's first metric"), *cells))
    rows += [
        (Cell(f"validation score, K = {k}"), *(_validation(c, k) for c in columns))
        for k in sorted({s.name.k for c in columns for s in c.brims if s.name.k is not None})
    ]
    head = ("", *(f"{c.label}: validation {c.name_of(c.criterion)}" for c in columns))
    caption = (
        "The K whose mean validation score, of the checkpoints that are tested and over the seeds "
        "that all K have, is best; the test split has no say. The score is the one that picks "
        "checkpoints. A K that most texts do not exceed is LLMR, and no choice; nor is one with "
        "less than half of another's seeds."
    )
    data = [
        {
            "table": "table8",
            "task": c.label,
            "kind": c.kind,
            "k": s.name.k,
            "system": s.label,
            "criterion": c.criterion,
            "validation": c.on_validation(c.choices).get(s),
            "best": s is c.best_brim(),
            "llmr_here": s.is_llmr,
            "paper": the_paper.table8(c.name, c.kind) if paper else None,
        }
        for c in columns
        for s in c.brims
    ]
    return Table("table8", "Validation score by K", head, tuple(rows), caption, data)


def _best_k_cell(task: TaskRuns, kind: str, name: str, *, paper: bool) -> Cell:
    number = the_paper.table8(task.name, kind) if paper else None
    note = "" if number is None else f"paper, {name}: {number}"
    best = task.best_brim() if task.kind == kind else None
    return Cell(ABSENT if best is None else str(best.name.k), note=note)


def _validation(task: TaskRuns, k: int) -> Cell:
    values, best = task.validation_by_k(task.criterion), task.best_brim()
    if k not in values:
        is_llmr = any(s.is_llmr for s in task.brims if s.name.k == k)
        return Cell(ABSENT, note=LLMR_HERE if is_llmr else "")
    text = f"{values[k]:.{digits_of(task.criterion)}f}"
    return Cell(text, best=best is not None and best.name.k == k)


def settings_table(tasks: Sequence[TaskRuns]) -> Table | None:
    """Return the validation score of each setting of a method, such as a learning rate.

    None where each method has one setting only, or differs in K alone (`best_k_table`).
    """
    rows: list[tuple[Cell, ...]] = []
    data: list[dict[str, object]] = []
    for task in tasks:
        for systems in task.with_several_settings:
            values = task.on_validation(systems)
            best = task.best_settings(systems)
            seeds = len(shared_seeds(with_enough_seeds(systems)))
            for system in systems:
                value = values.get(system)
                text = ABSENT if value is None else f"{value:.{digits_of(task.criterion)}f}"
                cell = Cell(text, best=system in best)
                count = seeds if value is not None else len(system.runs)
                rows.append((Cell(task.label), Cell(system.label), cell, Cell(str(count))))
                data.append(
                    {
                        "table": "settings",
                        "task": task.label,
                        "system": system.label,
                        "criterion": task.criterion,
                        "validation": value,
                        "best": system in best,
                        "num_seeds": count,
                    }
                )
    if not rows:
        return None
    shown = [task for task in tasks if task.with_several_settings]
    names = dict.fromkeys(task.name_of(task.criterion) for task in shown)
    caption = (
        "The validation score of the checkpoint that is tested, mean over the n seeds that all "
        "settings of the method have; one with less than half of another's does not compete. In "
        "bold the best setting of each method, or those that tie; the test split has no say. "
        "Compare methods at their best settings, with other seeds than those that chose."
    )
    head = ("system", f"validation {' or '.join(names)}", "n")
    title = "Validation score by setting"
    return Table("settings", title, *by_task(tasks, head, rows), caption, data)
