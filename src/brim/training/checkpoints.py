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
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from brim.errors import RunError
from brim.support.files import atomic_write_json, disk_errors, fsync_directory, read_json
from brim.support.seals import checkpoints_in, find_damage, seal
from brim.training.sharding import part_of

logger = logging.getLogger(__name__)

STATE = "trainer_state.json"

# What optimizers keep in the shape of the parameter, and what AdamW keeps in all.
_MOMENTS = {"exp_avg", "exp_avg_sq", "state1", "state2"}
_ADAMW = {"step", "exp_avg", "exp_avg_sq"}


def save_checkpoint(
    root: Path, step: int, write: Callable[[Path], None], *, keep: int, num_bytes: int = 0
) -> Path:
    """Make the checkpoint `root/step-{step}` and delete what it makes superfluous.

    Args:
        root: the folder of a run's checkpoints; made if need be.
        step: number of the checkpoint, from 0.
        write: puts the files into the folder that it is given.
        keep: how many of the newest checkpoints stay, this one included; at least 1.
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
        # Later ones are damaged: training would have gone on from them.
        for later in (other for other in checkpoint_steps(root) if other > step):
            shutil.rmtree(root / f"step-{later}")
    prune(root, step, keep=keep)
    return path


def prune(root: Path, step: int, *, keep: int) -> None:
    """Delete what stops left half-written, and checkpoints before the newest `keep` up to `step`.

    Raises:
        RunError: no permission.
    """
    with disk_errors(root):
        for leftover in root.glob(".step-*"):
            shutil.rmtree(leftover)
        earlier = [other for other in checkpoint_steps(root) if other <= step]
        for superfluous in earlier[keep:]:
            shutil.rmtree(root / f"step-{superfluous}")


def sound_checkpoints(root: Path) -> Iterator[Path]:
    """The sound checkpoints, the newest first; of each damaged one a warning says what is wrong."""
    for path in checkpoints_in(root).values():
        damage = find_damage(path)
        if damage is None:
            yield path
        else:
            logger.warning("%s: damaged: %s; going back to the checkpoint before", path, damage)


def latest_checkpoint(root: Path) -> Path | None:
    """The newest sound checkpoint; None where there are none at all.

    Raises:
        RunError: there are checkpoints and every one is damaged.
    """
    newest = next(sound_checkpoints(root), None)
    if newest is None and checkpoints_in(root):
        raise RunError(f"{root}: every checkpoint is damaged; delete the folder to begin again")
    return newest


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


def check_processes(path: Path, before: int | None, now: int) -> None:
    """Meet that a run goes on with another number of processes than before (None: not known).

    Data order and rollouts do not depend on the number. Sums over processes round otherwise, and
    dropout masks, drawn process by process, are others.

    Raises:
        RunError: the numbers differ.
    """
    if before not in (None, now):
        raise RunError(
            f"{path}: was begun with {before} processes and would go on with {now}, to other bits "
            "(and other dropout); start as many, or allow it with --other-processes"
        )


def finish_replacing(path: Path) -> None:
    """Bring a directory back that a stop left aside, between the two renames of its replacement.

    Raises:
        RunError: no permission.
    """
    aside = path.with_name(f".{path.name}.old")
    if aside.exists() and not path.exists():
        with disk_errors(path):
            aside.rename(path)


def replace_directory(path: Path, write: Callable[[Path], None], num_bytes: int = 0) -> None:
    """Make the directory `path`, or put another in its place, durably and as a whole.

    When it fails, `path` is as it was.

    Args:
        path: the directory.
        write: puts the files into the folder that it is given.
        num_bytes: about how much it writes, for the message when there is no space.

    Raises:
        RunError: no space, no permission.
    """
    temporary, aside = (path.with_name(f".{path.name}.{suffix}") for suffix in ("new", "old"))
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
            path.rename(aside)
        temporary.rename(path)
        fsync_directory(path.parent)
        _remove(aside)


def save_optimizer(
    optimizer: torch.optim.Optimizer, directory: Path, state_dict: dict[str, Any] | None = None
) -> None:
    """Write `optimizer.safetensors` (moments, step counts) and `optimizer.json` (the rest).

    Args:
        optimizer: of these moments.
        directory: takes the files.
        state_dict: the optimizer's, where it holds only a part of each moment.
    """
    state_dict = optimizer.state_dict() if state_dict is None else state_dict
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    places: set[int] = set()
    for index, state in state_dict["state"].items():
        values[str(index)] = {}
        for name, value in flat(state):
            if isinstance(value, Tensor):
                # Parameters may share one, such as the map of 8-bit codes; safetensors cannot.
                shared = value.data_ptr() in places
                places.add(value.data_ptr())
                tensors[f"{index}.{name}"] = value.clone() if shared else value.contiguous()
            else:
                values[str(index)][name] = value
    save_file(tensors, directory / "optimizer.safetensors")
    atomic_write_json(
        directory / "optimizer.json",
        {
            "class": type(optimizer).__name__,
            "param_groups": state_dict["param_groups"],
            "state": values,
        },
    )


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors, shared ones counted once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def flat(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What an optimizer keeps of a parameter; bitsandbytes hides 8-bit moments in a dict within."""
    for name, value in state.items():
        yield from flat(value) if isinstance(value, Mapping) else [(name, value)]


def load_optimizer(optimizer: torch.optim.Optimizer, directory: Path) -> None:
    """Give an optimizer the state that `save_optimizer` wrote, bit for bit, or its part of it.

    Its hyperparameters stay what the settings made them.

    Raises:
        RunError: the files are of another optimizer or of other parameters.
    """
    saved = read_json(directory / "optimizer.json")
    try:
        if saved["class"] != type(optimizer).__name__:
            raise ValueError(f"the state of {saved['class']}, not of {type(optimizer).__name__}")
        state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in saved["state"].items()}
        parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
        for key, tensor in load_file(directory / "optimizer.safetensors").items():
            index, name = key.split(".", maxsplit=1)
            parameter = parameters[int(index)]
            own = tensor.clone()  # or the optimizer would work in the mapped file
            wanted = parameter.shape if name in _MOMENTS else ()
            if own.shape != wanted and name in (*_MOMENTS, "step"):
                raise ValueError(f"{key} has the shape {tuple(own.shape)}")
            state[int(index)][name] = part_of(own, parameter)
        if saved["class"] == "AdamW" and any(
            not set(values) >= _ADAMW for values in state.values()
        ):
            raise ValueError("it lacks moments")
        groups = [
            {**own, "params": group["params"]}
            for own, group in zip(optimizer.param_groups, saved["param_groups"], strict=True)
        ]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise RunError(
            f"{directory}: the optimizer is another, or that of another model ({error})"
        ) from None


def save_parameters(parameters: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name; nothing where there are none."""
    if parameters:
        save_file({name: value.detach().contiguous() for name, value in parameters.items()}, path)


def load_parameters(parameters: Mapping[str, Tensor], path: Path) -> None:
    """Give the tensors the values that `save_parameters` wrote, bit for bit.

    Raises:
        RunError: the file is missing, or holds other tensors.
    """
    if not parameters:
        return
    stored = load_file(path) if path.exists() else {}
    shapes = {name: value.shape for name, value in stored.items()}
    if shapes != {name: value.shape for name, value in parameters.items()}:
        raise RunError(
            f"{path}: does not hold what this objective trains beside the student; "
            "go on with the settings that the run was begun with"
        )
    fill(parameters, stored)


@torch.no_grad()
def fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into those of the same names, which may be held in parts."""
    for name, tensor in tensors.items():
        tensor.copy_(part_of(values[name], tensor))


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
