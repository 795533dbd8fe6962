"""PPO (Schulman et al. 2017) on induced returns: with a learned critic, or with BRIM in its place.

`ppo_llmr` is the pipeline of Ouyang et al. (2022) on the one-step rewards of Eq 2: a value head,
GAE, the clipped surrogate. `ppo_brim` (the paper's Appendix D) has no critic: the K-step return is
the advantage. Of both, advantages are normalized over the rollout batch unless settings say not to.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from brim.advantages import gae, normalize
from brim.losses import clipped_surrogate_loss, log_ratios, value_loss
from brim.masking import masked_sum, zero_padding
from brim.models import ActorCritic, Decoding, LanguageModel, evaluating
from brim.objectives.base import Policy, Updates, total
from brim.objectives.credit import BlockConfig, InductionConfig, ReturnInduction, sum_over_processes
from brim.returns import induced_rewards
from brim.types import ActionValues, LossOutput, Rollout, TokenStatistics


class PPOConfig(InductionConfig):
    """Settings that both kinds of PPO share."""

    num_epochs: int = Field(4, ge=1)
    """Passes over each rollout batch."""
    num_minibatches: int = Field(4, ge=1)
    """Updates of a pass, each on an equal part of the rows."""
    epsilon: float = Field(0.2, gt=0, lt=1)
    """π now / π then counts within [1 - ε, 1 + ε] only."""
    kl_coefficient: float = Field(0.0, ge=0)
    """Each token is charged this much times log π - log π of the student at the start of training,
    of which a copy is kept; 0 for no charge and no copy."""
    normalize_advantages: bool = True
    """Shift and scale the advantages of a rollout batch to mean 0 and standard deviation 1; without
    it `ppo_brim`'s advantage is the clipped return, with no baseline. The paper does not say."""
    target_kl: float | None = Field(None, gt=0)
    """End a step's updates once the KL between the policy that wrote and the one now, as estimated
    on an update's tokens, exceeds it; null for never."""


class PPOLLMRConfig(PPOConfig):
    """PPO on one-step rewards with a learned critic."""

    name: Literal["ppo_llmr"] = "ppo_llmr"
    critic: Literal["shared", "separate"] = "shared"
    """A value head on the student's hidden states, or on those of a copy that learns apart."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """Decay of later TD errors in an advantage: 1 sums all rewards, 0 trusts the critic wholly."""
    discount: float = Field(1.0, gt=0, le=1)
    """Factor of each later reward; Eq 2 is made for 1."""
    value_coefficient: float = Field(0.1, gt=0)
    """Weight of the critic's loss, whose values are in units of `clip.range`."""
    value_clip_range: float | None = Field(0.2, gt=0)
    """How far a value may move from the one at the rollout, in units of `clip.range`; null for no
    limit."""

    @model_validator(mode="after")
    def _critic_has_a_unit(self) -> Self:
        if self.clip.range is None or self.clip.target == "reward":
            raise ValueError(
                "the critic counts returns in units of clip.range, so it must bound returns: set "
                "clip.target=return, and clip.range to about the largest return that you expect"
            )
        return self

    def build(self, decoding: Decoding) -> PPOLLMR:
        """The objective, writing its rollouts by `decoding`."""
        return PPOLLMR(decoding, **self.arguments())


class PPOBRIMConfig(PPOConfig, BlockConfig):
    """PPO with the K-step return as the advantage, without a critic."""

    name: Literal["ppo_brim"] = "ppo_brim"

    def build(self, decoding: Decoding) -> PPOBRIM:
        """The objective, writing its rollouts by `decoding`."""
        return PPOBRIM(decoding, **self.arguments())


@dataclass
class PPO(ReturnInduction):
    """The clipped surrogate on several updates of one rollout batch; a subclass has advantages."""

    num_epochs: int = 4
    num_minibatches: int = 4
    epsilon: float = 0.2
    kl_coefficient: float = 0.0
    normalize_advantages: bool = True
    target_kl: float | None = None
    module: nn.Module | None = field(default=None, init=False, repr=False, compare=False)
    start: LanguageModel | None = field(default=None, init=False, repr=False, compare=False)

    compares_policies = True

    @property
    def updates(self) -> Updates:
        """`num_epochs` passes of `num_minibatches` updates."""
        return Updates(self.num_epochs, self.num_minibatches)

    def prepare(self, student: LanguageModel) -> nn.Module:
        """The student, with a critic if there is one; keeps a copy where KL is charged."""
        if self.kl_coefficient:
            self.start = student.copy().requires_grad_(False).eval()
        self.module = self.make_module(student)
        return self.module

    def make_module(self, student: LanguageModel) -> nn.Module:
        """What is trained."""
        return student

    def assign_credit(
        self, rollout: Rollout, values: ActionValues, student: LanguageModel | None = None
    ) -> tuple[Rollout, Mapping[str, Tensor]]:
        """The rollout with log-probabilities and advantages as of now, and what is logged."""
        rollout, credit, sums = self.induce(rollout, values)
        assert student is not None
        rollout = self._remember(rollout, student)
        assert rollout.logprobs is not None
        charges = torch.zeros_like(credit)
        if self.start is not None:
            differences = rollout.logprobs - self.measure_logprobs(rollout, self.start)
            charges = self.kl_coefficient * zero_padding(differences, rollout.mask)
            sums["kl_to_start"] = total(zero_padding(differences, rollout.mask))
            sums["kl_tokens"] = total(rollout.mask)  # without those of dropped completions
        rollout = self.with_advantages(rollout, credit, charges, sums)
        assert rollout.advantages is not None
        if self.normalize_advantages:
            advantages = normalize(rollout.advantages, rollout.mask, total=sum_over_processes)
            rollout = replace(rollout, advantages=advantages)
        return rollout, sums

    @abstractmethod
    def with_advantages(
        self, rollout: Rollout, credit: Tensor, charges: Tensor, sums: dict[str, Tensor]
    ) -> Rollout:
        """Add advantages, before any normalization.

        Args:
            rollout: with `logprobs`, and `state_values` if there is a critic.
            credit: (B, T), the returns.
            charges: (B, T), subtracted from each token's reward.
            sums: takes what is to be logged.
        """

    def _remember(self, rollout: Rollout, student: LanguageModel) -> Rollout:
        """The rollout with log-probabilities and values of the policy that wrote it."""
        module = self.module
        assert module is not None, "prepare comes first"

        def forward(part: Rollout) -> TokenStatistics:
            # Past the wrappers of DDP and autocast: the trainer's own autocast is on.
            tokens: TokenStatistics = type(module).forward(
                module, part, distribution=self.decoding.distribution
            )
            return tokens

        with evaluating(module):
            tokens = student.map(rollout, forward)
        return replace(rollout, logprobs=tokens.logprobs, state_values=tokens.state_values)

    def loss(
        self, policy: Policy, rollout: Rollout, teacher: LanguageModel | None = None
    ) -> LossOutput:
        """The clipped surrogate (Eq 7 of PPO), negated; with a critic, its loss too."""
        if rollout.advantages is None or rollout.logprobs is None or rollout.values is None:
            raise ValueError("loss needs a rollout that collect has scored")
        mask = rollout.mask
        tokens = policy(rollout, distribution=self.decoding.distribution)
        loss = clipped_surrogate_loss(
            tokens.logprobs,
            rollout.logprobs,
            rollout.advantages,
            mask,
            clip_range=self.epsilon,
        )
        logprobs = tokens.logprobs.detach()
        difference = log_ratios(logprobs, rollout.logprobs, mask)
        outside = (difference.exp() - 1).abs() > self.epsilon
        sums = {
            "policy/entropy": tokens.entropy.sum(),
            "policy/kl_to_teacher": masked_sum(logprobs - rollout.values.logprobs, mask),
            # k3 of Schulman's note "Approximating KL divergence": never negative, unbiased for
            # tokens that the old policy wrote.
            "ppo/approx_kl": (difference.exp() - 1 - difference).sum(),
            "ppo/clip_fraction": outside.sum(),
        }
        return LossOutput(loss + self.critic_loss(tokens.state_values, rollout, sums), sums)

    def critic_loss(
        self, values: Tensor | None, rollout: Rollout, sums: dict[str, Tensor]
    ) -> Tensor | float:
        """What the critic adds to the loss of a micro-batch; nothing without one."""
        return 0.0

    def enough(self, sums: Mapping[str, float], num_tokens: float) -> bool:
        """Whether the policy has moved as far as `target_kl`."""
        if self.target_kl is None:
            return False
        return sums["ppo/approx_kl"] > self.target_kl * max(num_tokens, 1.0)

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Those of every induced return, and the distance from the start."""
        metrics = super().describe(sums)
        if "kl_to_start" in sums:
            metrics["ppo/kl_to_start"] = sums["kl_to_start"] / max(sums["kl_tokens"], 1.0)
        return metrics


@dataclass
class PPOBRIM(PPO):
    """The K-step return as the advantage."""

    def with_advantages(
        self, rollout: Rollout, credit: Tensor, charges: Tensor, sums: dict[str, Tensor]
    ) -> Rollout:
        """Returns less the charges from each token on, clipped."""
        to_go = charges.flip(1).cumsum(1).flip(1)
        return replace(rollout, advantages=self.clip(credit - to_go, sums))


@dataclass
class PPOLLMR(PPO):
    """A learned critic and GAE on one-step rewards."""

    critic: Literal["shared", "separate"] = "shared"
    gae_lambda: float = 0.95
    discount: float = 1.0
    value_coefficient: float = 0.1
    value_clip_range: float | None = 0.2

    @property
    def unit(self) -> float:
        """What the critic counts returns in."""
        return self.clip_range or 1.0

    def make_module(self, student: LanguageModel) -> nn.Module:
        """The student with its critic."""
        return ActorCritic(student, trunk=self.critic, unit=self.unit)

    def with_advantages(
        self, rollout: Rollout, credit: Tensor, charges: Tensor, sums: dict[str, Tensor]
    ) -> Rollout:
        """GAE; the critic's targets are advantage plus value, clipped as returns are."""
        values, old, mask = rollout.values, rollout.state_values, rollout.mask
        assert values is not None
        assert old is not None
        # Of each whole row: `truncated: drop` masks whole rows, so that no row has holes.
        rewards = induced_rewards(values.q_taken, values.q_max, mask)
        if self.clip_range is not None and self.clip_target == "reward":
            rewards = rewards.clamp(-self.clip_range, self.clip_range)
        if values.bootstrap is not None:
            last = rollout.lengths[:, None] - 1 == torch.arange(mask.shape[1], device=mask.device)
            rewards = rewards - torch.where(last & mask, values.bootstrap[:, None], 0.0)
        rewards = rewards - charges
        advantages = gae(rewards, old, mask, discount=self.discount, trace=self.gae_lambda)
        targets = self.clip(zero_padding(advantages + old, mask), sums)
        errors = gae(rewards, old, mask, discount=self.discount, trace=0.0)
        residuals = zero_padding(targets - old, mask)
        sums["critic_tokens"] = total(mask)
        sums["squared_td_errors"] = total(errors, power=2)
        for name, tokens in {"residuals": residuals, "targets": targets}.items():
            sums[name] = total(tokens)
            sums[f"squared_{name}"] = total(tokens, power=2)
        return replace(rollout, advantages=targets - old, value_targets=targets)

    def critic_loss(
        self, values: Tensor | None, rollout: Rollout, sums: dict[str, Tensor]
    ) -> Tensor | float:
        """The clipped squared error, in units of the clip range, times its coefficient."""
        old, targets = rollout.state_values, rollout.value_targets
        assert values is not None
        assert old is not None
        assert targets is not None
        loss = value_loss(
            values / self.unit,
            old / self.unit,
            targets / self.unit,
            rollout.mask,
            clip_range=self.value_clip_range,
        )
        sums["ppo/value_loss"] = loss.detach()
        return self.value_coefficient * loss

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Also how good the critic was when the rollout was judged."""
        metrics = super().describe(sums)
        tokens = max(sums["critic_tokens"], 1.0)
        metrics["ppo/td_error"] = sums["squared_td_errors"] / tokens

        def variance(name: str) -> float:
            return sums[f"squared_{name}"] / tokens - (sums[name] / tokens) ** 2

        if variance("targets") > 0:
            metrics["ppo/explained_variance"] = 1 - variance("residuals") / variance("targets")
        return metrics
