"""Return induction: the student writes, and the teacher's logits along the text become returns.

What the policy gradient and PPO share: rollouts, Q-values, centring, K-step returns and their clip.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from pydantic import Field, model_validator
from torch import Tensor

from brim.config.loading import Config
from brim.divergences import expected_value
from brim.models import Centering, Decoding, LanguageModel
from brim.objectives.adaptive_k import AdaptiveK
from brim.objectives.base import Objective, return_metrics, return_sums, total
from brim.returns import block_returns, phase_average_returns
from brim.support.timing import timed
from brim.types import ActionValues, Batch, Rollout

Tail = Literal["one_step", "none"]
Phase = Literal["aligned", "average"]
Truncated = Literal["keep", "drop", "bootstrap"]


class ClipConfig(Config):
    """Where the learning signal is bounded (the paper's Table 5: [-100, 100])."""

    target: Literal["reward", "return"] = "return"
    """`return` clips the weight of a token, as LLMR's code does; `reward` clips each induced
    (block) reward before they are summed, as the paper's table reads."""
    range: float | None = Field(100.0, gt=0)
    """Bound of the absolute value; null for none."""


class InductionConfig(Config):
    """Settings of every method that learns from induced returns; open points of the paper."""

    q_centering: Centering | Literal["policy"] = "mean"
    """What is subtracted from a state's logits: a state-only baseline, so the expected gradient
    stays (but for `truncated: drop` and `bootstrap`, and where the clip cuts), its variance does
    not. `none` is the paper's Eq 2; `mean` is LLMR's code; `policy` is the student's expected
    Q-value, at the price of one more pass of the student."""
    clip: ClipConfig = ClipConfig()
    """Bound of the learning signal."""
    truncated: Truncated = "keep"
    """Completions cut at the length limit: `keep` ends the return at the last action
    (Algorithm 1), `drop` leaves them out (LLMR's code), `bootstrap` gives the last action the
    reward of Eq 2, less the teacher's best value of the state behind the cut, which is not
    clipped with the rewards."""
    num_generations: int = Field(1, ge=1)
    """Completions of each prompt; a step has `trainer.rollout_batch_size` times as many."""

    @model_validator(mode="after")
    def _bootstrap_is_not_centred_away(self) -> Self:
        if self.truncated == "bootstrap" and self.q_centering in ("max", "policy"):
            raise ValueError(
                f"truncated=bootstrap charges a best value, which q_centering={self.q_centering} "
                "does not leave as it is; choose another of the two"
            )
        return self

    def arguments(self) -> dict[str, Any]:
        """The settings as arguments of the objective's class, which has them under these names."""
        own = {name: getattr(self, name) for name in type(self).model_fields}
        clip = {"clip_target": self.clip.target, "clip_range": self.clip.range}
        return {name: value for name, value in own.items() if name not in ("name", "clip")} | clip


class AdaptiveKConfig(Config):
    """How `k: auto` chooses (docs/methods/adaptive_k.md)."""

    candidates: tuple[int, ...] = Field((1, 2, 4, 8, 16), min_length=1)
    """The K to choose among, ascending; the first must be 1, whose return has no bias."""
    smoothing: float = Field(0.9, ge=0, lt=1)
    """How much of what was known before a step counts beside the step's own tokens."""
    num_samples: float = Field(1.0, gt=0)
    """Samples that the variance is divided by before the squared bias is added: 1 is the error of
    one token's weight; more weigh bias more, as fits an average over a large batch."""

    @model_validator(mode="after")
    def _ascending_from_one(self) -> Self:
        if self.candidates[0] != 1 or list(self.candidates) != sorted(set(self.candidates)):
            raise ValueError("candidates must be ascending and begin with 1")
        return self


class BlockConfig(InductionConfig):
    """Settings of returns over blocks of K steps."""

    k: Annotated[int, Field(ge=1)] | Literal["auto"] = 2
    """Steps in a block; `auto` chooses by what it measures. With `tail: one_step`, K longer than
    a completion is K = 1 for it: larger is not monotone on short outputs."""
    tail: Tail = "one_step"
    """Last steps that fill no block: one-step rewards (Algorithm 1) or none of them (Eq 7)."""
    phase: Phase = "aligned"
    """Where blocks begin: `aligned` at the token itself (the paper); `average` takes the mean over
    all K places, which counts every later regret by 1/K. It has no blocks left over, so `tail`
    has no meaning then."""
    adaptive: AdaptiveKConfig = AdaptiveKConfig()
    """How `k: auto` chooses."""

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Self:
        if self.phase == "average" and self.tail == "none":
            raise ValueError("tail=none has no effect with phase=average; leave it out")
        if self.k != "auto" and self.adaptive != AdaptiveKConfig():
            raise ValueError("adaptive has an effect with k=auto only; leave it out, or set k=auto")
        return self

    @model_validator(mode="after")
    def _average_has_no_block_rewards(self) -> Self:
        if self.phase == "average" and self.clip.target == "reward" and self.clip.range:
            raise ValueError(
                "phase=average has no block rewards to clip; set clip.target=return, or "
                "clip.range=null"
            )
        return self

    def arguments(self) -> dict[str, Any]:
        """The settings as arguments of the objective's class."""
        arguments = super().arguments()
        adaptive = AdaptiveK(**arguments.pop("adaptive").model_dump())
        return {**arguments, "k": adaptive if self.k == "auto" else self.k}


@dataclass
class ReturnInduction(Objective):
    """Rollouts with one induced return a token; a subclass says how the student follows them."""

    decoding: Decoding
    k: int | AdaptiveK = 1
    tail: Tail = "one_step"
    phase: Phase = "aligned"
    q_centering: Centering | Literal["policy"] = "mean"
    clip_target: Literal["reward", "return"] = "return"
    clip_range: float | None = 100.0
    truncated: Truncated = "keep"
    num_generations: int = 1

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
        """Write, ask the teacher, induce the returns, weigh the tokens."""
        if teacher is None:
            raise ValueError("returns are induced from a teacher; none was given")
        with timed("rollout"):
            rollout = student.generate(batch.repeat(self.num_generations), self.decoding)
        with timed("teacher"):
            values = self.judge(rollout, student, teacher)
        with timed("credit"):
            return self.assign_credit(rollout, values, student)

    @abstractmethod
    def assign_credit(
        self, rollout: Rollout, values: ActionValues, student: LanguageModel | None = None
    ) -> tuple[Rollout, Mapping[str, Tensor]]:
        """The rollout with what the loss needs of each token, and what is logged of it."""

    def judge(
        self, rollout: Rollout, student: LanguageModel, teacher: LanguageModel
    ) -> ActionValues:
        """The teacher's Q-values along the rollout, centred."""
        bootstrap = self.truncated == "bootstrap"
        centering = self.q_centering

        def judge(part: Rollout) -> ActionValues:
            if centering == "policy":
                return self._judge_by_policy(part, student, teacher)
            return teacher.action_values(part, centering=centering, bootstrap=bootstrap)

        return teacher.map(rollout, judge)

    def _judge_by_policy(
        self, rollout: Rollout, student: LanguageModel, teacher: LanguageModel
    ) -> ActionValues:
        with teacher.evaluating():
            reading = teacher.read(rollout).to(rollout.mask.device)
            values = reading.action_values()
        expected = student.measure(
            rollout,
            distribution=self.decoding.distribution,
            comparison=reading.comparison(expected_value),
        ).compared
        assert expected is not None
        return replace(values, q_taken=values.q_taken - expected, q_max=values.q_max - expected)

    def induce(
        self, rollout: Rollout, values: ActionValues
    ) -> tuple[Rollout, Tensor, dict[str, Tensor]]:
        """K-step returns.

        Returns:
            The rollout with values and returns; the returns of rewards that are clipped, where
            rewards are what is clipped, else the returns again; and what is logged of both.
        """
        mask = rollout.mask
        returns, chosen = self._choose_returns(values, mask)
        rollout = replace(rollout, values=values, returns=returns)
        sums = return_sums(rollout)
        if chosen is not None:
            sums["chosen_k"] = total(chosen)
        credit = returns
        if self.clip_range is not None and self.clip_target == "reward":
            credit, _ = self._choose_returns(values, mask, self.clip_range, chosen)
        sums["clipped"] = total(credit != returns)
        if self.truncated == "drop":
            rollout = replace(rollout, mask=rollout.mask & ~rollout.truncated[:, None])
        return rollout, credit, sums

    def weight(self, returns: Tensor, values: ActionValues, mask: Tensor) -> Tensor:
        """What is to be clipped of a return, before baselines: all of it, (B, T)."""
        return returns

    def clip(self, credit: Tensor, sums: dict[str, Tensor] | None = None) -> Tensor:
        """The credit within its range, if that is what is clipped; counted in `sums`."""
        if self.clip_range is None or self.clip_target == "reward":
            return credit
        clipped = credit.clamp(-self.clip_range, self.clip_range)
        if sums is not None:
            sums["clipped"] = total(clipped != credit)
        return clipped

    def _choose_returns(
        self,
        values: ActionValues,
        mask: Tensor,
        reward_range: float | None = None,
        chosen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns (B, T) and, where it is adaptive, the K of each row (B,)."""
        if isinstance(self.k, int):
            return self._returns(values, mask, self.k, reward_range), None
        candidates = torch.stack(
            [self._returns(values, mask, k, reward_range) for k in self.k.candidates]
        )
        if chosen is None:
            weights = torch.stack([self.clip(self.weight(c, values, mask)) for c in candidates])
            chosen = self.k.choose(weights, mask, total=sum_over_processes)
        index = (chosen[:, None] == chosen.new_tensor(self.k.candidates)).long().argmax(dim=1)
        return candidates[index, torch.arange(len(mask), device=mask.device)], chosen

    def _returns(
        self, values: ActionValues, mask: Tensor, k: int, reward_range: float | None
    ) -> Tensor:
        if self.phase == "average":
            returns = phase_average_returns(values.q_taken, values.q_max, mask, k=k)
        else:
            returns = block_returns(
                values.q_taken, values.q_max, mask, k=k, tail=self.tail, reward_range=reward_range
            )
        if values.bootstrap is not None:
            # What follows the last action is charged once to every return before it.
            returns = torch.where(mask, returns - values.bootstrap[:, None], 0.0)
        return returns

    def measure_logprobs(self, rollout: Rollout, student: LanguageModel) -> Tensor:
        """Log-probabilities (B, T) of a student that writes by `decoding`."""
        distribution = self.decoding.distribution
        return student.map(
            rollout, lambda part: student.measure(part, distribution=distribution).logprobs
        )

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return, reward, length, and what K and the clip did."""
        metrics = {
            **return_metrics(sums),
            "rollout/clipped": sums["clipped"] / max(sums["tokens"], 1.0),
        }
        if isinstance(self.k, AdaptiveK):
            metrics["k/mean"] = sums["chosen_k"] / sums["rows"]
            metrics.update(self.k.describe())
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """What `k: auto` has measured."""
        return {"k": self.k.state_dict()} if isinstance(self.k, AdaptiveK) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what was measured."""
        if isinstance(self.k, AdaptiveK):
            self.k.load_state_dict(state["k"])


def sum_over_processes(partial: Tensor) -> Tensor:
    """The sum of a tensor over the processes that share the rollout batch."""
    state = PartialState()
    if state.num_processes == 1:
        return partial
    added: Tensor = reduce(partial.to(state.device), "sum")
    return added.to(partial.device)
