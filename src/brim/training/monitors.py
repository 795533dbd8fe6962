"""Monitors: signs that learning from one's own text goes wrong, while there is time to act.

Each sign is looked for at each step, in numbers that are the same on all processes. It raises its
alarm once it was there at nearly all of the last steps, so that no noise of a batch does:
`share ← 0.9 share + 0.1 [there now]` has to pass 0.8, which takes 16 steps in a row. An alarm is
raised once; what was raised, and how long signs have been there, is kept in the checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from brim.metrics import Score
from brim.metrics.regrets import REGRETS

Mode = Literal["off", "warn", "stop", "rollback"]

DECAY, ENOUGH = 0.9, 0.8
WARM_UP = 10  # steps whose median is the level at the start
EVALUATIONS = 2  # in a row, of `metric`
MAX_ROLLBACKS, LR_FACTOR = 3, 0.5

_OF_THE_START = (
    "rollout/length", "rollout/repetition", "policy/entropy", "policy/kl_to_teacher",
)  # fmt: skip

REMEDIES = {
    "length": "shorter text has the higher return: follow the regret per token "
    "(objective.name=anchored, objective.per_token=true), pre-distill longer, or lower optim.lr",
    "truncated": "raise decoding.max_tokens, or pre-distill longer; text that never ends learns "
    "nothing of its end",
    "entropy": "lower optim.lr, or raise decoding.temperature; a student that always writes the "
    "same learns nothing more",
    "repetition": "lower optim.lr, pre-distill longer, or lower decoding.max_tokens",
    "metric": "stop here (best/ is of the best evaluation), lower optim.lr, or choose "
    "evaluation.metric by what you want",
    "kl": "lower optim.lr, or narrow objective.clip.range",
    "variance": "check objective.clip.range, objective.baseline and decoding.temperature; all "
    "tokens have the same weight",
}
"""By kind of alarm, what to do about it."""

KINDS = tuple(REMEDIES)


@dataclass(frozen=True, slots=True)
class Reference:
    """The text that a student is to write, as it is measured in the student's own.

    Attributes:
        source: whose text it is.
        length: mean tokens.
        truncated: share of texts that are longer than the limit.
        repetition: share of 4-grams that their text had before.
    """

    source: str
    length: float
    truncated: float
    repetition: float


@dataclass
class MonitorState:
    """What checkpoints hold.

    Attributes:
        start: the first values of what is compared with the start.
        shares: of recent steps at which a sign was there.
        best: metric and return of the evaluation with the best metric.
        falls: evaluations in a row at which the metric had fallen and the return risen.
        raised: kinds whose alarm was raised.
        healthy_step: of the newest checkpoint without a sign; None before it.
        num_rollbacks: how often a checkpoint was gone back to.
    """

    start: dict[str, list[float]] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    best: tuple[float, float] | None = None
    falls: int = 0
    raised: list[str] = field(default_factory=list)
    healthy_step: int | None = None
    num_rollbacks: int = 0


@dataclass
class Monitors:
    """Watch a training.

    Attributes:
        mode: what follows from an alarm.
        reference: what the student is to write; None compares with its own start.
        state: all that is remembered.
        alarms: raised since the last `take`: what was seen, and what to do, by kind.
    """

    mode: Mode = "off"
    reference: Reference | None = None
    state: MonitorState = field(default_factory=MonitorState)
    alarms: dict[str, str] = field(default_factory=dict)

    def observe(self, metrics: Mapping[str, float], sums: Mapping[str, float]) -> dict[str, float]:
        """Look at a step.

        Args:
            metrics: of the step.
            sums: of `text_sums`, over all processes.

        Returns:
            What is logged beside the metrics, `monitor/KIND` among them where an alarm is raised;
            nothing of a step that was skipped, or on which the student wrote nothing.
        """
        if self.mode == "off" or not sums["own_rows"] or metrics["optim/skipped"]:
            return {}
        logged = {"rollout/repetition": sums["repeated"] / max(sums["ngrams"], 1.0)}
        flat = False
        if sums["weights"]:
            square = sums["squared_weight"] / sums["weights"]
            spread = square - (sums["weight"] / sums["weights"]) ** 2
            spread = spread if spread > 1e-10 * square else 0.0  # less is rounding
            logged["rollout/var_weight"] = spread
            # Where the own step is expected, all weights may be zero and much be learned.
            flat = spread == 0 and (square > 0 or metrics["optim/grad_norm"] < 1e-8)
        seen = dict(self._signs({**metrics, **logged}))
        if flat:
            seen["variance"] = "the variance of the weights is 0"
        shares = self.state.shares
        for kind in shares.keys() | seen:
            shares[kind] = DECAY * shares.get(kind, 0.0) + (1 - DECAY) * (kind in seen)
        for kind in sorted(seen):
            if shares[kind] > ENOUGH:
                logged |= self._raise(kind, seen[kind])
        return logged

    def _signs(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        """What is wrong at this step, by kind; of a number that is NaN nothing is."""
        start, wanted = self._start(metrics), self.reference
        length, before = (m.get("rollout/length", math.nan) for m in (metrics, start))
        usual = wanted.length if wanted else before
        # A student that began far off may stay there, or come nearer.
        if abs(length - usual) > max(0.25 * usual, 1.4 * abs(before - usual)):
            whose = f"those of {wanted.source}" if wanted else "at the start"
            yield "length", f"completions have {length:.1f} tokens, {whose} {usual:.1f}"
        truncated = metrics.get("rollout/truncated", math.nan)
        if truncated > max(0.5, 0.25 + (wanted.truncated if wanted else 0)):
            yield "truncated", f"{truncated:.0%} of the completions are cut at the limit"
        entropy, before = (m.get("policy/entropy", math.nan) for m in (metrics, start))
        if entropy < 0.001 or entropy < min(0.02, 0.1 * before):
            yield "entropy", f"the entropy is {entropy:.2g} nats a token"
        repetition, before = (m.get("rollout/repetition", math.nan) for m in (metrics, start))
        if repetition > 0.2 + (wanted.repetition if wanted else before):
            yield "repetition", f"{repetition:.0%} of a text's 4-grams were in it before"
        kl, before = (m.get("policy/kl_to_teacher", math.nan) for m in (metrics, start))
        if kl > 0.25 + 2 * max(before, 0):
            yield "kl", f"the KL to the teacher is {kl:.2g} nats a token, {before:.2g} at the start"

    def _start(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The medians of the first steps, once there were enough of them."""
        for key in _OF_THE_START:
            values, value = self.state.start.setdefault(key, []), metrics.get(key, math.nan)
            if len(values) < WARM_UP and math.isfinite(value):
                values.append(value)
        start = self.state.start.items()
        return {key: median(values) for key, values in start if len(values) == WARM_UP}

    def evaluate(self, scores: Mapping[str, Score]) -> dict[str, float]:
        """Look at an evaluation: whether the return rises while the task's first metric falls.

        Both must have moved since the evaluation with the best metric: the return by half of its
        interval, the metric by one and a half as much.

        Args:
            scores: by name.

        Returns:
            As `observe`.
        """
        of_teacher = {*REGRETS, *REGRETS.values(), "length"}
        name = next((n for n in scores if n not in of_teacher), None)
        value = scores.get("expected_return", scores.get("return"))
        if self.mode == "off" or name is None or value is None:
            return {}
        state, metric = self.state, scores[name]
        sign = 1 if metric.higher_is_better else -1
        if state.best is None or sign * (metric.value - state.best[0]) >= 0:
            state.best, state.falls = (metric.value, value.value), 0
            return {}
        fell = sign * (state.best[0] - metric.value) > 1.5 * _half_width(metric)
        rose = value.value - state.best[1] > _half_width(value)
        state.falls = state.falls + 1 if fell and rose else 0
        if state.falls < EVALUATIONS:
            return {}
        seen = f"{metric.name} went from {state.best[0]:.4g} to {metric.value:.4g} while the "
        return self._raise(
            "metric", f"{seen}{value.name} rose from {state.best[1]:.4g} to {value.value:.4g}"
        )

    def _raise(self, kind: str, seen: str) -> dict[str, float]:
        if kind in self.state.raised:
            return {}
        self.state.raised.append(kind)
        self.alarms[kind] = f"{seen}: {REMEDIES[kind]}"
        return {f"monitor/{kind}": 1.0}

    def take(self) -> list[str]:
        """Return the alarms raised since the last call, and forget them."""
        alarms, self.alarms = [f"monitor {k}: {t}" for k, t in self.alarms.items()], {}
        return alarms

    @property
    def lr_factor(self) -> float:
        """What the learning rate is multiplied by."""
        return LR_FACTOR**self.state.num_rollbacks

    def note_checkpoint(self, step: int) -> None:
        """Take the step's checkpoint for one to go back to, unless there is a sign of anything."""
        if not self.state.falls and max(self.state.shares.values(), default=0.0) < 0.5:
            self.state.healthy_step = step

    @property
    def spare(self) -> int | None:
        """The step of a checkpoint that must stay, for it may be gone back to."""
        return self.state.healthy_step if self.mode == "rollback" else None

    def roll_back(self) -> None:
        """Begin again to count, with a lower learning rate; alarms may be raised once more."""
        state = self.state
        state.shares, state.falls, state.raised = {}, 0, []
        state.num_rollbacks += 1


def _half_width(score: Score) -> float:
    if score.low is None or score.high is None:  # of one example nothing is known
        return math.inf
    return (score.high - score.low) / 2
