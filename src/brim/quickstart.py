"""The first thing that a newcomer runs: letters to phonemes, four systems, one page of results."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from brim.compare import compare_runs
from brim.config.loading import load_config
from brim.recipes import find_recipe
from brim.report import TaskRuns, write_reports
from brim.runs.evaluate import StageName, evaluate_stage
from brim.runs.train import train
from brim.support.progress import Reporter
from brim.support.tables import ABSENT, DIGITS, Table, as_text, interval_text, p_text, plain_table
from brim.training.settings import RunConfig

# A short run checks the set-up, not the method: everything is there, nothing has learned much.
SHORT = (
    "task.max_train_examples=4000",
    "task.max_validation_examples=100",
    "task.max_test_examples=300",
    "teacher.train.trainer.max_steps=60",
    "teacher.train.trainer.evaluate_every=60",
    "student.predistill.trainer.max_steps=40",
    "student.predistill.trainer.evaluate_every=40",
    "trainer.max_steps=10",
    "trainer.evaluate_every=5",
)

STAGES: tuple[StageName, ...] = ("teacher", "predistill")
METHODS = ("llmr", "brim")
SCORES = ("exact_match", "expected_return", "length")


def quickstart(out: Path, *, seed: int, short: bool, reporter: Reporter) -> str:
    """Train a teacher, pre-distill a student, then LLMR and BRIM from it; compare all four.

    Args:
        out: folder of the runs, their shared stages and the report; unfinished runs are resumed.
        seed: of everything random.
        short: everything once, nothing for long.
        reporter: shows progress.

    Returns:
        The results and what to try next, as text.
    """
    started = time.monotonic()
    overrides = [f"seed={seed}", *(SHORT if short else ())]
    stages: list[Path] = []
    for method in METHODS:
        reporter.say(f"== {method} ==")
        config = load_config(
            RunConfig, find_recipe(f"cmudict/{method}"), overrides, search=find_recipe
        )
        run = out / method
        train(config, run, stages_dir=out / "stages", reporter=reporter, command=sys.argv)
        stages = stages or [evaluate_stage(run, name, reporter=reporter) for name in STAGES]
    report = write_reports([out / method for method in METHODS], out / "report", reporter=reporter)
    [task] = report.tasks
    return "\n".join(
        [
            as_text(results_table(task)),
            "",
            "expected return minus the pre-distilled student's, paired by example:",
            as_text(differences(out, stages[-1])),
            "",
            f"report: {out / 'report' / 'report.html'}   ({time.monotonic() - started:.0f} s)",
            "next:",
            f"  echo 'd i s t i l' | brim generate {out / 'brim'}",
            f"  brim compare {out / 'brim'} {out / 'llmr'}",
            "  brim train cmudict/brim objective.k=4 --out runs/k4",
            "  brim recipes",
            "  your own teacher on your own file: docs/own_teacher.md",
        ]
    )


def results_table(task: TaskRuns) -> Table:
    """Return a row a system: scores with their intervals over the examples, size and time."""
    names = [name for name in SCORES if name in task.scores]
    rows = [["system", *map(task.name_of, names), "parameters", "train seconds"]]
    for system in task.systems:
        [run] = system.runs
        numbers = [
            interval_text(score.value, score.low, score.high, spec=f"z.{DIGITS.get(name, 1)}f")
            if (score := run.scores.get(name))
            else ABSENT
            for name in names
        ]
        facts = [run.results.get(name) for name in ("num_parameters", "seconds")]
        shown = [ABSENT if fact is None else f"{fact:,.0f}" for fact in facts]
        rows.append([system.label, *numbers, *shown])
    return plain_table(rows)


def differences(out: Path, student: Path) -> Table:
    """Return how far each method's expected return is above that of the student before it."""
    rows = [["method", "difference [95 % interval]", "p"]]
    for method in METHODS:
        found = compare_runs(out / method, student, metrics=["expected_return"])
        metric = found.metrics["expected_return"]
        difference = interval_text(metric.difference, metric.low, metric.high, spec="+.2f")
        rows.append([method.upper(), difference, p_text(metric.randomization_p)])
    return plain_table(rows)
