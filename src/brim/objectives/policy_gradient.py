"""Policy gradient on returns induced from the teacher: LLMR (K = 1) and BRIM (K > 1).

The student writes; the teacher's logits along what was written are Q-values; `block_returns` turns
them into one return a token (Algorithm 1 of the paper); the student follows Eq 8. Everything that
differs between methods of this family is a setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from brim.advantages import (
    leave_one_out_baseline,
    mean_baseline,
    min_variance_baseline,
    time_mean_baseline,
)
from brim.divergences import expected_value
from brim.losses import importance_weights, policy_gradient_loss
from brim.masking import masked_sum, zero_padding
from brim.models import Decoding, LanguageModel
from brim.objectives.base import Policy, Updates, total
from brim.objectives.credit import BlockConfig, InductionConfig, ReturnInduction, sum_over_processes
from brim.types import ActionValues, LossOutput, Rollout

Baseline = Literal["none", "mean", "min_variance", "time_mean", "leave_one_out"]


class PolicyGradientConfig(InductionConfig):
    """Settings that LLMR and BRIM share."""

    baseline: Baseline = "none"
    """What is subtracted from the clipped returns. `mean`: their mean over the tokens of the whole
    rollout batch. `min_variance`: the number that makes the variance of the output layer's
    gradient least. `time_mean`: at each step, the mean of the other completions. `leave_one_out`:
    the mean of the prompt's other completions (`num_generations` > 1). The paper has none for
    LLMR and BRIM."""
    immediate: Literal["sampled", "expected"] = "sampled"
    """How a token's own Q-value counts: as sampled, or as its expectation under the student, which
    is differentiated exactly and leaves only the future to sampling; the clip and the baseline
    are then the future's. The expected gradient stays (but for `truncated: drop`, and where the
    clip cuts); its variance is mostly smaller, not always."""
    rollout_reuse: int = Field(1, ge=1)
    """Updates on each rollout batch; from the second on tokens are weighted by π now / π then."""
    sync_every: int = Field(1, ge=1)
    """Steps between copies of the student into the policy that writes."""
    max_importance_weight: float | None = Field(2.0, ge=1)
    """Bound of π now / π then for reused or old rollouts; null for none."""

    @model_validator(mode="after")
    def _leave_one_out_of_several(self) -> Self:
        if self.baseline == "leave_one_out" and self.num_generations < 2:
            raise ValueError(
                "baseline=leave_one_out compares completions of one prompt; set num_generations "
                "to 2 or more"
            )
        return self

    def build(self, decoding: Decoding) -> PolicyGradient:
        """The objective, writing its rollouts by `decoding`."""
        return PolicyGradient(decoding, **self.arguments())


class LLMRConfig(PolicyGradientConfig):
    """LLMR (Li et al. 2024): one-step induced rewards, REINFORCE. BRIM with K = 1."""

    name: Literal["llmr"] = "llmr"


class BRIMConfig(PolicyGradientConfig, BlockConfig):
    """BRIM: returns induced over blocks of K steps."""

    name: Literal["brim"] = "brim"


@dataclass
class PolicyGradient(ReturnInduction):
    """`∇J ≈ E[Σ_t Ĝ_t ∇ log π(a_t | s_t)]` (Eq 8) with `Ĝ` from `block_returns`."""

    baseline: Baseline = "none"
    immediate: Literal["sampled", "expected"] = "sampled"
    rollout_reuse: int = 1
    sync_every: int = 1
    max_importance_weight: float | None = 2.0

    @property
    def updates(self) -> Updates:
        """As many as the rollouts are reused."""
        return Updates(num_epochs=self.rollout_reuse, sync_every=self.sync_every)

    def assign_credit(
        self, rollout: Rollout, values: ActionValues, student: LanguageModel | None = None
    ) -> tuple[Rollout, Mapping[str, Tensor]]:
        """The rollout with the weight of each token, and what is logged of it.

        Args:
            rollout: what `student` wrote.
            values: the teacher's view of it.
            student: asked where a baseline or old rollouts need its probabilities.
        """
        rollout, credit, sums = self.induce(rollout, values)
        advantages = self.clip(self.weight(credit, values, rollout.mask), sums)
        advantages = advantages - self._baseline(advantages, rollout, student)
        if not self.updates.on_policy:
            assert student is not None
            rollout = replace(rollout, logprobs=self.measure_logprobs(rollout, student))
        sums["advantage"] = total(zero_padding(advantages, rollout.mask))
        sums["squared_advantage"] = total(zero_padding(advantages, rollout.mask), power=2)
        sums["weighed"] = total(rollout.mask)
        return replace(rollout, advantages=advantages), sums

    def weight(self, returns: Tensor, values: ActionValues, mask: Tensor) -> Tensor:
        """The return, or its future part where the immediate one is an expectation."""
        if self.immediate == "sampled":
            return returns
        return torch.where(mask, returns - values.q_taken, 0.0)

    def _baseline(
        self, returns: Tensor, rollout: Rollout, student: LanguageModel | None
    ) -> Tensor | float:
        mask = rollout.mask
        match self.baseline:
            case "none":
                return 0.0
            case "mean":
                return mean_baseline(returns, mask, total=sum_over_processes)
            case "time_mean":
                return time_mean_baseline(
                    returns, mask, num_steps=self.decoding.max_tokens, total=sum_over_processes
                )
            case "leave_one_out":
                return leave_one_out_baseline(returns, mask, group_size=self.num_generations)
            case "min_variance":
                assert student is not None
                distribution = self.decoding.distribution
                norms = student.map(
                    rollout, lambda part: student.gradient_norms(part, distribution=distribution)
                )
                return min_variance_baseline(returns, mask, norms, total=sum_over_processes)

    def loss(
        self, policy: Policy, rollout: Rollout, teacher: LanguageModel | None = None
    ) -> LossOutput:
        """`−Σ_t Ĝ_t log π(a_t | s_t)`, whose gradient is minus Eq 8."""
        if rollout.advantages is None or rollout.values is None:
            raise ValueError("loss needs a rollout that collect has scored")
        comparison = None
        if self.immediate == "expected":
            assert teacher is not None
            with teacher.evaluating():
                reading = teacher.read(rollout).to(rollout.mask.device)
                comparison = reading.comparison(expected_value)
        # The policy that is improved is the one that sampled.
        tokens = policy(rollout, distribution=self.decoding.distribution, comparison=comparison)
        logprobs, mask = tokens.logprobs.detach(), rollout.mask
        sums = {
            "policy/entropy": tokens.entropy.sum(),
            # Mean over the student's samples of log π − log teacher: the reverse KL of the policy
            # that sampled (its temperature and cut) from the teacher (temperature 1, no cut).
            "policy/kl_to_teacher": masked_sum(logprobs - rollout.values.logprobs, mask),
        }
        weights = None
        if rollout.logprobs is not None:
            weights = importance_weights(
                logprobs, rollout.logprobs, mask, max_weight=self.max_importance_weight
            )
            sums["policy/importance_weight"] = weights.sum()
            sums["squared_weights"] = weights.square().sum()
            sums["weighted_tokens"] = mask.sum()
        loss = policy_gradient_loss(tokens.logprobs, rollout.advantages, mask, weights)
        if tokens.compared is not None:
            loss = loss - masked_sum(tokens.compared, mask)
        return LossOutput(loss, sums)

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return, reward, length, what K and the clip did, and how old rollouts weigh."""
        metrics = super().describe(sums)
        weighed = max(sums["weighed"], 1.0)
        metrics["rollout/var_advantage"] = (
            sums["squared_advantage"] / weighed - (sums["advantage"] / weighed) ** 2
        )
        if sums.get("squared_weights"):
            # (Σ w)² / Σ w² samples of equal weight would be as good (Kish 1965); as a fraction.
            effective = sums["policy/importance_weight"] ** 2 / sums["squared_weights"]
            metrics["policy/effective_sample_size"] = effective / sums["weighted_tokens"]
        return metrics
