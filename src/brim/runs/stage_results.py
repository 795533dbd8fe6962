"""Results of what a run began with: its teacher, and the student before its objective."""

from __future__ import annotations

import logging
from pathlib import Path

from accelerate import PartialState

from brim.errors import RunError
from brim.runs.card import write_card
from brim.runs.directory import Results, RunDirectory
from brim.runs.evaluate import evaluate_stage, training_facts
from brim.runs.tested import StageName, find_whole, results_folder, stage_folders
from brim.support.progress import Reporter
from brim.tasks import Split
from brim.training.accelerator import hold_together

logger = logging.getLogger(__name__)


def evaluate_stages(
    run: Path, *, split: Split = "test", reporter: Reporter | None = None
) -> dict[StageName, Path]:
    """Evaluate the models that a run began with as the run itself was, unless that was done.

    Runs that share a model share its results, in the stage's folder; where these are of another
    decoding or other data, in one beside it. One process at a time evaluates, others wait for it.
    The run's model card then has them.

    Args:
        run: a run directory with results of the split.
        split: which split.
        reporter: shows progress.

    Returns:
        Where results are, by `teacher` and then `predistill`, or `student` where the run began with
        a loaded one; a student of random weights is left out.

    Raises:
        RunError: `run` has no results, or a model is gone.
    """
    own = RunDirectory(run).results(split)
    tested = {
        name: _evaluate(run, name, stage, own, split, reporter)
        for name, stage in stage_folders(RunDirectory(run)).items()
    }
    if split in RunDirectory(run).tests() and PartialState().is_main_process:
        write_card(run)
    return tested


def _evaluate(
    run: Path,
    name: StageName,
    stage: Path,
    own: Results,
    split: Split,
    reporter: Reporter | None,
) -> Path:
    busy = f"{stage}: another process is testing it; waiting"
    with hold_together(stage / ".test.lock", busy, wait=True):
        folder = results_folder(stage, own, split)
        found = _find(folder, split)
        training = training_facts(stage).items()
        done = (
            found is not None
            and own.scores.keys() <= found.scores.keys()
            and training <= found.facts.items()
        )
        PartialState().wait_for_everyone()  # all have looked before anything changes
        if not done:
            evaluate_stage(run, name, split=split, out=folder, reporter=reporter)
    return folder


def _find(directory: Path, split: Split) -> Results | None:
    """The results of a split with their predictions; None where they are missing or damaged."""
    try:
        return find_whole(directory, split)
    except RunError as error:
        logger.warning("%s; doing so", error)
        return None
