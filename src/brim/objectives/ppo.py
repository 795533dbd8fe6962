"""PPO (Schulman et al. 2017) on induced returns: with a learned critic, or with BRIM in its place.

`ppo_llmr` is the pipeline of Ouyang et al. (2022) on the one-step rewards of Eq 2: a value head,
GAE, the clipped surrogate; with `critic: anchored` the values are `V* − Û`, of which nothing is
learned (see `anchored.py`). `ppo_brim` (the paper's Appendix D) has no critic: the K-step return is
the advantage. Of both, advantages are normalized over the rollout batch unless settings say not to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from brim.advantages import gae, normalize
from brim.losses import clipped_surrogate_loss, log_ratios, value_loss
from brim.masking import masked_sum, zero_padding
from brim.models import ActorCritic, Decoding, LanguageModel, Teacher, evaluating
from brim.objectives.base import Policy, add_moments, total, variance
from brim.objectives.credit import (
    Induced,
    KStepReturns,
    behavior_logprobs,
    centered_scores,
    clip_credit,
    sum_over_processes,
    weighted_scores,
)
from brim.objectives.regrets import mean_of_others, regrets_to_come
from brim.objectives.settings import PPOBRIMConfig, PPOLLMRConfig
from brim.returns import induced_rewards
from brim.types import ActionValues, LossOutput, Rollout, TokenStatistics


class PPO(Induced):
    """The clipped surrogate on several updates of one rollout batch.

    Attributes:
        returns: induced returns; without a critic they are the advantages.
        critic: what a state is worth; None for `ppo_brim`.
        module: what is trained, from `prepare` on.
        start: the student at the start of training, where KL from it is charged.
    """

    settings: PPOLLMRConfig | PPOBRIMConfig
    module: nn.Module
    start: LanguageModel | None = None

    def __init__(self, settings: PPOLLMRConfig | PPOBRIMConfig, decoding: Decoding) -> None:
        super().__init__(settings, decoding)
        self.returns = KStepReturns(settings)
        self.critic = None
        if isinstance(settings, PPOLLMRConfig):
            self.critic = Critic(settings, decoding.max_tokens)

    def prepare(self, student: LanguageModel) -> nn.Module:
        """Return the student, with a critic if there is one; keep a copy where KL is charged."""
        if self.settings.kl_coefficient:
            self.start = student.copy().requires_grad_(False).eval()
        self.module = student if self.critic is None else self.critic.beside(student)
        return self.module

    def assign_credit(
        self, rollout: Rollout, q: ActionValues, student: LanguageModel | None = None
    ) -> tuple[Rollout, Mapping[str, Tensor]]:
        """Return the rollout with log-probabilities and advantages as of now, and what is logged.

        Raises:
            ValueError: no student was given, whose probabilities PPO needs.
        """
        if student is None:
            raise ValueError("PPO needs the student that wrote")
        rollout, credit, sums = self.returns(rollout, q)
        rollout = self._behavior(rollout, student)
        charges = self._charges(rollout, sums)
        if self.critic is None:
            advantages = clip_credit(
                credit - charges.flip(1).cumsum(1).flip(1), self.settings.clip, sums
            )
        else:
            targets, advantages = self.critic.assess(rollout, charges, sums)
            rollout = replace(rollout, value_targets=targets)
        if self.settings.normalize_advantages:
            advantages = normalize(advantages, rollout.mask, total=sum_over_processes)
        return replace(rollout, advantages=advantages), sums

    def _behavior(self, rollout: Rollout, student: LanguageModel) -> Rollout:
        """The rollout with log-probabilities and values of the policy that wrote it."""

        def forward(part: Rollout) -> TokenStatistics:
            # Past the wrappers of DDP and autocast: the trainer's own autocast is on.
            tokens: TokenStatistics = type(self.module).forward(
                self.module, part, distribution=self.decoding.distribution
            )
            return tokens

        with evaluating(self.module):
            tokens = student.map(rollout, forward)
        return replace(rollout, logprobs=tokens.logprobs, state_values=tokens.state_values)

    def _charges(self, rollout: Rollout, sums: dict[str, Tensor]) -> Tensor:
        """What each token pays for the distance from the start, (B, T)."""
        assert rollout.logprobs is not None
        if self.start is None:
            return torch.zeros_like(rollout.logprobs)
        before = behavior_logprobs(rollout, self.start, self.decoding)
        differences = zero_padding(rollout.logprobs - before, rollout.mask)
        sums["kl_to_start"] = total(differences)
        sums["kl_tokens"] = total(rollout.mask)  # without those of dropped completions
        return self.settings.kl_coefficient * differences

    def loss(self, policy: Policy, rollout: Rollout, teacher: Teacher | None = None) -> LossOutput:
        """Return the clipped surrogate (Eq 7 of PPO), negated; with a critic, its loss too.

        Raises:
            ValueError: the rollout has no credit.
        """
        if rollout.advantages is None or rollout.logprobs is None or rollout.values is None:
            raise ValueError("loss needs a rollout that collect has scored")
        mask, epsilon = rollout.mask, self.settings.epsilon
        tokens = policy(rollout, distribution=self.decoding.distribution)
        loss = clipped_surrogate_loss(
            tokens.logprobs, rollout.logprobs, rollout.advantages, mask, clip_range=epsilon
        )
        logprobs = tokens.logprobs.detach()
        difference = log_ratios(logprobs, rollout.logprobs, mask)
        outside = (difference.exp() - 1).abs() > epsilon
        sums = {
            "policy/entropy": tokens.entropy.sum(),
            "policy/kl_to_teacher": masked_sum(logprobs - rollout.values.logprobs, mask),
            # k3 of Schulman's note "Approximating KL divergence": never negative, unbiased for
            # tokens of the behavior policy.
            "ppo/approx_kl": (difference.exp() - 1 - difference).sum(),
            "ppo/clip_fraction": outside.sum(),
        }
        if self.critic is not None and tokens.state_values is not None:
            error = self.critic.loss(tokens.state_values, rollout)
            sums["ppo/value_loss"] = error.detach()
            loss = loss + self.critic.settings.value_coefficient * error
        return LossOutput(loss, sums)

    def enough(self, sums: Mapping[str, float], num_tokens: float) -> bool:
        """Return whether the policy has moved as far as `target_kl`."""
        limit = self.settings.target_kl
        return limit is not None and sums["ppo/approx_kl"] > limit * max(num_tokens, 1.0)

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return metrics of the returns, of the distance from the start, and of the critic."""
        metrics = self.returns.describe(sums)
        if "kl_to_start" in sums:
            metrics["ppo/kl_to_start"] = sums["kl_to_start"] / max(sums["kl_tokens"], 1.0)
        return metrics if self.critic is None else {**metrics, **self.critic.describe(sums)}


class Critic:
    """The critic of `ppo_llmr`: GAE on one-step rewards; what is learned counts in clip ranges."""

    def __init__(self, settings: PPOLLMRConfig, max_tokens: int) -> None:
        self.settings, self.unit, self.max_tokens = settings, settings.clip.range or 1.0, max_tokens

    def beside(self, student: LanguageModel) -> nn.Module:
        """Return the student, with a value head if one is to learn."""
        if self.settings.critic == "anchored":
            return student
        return ActorCritic(student, trunk=self.settings.critic, unit=self.unit)

    def anchored_values(self, values: ActionValues, mask: Tensor) -> Tensor:
        """Return `V* − Û`, (B, T): the best value less the others' mean regrets to come."""
        to_come = regrets_to_come(zero_padding(values.q_max - values.q_taken, mask), mask)
        group = self.settings.num_generations
        means = mean_of_others(to_come, mask, max_tokens=self.max_tokens, num_generations=group)
        return zero_padding(values.q_max - means[:, :-1], mask)

    def assess(
        self,
        rollout: Rollout,
        charges: Tensor,
        sums: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return what the values should have been and the advantages, of which one is clipped.

        It is the targets of a learned critic, which come from it within the range of returns, and
        the advantages over `V* − Û`, which may be far outside.

        Args:
            rollout: with `values`, and with `state_values` where they are learned.
            charges: (B, T), subtracted from each token's reward.
            sums: takes what is to be logged.
        """
        values, old, mask = rollout.values, rollout.state_values, rollout.mask
        assert values is not None
        at_end = weighted_scores(rollout, self.settings)
        beside: Tensor | float = 0.0
        if self.settings.critic == "anchored":
            old = self.anchored_values(values, mask)
            # This critic knows the teacher's rewards alone, so the task's is not left to λ.
            at_end, beside = 0.0, centered_scores(rollout, self.settings)
        assert old is not None
        # Of each whole row: `truncated: drop` masks whole rows, so that no row has holes.
        rewards = induced_rewards(values.q_taken, values.q_max, mask)
        if values.bootstrap is not None:
            at_end = at_end - values.bootstrap[:, None]
        if isinstance(at_end, Tensor):
            last = rollout.lengths[:, None] - 1 == torch.arange(mask.shape[1], device=mask.device)
            rewards = rewards + torch.where(last & mask, at_end, 0.0)
        rewards = rewards - charges
        discount, lambda_ = self.settings.discount, self.settings.gae_lambda
        advantages = beside + gae(rewards, old, mask, discount=discount, lambda_=lambda_)
        if self.settings.critic == "anchored":
            advantages = clip_credit(zero_padding(advantages, mask), self.settings.clip, sums)
            targets = advantages + old
        else:
            targets = clip_credit(zero_padding(advantages + old, mask), self.settings.clip, sums)
            advantages = targets - old
        errors = gae(rewards, old, mask, discount=discount, lambda_=0.0)
        residuals = zero_padding(targets - old, mask)
        sums["critic_tokens"] = total(mask)
        sums["squared_td_errors"] = total(errors, power=2)
        for name, tokens in {"residuals": residuals, "targets": targets}.items():
            add_moments(sums, name, tokens)
        return targets, advantages

    def loss(self, values: Tensor | None, rollout: Rollout) -> Tensor:
        """Return the clipped squared error of the values, in units of the clip range."""
        old, targets = rollout.state_values, rollout.value_targets
        assert values is not None
        assert old is not None
        assert targets is not None
        return value_loss(
            values / self.unit,
            old / self.unit,
            targets / self.unit,
            rollout.mask,
            clip_range=self.settings.value_clip_range,
        )

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return how good the critic was when the rollout was scored."""
        tokens = max(sums["critic_tokens"], 1.0)
        metrics = {"ppo/td_error": sums["squared_td_errors"] / tokens}
        if (of_targets := variance(sums, "targets", tokens)) > 0:
            unexplained = variance(sums, "residuals", tokens)
            metrics["ppo/explained_variance"] = 1 - unexplained / of_targets
        return metrics
