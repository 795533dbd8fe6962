"""The first thing that a newcomer runs: letters to phonemes, four systems, one page of results."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from brim.config.loading import load_config
from brim.recipes import find_recipe
from brim.report import System, write_report
from brim.runs.evaluate import StageName, evaluate_stage
from brim.runs.train import train
from brim.support.progress import Reporter
from brim.training.settings import RunConfig

# A short run checks the set-up, not the method: everything is there, nothing has learnt much.
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

STAGES: dict[StageName, str] = {"teacher": "teacher", "predistill": "pre-distilled student"}
METHODS = ("llmr", "brim")


def quickstart(out: Path, *, seed: int, short: bool, reporter: Reporter) -> str:
    """Train a teacher, pre-distil a student, then LLMR and BRIM from it; compare all four.

    Args:
        out: folder of the runs, their shared stages and the report; an unfinished one goes on.
        seed: of everything random.
        short: everything once, nothing for long.
        reporter: shows progress.

    Returns:
        The results table and what to try next, as text.
    """
    started = time.monotonic()
    overrides = [f"seed={seed}", *(SHORT if short else ())]
    stages = out / "stages"
    systems: list[System] = []
    for method in METHODS:
        reporter.say(f"== {method} ==")
        config = load_config(
            RunConfig, find_recipe(f"cmudict/{method}"), overrides, search=find_recipe
        )
        run = out / method
        train(config, run, stages_dir=stages, reporter=reporter, command=sys.argv)
        if not systems:
            for name, label in STAGES.items():
                directory = evaluate_stage(run, name, reporter=reporter)
                systems.append(System(label, directory, train=False))
        k = getattr(config.objective, "k", 1)
        systems.append(System(f"{method.upper()} (K = {k})", run, train=True))
    table = write_report(
        out,
        systems,
        title="brim quickstart: letters to phonemes",
        lead="A T5-type teacher learns CMUdict; a smaller student is pre-distilled on the "
        "teacher's outputs; LLMR and BRIM train from that same student. Their checkpoints are "
        "picked by the expected return on the validation split.",
        metric="exact_match",
        baseline="pre-distilled student",
    )
    return (
        f"{table}\n\n"
        f"report: {out / 'report.html'}   ({time.monotonic() - started:.0f} s)\n"
        "next:\n"
        f"  echo 'd i s t i l' | brim generate {out / 'brim'}\n"
        "  brim train cmudict/brim objective.k=4 --out runs/k4\n"
        "  brim recipes\n"
        "  your own teacher on your own file: docs/own_teacher.md"
    )
