"""From which checkpoint a training resumes: one from which all that is read later is sound.

A resume relies on more than its checkpoint: on the logs up to that step and on `best/`. What is
damaged of them is made again: `best/` from the checkpoint of its step, everything by going back to
a checkpoint from before. A `best/` that is ahead of the checkpoint is replaced by the one before:
on other hardware its step may be no best one when it comes again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from brim.errors import AwayError, RunError
from brim.support.files import read_json, sha256_file
from brim.support.seals import (
    LOGS,
    MANIFEST,
    OF_A_RESUME,
    Record,
    beginning_damage,
    checkpoints_in,
    find_damage,
    seal,
)
from brim.training.checkpoints import (
    KEPT,
    STATE,
    TrainerState,
    prune,
    replace_directory,
    sound_checkpoints,
)
from brim.training.tracking import LOG_FILES

logger = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """The run stopped at a step's end because it was asked to; that step is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}, which is saved; the same command goes on")
        self.step = step


@dataclass(frozen=True, slots=True)
class Start:
    """Where a training resumes.

    Attributes:
        path: the checkpoint.
        state: its trainer state.
        logs: size and SHA-256 that each log had then; None where an older version wrote it.
        source: the folder that `best/` must be made from, for it is damaged or of a later step;
            None if it is neither, or no folder has it.
    """

    path: Path
    state: dict[str, Any]
    logs: dict[str, Record] | None
    source: Path | None = None


def find_start(directory: Path) -> Start | None:
    """Return the newest checkpoint that a training can resume from; None without any.

    Nothing is changed. Of each checkpoint that is passed over a warning says why.

    Args:
        directory: of the training.

    Raises:
        RunError: there are checkpoints, and none of them can make everything whole.
    """
    root = directory / "checkpoints"
    damage, newest_best = "", 0
    for path in sound_checkpoints(root):
        start, best_damage = Start(path, *_read(path)), None
        found = _damage_of_state(start)
        if found is None:
            newest_best = max(newest_best, start.state["best_step"] or 0)
            found = _damage_of_logs(directory, start)
        if found is None:
            best_damage = _damage_of_best(directory / "best", start)
            if best_damage is None and _is_best(directory / "best", start):
                return start
            if find_damage(directory / KEPT) is None and _is_best(directory / KEPT, start):
                return replace(start, source=directory / KEPT)
            source = root / f"step-{start.state['best_step']}"
            if find_damage(source) is None:
                return replace(start, source=source)
            # A best step that is still to come makes best/ again, and nothing reads it before.
            if best_damage is None or newest_best > start.state["step"]:
                return start
        damage = found or f"best/ is damaged: {best_damage}"
        logger.warning("%s: %s; going back to a checkpoint before %s", directory, damage, path.name)
    if checkpoints_in(root):
        raise RunError(
            f"{root}: {damage or 'every checkpoint is damaged'}, and no checkpoint can make it "
            "again; bring it back, or delete the folder to begin again"
        )
    return None


def mend(directory: Path, start: Start, *, keep: int, spare: int | None = None) -> None:
    """Make `best/` from the folder that has it, if it has to be, and tidy up behind a stop.

    Args:
        directory: of the training.
        start: where it resumes.
        keep: how many of the newest checkpoints up to there stay.
        spare: the step of one that stays, too.
    """
    if start.source is not None:
        _mend_best(directory, start, start.source)
    prune(start.path.parent, start.state["step"], keep=keep, spare=spare)


def _mend_best(directory: Path, start: Start, source: Path) -> None:
    step = start.state["best_step"]
    why = _damage_of_best(directory / "best", start) and "is damaged"
    why = why or f"is of a step after {start.path.name}"
    logger.warning("%s: %s; made again from %s", directory / "best", why, source)

    def copy(path: Path) -> None:
        for item in source.iterdir():
            if item.name not in OF_A_RESUME:
                copied = shutil.copytree if item.is_dir() else shutil.copy
                copied(item, path / item.name)
        seal(path, {"step": step, "seed": start.state.get("seed")})

    replace_directory(directory / "best", copy)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Record] | None]:
    return read_json(path / STATE), read_json(path / LOGS) if (path / LOGS).exists() else None


def _damage_of_state(start: Start) -> str | None:
    state = start.state if isinstance(start.state, dict) else {}
    same = f"step-{state.get('step')}" == start.path.name
    same &= "best_step" in state and isinstance(state["best_step"], int | None)
    return None if same else f"{start.path.name}/{STATE} is not that of a checkpoint's step"


def _damage_of_logs(directory: Path, start: Start) -> str | None:
    if start.logs is None:  # an older version did not record them
        return None
    try:
        for name in LOG_FILES:
            damage = beginning_damage(directory / name, start.logs[name])
            if damage is not None:
                return f"{name} {damage}"
    except (KeyError, TypeError, AttributeError) as error:
        return f"{start.path.name}/{LOGS} is of another kind ({error!r})"
    return None


def _damage_of_best(best: Path, start: Start) -> str | None:
    """What is wrong with `best/`, unless it is of a later step, which will come again."""
    if start.state.get("best_sha256") is None:  # an older version did not seal it
        return None
    return find_damage(best) or foreign_best(best, start.state)


def _is_best(best: Path, start: Start) -> bool:
    """Whether a sealed folder is the `best/` of a checkpoint, and of no later step."""
    known = start.state.get("best_sha256")
    return known is None or known == sha256_file(best / MANIFEST)


def foreign_best(best: Path, state: Mapping[str, Any]) -> str | None:
    """Why a sealed `best/` is not the one of a training; None where it is, or of a later step.

    Args:
        best: the folder.
        state: the training's, of a checkpoint.
    """
    if state.get("best_sha256") in (None, sha256_file(best / MANIFEST)):
        return None
    facts = read_json(best / MANIFEST)
    step = facts.get("step")
    later = isinstance(step, int) and step > state["step"]
    if later and facts.get("seed") == state.get("seed"):
        return None
    return f"it is not what this training made by step {state['step']}"


def warn_of_the_untrained(directory: Path, state: TrainerState, metric: str, keys: str) -> None:
    """Warn where the best model of a training is the one that it began with."""
    if state.best_step == 0 < state.step:
        logger.warning(
            "%s: best/ is the model of step 0, before training: %s was worse at every "
            "evaluation up to step %d; train longer, or change %soptim.lr",
            *(directory, metric, state.step, keys),
        )


@contextmanager
def saved_when_away(save: Callable[[], None], num_processes: int) -> Iterator[None]:
    """Save the last complete step where a server goes away in the one after it.

    A step asks the teacher before it changes anything. Of several processes one may be alone with
    it, and nothing is saved.

    Args:
        save: writes a checkpoint.
        num_processes: that train together.

    Raises:
        AwayError: the block's, once the step is saved.
    """
    try:
        yield
    except AwayError:
        if num_processes == 1:
            save()
        raise
