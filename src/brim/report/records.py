"""What a report keeps of every run: settings and provenance for the page, all numbers as JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brim.report.more_tables import TestsByTask, test_row
from brim.report.stability import stability
from brim.report.systems import Gathered, Run, TaskRuns
from brim.report.table import ABSENT
from brim.runs.directory import decoding_in_words


def settings_of(tasks: Sequence[TaskRuns]) -> dict[str, str]:
    """Of the first seed of each system that has some."""
    return {
        f"{_prefix(task, tasks)}{system.label}": system.runs[0].text
        for task in tasks
        for system in task.systems
        if system.runs[0].text
    }


def facts_of(tasks: Sequence[TaskRuns], out: Path) -> list[list[str]]:
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
    versions, decoding = run.manifest.get("versions", {}), run.results.get("decoding")
    facts = {
        "seed": run.seed,
        "directory": os.path.relpath(run.directory, out),
        "steps": run.results.get("steps"),
        "tested step": run.results.get("best_step"),
        "seconds": None if "seconds" not in run.results else f"{run.results['seconds']:,.0f}",
        "decoding": decoding_in_words(decoding) if isinstance(decoding, dict) else None,
        "started": run.manifest.get("started"),
        "platform": run.manifest.get("platform"),
        "settings' hash": (run.manifest.get("config_hash") or "")[:12] or None,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or None,
    }
    return {name: ABSENT if value is None else str(value) for name, value in facts.items()}


def results_of(
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
                "decoding": task.decoding,
                "best_k": best.name.k if (best := task.best_brim()) else None,
                "systems": [
                    {
                        "label": system.label,
                        "family": system.name.family,
                        "k": system.name.k,
                        "decoding": system.decoding or None,
                        "runs": [
                            _run_results(run, task, out)
                            | {"stability": dict(stability(run, system, task))}
                            for run in system.runs
                        ],
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


def _prefix(task: TaskRuns, tasks: Sequence[TaskRuns]) -> str:
    return f"{task.label}: " if len(tasks) > 1 else ""
