"""What is compared: K-step returns of several K, or anchored advantages of several λ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from brim.analysis.gradients import Weights
from brim.analysis.sampling import Samples
from brim.models import LanguageModel
from brim.objectives.anchored import Anchored
from brim.objectives.policy_gradient import PolicyGradient
from brim.objectives.settings import BRIMConfig, PolicyGradientConfig

KS = (1, 2, 4, 8, 16)
LAMBDAS = (1.0, 0.9, 0.7, 0.5, 0.3, 0.0)

Analyzed = PolicyGradient | Anchored
"""An objective of which K or λ is what is chosen."""


@dataclass(frozen=True, slots=True)
class Estimator:
    """One way to weigh the tokens; the first of a plan, K = 1 or λ = 1, has no bias.

    Attributes:
        value: K of a policy gradient, λ of anchored advantages.
        tail: of K: `one_step` (Algorithm 1) or `none` (Eq 7); of λ "".
    """

    value: float
    tail: str = ""

    @property
    def knob(self) -> str:
        """Which setting the value is of, `k` or `lambda`."""
        return "k" if self.tail else "lambda"

    def of(self, objective: Analyzed) -> Analyzed:
        """The objective with this K and tail, or this λ."""
        if isinstance(objective, Anchored):
            changed = objective.settings.model_copy(update={"lambda_": self.value})
            return Anchored(changed, objective.decoding)
        kept = {
            name: getattr(objective.settings, name) for name in PolicyGradientConfig.model_fields
        }
        settings = BRIMConfig(**kept, k=int(self.value), tail=self.tail)
        return PolicyGradient(settings, objective.decoding)


def own_tail(objective: Analyzed) -> str:
    """The tail of the objective's own returns, as in `Estimator`."""
    return "" if isinstance(objective, Anchored) else objective.settings.tail


def plan_of(objective: Analyzed, ks: Sequence[int]) -> list[Estimator]:
    """λ, its own among them; or K = 1, which is the same for every tail, and others by tail."""
    if isinstance(objective, Anchored):
        values = sorted({*LAMBDAS, objective.settings.lambda_}, reverse=True)
        return [Estimator(value) for value in values]
    larger = [Estimator(k, tail) for tail in ("one_step", "none") for k in sorted(set(ks) - {1})]
    return [Estimator(1, "one_step"), *larger]


def describe_objective(objective: Analyzed) -> dict[str, Any]:
    """The settings of the gradient that are reported."""
    settings = objective.settings
    told: dict[str, Any] = {
        "name": settings.name,
        "q_centering": settings.q_centering,
        "clip_target": settings.clip.target,
        "clip_range": settings.clip.range,
        "truncated": settings.truncated,
        "immediate": settings.immediate,
        "num_generations": settings.num_generations,
    }
    if isinstance(objective, Anchored):
        names = ("remaining_regret", "expected_regrets", "per_token")
        return told | {name: getattr(objective.settings, name) for name in names}
    return told | {"baseline": objective.settings.baseline, "tail": own_tail(objective)}


def weigh(samples: Samples, objective: Analyzed, student: LanguageModel) -> Weights:
    """Returns and weights of all tokens by the objective's own code, a round at a time."""
    parts = []
    for rows in samples.rounds():
        rollout = samples.rollout.select(rows)
        assert rollout.values is not None
        scored, _ = objective.assign_credit(rollout, rollout.values, student)
        parts.append(scored)

    def joined(name: str) -> torch.Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    ends = None if parts[0].end_values is None else joined("end_values")
    return Weights(joined("returns"), joined("advantages"), joined("mask"), ends)
