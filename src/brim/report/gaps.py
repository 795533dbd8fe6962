"""What a reader may look for in vain: runs without results, seeds that are missing, notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from brim.report.sweeps import NOT_BEGUN
from brim.report.systems import Gathered, Unfinished


def missing(found: Gathered) -> list[str]:
    """Unfinished and failed runs, then what else is not there or was left out."""
    lines = []
    waiting = [run for run in found.unfinished if run.state == NOT_BEGUN]
    for run in found.unfinished:
        if run.state != NOT_BEGUN:
            seed = "" if run.seed is None else f", seed {run.seed}"
            lines.append(f"{run.label}{seed}: no results: {run.state} ({run.directory}).")
    folders: dict[Path, list[Unfinished]] = {}
    for run in waiting:
        folders.setdefault(run.directory.parents[1], []).append(run)
    lines += [_not_begun(folder, runs) for folder, runs in folders.items()]
    for task in found.tasks:
        few = [
            f"{system.label} ({len(system.runs)})"
            for system in task.systems
            if system.runs[0].seed is not None and len(system.runs) < task.num_seeds
        ]
        if few:
            lines.append(
                f"{task.label}: fewer than {task.num_seeds} seeds, so their means are not over the "
                f"same seeds as the others': {', '.join(few)}."
            )
    return [*lines, *found.notes]


def gaps_in_short(found: Gathered) -> str:
    """One sentence for the head of a report; "" where nothing is missing."""
    states = Counter(
        NOT_BEGUN if run.state == NOT_BEGUN else "failed" if run.state.startswith("failed")
        else "unfinished"
        for run in found.unfinished
    )  # fmt: skip
    parts = [
        f"{states[state]:,} run{'s' if states[state] > 1 else ''} {state}"
        for state in ("failed", "unfinished", NOT_BEGUN)
        if states[state]
    ]
    few = sum(
        system.runs[0].seed is not None and len(system.runs) < task.num_seeds
        for task in found.tasks
        for system in task.systems
    )
    if few:
        parts.append(f"{few:,} system{'s' if few > 1 else ''} with fewer seeds than others")
    if found.notes:
        num = len(found.notes)
        parts.append(f"{num:,} note{'s' if num > 1 else ''} on what was left out")
    return f"Missing: {', '.join(parts)}; see the list below." if parts else ""


def _not_begun(sweep: Path, runs: Sequence[Unfinished]) -> str:
    """The points of one sweep; systems that lack the same seeds stand together."""
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
    number = f"{len(runs):,} run{'s' if len(runs) > 1 else ''}"
    return f"{sweep}: {number} of the sweep not begun: {'; '.join(parts)}."
