"""Policy gradient on returns induced from the teacher: LLMR (K = 1) and BRIM (K > 1).

Algorithm 1 of the paper: the student writes; the teacher's logits along what was written are
Q-values (`Induced.collect`, which other methods have too); `block_returns` turns them into one
return a token; the student follows Eq 8. What differs within this family is a setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

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
from brim.models import Decoding, LanguageModel, Teacher
from brim.objectives.base import Policy, add_moments, total, variance
from brim.objectives.credit import (
    Induced,
    KStepReturns,
    behavior_logprobs,
    clip_credit,
    scored_features,
    sum_over_processes,
)
from brim.objectives.settings import BRIMConfig, LLMRConfig
from brim.types import ActionValues, LossOutput, Rollout, TokenStatistics


class PolicyGradient(Induced):
    """`∇J ≈ E[Σ_t Ĝ_t ∇ log π(a_t | s_t)]` (Eq 8) with `Ĝ` from `block_returns`."""

    settings: LLMRConfig | BRIMConfig

    def __init__(self, settings: LLMRConfig | BRIMConfig, decoding: Decoding) -> None:
        super().__init__(settings, decoding)
        self.returns = KStepReturns(settings)

    def assign_credit(
        self, rollout: Rollout, q: ActionValues, student: LanguageModel | None = None
    ) -> tuple[Rollout, Mapping[str, Tensor]]:
        """Return the rollout with the weight of each token, and what is logged of it.

        The student is needed for a baseline that knows its gradients, and for old rollouts.
        """
        future_only = self.settings.immediate == "expected"
        rollout, credit, sums = self.returns(rollout, q, future_only=future_only)  # Ĝ_t
        credit = clip_credit(credit, self.settings.clip, sums)
        advantages = credit - self._baseline(credit, rollout, student)  # Eq 9
        if not self.settings.updates.on_policy:
            assert student is not None
            logprobs = behavior_logprobs(rollout, student, self.decoding)
            rollout = replace(rollout, logprobs=logprobs)
        add_moments(sums, "advantage", zero_padding(advantages, rollout.mask))
        sums["weighed"] = total(rollout.mask)
        return replace(rollout, advantages=advantages), sums

    def _baseline(
        self, returns: Tensor, rollout: Rollout, student: LanguageModel | None
    ) -> Tensor | float:
        mask = rollout.mask
        match self.settings.baseline:
            case "none":
                return 0.0
            case "mean":
                return mean_baseline(returns, mask, total=sum_over_processes)
            case "time_mean":
                return time_mean_baseline(
                    returns, mask, num_steps=self.decoding.max_tokens, total=sum_over_processes
                )
            case "leave_one_out":
                group = self.settings.num_generations
                return leave_one_out_baseline(returns, mask, group_size=group)
            case "min_variance":
                assert student is not None
                distribution = self.decoding.distribution
                norms = student.map(
                    rollout, lambda part: student.gradient_norms(part, distribution=distribution)
                )
                return min_variance_baseline(returns, mask, norms, total=sum_over_processes)

    def loss(self, policy: Policy, rollout: Rollout, teacher: Teacher | None = None) -> LossOutput:
        """Return `−Σ_t Ĝ_t log π(a_t | s_t)`, whose gradient is minus Eq 8.

        Raises:
            ValueError: the rollout has no credit.
        """
        comparison = None
        if self.settings.immediate == "expected":
            assert teacher is not None
            comparison = scored_features(teacher, rollout).comparison(expected_value)
        tokens = policy(rollout, distribution=self.decoding.distribution, comparison=comparison)
        return follow(tokens, rollout, max_weight=self.settings.max_importance_weight)

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return metrics of the returns, the weights, and how much old rollouts are worth."""
        metrics = self.returns.describe(sums)
        weighed = max(sums["weighed"], 1.0)
        metrics["rollout/var_advantage"] = variance(sums, "advantage", weighed)
        if sums.get("squared_weights"):
            # (Σ w)² / Σ w² samples of equal weight would be as good (Kish 1965); as a fraction.
            effective = sums["policy/importance_weight"] ** 2 / sums["squared_weights"]
            metrics["policy/effective_sample_size"] = effective / sums["weighted_tokens"]
        return metrics


def follow(
    tokens: TokenStatistics, rollout: Rollout, *, max_weight: float | None = None
) -> LossOutput:
    """Return `−Σ_t A_t log π(a_t | s_t)`, less what a comparison with the teacher gives.

    Args:
        tokens: what the policy that is trained says of the rollout, under the distribution that
            sampled, with what is differentiated as it is, such as an expected value.
        rollout: with advantages; with log-probabilities where the behavior policy is another.
        max_weight: bound of the importance weights.

    Raises:
        ValueError: the rollout has no advantages or no values.
    """
    if rollout.advantages is None or rollout.values is None:
        raise ValueError("loss needs a rollout that collect has scored")
    logprobs, mask = tokens.logprobs.detach(), rollout.mask
    sums = {
        "policy/entropy": tokens.entropy.sum(),
        # Mean over the student's samples of log π − log teacher: the reverse KL of the policy
        # that sampled (its temperature and cut) from the teacher (temperature 1, no cut).
        "policy/kl_to_teacher": masked_sum(logprobs - rollout.values.logprobs, mask),
    }
    weights = None
    if rollout.logprobs is not None:
        weights = importance_weights(logprobs, rollout.logprobs, mask, max_weight=max_weight)
        sums["policy/importance_weight"] = weights.sum()
        sums["squared_weights"] = weights.square().sum()
        sums["weighted_tokens"] = mask.sum()
    loss = policy_gradient_loss(tokens.logprobs, rollout.advantages, mask, weights)
    if tokens.compared is not None:
        loss = loss - masked_sum(tokens.compared, mask)
    return LossOutput(loss, sums)
