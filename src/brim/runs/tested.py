"""Where the results are of what a run began with: teacher, and student before its objective.

Nothing here imports torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from brim.config.loading import config_hash
from brim.errors import RunError
from brim.runs.directory import Results, RunDirectory

StageName = Literal["teacher", "student", "predistill"]

_HOW = ("data", "decoding", "sampling")


def stage_folders(run: RunDirectory) -> dict[StageName, Path]:
    """Return by `teacher`, and `predistill` or else `student`, the folders that runs share."""
    manifest = run.manifest()
    stages, root = manifest.get("stages", {}), run.path / manifest.get("stages_dir", "stages")
    start: StageName = "predistill" if "predistill" in stages else "student"
    names: list[StageName] = [name for name in ("teacher", start) if name in stages]
    return {name: Path(os.path.normpath(root)) / stages[name] for name in names}


def results_folder(stage: Path, own: Results | None, split: str) -> Path:
    """Return where a stage's results go that were written as a run's `own` were, if it has any.

    That is the stage's folder, or one beside it where results of other decoding or data are.
    """
    try:
        found = find_whole(stage, split)
    except RunError:
        return stage
    if found is None or own is None or not _differ(own, found):
        return stage
    how = config_hash({key: own.facts.get(key) for key in _HOW})
    return stage.with_name(f"{stage.name}-{how[:12]}")


def find_tested(run: RunDirectory, split: str) -> dict[StageName, Path]:
    """Return the folders of results as `evaluate_stages` does, of those that were tested."""
    own = run.results(split)
    folders = {
        name: results_folder(stage, own, split) for name, stage in stage_folders(run).items()
    }
    return {name: folder for name, folder in folders.items() if find_whole(folder, split)}


def find_whole(directory: Path, split: str) -> Results | None:
    """Return the results of a split with its predictions; None where either is missing.

    Raises:
        RunError: they are damaged.
    """
    found = RunDirectory(directory)
    return found.find_results(split) if found.predictions_path(split).exists() else None


def _differ(ours: Results, theirs: Results) -> bool:
    """Whether the texts are of other data or were written otherwise, as far as both say it."""
    pairs = [(ours.facts.get(key), theirs.facts.get(key)) for key in _HOW]
    return any(a != b for a, b in pairs if a is not None and b is not None)
