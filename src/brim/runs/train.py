"""Runs as functions over run directories: train, evaluate, generate.

`train` is the main job: teacher → teacher outputs → pre-distillation → the objective, each stage
resumable and skipped when its inputs are unchanged, then the test split of the best checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brim.runs.directory import Resume, begin_run, check_best, open_run
from brim.runs.evaluate import evaluate_model, kept_results, training_facts
from brim.runs.pipeline import Pipeline
from brim.support.progress import Reporter
from brim.training.accelerator import make_accelerator
from brim.training.checkpoints import latest_state
from brim.training.settings import RunConfig

logger = logging.getLogger(__name__)


def train(
    config: RunConfig,
    out: Path,
    *,
    resume: Resume = "auto",
    stages_dir: Path | None = None,
    reporter: Reporter | None = None,
    command: Sequence[str] = (),
    other_processes: bool = False,
) -> dict[str, Any]:
    """Distil, and test the best checkpoint.

    Args:
        config: the run's settings.
        out: the run directory; made, or gone on with.
        resume: `auto` goes on with what is there, `must` refuses to begin, `never` to go on.
        stages_dir: where teacher, teacher outputs and pre-distilled students are kept; runs that
            share it share them. `out/stages` by default.
        reporter: shows progress.
        command: what was typed, for the provenance.
        other_processes: go on with what another number of processes began.

    Returns:
        What `results.json` holds.

    Raises:
        BrimError: settings, data, models or directory cannot be used; nothing was overwritten.
        NonFiniteError: training met too many non-finite steps in a row.
        Interrupted: SIGINT or SIGTERM came; the last complete step is saved.
    """
    accelerator = make_accelerator(config.trainer.precision)
    if reporter is None or not accelerator.is_main_process:
        reporter = Reporter(quiet=True)
    with open_run(out, config, resume, other_processes=other_processes):
        pipeline = Pipeline(config, out, accelerator, reporter, stages_dir or out / "stages")
        pipeline.other_processes = other_processes
        pipeline.check()
        begin_run(out, config, command, pipeline.models)
        before = latest_state(out / "checkpoints")
        pipeline.run()
        training, label = training_facts(out), config.objective.name
        if before is not None and before["step"] == training["steps"]:
            reporter.say(f"{label}: unchanged, kept")
        check_best(out)
        best = pipeline.reload(out / "best", config.student)
        kept = kept_results(best, "test", out, training)
        if kept is not None:
            reporter.say(f"{label} on test: unchanged, kept")
            return kept
        return evaluate_model(best, pipeline, "test", out, label=label, training=training)
