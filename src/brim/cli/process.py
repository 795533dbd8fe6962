"""Settings of the process that a command runs in; nothing here changes a result."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brim.support.progress import Reporter

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
    """Treat numbers below 1e-38 as zero, in this thread and in those that it starts later.

    Probabilities of peaked distributions are full of them, and a CPU needs a hundred times as long
    for an operation on one. Threads of torch inherit it from the one that first needs them.
    """
    import torch

    torch.set_flush_denormal(flush)


@contextmanager
def hushed(quiet: bool) -> Iterator[None]:
    """Keep from the user what is said again, and bars that cannot move; where `quiet`, warnings."""
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when it is imported
    level, said = logging.root.manager.disable, set[str]()

    def is_new(record: logging.LogRecord) -> bool:
        known, text = len(said), record.getMessage()
        said.add(text)
        return len(said) > known

    assert logging.lastResort is not None
    logging.lastResort.addFilter(is_new)
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
            logging.lastResort.removeFilter(is_new)


@contextmanager
def working(quiet: bool = False) -> Iterator[Reporter]:
    """Set up long work: no progress but that of the reporter, and only errors where `quiet`.

    On a terminal libraries show what they download, and nothing else.
    """
    with hushed(quiet):
        from huggingface_hub.utils.tqdm import enable_progress_bars
        from transformers.utils.logging import disable_progress_bar

        from brim.support.progress import Reporter

        disable_progress_bar()  # of the hub's too
        reporter = Reporter(quiet=quiet)
        if reporter.animated:
            enable_progress_bars()
        flush_denormals(True)
        try:
            yield reporter
        finally:
            flush_denormals(False)


def leave_processes() -> None:
    """Destroy the process group; a live gloo thread can abort the interpreter's shutdown."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        # A thread of gloo that is still ending its last exchange needs the interpreter, which the
        # destruction of the group holds while it waits for that thread.
        time.sleep(0.2)
        distributed.destroy_process_group()
