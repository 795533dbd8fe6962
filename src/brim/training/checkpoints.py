"""Checkpoints: directories that are there as a whole or not at all, safetensors and JSON inside.

A checkpoint is written under a temporary name beside its place: the files, then a manifest of their
SHA-256 sums, then everything is forced to the disk and renamed. Whatever stops the process, a
directory whose manifest verifies is complete. Nothing is pickled, so loading runs no code.

One process writes a directory at a time; the locks of run directories and stages see to that.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from brim.errors import RunError
from brim.metrics import Score
from brim.support.files import disk_errors, fsync_directory, read_json
from brim.support.seals import checkpoints_in, find_damage, seal
from brim.training.monitors import MonitorState

logger = logging.getLogger(__name__)

STATE = "trainer_state.json"

KEPT = ".best.kept"
"""What `best/` was at the last checkpoint, beside it where an evaluation replaced it since."""


@dataclass(frozen=True, slots=True)
class TrainerState:
    """What a checkpoint stores besides the weights and the optimizer's moments.

    Attributes:
        step: steps done, skipped ones included.
        best_step: the step of the best validation score so far, the last of equally good ones;
            None before the first.
        best_score: that score, in the metric's own direction.
        nonfinite_steps: steps skipped in a row until now.
        num_processes: how many processes made the last step; None before it.
        best_sha256: of the manifest of `best/`, which has the hash of every file in it.
        seed: of the training, which tells it from a run's other ones.
        monitors: what the monitors remember.
        stale: evaluations in a row without a better score.
        stopped: why the training ended before its last step; None where it did not.
    """

    step: int = 0
    best_step: int | None = None
    best_score: float | None = None
    nonfinite_steps: int = 0
    num_processes: int | None = None
    best_sha256: str | None = None
    seed: int | None = None
    monitors: MonitorState = field(default_factory=MonitorState)
    stale: int = 0
    stopped: str | None = None

    def evaluated(self, score: Score) -> TrainerState:
        """Return the state behind an evaluation, whose step is the best if none was better.

        The later one of equals: where a score is 0 throughout, step 0 must not be the best.

        Args:
            score: the validation score of the step.
        """
        value, best = score.value, self.best_score
        better = best is None or (value > best if score.higher_is_better else value < best)
        state = replace(self, stale=0 if better else self.stale + 1)
        if better or value == best:
            state = replace(state, best_step=self.step, best_score=value)
        return state


def save_checkpoint(
    root: Path,
    step: int,
    write: Callable[[Path], None],
    *,
    keep: int,
    spare: int | None = None,
    num_bytes: int = 0,
) -> Path:
    """Make the checkpoint `root/step-{step}` and delete what it makes superfluous.

    Args:
        root: the folder of a run's checkpoints; made if need be.
        step: number of the checkpoint, from 0.
        write: puts the files into the folder that it is given.
        keep: how many of the newest checkpoints stay, this one included; at least 1.
        spare: the step of one that stays, too.
        num_bytes: about how much is written, for the message when there is no space.

    Returns:
        The checkpoint's folder.

    Raises:
        RunError: no space, no permission; older checkpoints are untouched.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")

    def write_all(directory: Path) -> None:
        write(directory)
        seal(directory, {"step": step})

    path = root / f"step-{step}"
    replace_directory(path, write_all, num_bytes)
    with disk_errors(root):
        # Later ones are damaged: training would have resumed from them.
        for later in (other for other in checkpoint_steps(root) if other > step):
            shutil.rmtree(root / f"step-{later}")
    prune(root, step, keep=keep, spare=spare)
    return path


def prune(root: Path, step: int, *, keep: int, spare: int | None = None) -> None:
    """Delete what stops left half-written, and checkpoints before the newest `keep` up to `step`.

    The one of the step `spare` stays. What `best/` was at an earlier checkpoint goes.

    Raises:
        RunError: no permission.
    """
    with disk_errors(root):
        for leftover in (*root.glob(".step-*"), *root.parent.glob(".best.*")):
            shutil.rmtree(leftover)
        earlier = [other for other in checkpoint_steps(root) if other <= step]
        for superfluous in set(earlier[keep:]) - {spare}:
            shutil.rmtree(root / f"step-{superfluous}")


def sound_checkpoints(root: Path) -> Iterator[Path]:
    """The sound checkpoints, the newest first; of each damaged one a warning says what is wrong."""
    for path in checkpoints_in(root).values():
        damage = find_damage(path)
        if damage is None:
            yield path
        else:
            logger.warning("%s: damaged: %s; going back to the checkpoint before", path, damage)


def latest_state(root: Path) -> dict[str, Any] | None:
    """The trainer state of the newest checkpoint that has a sound one; None without checkpoints.

    Only that file is looked at, and no weights.

    Raises:
        RunError: there are checkpoints and none of them has a sound state.
    """
    checkpoints = checkpoints_in(root)
    for path in checkpoints.values():
        damage = find_damage(path, lambda name: name == STATE)
        state = read_json(path / STATE) if damage is None else None
        if isinstance(state, dict):
            return state
        logger.warning("%s: damaged: %s; reading the checkpoint before", path, damage or STATE)
    if checkpoints:
        raise RunError(f"{root}: every checkpoint is damaged; delete the folder to begin again")
    return None


def what_is_kept(directory: Path, best_step: int | None) -> str:
    """Say which states of a training are on the disk, every number of which is finite.

    Args:
        directory: of the training.
        best_step: of its `best/`; None without one.
    """
    saved = [] if best_step is None else [f"best/ of step {best_step}"]
    steps = checkpoint_steps(directory / "checkpoints")
    saved += [f"the checkpoint of step {steps[0]}"] if steps else []
    return f"{' and '.join(saved) or 'nothing'} was saved before, and is intact"


def check_processes(path: Path, before: int | None, now: int) -> None:
    """Check that a run resumes with as many processes as before (None: not known).

    Data order and rollouts do not depend on the number. Sums over processes round otherwise, and
    dropout masks, drawn process by process, are others.

    Raises:
        RunError: the numbers differ.
    """
    if before not in (None, now):
        raise RunError(
            f"{path}: was begun with {before} processes and would resume with {now}, to other bits "
            "(and other dropout); start as many, or allow it with --other-processes"
        )


def finish_replacing(path: Path) -> None:
    """Bring a directory back that a stop left aside, between the two renames of its replacement.

    Raises:
        RunError: no permission.
    """
    for suffix in ("old", "kept"):
        aside = path.with_name(f".{path.name}.{suffix}")
        if aside.exists() and not path.exists():
            with disk_errors(path):
                aside.rename(path)


def replace_directory(
    path: Path, write: Callable[[Path], None], num_bytes: int = 0, *, keep: bool = False
) -> None:
    """Make the directory `path`, or put another in its place, durably and as a whole.

    When it fails, `path` is as it was.

    Args:
        path: the directory.
        write: puts the files into the folder that it is given.
        num_bytes: about how much it writes, for the message when there is no space.
        keep: leave what was there as `.{name}.kept`, unless one is kept already.

    Raises:
        RunError: no space, no permission.
    """
    temporary, aside, kept = (
        path.with_name(f".{path.name}.{suffix}") for suffix in ("new", "old", "kept")
    )
    with disk_errors(path, num_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        finish_replacing(path)
        _remove(temporary)
        _remove(aside)
        try:
            temporary.mkdir()
            write(temporary)
            _fsync_tree(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if path.exists():
            path.rename(kept if keep and not kept.exists() else aside)
        temporary.rename(path)
        fsync_directory(path.parent)
        _remove(aside)


def checkpoint_steps(root: Path) -> list[int]:
    """The steps of which there are checkpoints, sound or not, newest first."""
    return list(checkpoints_in(root))


def _fsync_tree(directory: Path) -> None:
    for path in (*directory.rglob("*"), directory):
        if path.is_dir():
            fsync_directory(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
