"""What the command line asks of the process that it runs in; nothing here changes a result."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import TYPE_CHECKING, Literal

from brim.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

# Blocks up to this size are kept for the next one that asks, not given back to the system.
KEPT_BYTES = 2**30

# About 100 µs. Between two matrix products of a model a waiting thread never sleeps, and where
# another program has the core that it waits for, it sleeps soon.
SPIN_COUNT = "20000"


def prepare_process() -> None:
    """Set how threads wait and memory is kept; before torch is imported.

    - A thread that waits for another spins for a while, then sleeps. By default it spins until the
      other comes, and with anything else running on the machine a step takes twenty times as long;
      if it never spins, each of the hundreds of waits a token costs a system call and a wake-up.
    - glibc returns every block beyond 32 MiB to the system when it is freed, and the system clears
      each page of the next one. That is up to a quarter of an update.

    Variables that are set already are left alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl has not
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)
            mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def flush_denormals(flush: bool) -> None:
    """Have threads take numbers below 1e-38 for zero: this one, and those that it makes later.

    Probabilities of peaked distributions are full of them, and a CPU needs a hundred times as long
    for an operation on one. Threads of torch inherit it from the one that first needs them.
    """
    import torch

    torch.set_flush_denormal(flush)


# How launchers say how many processes they started.
_WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


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

    names = {None: None, "float32": "no", "bfloat16": "bf16"}
    try:
        accelerator = Accelerator(mixed_precision=names[precision])
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


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else 1


def leave_processes() -> None:
    """Part from the other processes of a launch, or their threads may abort this one's exit."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        # A thread of gloo that is still letting go of its last exchange needs the interpreter,
        # which the destruction of the group holds while it waits for that thread.
        time.sleep(0.2)
        distributed.destroy_process_group()
