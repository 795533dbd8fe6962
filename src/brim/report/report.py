"""The report on any number of runs: tables, figures, a summary, one page, all numbers as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from brim.errors import ConfigError, RunError
from brim.report.choices import best_k_table, settings_table
from brim.report.colors import looks_of
from brim.report.figures import learning_curves, returns_figure, variance_figure
from brim.report.gather import gather
from brim.report.layout import PARTS, sections, titled_as_the_paper
from brim.report.lead import MARK, for_terminal, lead_of, summary_page
from brim.report.outputs import choose_outputs
from brim.report.page import render_report
from brim.report.records import facts_of, results_of, settings_of
from brim.report.seed_tests import TestsByTask, all_tests, significance_tables
from brim.report.systems import Gathered, TaskRuns
from brim.report.tables import decoder_only_table, main_table, return_table, stability_table
from brim.report.verdicts import judge_table, read_verdicts
from brim.support.figures import Figure
from brim.support.files import atomic_write_bytes, atomic_write_json, atomic_write_text, disk_errors
from brim.support.printing import Printed
from brim.support.progress import Reporter
from brim.support.tables import Table, as_csv, as_latex, as_markdown

BASELINE = "LLMR"  # what BRIM extends
SUMMARY = "summary.md"
_SUFFIXES = {".md", ".tex", ".csv", ".png", ".svg"}
_MARKS = (MARK, "# brim report")  # this version's, and those of before


@dataclass(frozen=True, slots=True, repr=False)
class Report(Printed):
    """What was read, and what it says; prints as `brim report` does.

    Attributes:
        tasks: the systems that were compared, with their runs.
        text: the summary, for a terminal.
    """

    tasks: tuple[TaskRuns, ...]
    text: str


def write_reports(
    directories: str | Path | Sequence[str | Path],
    out: str | Path = "report",
    *,
    split: str = "test",
    baseline: str | None = None,
    alpha: float = 0.05,
    max_outputs: int = 200,
    paper: bool = False,
    reporter: Reporter | None = None,
) -> Report:
    """Read every run under the folders and write a report on them into `out`.

    The same run directories give the same bytes.

    Args:
        directories: a folder or several, looked through with all that is in them.
        out: a folder, made if need be.
        split: of the data.
        baseline: label of the system that marks of significance in the tables are against; LLMR
            by default.
        alpha: level of significance; the paper's is 0.035.
        max_outputs: examples on the page, with the texts of the first seed.
        paper: titles and order of the paper's tables and figures, with its numbers beside ours.
        reporter: shows progress.

    Raises:
        ConfigError: no system is called `baseline`, or `alpha` is no probability.
        RunError: a folder is missing, has no finished run or a damaged one, or `out` cannot be
            written or holds something else than a report.
    """
    reporter, out = reporter or Reporter(quiet=True), Path(out)
    folders = [directories] if isinstance(directories, str | Path) else directories
    _check_out(out)
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha: {alpha} is not between 0 and 1")
    found = gather([*map(Path, folders)], split=split)
    base = _check_baseline(found, baseline)
    num_runs = len(
        {run.directory for task in found.tasks for system in task.systems for run in system.runs}
    )
    reporter.say(f"{num_runs} finished runs and {len(found.unfinished)} others")

    notes: list[str] = []
    tests = {task.label: all_tests(task, alpha) for task in found.tasks}
    tables = _tables(found, tests, base, alpha, split, notes, paper=paper)
    reporter.say("drawing")
    figures = _figures(found, out, notes)
    outputs, choice = choose_outputs(found, max_outputs, notes)
    found = replace(found, notes=(*found.notes, *notes))
    if paper:
        tables, figures = titled_as_the_paper(tables), titled_as_the_paper(figures)

    lead = lead_of(found, tests, split=split, baseline=base, alpha=alpha)
    shown = sections(tables, figures, paper=paper)
    _write(out, summary_page(lead, shown), tables, figures)
    page = render_report(
        lead,
        shown,
        outputs=outputs,
        systems=list(dict.fromkeys(label for output in outputs for label in output.texts)),
        colors=_colors(found),
        settings=settings_of(found),
        facts=facts_of(found, out),
        choice=choice,
    )
    atomic_write_text(out / "report.html", page)
    atomic_write_json(out / "results.json", results_of(found, tests, out, split, base, alpha))
    return Report(found.tasks, for_terminal(lead))


def _colors(found: Gathered) -> dict[str, str]:
    """The color of each system by its label, with the task before it and without."""
    looks = looks_of(found.tasks)
    pairs = [(found.prefix(task), system.label) for task in found.tasks for system in task.systems]
    return {
        f"{front}{label}": looks[label].color for start, label in pairs for front in ("", start)
    }


def _write(out: Path, summary: str, tables: Sequence[Table], figures: Sequence[Figure]) -> None:
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out / SUMMARY, summary)  # first, for it marks the folder as a report's
    for table in tables:
        atomic_write_text(out / f"{table.name}.md", as_markdown(table))
        atomic_write_text(out / f"{table.name}.tex", as_latex(table))
        atomic_write_text(out / f"{table.name}.csv", as_csv(table.data))
    for figure in figures:
        atomic_write_bytes(out / f"{figure.name}.png", figure.png)
        atomic_write_bytes(out / f"{figure.name}.svg", figure.svg)
    made = {table.name for table in tables} | {figure.name for figure in figures}
    for path in out.iterdir():  # of an earlier report, which knew more
        if path.stem in PARTS - made and path.suffix in _SUFFIXES:
            path.unlink()


def _check_out(out: Path) -> None:
    """Check that what is in the folder is a report, or nothing."""
    with disk_errors(out):
        if not out.exists():
            return
        if not out.is_dir():
            raise RunError(f"{out}: is a file; choose another --out")
        if all(path.name.startswith(f".{SUMMARY}.") for path in out.iterdir()):
            return  # at most what a stop left of it
        mark = out / SUMMARY
        marks = tuple(f"{mark}\n".encode() for mark in _MARKS)
        if mark.exists() and mark.read_bytes().startswith(marks):
            return
    raise RunError(
        f"{out}: is not empty and no report (no {SUMMARY} of brim report); choose another --out"
    )


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
    *,
    paper: bool,
) -> list[Table]:
    tasks = found.tasks
    notes += [
        f"{task.label}: no {baseline}, so no marks of significance in the tables."
        for task in tasks
        if task.find(baseline) is None
    ]
    verdicts = read_verdicts(found.extras.get("judge.json", ()), tasks, split, notes)
    made = [
        main_table(tasks, baseline=baseline, alpha=alpha, paper=paper),
        return_table(tasks, baseline=baseline, alpha=alpha),
        judge_table(verdicts, tasks, paper=paper),
        decoder_only_table(tasks, baseline=baseline, alpha=alpha, paper=paper),
        best_k_table(tasks, paper=paper),
        settings_table(tasks),
        *significance_tables(tasks, tests, alpha=alpha, paper=paper),
        stability_table(tasks),
    ]
    return [table for table in made if table is not None]


def _figures(found: Gathered, out: Path, notes: list[str]) -> list[Figure]:
    drawn = [
        returns_figure(found.tasks),
        *learning_curves(found.tasks),
        variance_figure(found.extras.get("variance.json", ()), out, notes),
    ]
    return [figure for figure in drawn if figure is not None]
