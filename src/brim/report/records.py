"""What a report keeps of every run: settings and provenance for the page, all numbers as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brim.metrics import Score
from brim.report.folders import Run
from brim.report.seed_tests import TestsByTask, test_row
from brim.report.systems import Gathered, TaskRuns
from brim.report.tables import stability
from brim.runs.directory import decoding_in_words
from brim.support.tables import ABSENT, Cell, Table, align, interval_text, percent, score_format


def settings_of(found: Gathered) -> dict[str, str]:
    """Return the settings of the first seed of each system that has some."""
    return {
        f"{found.prefix(task)}{system.label}": system.runs[0].text
        for task in found.tasks
        for system in task.systems
        if system.runs[0].text
    }


def facts_of(found: Gathered, out: Path) -> Table:
    """Return a row a run: where it is, how it was made."""
    facts = [
        {"system": f"{found.prefix(task)}{system.label}", **_provenance(run, out)}
        for task in found.tasks
        for system in task.systems
        for run in system.runs
    ]
    rows = tuple(tuple(map(Cell, fact.values())) for fact in facts)
    return Table("facts", "", tuple(facts[0]), rows, "")


def _provenance(run: Run, out: Path) -> dict[str, str]:
    versions, decoding = run.manifest.get("versions", {}), run.results.get("decoding")
    size = run.results.get("num_parameters")
    facts = {
        "seed": run.seed,
        "directory": os.path.relpath(run.directory, out),
        "steps": run.results.get("steps"),
        "tested step": run.results.get("best_step"),
        "parameters": None if not size else f"{size:,}",
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
    """Return all scores by run and all tests, for other programs."""
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
                "cut": task.cut,
                "best_k": best.name.k if (best := task.best_brim()) else None,
                "systems": [
                    {
                        "label": system.label,
                        "family": system.name.family,
                        "k": system.name.k,
                        "llmr_here": system.is_llmr,
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


def summary(results: Mapping[str, Any]) -> str:
    """Return the results of one split, as `evaluate_model` returns them, for a terminal.

    Each score has its interval and its signature, which says what the number depends on.
    """
    scores = {name: Score(**fields) for name, fields in results["scores"].items()}
    rows = []
    for name, score in scores.items():
        spec = score_format(name)
        more = [f"{key.replace('_', ' ')} {value:.3g}" for key, value in score.details.items()]
        numbers = ", ".join([interval_text(score.value, score.low, score.high, spec=spec), *more])
        rows.append([score.name, numbers, score.signature])
    prompts, completions = results["num_truncated_prompts"], results["num_truncated_completions"]
    rows.append(["truncated", f"{prompts:,} prompts, {completions:,} completions", ""])
    if "num_parameters" in results:  # a teacher behind a server does not say
        rows.append(["parameters", f"{results['num_parameters']:,}", ""])
    if "seconds" in results:
        steps = f"{results['steps']:,} steps in {results['seconds']:,.0f} s"
        early = f"; ended early: {results['stopped']}" if "stopped" in results else ""
        rows.append(["training", f"{steps}, best at step {results['best_step']:,}{early}", ""])
    confidence = {f", {percent(score.confidence)} intervals" for score in scores.values()}
    heading = f"{results['split']} split, {results['num_examples']:,} examples"
    return "\n".join([heading + "".join(sorted(confidence)[:1]), *align(rows)])
