"""The report on any number of runs: tables, figures, a summary, one page, all numbers as JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from brim.errors import ConfigError
from brim.files import atomic_write_bytes, atomic_write_json, atomic_write_text, disk_errors
from brim.progress import Reporter
from brim.report.figures import (
    learning_curves,
    ppo_figure,
    returns_figure,
    training_variance_figure,
)
from brim.report.findings import compared, findings, missing
from brim.report.gather import gather
from brim.report.k_figures import variance_figure
from brim.report.markdown import escape_markdown
from brim.report.more_tables import TestsByTask, best_k_table, significance_tables, test_row
from brim.report.outputs import choose_outputs
from brim.report.page import render_report
from brim.report.parts import Cell, Figure, PartTable
from brim.report.rendering import as_csv, as_latex, as_markdown
from brim.report.seed_tests import all_tests
from brim.report.systems import Gathered, Run, TaskRuns
from brim.report.table import ABSENT
from brim.report.tables import BuiltTable, decoder_only_table, main_table, return_table
from brim.report.verdicts import judge_table, read_verdicts

BASELINE = "LLMR"  # what BRIM extends
TITLE = "brim report"
MISSING = "Missing, unfinished and failed"
# So long that it is in files of its own only.
_NOT_ON_THE_PAGE = ("significance_all",)


def write_reports(
    directories: Sequence[Path],
    out: Path,
    *,
    split: str = "test",
    baseline: str | None = None,
    alpha: float = 0.05,
    max_outputs: int = 200,
    reporter: Reporter | None = None,
) -> str:
    """Read every run under the folders and write a report on them into `out`.

    The same run directories give the same bytes.

    Args:
        directories: looked through with all that is in them.
        out: a folder, made if need be.
        split: of the data.
        baseline: label of the system that marks of significance in the tables are against; LLMR
            by default.
        alpha: level of significance; the paper's is 0.035.
        max_outputs: examples on the page, with the texts of the first seed.
        reporter: tells the person who watches.

    Returns:
        The summary, as text for a terminal.

    Raises:
        ConfigError: no system is called `baseline`, or `alpha` is no probability.
        RunError: a folder is missing, has no finished run or a damaged one, or `out` cannot be
            written.
    """
    reporter = reporter or Reporter(quiet=True)
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha: {alpha} is not between 0 and 1")
    found = gather(directories, split=split)
    base = _check_baseline(found, baseline)
    num_runs = sum(len(system.runs) for task in found.tasks for system in task.systems)
    reporter.say(f"{num_runs} finished runs and {len(found.unfinished)} others")

    notes: list[str] = []
    tests = {task.label: all_tests(task) for task in found.tasks}
    tables = _tables(found, tests, base, alpha, split, notes)
    reporter.say("drawing")
    figures = _figures(found, out, notes)
    outputs, choice = choose_outputs(found.tasks, max_outputs, notes)
    found = replace(found, notes=(*found.notes, *notes))

    about = [compared(task, split) for task in found.tasks]
    sentences = {
        task.label: findings(task, tests[task.label], baseline=base, alpha=alpha)
        for task in found.tasks
    }
    gaps = missing(found)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    for table in tables:
        atomic_write_text(out / f"{table.part.name}.md", as_markdown(table.part))
        atomic_write_text(out / f"{table.part.name}.tex", as_latex(table.part))
        atomic_write_text(out / f"{table.part.name}.csv", as_csv(table.rows))
    for figure in figures:
        atomic_write_bytes(out / f"{figure.name}.png", figure.png)
        atomic_write_bytes(out / f"{figure.name}.svg", figure.svg)
    page = render_report(
        title=TITLE,
        lead="\n\n".join([*about, *_lines(sentences)]),
        tables=[
            *(table.part for table in tables if table.part.name not in _NOT_ON_THE_PAGE),
            *([_missing_table(gaps)] if gaps else []),
        ],
        figures=figures,
        outputs=outputs,
        systems=list(dict.fromkeys(label for output in outputs for label in output.texts)),
        settings=_settings(found.tasks),
        facts=_facts(found.tasks, out),
        choice=choice,
    )
    atomic_write_text(out / "report.html", page)
    atomic_write_json(out / "results.json", _results(found, tests, out, split, base, alpha))
    summary = _summary(about, sentences, gaps, tables, figures)
    atomic_write_text(out / "summary.md", summary)
    return "\n".join([*about, "", *_lines(sentences), *(["", *gaps] if gaps else [])])


def _check_baseline(found: Gathered, baseline: str | None) -> str:
    labels = dict.fromkeys(system.label for task in found.tasks for system in task.systems)
    if baseline is not None and baseline not in labels:
        raise ConfigError(f"--baseline: {baseline!r} is none of the systems: {', '.join(labels)}")
    return baseline or BASELINE


def _tables(
    found: Gathered,
    tests: TestsByTask,
    baseline: str,
    alpha: float,
    split: str,
    notes: list[str],
) -> list[BuiltTable]:
    tasks = found.tasks
    notes += [
        f"{task.label}: no {baseline}, so no marks of significance in the tables."
        for task in tasks
        if task.find(baseline) is None
    ]
    verdicts = read_verdicts(found.extras.get("judge.json", ()), tasks, split, notes)
    built = [
        main_table(tasks, baseline=baseline, alpha=alpha),
        return_table(tasks, baseline=baseline, alpha=alpha),
        judge_table(verdicts, tasks),
        decoder_only_table(tasks, baseline=baseline, alpha=alpha),
        best_k_table(tasks),
        *significance_tables(tasks, tests, alpha=alpha),
    ]
    return [table for table in built if table is not None and table.part.rows]


def _figures(found: Gathered, out: Path, notes: list[str]) -> list[Figure]:
    drawn = [
        returns_figure(found.tasks),
        *learning_curves(found.tasks),
        ppo_figure(found.tasks),
        training_variance_figure(found.tasks),
        variance_figure(found.extras.get("variance.json", ()), out, notes),
    ]
    return [figure for figure in drawn if figure is not None]


def _missing_table(gaps: Sequence[str]) -> PartTable:
    caption = f"{len(gaps):,} of what a reader may look for in vain."
    rows = tuple((Cell(line),) for line in gaps)
    return PartTable("missing", MISSING, ("what, and why",), rows, caption)


def _lines(sentences: dict[str, list[str]]) -> list[str]:
    """All findings, with their task where there are several."""
    several = len(sentences) > 1
    return [
        f"{task}: {sentence}" if several else sentence
        for task, found in sentences.items()
        for sentence in found
    ]


def _summary(
    about: Sequence[str],
    sentences: dict[str, list[str]],
    gaps: Sequence[str],
    tables: Sequence[BuiltTable],
    figures: Sequence[Figure],
) -> str:
    """Everything but the outputs as Markdown."""

    def bullets(lines: Sequence[str]) -> str:
        return "".join(f"- {escape_markdown(line)}\n" for line in lines)

    parts = [f"# {TITLE}\n", bullets(about), "## Findings\n", bullets(_lines(sentences))]
    if gaps:
        parts += [f"## {MISSING}\n", bullets(gaps)]
    parts += [as_markdown(t.part) for t in tables if t.part.name not in _NOT_ON_THE_PAGE]
    parts += [
        f"## {escape_markdown(figure.title)}\n\n"
        f"![{escape_markdown(figure.title)}]({figure.name}.png)\n\n"
        f"{escape_markdown(figure.caption)}\n"
        for figure in figures
    ]
    return "\n".join(parts)


def _prefix(task: TaskRuns, tasks: Sequence[TaskRuns]) -> str:
    return f"{task.label}: " if len(tasks) > 1 else ""


def _settings(tasks: Sequence[TaskRuns]) -> dict[str, str]:
    """Of the first seed of each system that has some."""
    return {
        f"{_prefix(task, tasks)}{system.label}": system.runs[0].text
        for task in tasks
        for system in task.systems
        if system.runs[0].text
    }


def _facts(tasks: Sequence[TaskRuns], out: Path) -> list[list[str]]:
    """A head and a row a run: where it is, how it was made."""
    rows = [
        [f"{_prefix(task, tasks)}{system.label}", *_provenance(run, out).values()]
        for task in tasks
        for system in task.systems
        for run in system.runs
    ]
    names = list(_provenance(tasks[0].systems[0].runs[0], out))
    return [["system", *names], *rows]


def _provenance(run: Run, out: Path) -> dict[str, str]:
    versions = run.manifest.get("versions", {})
    facts = {
        "seed": run.seed,
        "directory": os.path.relpath(run.directory, out),
        "steps": run.results.get("steps"),
        "tested step": run.results.get("best_step"),
        "seconds": None if "seconds" not in run.results else f"{run.results['seconds']:,.0f}",
        "started": run.manifest.get("started"),
        "platform": run.manifest.get("platform"),
        "settings' hash": (run.manifest.get("config_hash") or "")[:12] or None,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or None,
    }
    return {name: ABSENT if value is None else str(value) for name, value in facts.items()}


def _results(
    found: Gathered,
    tests: TestsByTask,
    out: Path,
    split: str,
    baseline: str,
    alpha: float,
) -> dict[str, Any]:
    """All scores by run and all tests, for other programs."""
    return {
        "split": split,
        "baseline": baseline,
        "alpha": alpha,
        "tasks": [
            {
                "label": task.label,
                "task": task.name,
                "kind": task.kind,
                "criterion": task.criterion,
                "best_k": best.name.k if (best := task.best_brim()) else None,
                "systems": [
                    {
                        "label": system.label,
                        "family": system.name.family,
                        "k": system.name.k,
                        "runs": [_run_results(run, task, out) for run in system.runs],
                    }
                    for system in task.systems
                ],
                "tests": [test_row(task.label, test, alpha) for test in tests[task.label]],
            }
            for task in found.tasks
        ],
        "unfinished": [
            {
                "directory": os.path.relpath(run.directory, out),
                "label": run.label,
                "seed": run.seed,
                "state": run.state,
            }
            for run in found.unfinished
        ],
        "notes": list(found.notes),
    }


def _run_results(run: Run, task: TaskRuns, out: Path) -> dict[str, Any]:
    facts = ("num_examples", "num_parameters", "steps", "best_step", "seconds")
    return {
        "directory": os.path.relpath(run.directory, out),
        "seed": run.seed,
        **{name: run.results.get(name) for name in facts},
        "validation": {name: run.validation(name) for name in task.scores},
        "scores": {name: score.as_dict() for name, score in run.scores.items()},
    }
