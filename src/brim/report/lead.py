"""What stands first: on the page, in the summary and in the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

from brim.report.findings import compared, findings
from brim.report.markdown import escape_markdown, markdown_sentence
from brim.report.more_tables import TestsByTask
from brim.report.parts import Figure, PartTable
from brim.report.rendering import as_markdown
from brim.report.systems import TaskRuns

MISSING = "Missing, unfinished and failed"
_MAX_GAPS = 10  # in a terminal

Lead = list[tuple[str, list[str]]]
"""For each task what was compared, and what the numbers say."""


def lead_of(
    tasks: Sequence[TaskRuns], tests: TestsByTask, *, split: str, baseline: str, alpha: float
) -> Lead:
    """The sentences on each task."""
    return [
        (
            compared(task, split),
            findings(task, tests[task.label], baseline=baseline, alpha=alpha),
        )
        for task in tasks
    ]


def as_plain(lead: Lead) -> str:
    """Paragraphs, and lists of lines that begin with a dash."""
    return "\n\n".join(
        part
        for about, found in lead
        for part in (about, "\n".join(f"- {s}" for s in found))
        if part
    )


def for_page(lead: Lead, gaps: str) -> str:
    """The same with what is missing in a sentence; no line ends within `K = 2` or `p < 0.05`."""
    return re.sub(r" ([=≤≥<±]) ", "\u00a0\\1\u00a0", f"{as_plain(lead)}\n\n{gaps}")


def for_terminal(lead: Lead, gaps: Sequence[str]) -> str:
    """The same, and the first things that are missing."""
    shown = list(gaps[:_MAX_GAPS])
    if len(gaps) > len(shown):
        shown.append(f"… and {len(gaps) - len(shown):,} more in summary.md")
    return "\n".join([as_plain(lead), *(["", f"{MISSING}:", *shown] if shown else [])])


def summary(
    title: str,
    lead: Lead,
    gaps: Sequence[str],
    tables: Sequence[PartTable],
    figures: Sequence[Figure],
) -> str:
    """Everything but the outputs as Markdown."""

    def bullets(lines: Sequence[str]) -> str:
        return "".join(f"- {markdown_sentence(line)}\n" for line in lines)

    parts = [f"# {escape_markdown(title)}\n", "## Findings\n"]
    parts += [
        part for about, found in lead for part in (f"{markdown_sentence(about)}\n", bullets(found))
    ]
    if gaps:
        parts += [f"## {MISSING}\n", bullets(gaps)]
    parts += map(as_markdown, tables)
    parts += [
        f"## {escape_markdown(figure.title)}\n\n"
        f"![{escape_markdown(figure.title)}]({figure.name}.png)\n\n"
        f"{escape_markdown(figure.caption)}\n"
        for figure in figures
    ]
    return "\n".join(parts)
