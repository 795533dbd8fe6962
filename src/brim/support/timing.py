"""Wall-clock time by phase, measured where a phase happens and read by whoever asked.

with phases() as seconds:
    with timed("rollout"):
        ...
seconds  # {"rollout": 1.2}
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_phases: ContextVar[dict[str, float] | None] = ContextVar("phases", default=None)


@contextmanager
def phases() -> Iterator[dict[str, float]]:
    """Collect the seconds of every `timed` block inside, summed by name."""
    seconds: dict[str, float] = {}
    token = _phases.set(seconds)
    try:
        yield seconds
    finally:
        _phases.reset(token)


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Add this block's seconds to the phase `name`; free unless phases are timed."""
    seconds = _phases.get()
    if seconds is None:
        yield
        return
    start = _now()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + _now() - start


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # kernels run behind the host's back
    return time.perf_counter()
