"""Policy gradient on returns induced from the teacher: LLMR (K = 1) and BRIM (K > 1).

The student writes; the teacher's logits along what was written are Q-values; `block_returns` turns
them into one return a token (Algorithm 1 of the paper); the student follows Eq 8. Everything that
differs between methods of this family is a setting.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from pydantic import Field, model_validator
from torch import Tensor

from brim.advantages import mean_baseline
from brim.config import Config
from brim.losses import policy_gradient_loss
from brim.masking import masked_sum
from brim.models import Centering, Decoding, LanguageModel
from brim.objectives.base import Policy
from brim.objectives.statistics import return_metrics, return_sums, total
from brim.returns import block_returns
from brim.timing import timed
from brim.types import ActionValues, Batch, LossOutput, Rollout

Tail = Literal["one_step", "none"]


class ClipConfig(Config):
    """Where the learning signal is bounded (the paper's Table 5: [-100, 100])."""

    target: Literal["reward", "return"] = "return"
    """`return` clips the weight of a token, as LLMR's code does; `reward` clips each induced
    (block) reward before they are summed, as the paper's table reads."""
    range: float | None = Field(100.0, gt=0)
    """Bound of the absolute value; null for none."""


class PolicyGradientConfig(Config):
    """Settings that LLMR and BRIM share; the open points of the paper with our choices."""

    q_centering: Centering = "mean"
    """What is subtracted from a state's logits: a state-only baseline, so the expected gradient
    stays (but for `truncated: bootstrap`), its variance does not. `none` is the paper's Eq 2;
    `mean` is LLMR's code."""
    clip: ClipConfig = ClipConfig()
    """Bound of the learning signal."""
    baseline: Literal["none", "mean"] = "none"
    """What is subtracted from the clipped returns: `mean` is their mean over the tokens of the
    whole rollout batch. The paper has none for LLMR and BRIM."""
    truncated: Literal["keep", "drop", "bootstrap"] = "keep"
    """Completions cut at the length limit: `keep` ends the return at the last action
    (Algorithm 1), `drop` leaves them out (LLMR's code), `bootstrap` gives the last action the
    reward of Eq 2, less the teacher's best value of the state behind the cut, which is not
    clipped with the rewards."""

    @model_validator(mode="after")
    def _bootstrap_is_not_centred_away(self) -> Self:
        if self.truncated == "bootstrap" and self.q_centering == "max":
            raise ValueError(
                "truncated=bootstrap charges a best value, which q_centering=max makes 0; "
                "choose another of the two"
            )
        return self

    def _build(self, decoding: Decoding, k: int, tail: Tail) -> PolicyGradient:
        return PolicyGradient(
            decoding,
            k=k,
            tail=tail,
            q_centering=self.q_centering,
            clip_target=self.clip.target,
            clip_range=self.clip.range,
            baseline=self.baseline,
            truncated=self.truncated,
        )


class LLMRConfig(PolicyGradientConfig):
    """LLMR (Li et al. 2024): one-step induced rewards, REINFORCE. BRIM with K = 1."""

    name: Literal["llmr"] = "llmr"

    def build(self, decoding: Decoding) -> PolicyGradient:
        """The objective, writing its rollouts by `decoding`."""
        return self._build(decoding, k=1, tail="one_step")


class BRIMConfig(PolicyGradientConfig):
    """BRIM: returns induced over blocks of K steps."""

    name: Literal["brim"] = "brim"
    k: int = Field(2, ge=1)
    """Steps in a block. With `tail: one_step`, K longer than a completion is K = 1 for it: larger
    is not monotone on short outputs."""
    tail: Tail = "one_step"
    """Last steps that fill no block: one-step rewards (Algorithm 1) or none of them (Eq 7)."""

    def build(self, decoding: Decoding) -> PolicyGradient:
        """The objective, writing its rollouts by `decoding`."""
        return self._build(decoding, k=self.k, tail=self.tail)


@dataclass(frozen=True)
class PolicyGradient:
    """`∇J ≈ E[Σ_t Ĝ_t ∇ log π(a_t | s_t)]` (Eq 8) with `Ĝ` from `block_returns`."""

    decoding: Decoding
    k: int = 1
    tail: Tail = "one_step"
    q_centering: Centering = "mean"
    clip_target: Literal["reward", "return"] = "return"
    clip_range: float | None = 100.0
    baseline: Literal["none", "mean"] = "none"
    truncated: Literal["keep", "drop", "bootstrap"] = "keep"

    needs_teacher: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.decoding.strategy == "greedy":
            warnings.warn(
                "greedy rollouts: the policy gradient is an expectation over samples, so its "
                "estimate is biased; set decoding.strategy=sampling unless the paper's greedy "
                "selection is what you study",
                stacklevel=2,
            )

    def collect(
        self, batch: Batch, student: LanguageModel, teacher: LanguageModel | None
    ) -> tuple[Rollout, Mapping[str, Tensor]]:
        """Write, ask the teacher, induce the returns."""
        if teacher is None:
            raise ValueError("the policy gradient needs a teacher to induce rewards from")
        with timed("rollout"):
            rollout = student.generate(batch, self.decoding)
        with timed("teacher"):
            values = ActionValues.concatenate(
                teacher.action_values(
                    part, centering=self.q_centering, bootstrap=self.truncated == "bootstrap"
                )
                for part in rollout.split(self.decoding.batch_size)
            )
        return self.assign_credit(rollout, values)

    def assign_credit(
        self, rollout: Rollout, values: ActionValues
    ) -> tuple[Rollout, Mapping[str, Tensor]]:
        """The rollout with the weight of each token, and what is logged of it."""
        returns = self._returns(values, rollout.mask, reward_range=None)
        advantages = returns
        if self.clip_range is not None and self.clip_target == "reward":
            advantages = self._returns(values, rollout.mask, reward_range=self.clip_range)
        elif self.clip_range is not None:
            advantages = returns.clamp(-self.clip_range, self.clip_range)

        rollout = replace(rollout, values=values, returns=returns)
        sums = return_sums(rollout)
        sums["clipped"] = total(advantages != returns)
        mask = rollout.mask
        if self.truncated == "drop":
            mask = mask & ~rollout.truncated[:, None]
        if self.baseline == "mean":
            baseline = mean_baseline(advantages, mask, total=_sum_over_processes)
            advantages = advantages - baseline
        return replace(rollout, mask=mask, advantages=advantages), sums

    def _returns(self, values: ActionValues, mask: Tensor, reward_range: float | None) -> Tensor:
        returns = block_returns(
            values.taken, values.best, mask, k=self.k, tail=self.tail, reward_range=reward_range
        )
        if values.bootstrap is not None:
            # Every chain of blocks ends in the last state, whose best value Algorithm 1 takes as 0.
            returns = torch.where(mask, returns - values.bootstrap[:, None], 0.0)
        return returns

    def loss(self, policy: Policy, rollout: Rollout) -> LossOutput:
        """`−Σ_t Ĝ_t log π(a_t | s_t)`, whose gradient is minus Eq 8."""
        if rollout.advantages is None or rollout.values is None:
            raise ValueError("loss needs a rollout that collect has scored")
        # The policy that is improved is the one that sampled; top_k and top_p are left aside.
        tokens = policy(rollout, temperature=self.decoding.temperature)
        logprobs = tokens.logprobs.detach()
        return LossOutput(
            loss=policy_gradient_loss(tokens.logprobs, rollout.advantages, rollout.mask),
            sums={
                "policy/entropy": tokens.entropy.sum(),
                # Mean over the student's samples of log π − log teacher: the reverse KL of the
                # policy that sampled (at its temperature) from the teacher (at 1).
                "policy/kl_to_teacher": masked_sum(
                    logprobs - rollout.values.logprobs, rollout.mask
                ),
            },
        )

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return, reward, length, and what K and the clip did."""
        clipped = sums["clipped"] / max(sums["tokens"], 1.0)
        return {**return_metrics(sums), "rollout/clipped": clipped}


def _sum_over_processes(partial: Tensor) -> Tensor:
    if PartialState().num_processes == 1:
        return partial
    total: Tensor = reduce(partial, "sum")
    return total
