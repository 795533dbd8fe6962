"""What a method is: who writes the text, and what credit each token gets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from brim.models import SOFTMAX, Comparison, Decoding, Distribution, LanguageModel
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
        """Statistics of the tokens under the distribution that is made of the logits."""


@dataclass(frozen=True, slots=True)
class Updates:
    """How often the trainer uses one rollout batch, and how old its writer may be.

    Attributes:
        num_epochs: passes over a rollout batch.
        num_minibatches: updates a pass; the rows are shuffled where there are several.
        sync_every: steps between copies of the student into the policy that writes; 1 writes with
            the student itself.
    """

    num_epochs: int = 1
    num_minibatches: int = 1
    sync_every: int = 1

    @property
    def on_policy(self) -> bool:
        """Whether every update's policy is the one that wrote."""
        return self.num_epochs * self.num_minibatches * self.sync_every == 1


class Objective(ABC):
    """One method of distillation.

    Once a step the trainer calls `collect` for the whole rollout batch of this process, then once
    a micro-batch `loss`. What is learnt lives in the module of `prepare`; what else must outlive a
    stop is in `state_dict`.
    """

    decoding: Decoding
    """How completions are written, and the token limits of prompts and targets."""

    targets: Literal["teacher", "data"] | None = None
    """Whose completions the examples must carry as references; None for nobody's."""

    @property
    def updates(self) -> Updates:
        """How often a rollout batch is used."""
        return Updates()

    @property
    def compares_policies(self) -> bool:
        """Whether the loss compares the policy with the one that wrote, token by token.

        Its updates then run without dropout, or the two would differ before the first update.
        """
        return not self.updates.on_policy

    def prepare(self, student: LanguageModel) -> nn.Module:
        """What is trained: the student, or a module that holds it as its `student`.

        Called once, before any checkpoint is read. The rest of the module is saved with the
        checkpoints and is no part of the student that comes out.
        """
        return student

    @abstractmethod
    def collect(
        self, batch: Batch, student: LanguageModel, teacher: LanguageModel | None
    ) -> tuple[Rollout, Sums]:
        """Completions with the credit of each token, without gradients.

        Args:
            batch: the prompts of this process.
            student: the policy that writes: the student, or an older copy of it.
            teacher: the model that judges.

        Returns:
            The rollout, and sums over its rows and tokens that `describe` makes into metrics.
            The trainer adds them over processes.
        """

    @abstractmethod
    def loss(
        self, policy: Policy, rollout: Rollout, teacher: LanguageModel | None = None
    ) -> LossOutput:
        """The loss of one micro-batch, summed over its tokens."""

    @abstractmethod
    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Metrics of a step from the sums of `collect` and of all `loss` calls."""

    def enough(self, sums: Mapping[str, float], num_tokens: float) -> bool:
        """Whether an update, by its sums over all processes, should be the step's last."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """What must outlive a stop besides weights, as JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave.

        Raises:
            ValueError: this objective keeps nothing.
        """
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but was given {list(state)}")


def total(values: Tensor, power: int = 1) -> Tensor:
    """`Σ values^power` in float64, on the CPU: not every accelerator has float64."""
    return values.detach().cpu().double().pow(power).sum()


def length_sums(rollout: Rollout) -> dict[str, Tensor]:
    """Counts of rows, tokens and completions cut at the length limit."""
    return {
        "rows": torch.tensor(float(len(rollout))),
        "tokens": total(rollout.mask),
        "truncated": total(rollout.truncated),
    }


def length_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Mean completion length in tokens and the share of completions that were cut."""
    return {
        "rollout/length": sums["tokens"] / sums["rows"],
        "rollout/truncated": sums["truncated"] / sums["rows"],
    }


def return_sums(rollout: Rollout) -> dict[str, Tensor]:
    """First and second moments of Ĝ (`rollout.returns`) and of G, whose K is 1, over the tokens.

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
        sums[name] = total(tokens)
        sums[f"{name}_squared"] = total(tokens, power=2)
    sums["reward"] = reward
    sums["return"] = total(exact[:, 0])
    sums["estimated_return"] = total(estimate[:, 0])
    sums["teacher_logprob"] = total(torch.where(mask, values.logprobs, 0.0))
    return sums


def return_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Return, reward, and the variance and bias of the K-step estimate over the batch's tokens."""
    tokens, rows = max(sums["tokens"], 1.0), sums["rows"]

    def variance(name: str) -> float:
        return sums[f"{name}_squared"] / tokens - (sums[name] / tokens) ** 2

    return {
        **length_metrics(sums),
        "rollout/return": sums["return"] / rows,
        "rollout/return_k": sums["estimated_return"] / rows,
        "rollout/reward": sums["reward"] / tokens,
        "rollout/var_return": variance("exact"),
        "rollout/var_return_k": variance("estimate"),
        "rollout/bias": (sums["estimate"] - sums["exact"]) / tokens,
        "rollout/teacher_logprob": sums["teacher_logprob"] / tokens,
    }
