"""What a method is: whose text is learned from, and what credit each token gets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from brim.models import SOFTMAX, Comparison, Decoding, Distribution, LanguageModel, Teacher
from brim.objectives.method import MethodConfig
from brim.returns import induced_rewards, rewards_to_go
from brim.types import Batch, LossOutput, Rollout, TokenStatistics

Sums = Mapping[str, Any]
"""Sums over rows and tokens by name: 0-dimensional tensors, or floats once they are added up."""


class Policy(Protocol):
    """The student as the loss sees it: the `LanguageModel`, or what DDP or autocast made of it."""

    def __call__(
        self,
        rollout: Rollout,
        *,
        distribution: Distribution = SOFTMAX,
        comparison: Comparison | None = None,
    ) -> TokenStatistics:
        """Return statistics of the tokens under the distribution that is made of the logits."""


class Objective(ABC):
    """One method of distillation.

    Once a step the trainer calls `collect` for the whole rollout batch of this process, then once
    a micro-batch `loss`. What is learned lives in the module of `prepare`; what else must outlive a
    stop is in `state_dict`.

    Attributes:
        settings: of the method.
        decoding: how completions are written, and the token limits of prompts and targets.
    """

    settings: MethodConfig

    def __init__(self, settings: MethodConfig, decoding: Decoding) -> None:
        self.settings, self.decoding = settings, decoding

    def prepare(self, student: LanguageModel) -> nn.Module:
        """Return what is trained: the student, or a module that holds it as its `student`.

        Called once, before any checkpoint is read. The rest of the module is saved with the
        checkpoints and is no part of the student that comes out.
        """
        return student

    @abstractmethod
    def collect(
        self, batch: Batch, student: LanguageModel, teacher: Teacher | None
    ) -> tuple[Rollout, Sums]:
        """Return completions with the credit of each token, without gradients.

        Args:
            batch: the prompts of this process.
            student: the behavior policy: the student, or an older copy of it.
            teacher: the model that scores.

        Returns:
            The rollout, and sums over its rows and tokens that `describe` makes into metrics.
            The trainer adds them over processes.
        """

    @abstractmethod
    def loss(self, policy: Policy, rollout: Rollout, teacher: Teacher | None = None) -> LossOutput:
        """Return the loss of one micro-batch, summed over its tokens."""

    @abstractmethod
    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return metrics of a step from the sums of `collect` and of all `loss` calls."""

    def enough(self, sums: Mapping[str, float], num_tokens: float) -> bool:
        """Return whether an update, by its sums over all processes, should be the step's last."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return what must outlive a stop besides weights, as JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ValueError: this objective keeps nothing.
        """
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but was given {list(state)}")


def total(values: Tensor, power: int = 1) -> Tensor:
    """Return `Σ values^power` in float64, on the CPU: not every accelerator has float64."""
    return values.detach().cpu().double().pow(power).sum()


def add_moments(sums: dict[str, Tensor], name: str, tokens: Tensor) -> None:
    """Add the sum and the sum of squares over tokens, of which `variance` is made."""
    sums[name], sums[f"squared_{name}"] = total(tokens), total(tokens, power=2)


def variance(sums: Mapping[str, float], name: str, count: float) -> float:
    """Return the variance of what `add_moments` added up over `count` tokens."""
    return sums[f"squared_{name}"] / count - (sums[name] / count) ** 2


def length_sums(rollout: Rollout) -> dict[str, Tensor]:
    """Count rows, tokens and completions cut at the length limit."""
    return {
        "rows": torch.tensor(float(len(rollout))),
        "tokens": total(rollout.mask),
        "truncated": total(rollout.truncated),
    }


def length_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Return the mean completion length in tokens, and the share of completions that were cut."""
    return {
        "rollout/length": sums["tokens"] / sums["rows"],
        "rollout/truncated": sums["truncated"] / sums["rows"],
    }


def return_sums(rollout: Rollout) -> dict[str, Tensor]:
    """Return sums and squared sums over tokens of Ĝ (`rollout.returns`) and of G (K = 1).

    Both are the teacher's alone; of the task's scores, where there are any, the sums over rows.

    Raises:
        ValueError: the rollout has no teacher values or no returns yet.
    """
    values, estimate, mask = rollout.values, rollout.returns, rollout.mask
    if values is None or estimate is None:
        raise ValueError("return_sums needs a rollout with values and returns")
    exact = rewards_to_go(values.q_taken, values.q_max, mask)
    reward = total(induced_rewards(values.q_taken, values.q_max, mask))
    if values.bootstrap is not None:
        exact = torch.where(mask, exact - values.bootstrap[:, None], 0.0)
        reward = reward - total(values.bootstrap)
    sums = length_sums(rollout)
    for name, tokens in {"estimate": estimate, "exact": exact}.items():
        add_moments(sums, name, tokens)
    sums["reward"] = reward
    sums["return"] = total(exact[:, 0])
    sums["estimated_return"] = total(estimate[:, 0])
    sums["teacher_logprob"] = total(torch.where(mask, values.logprobs, 0.0))
    if values.segments is not None:
        read = values.segments
        sums["segments"] = total(torch.where(mask, read.index + 1, 0).amax(1))
        sums["teacher_tokens"] = total(read.teacher_tokens)
        sums["unspelled"] = total(read.unspelled)
    if rollout.task_scores is not None:
        add_moments(sums, "task_reward", rollout.task_scores)
    return sums


def return_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Return the means of return and reward, and variance and bias of Ĝ over the batch's tokens.

    Of the task's reward, where there is one, mean and variance of the unweighted scores. Where the
    teacher reads other tokens, also how many of the student's and of the teacher's tokens a segment
    has, and the share of the teacher's that stand for what it cannot spell.
    """
    tokens, rows = max(sums["tokens"], 1.0), sums["rows"]
    beside = {}
    if "segments" in sums:
        segments, read = max(sums["segments"], 1.0), max(sums["teacher_tokens"], 1.0)
        beside["rollout/segment_length"] = sums["tokens"] / segments
        beside["rollout/teacher_tokens"] = sums["teacher_tokens"] / segments
        beside["rollout/unspelled"] = sums["unspelled"] / read
    if "task_reward" in sums:
        beside["rollout/task_reward"] = sums["task_reward"] / rows
        beside["rollout/var_task_reward"] = variance(sums, "task_reward", rows)
    return {
        **length_metrics(sums),
        "rollout/return": sums["return"] / rows,
        "rollout/return_k": sums["estimated_return"] / rows,
        "rollout/reward": sums["reward"] / tokens,
        "rollout/var_return": variance(sums, "exact", tokens),
        "rollout/var_return_k": variance(sums, "estimate", tokens),
        "rollout/bias": (sums["estimate"] - sums["exact"]) / tokens,
        "rollout/teacher_logprob": sums["teacher_logprob"] / tokens,
        **beside,
    }
