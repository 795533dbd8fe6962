"""What the report on a few systems of one split is made of: scores, what they depend on, facts."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from brim.metrics import Score
from brim.plotting import Images
from brim.report.evidence import Evidence
from brim.report.parts import Cell, Figure, PartTable
from brim.report.table import ABSENT, DIGITS, Table, details, percent, with_interval

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
    """A head and a row a fact of the systems' provenance; facts that nobody has are left out.

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
