"""What is said before all tables: the title, the headline, the findings, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brim.report.findings import compared, findings
from brim.report.folders import NOT_BEGUN, Unfinished
from brim.report.headline import headline
from brim.report.labels import joined
from brim.report.layout import Section
from brim.report.seed_tests import TestsByTask
from brim.report.systems import Gathered
from brim.support.figures import Figure
from brim.support.tables import as_markdown, escape_markdown, many, markdown_sentence

MISSING = "Missing, unfinished and failed"
MARK = "<!-- brim report -->"
"""The first line of a summary, by which a report knows an earlier one."""
_MAX_GAPS = 10  # in a terminal


@dataclass(frozen=True, slots=True)
class Lead:
    """The sentences of a report.

    Attributes:
        title: what the runs are about.
        headline: one sentence.
        findings: for each task what was compared, and what the numbers say.
        gaps: what is missing or was left out, a sentence each.
        gaps_in_short: the same in one sentence; "" where nothing is missing.
    """

    title: str
    headline: str
    findings: Sequence[tuple[str, Sequence[str]]] = ()
    gaps: Sequence[str] = ()
    gaps_in_short: str = ""


def lead_of(
    found: Gathered, tests: TestsByTask, *, split: str, baseline: str, alpha: float
) -> Lead:
    """Return the sentences on everything that was found."""
    said = [
        (compared(task, split), findings(task, tests[task.label], baseline=baseline, alpha=alpha))
        for task in found.tasks
    ]
    return Lead(
        title=found.description or joined([task.label for task in found.tasks]),
        headline=headline(found.tasks, alpha=alpha),
        findings=said,
        gaps=missing(found),
        gaps_in_short=gaps_in_short(found),
    )


def for_terminal(lead: Lead) -> str:
    """Return all sentences, but of what is missing the first only."""
    shown = list(lead.gaps[:_MAX_GAPS])
    if len(lead.gaps) > len(shown):
        shown.append(f"… and {len(lead.gaps) - len(shown):,} more in summary.md")
    lists = (
        (about, "\n".join(f"- {sentence}" for sentence in said)) for about, said in lead.findings
    )
    parts = [lead.title, lead.headline, *(part for parts in lists for part in parts if part)]
    return "\n\n".join([*parts, *(["\n".join([f"{MISSING}:", *shown])] if shown else [])])


def summary_page(lead: Lead, sections: Sequence[Section]) -> str:
    """Return everything but the outputs as Markdown."""

    def bullets(lines: Sequence[str]) -> str:
        return "".join(f"- {markdown_sentence(line)}\n" for line in lines)

    parts = [
        f"{MARK}\n\n# {escape_markdown(lead.title)}\n",
        f"{markdown_sentence(lead.headline)}\n",
    ]
    parts.append("## Findings\n")
    for about, said in lead.findings:
        parts += [f"{markdown_sentence(about)}\n", bullets(said)]
    if lead.gaps:
        parts += [f"## {MISSING}\n", bullets(lead.gaps)]
    for section in sections:
        parts.append(f"## {section.heading}\n")
        for part in section.parts:
            if part.title != section.heading:
                parts.append(f"### {escape_markdown(part.title)}\n")
            parts.append(
                _image(part) if isinstance(part, Figure) else as_markdown(part, title=False)
            )
    return "\n".join(parts)


def _image(figure: Figure) -> str:
    name = escape_markdown(figure.title)
    return f"![{name}]({figure.name}.png)\n\n{escape_markdown(figure.caption)}\n"


def missing(found: Gathered) -> list[str]:
    """Return unfinished and failed runs, then what else is not there or was left out."""
    lines = []
    sweeps: dict[Path, list[Unfinished]] = {}
    for run in found.unfinished:
        if run.state == NOT_BEGUN:
            sweeps.setdefault(run.directory.parents[1], []).append(run)
        else:
            seed = "" if run.seed is None else f", seed {run.seed}"
            lines.append(f"{run.label}{seed}: no results: {run.state} ({run.directory}).")
    lines += [_not_begun(folder, runs) for folder, runs in sweeps.items()]
    for task in found.tasks:
        few = [f"{system.label} ({len(system.runs)})" for system in task.with_fewer_seeds]
        if few:
            lines.append(
                f"{task.label}: fewer than {task.num_seeds} seeds, so their means are not over the "
                f"same seeds as the others': {', '.join(few)}."
            )
    return [*lines, *found.notes]


def gaps_in_short(found: Gathered) -> str:
    """Return one sentence for the head of a report; "" where nothing is missing."""
    states = Counter(
        NOT_BEGUN if run.state == NOT_BEGUN else "failed" if run.state.startswith("failed")
        else "unfinished"
        for run in found.unfinished
    )  # fmt: skip
    parts = [
        f"{many(states[state], 'run')} {state}"
        for state in ("failed", "unfinished", NOT_BEGUN)
        if states[state]
    ]
    few = sum(len(task.with_fewer_seeds) for task in found.tasks)
    if few:
        parts.append(f"{many(few, 'system')} with fewer seeds than others")
    if found.notes:
        parts.append(f"{many(len(found.notes), 'note')} on what was left out")
    return f"Missing: {', '.join(parts)}." if parts else ""


def _not_begun(sweep: Path, runs: Sequence[Unfinished]) -> str:
    """The points of one sweep; systems that lack the same seeds are named together."""
    seeds: dict[str, list[str]] = {}
    for run in runs:
        seeds.setdefault(run.directory.parent.name, []).append(str(run.seed))
    groups: dict[tuple[str, ...], list[str]] = {}
    for system, lacking in seeds.items():
        groups.setdefault(tuple(lacking), []).append(system)
    parts = [
        f"{', '.join(systems)} with seed{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}"
        for lacking, systems in groups.items()
    ]
    return f"{sweep}: {many(len(runs), 'run')} of the sweep not begun: {'; '.join(parts)}."
