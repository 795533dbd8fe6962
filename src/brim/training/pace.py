"""How fast a training goes, and when it will have ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from statistics import fmean

from brim.support.timing import phases, timed
from brim.training.loop_settings import LoopConfig
from brim.training.optimizer import count_evaluations, count_saves

RECENT = 100  # steps: texts get shorter or longer as a student learns
# Of a checkpoint that was not written yet: weights and two moments, each as large as best/.
_BEST_IN_A_SAVE = 3


class Pace:
    """Seconds of steps, evaluations and saves since this process began, and those that are left.

    The first step takes memory and chooses kernels: it counts until there is another.

    Args:
        settings: how often the loop evaluates and saves.
        num_steps: of the whole training.
    """

    def __init__(self, settings: LoopConfig, num_steps: int) -> None:
        self.settings, self.num_steps = settings, num_steps
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._num_seen = 0
        self._last: dict[str, float] = {}

    def measure(self, what: str, work: Callable[[], None]) -> float:
        """Do an `evaluation`, a `save` or the writing of `best`; note and return its seconds."""
        with phases() as seconds, timed(what):
            work()
        self._last[what] = seconds[what]
        return seconds[what]

    def add_step(self, seconds: float) -> None:
        """Note what a step took."""
        if self._num_seen == 1:
            self._steps.clear()
        self._num_seen += 1
        self._steps.append(seconds)

    def seconds_left(self, step: int) -> float | None:
        """Return what is left behind a step, whose own evaluation and save are still to come.

        None before the first step here.
        """
        if not self._steps:
            return None
        save = self._last.get("save", _BEST_IN_A_SAVE * self._last.get("best", 0.0))
        return (
            (self.num_steps - step) * fmean(self._steps)
            + count_evaluations(self.settings, self.num_steps, after=step - 1)
            * self._last.get("evaluation", 0.0)
            + count_saves(self.settings, self.num_steps, after=step - 1) * save
        )
