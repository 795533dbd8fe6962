"""The report on any number of runs: tables, figures, a summary, one page, all numbers as JSON."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from brim.errors import ConfigError, RunError
from brim.metrics import Score
from brim.report.curves import draw_curves
from brim.report.evidence import Evidence, System, read_evidence
from brim.report.figures import (
    learning_curves,
    ppo_figure,
    returns_figure,
    stage_curves,
    training_variance_figure,
    variance_figure,
)
from brim.report.findings import (
    MISSING,
    for_page,
    for_terminal,
    gaps_in_short,
    lead_of,
    missing,
    summary,
)
from brim.report.gather import gather
from brim.report.more_tables import TestsByTask, best_k_table, significance_tables
from brim.report.outputs import choose_outputs, choose_samples
from brim.report.page import render_report
from brim.report.records import facts_of, results_of, settings_of
from brim.report.seed_tests import all_tests
from brim.report.stability import stability_table
from brim.report.systems import Gathered
from brim.report.table import ABSENT, DIGITS, Table, build_table, details, percent, with_interval
from brim.report.tables import BuiltTable, decoder_only_table, main_table, return_table
from brim.report.verdicts import judge_table, read_verdicts
from brim.support.figures import Images
from brim.support.files import atomic_write_bytes, atomic_write_json, atomic_write_text, disk_errors
from brim.support.progress import Reporter
from brim.support.tables import Cell, Figure, PartTable, as_csv, as_latex, as_markdown

BASELINE = "LLMR"  # what BRIM extends
TITLE = "brim report"
MARK = "summary.md"
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
        reporter: shows progress.

    Returns:
        The summary, as text for a terminal.

    Raises:
        ConfigError: no system is called `baseline`, or `alpha` is no probability.
        RunError: a folder is missing, has no finished run or a damaged one, or `out` cannot be
            written or holds something else than a report.
    """
    reporter = reporter or Reporter(quiet=True)
    _check_out(out)
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

    lead = lead_of(found.tasks, tests, split=split, baseline=base, alpha=alpha)
    gaps = missing(found)
    shown = [table.part for table in tables if table.part.name not in _NOT_ON_THE_PAGE]
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    # First, for it marks the folder as a report's.
    atomic_write_text(out / MARK, summary(TITLE, lead, gaps, shown, figures))
    for table in tables:
        atomic_write_text(out / f"{table.part.name}.md", as_markdown(table.part))
        atomic_write_text(out / f"{table.part.name}.tex", as_latex(table.part))
        atomic_write_text(out / f"{table.part.name}.csv", as_csv(table.rows))
    for figure in figures:
        atomic_write_bytes(out / f"{figure.name}.png", figure.png)
        atomic_write_bytes(out / f"{figure.name}.svg", figure.svg)
    page = render_report(
        title=TITLE,
        lead=for_page(lead, gaps_in_short(found)),
        tables=[*shown, *([_missing_table(gaps)] if gaps else [])],
        figures=figures,
        outputs=outputs,
        systems=list(dict.fromkeys(label for output in outputs for label in output.texts)),
        settings=settings_of(found.tasks),
        facts=facts_of(found.tasks, out),
        choice=choice,
    )
    atomic_write_text(out / "report.html", page)
    atomic_write_json(out / "results.json", results_of(found, tests, out, split, base, alpha))
    return for_terminal(lead, gaps)


def _check_out(out: Path) -> None:
    """Check that what is in the folder is a report, or nothing."""
    with disk_errors(out):
        if not out.exists():
            return
        if not out.is_dir():
            raise RunError(f"{out}: is a file; choose another --out")
        if all(path.name.startswith(f".{MARK}.") for path in out.iterdir()):
            return  # at most what a stop left of it
        mark = out / MARK
        if mark.exists() and mark.read_bytes().startswith(f"# {TITLE}\n".encode()):
            return
    raise RunError(
        f"{out}: is not empty and no report (no {MARK} of brim report); choose another --out"
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
        stability_table(tasks),
    ]
    return [table for table in built if table is not None and table.part.rows]


def _figures(found: Gathered, out: Path, notes: list[str]) -> list[Figure]:
    drawn = [
        returns_figure(found.tasks),
        *learning_curves(found.tasks),
        ppo_figure(found.tasks),
        training_variance_figure(found.tasks),
        variance_figure(found.extras.get("variance.json", ()), out, notes),
        stage_curves(found.tasks),
    ]
    return [figure for figure in drawn if figure is not None]


def _missing_table(gaps: Sequence[str]) -> PartTable:
    caption = f"{len(gaps):,} of what a reader may look for in vain."
    rows = tuple((Cell(line),) for line in gaps)
    return PartTable("missing", MISSING, ("what, and why",), rows, caption)


CURVES_CAPTION = (
    "Validation split. A ring marks the checkpoint that was tested. The expected return is that of "
    "sampled text, which is what reinforcement learning maximises; the other scores are of greedy "
    "text. A return is a sum of penalties, so shorter text has the higher one: read it beside the "
    "length. Ĝ is the K-step return that weights a token's gradient, G the one-step return of the "
    "same text."
)


def part_tables(table: Table, evidence: Sequence[Evidence]) -> list[PartTable]:
    """The table of results; every score of every system; what each score depends on."""
    return [_results(table), _all_scores(evidence), _signatures(evidence)]


def part_figures(curves: Images | None) -> list[Figure]:
    """The learning curves, where something was trained."""
    if curves is None:
        return []
    return [Figure("curves", "Learning curves", curves.png, curves.svg, CURVES_CAPTION)]


def facts(out: Path, evidence: Sequence[Evidence]) -> list[list[str]]:
    """A head and a row a fact of the systems' provenance; unknown facts are left out.

    Run directories are named relative to `out`, the folder of the page.
    """
    columns = [_provenance(out, system) for system in evidence]
    names = dict.fromkeys(name for column in columns for name in column)
    head = ["", *(system.label for system in evidence)]
    return [head, *([name, *(column.get(name, ABSENT) for column in columns)] for name in names)]


def _results(table: Table) -> PartTable:
    head = ["system"]
    columns: list[list[Cell]] = [[Cell(row.label) for row in table.rows]]
    for column, name in table.names.items():
        scores = [row.scores.get(column) for row in table.rows]
        head.append(_heading(column, name, scores))
        columns.append([_cell(score, DIGITS.get(column, 1)) for score in scores])
        if column == table.compared and table.has_differences:
            head.append(table.difference_name)
            columns.append(
                [
                    _cell(row.difference, 2, sign="+", note=row.verdict if row.difference else "")
                    for row in table.rows
                ]
            )
    head += ["parameters", "training seconds"]
    cells = [row[-2:] for row in table.cells()[1:]]
    columns += [[Cell(row[i]) for row in cells] for i in range(2)]
    compared = (
        " Differences are paired by example; one is beyond the interval where its own interval "
        "leaves out zero."
    )
    return PartTable(
        name="results",
        title=f"Results on the {table.split} split",
        head=tuple(head),
        rows=tuple(zip(*columns, strict=True)),
        caption=f"{table.num_examples:,} examples. Brackets: {percent(table.confidence)} bootstrap "
        f"intervals over the examples.{compared if table.has_differences else ''}",
    )


def _heading(column: str, name: str, scores: Sequence[Score | None]) -> str:
    """A name, and which way is better; neither is for a length: too short is a fault as well."""
    if column == "length":
        return f"{name} (tokens)"
    return f"{name} {'↑' if any(s.higher_is_better for s in scores if s) else '↓'}"


def _cell(score: Score | None, digits: int, *, sign: str = "-", note: str = "") -> Cell:
    number, _, interval = with_interval(score, digits, sign).partition(" ")
    return Cell(number, note=" ".join(filter(None, [interval, note])))


def _all_scores(evidence: Sequence[Evidence]) -> PartTable:
    names = {key: score.name for system in evidence for key, score in system.scores.items()}
    counts = ("num_truncated_prompts", "num_truncated_completions")
    rows = [
        (
            Cell(system.label),
            *(Cell(details(system.scores.get(key), DIGITS.get(key, 1))) for key in names),
            *(
                Cell(f"{system.results[key]:,}" if key in system.results else ABSENT)
                for key in counts
            ),
        )
        for system in evidence
    ]
    head = ("system", *names.values(), "truncated prompts", "truncated completions")
    return PartTable("scores", "All scores", head, tuple(rows), "")


def _signatures(evidence: Sequence[Evidence]) -> PartTable:
    """A row a score and signature; more than one a score where the systems disagree."""
    found = dict.fromkeys(
        (score.name, score.signature) for system in evidence for score in system.scores.values()
    )
    rows = tuple((Cell(name), Cell(signature)) for name, signature in found)
    return PartTable("signatures", "What the scores depend on", ("score", "signature"), rows, "")


def _provenance(out: Path, system: Evidence) -> dict[str, str]:
    manifest = system.manifest
    found = {
        "directory": os.path.relpath(system.directory, out),
        "steps": system.results.get("steps"),
        "tested checkpoint": system.results.get("best_step"),
        "seed": manifest.get("seed"),
        "started": manifest.get("started"),
        "command": shlex.join(manifest.get("command", [])) or None,
        "settings' hash": manifest.get("config_hash"),
        "platform": manifest.get("platform"),
        **manifest.get("versions", {}),
    }
    return {name: str(value) for name, value in found.items() if value is not None}


NUM_SAMPLES = 20
NUM_OUTPUTS = 200  # that the page lets one browse


def write_report(
    out: Path,
    systems: Sequence[System],
    *,
    title: str,
    lead: str,
    metric: str,
    baseline: str,
    split: str = "test",
) -> str:
    """Compare systems that were evaluated on the same split.

    Writes into `out`: `results_table.md` and `.csv`, `curves.png` and `.svg` where a system has
    learning curves, `samples.md` and `.json`, and `report.html`, which holds all of it and lets one
    browse more examples. The same run directories give the same bytes.

    Args:
        out: a folder, made if need be.
        systems: at least one, in the order of the rows.
        title: of the page.
        lead: what the reader should know first, as plain text; blank lines part paragraphs.
        metric: the score that stands first, a key of `results.json`.
        baseline: label of the system that returns are compared with, example by example.
        split: of the data.

    Returns:
        The table for a terminal.

    Raises:
        ConfigError: labels that are not unique, or a `baseline` that is none of them.
        RunError: a directory or file is missing, damaged or does not go with the others, or `out`
            cannot be written.
    """
    evidence = read_evidence(systems, metric=metric, baseline=baseline, split=split)
    table = build_table(evidence, metric=metric, baseline=baseline, split=split)
    samples = choose_samples(evidence, NUM_SAMPLES)
    curves = draw_curves(evidence, metric)

    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out / "results_table.md", table.as_markdown())
    atomic_write_text(out / "results_table.csv", table.as_csv())
    atomic_write_text(out / "samples.md", samples.as_markdown())
    atomic_write_json(out / "samples.json", [asdict(sample) for sample in samples.rows])
    if curves is not None:
        atomic_write_bytes(out / "curves.png", curves.png)
        atomic_write_bytes(out / "curves.svg", curves.svg)
    outputs = choose_samples(evidence, NUM_OUTPUTS)
    page = render_report(
        title=title,
        lead=lead,
        tables=part_tables(table, evidence),
        figures=part_figures(curves),
        outputs=outputs.rows,
        systems=[system.label for system in evidence],
        settings={system.label: system.settings for system in evidence if system.settings},
        facts=facts(out, evidence),
        choice=outputs.choice,
    )
    atomic_write_text(out / "report.html", page)
    return table.as_text()
