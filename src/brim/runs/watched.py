"""What is shown of a training while it goes on: numbers that mean something, not the loss."""

from __future__ import annotations

from collections.abc import Callable

from brim.objectives.base import Objective
from brim.objectives.seqkd import SeqKD
from brim.support.progress import Meter
from brim.support.tables import score_format
from brim.training.callbacks import Callback, CallbackState
from brim.training.pace import Pace

# By the first of these that a method logs one sees how it does.
_TELLING = {
    "rollout/return": "return {:.2f}",
    "policy/divergence": "divergence {:.4f} per token",
}
# Of a policy gradient the loss says nothing; here it is what is minimized and measured.
_OF_TARGETS = {"train/loss": "cross-entropy {:.3f} per token"}


class Watched(Callback):
    """The note behind the bar of a training.

    It has the return of the step's rollouts, or the divergence or cross-entropy where a method has
    no return, their mean length, and the last evaluation beside the best.

    Args:
        meter: shows it.
        metric: key of the score that picks the checkpoint.
        objective: the method.
        pace: knows the seconds left.
    """

    def __init__(self, meter: Meter, metric: str, objective: Objective, pace: Pace) -> None:
        self._meter, self._metric, self._pace = meter, metric, pace
        self._telling = _OF_TARGETS if isinstance(objective, SeqKD) else _TELLING
        self._step = ""
        self._last: tuple[int, float] | None = None

    def on_step(self, state: CallbackState) -> None:
        """Show a step by its metrics."""
        metrics = state.metrics
        shown = [text.format(metrics[key]) for key, text in self._telling.items() if key in metrics]
        length = metrics.get("rollout/length")
        self._step = ", ".join([*shown[:1], *([] if length is None else [f"length {length:.1f}"])])
        left = self._pace.seconds_left(state.step)
        self._meter.advance(state.step - self._meter.done, self._note(state), left)

    def on_evaluate(self, state: CallbackState) -> None:
        """Show an evaluation that has ended."""
        self._last = state.step, state.scores[self._metric].value
        self._meter.advance(0, self._note(state))

    def evaluating(self, num_examples: int) -> Callable[[int], None]:
        """Return what shows an evaluation under way, called with the number of examples done."""
        done = 0

        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            self._meter.advance(0, f"evaluating {done:,} of {num_examples:,} examples")

        return advance

    def _note(self, state: CallbackState) -> str:
        return "; ".join(filter(None, [self._step, self._score(state)]))

    def _score(self, state: CallbackState) -> str:
        """The last evaluation and the best; of a run that was resumed the best alone at first."""
        if state.best_score is None:
            return ""
        name, spec = self._metric.replace("_", " "), score_format(self._metric)
        best = f"best {state.best_score:{spec}} at step {state.best_step}"
        if self._last is None:
            return f"{name}: {best}"
        step, value = self._last
        last = f"{name} {value:{spec}} at step {step}"
        return f"{last} (best)" if step == state.best_step else f"{last} ({best})"
