"""Accelerate's view of this process and of the others of its launch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from brim.errors import ConfigError
from brim.support.files import hold

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

# How launchers say how many processes they started.
_WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")

# How long processes wait for each other. The main one may be alone for hours: with a stage that
# another launch is making, or with a large checkpoint. One that ended is the launcher's to notice.
_TIMEOUT = timedelta(days=7)


def make_accelerator(precision: Literal["float32", "bfloat16"] | None = None) -> Accelerator:
    """Accelerate's view of this process and of the others of its launch.

    Args:
        precision: of autocast; None for that of earlier calls.

    Raises:
        ConfigError: another precision than that of an earlier call; or a launcher started several
            processes and accelerate sees this one alone, so that each would be a run of its own.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    names = {None: None, "float32": "no", "bfloat16": "bf16"}
    try:
        accelerator = Accelerator(
            mixed_precision=names[precision],
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_TIMEOUT)],
        )
    except ValueError:
        raise ConfigError(
            f"trainer.precision: {precision} differs from an earlier run's in this process, and "
            "accelerate allows one; start another process"
        ) from None
    sizes = [f"{name}={os.environ[name]}" for name in _WORLD_SIZES if _number(name) > 1]
    if sizes and accelerator.num_processes == 1:
        remedy = (
            "start them by torchrun or accelerate launch"
            if torch.accelerator.is_available()
            else "set ACCELERATE_USE_CPU=true"
        )
        variable = sizes[0].partition("=")[0]
        raise ConfigError(
            f"{sizes[0]}, but accelerate sees one process here; {remedy}, or for a single process "
            f"unset {variable}"
        )
    return accelerator


def this_process() -> PartialState:
    """Return accelerate's view of this process where there is no accelerator yet.

    Its own default does not see the other processes of a launch on CPUs, and would keep to that.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=_TIMEOUT)


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else 1


@contextmanager
def hold_together(
    path: Path, busy: str, *, wait: bool = False, prepare: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold a lock on the main process while the block runs on all of them.

    Args:
        path: the lock file.
        busy: what to say if a process of another launch holds it.
        wait: log `busy` and wait, in place of raising it.
        prepare: what the main process does once it holds the lock; the others wait for it.

    Raises:
        RunError: another launch holds it, or its folder cannot be written.
    """
    from accelerate import PartialState

    with hold(path, busy, wait=wait) if PartialState().is_main_process else nullcontext():
        if PartialState().is_main_process:
            prepare()
        PartialState().wait_for_everyone()
        yield
