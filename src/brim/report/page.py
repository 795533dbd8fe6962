"""One HTML page that needs nothing but itself: no script, no network, light and dark."""

from __future__ import annotations

import base64
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brim._version import __version__
from brim.metrics import Score
from brim.report.curves import Curves
from brim.report.evidence import Evidence
from brim.report.samples import Samples, compare, is_reference
from brim.report.table import ABSENT, DIGITS, Table, details, percent, with_interval

TEMPLATE = Path(__file__).with_name("template.html")


@dataclass(frozen=True, slots=True)
class Cell:
    """A number of the results table, and where it lies on its column's scale from 0 to 100.

    Attributes:
        number, interval: as text.
        value, low, high: on the scale; None for a number without an interval.
        zero: on the scale, where the sign matters.
        note: small print below.
    """

    number: str
    interval: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    zero: float | None = None
    note: str = ""


def render_page(
    out: Path,
    evidence: Sequence[Evidence],
    table: Table,
    samples: Samples,
    curves: Curves | None,
    *,
    title: str,
    lead: str,
) -> str:
    """The report as one HTML text.

    Args:
        out: the folder it will lie in; run directories are named relative to it.
        evidence: what the systems' directories hold.
        table: of results.
        samples: side by side.
        curves: of learning; None where nothing was trained.
        title: of the page.
        lead: what the reader should know first; blank lines part paragraphs.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        paragraphs=[paragraph for paragraph in lead.split("\n\n") if paragraph.strip()],
        table=table,
        confidence=percent(table.confidence),
        headings=_headings(table),
        rows=_rows(table),
        scores=_all_scores(evidence),
        signatures=_signatures(evidence),
        curves=base64.b64encode(curves.png).decode() if curves else None,
        samples=samples,
        compare=compare,
        is_reference=is_reference,
        evidence=evidence,
        facts=_facts(out, evidence),
        version=__version__,
    )


def _headings(table: Table) -> list[tuple[str, str]]:
    """What stands above each column of numbers: a name, and which way is better."""
    headings = []
    for column, name in table.names.items():
        higher = any(r.scores[column].higher_is_better for r in table.rows if column in r.scores)
        better = "higher is better" if higher else "lower is better"
        # Neither way is better for a length: too long and too short are both faults.
        headings.append((name, "tokens" if column == "length" else better))
        if column == table.compared and table.has_differences:
            headings.append(("return difference", f"to {table.baseline}, paired"))
    return [*headings, ("parameters", ""), ("training", "seconds")]


def _rows(table: Table) -> list[tuple[str, list[Cell]]]:
    columns: list[list[Cell]] = []
    for column in table.columns:
        scores = [row.scores.get(column) for row in table.rows]
        columns.append(_cells(scores, DIGITS.get(column, 1)))
        if column == table.compared and table.has_differences:
            notes = [row.verdict if row.difference else "" for row in table.rows]
            differences = [row.difference for row in table.rows]
            columns.append(_cells(differences, 2, notes=notes, signed=True))
    cells = table.cells()[1:]
    columns += [[Cell(row[-2]) for row in cells], [Cell(row[-1]) for row in cells]]
    labels = [row.label for row in table.rows]
    return [(label, [column[i] for column in columns]) for i, label in enumerate(labels)]


def _cells(
    scores: Sequence[Score | None],
    digits: int,
    *,
    notes: Sequence[str] | None = None,
    signed: bool = False,
) -> list[Cell]:
    """A column, drawn to one scale that reaches from its lowest end to its highest."""
    ends = [end for score in scores if score for end in (score.low, score.high)]
    if signed:
        ends.append(0.0)
    low, span = min(ends, default=0.0), max(ends, default=0.0) - min(ends, default=0.0)

    def on_scale(value: float) -> float:
        return round(3 + 94 * (value - low) / span, 2) if span else 50.0

    cells = []
    for score, note in zip(scores, notes or [""] * len(scores), strict=True):
        number, _, interval = with_interval(score, digits, "+" if signed else "-").partition(" ")
        if score is None:
            cells.append(Cell(number))
        else:
            cells.append(
                Cell(
                    number,
                    interval,
                    value=on_scale(score.value),
                    low=on_scale(score.low),
                    high=on_scale(score.high),
                    zero=on_scale(0.0) if signed else None,
                    note=note,
                )
            )
    return cells


def _all_scores(evidence: Sequence[Evidence]) -> list[list[str]]:
    """A head and a row a system: each score with its details, and how much was cut."""
    names = {key: score.name for system in evidence for key, score in system.scores.items()}
    head = ["system", *names.values(), "truncated prompts", "truncated completions"]
    rows = [
        [
            system.label,
            *(details(system.scores.get(key), DIGITS.get(key, 1)) for key in names),
            *(
                f"{system.results[key]:,}" if key in system.results else ABSENT
                for key in ("num_truncated_prompts", "num_truncated_completions")
            ),
        ]
        for system in evidence
    ]
    return [head, *rows]


def _signatures(evidence: Sequence[Evidence]) -> dict[str, list[str]]:
    """What each score depends on; more than one entry where the systems disagree."""
    found: dict[str, dict[str, None]] = {}
    for system in evidence:
        for score in system.scores.values():
            found.setdefault(score.name, {})[score.signature] = None
    return {name: list(signatures) for name, signatures in found.items()}


def _facts(out: Path, evidence: Sequence[Evidence]) -> list[list[str]]:
    """A head and a row a fact of the systems' provenance; facts that nobody has are left out."""
    columns = [_provenance(out, system) for system in evidence]
    names = dict.fromkeys(name for column in columns for name in column)
    head = ["", *(system.label for system in evidence)]
    return [head, *([name, *(column.get(name, ABSENT) for column in columns)] for name in names)]


def _provenance(out: Path, system: Evidence) -> dict[str, str]:
    manifest = system.manifest
    facts = {
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
    return {name: str(value) for name, value in facts.items() if value is not None}
