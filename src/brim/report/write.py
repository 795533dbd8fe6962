"""The report as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from brim.files import atomic_write_bytes, atomic_write_json, atomic_write_text, disk_errors
from brim.report.curves import draw_curves
from brim.report.evidence import System, read_evidence
from brim.report.page import render_report
from brim.report.quickstart_parts import facts, part_figures, part_tables
from brim.report.samples import choose_samples
from brim.report.table import build_table

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
