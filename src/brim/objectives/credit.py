"""Credit by return induction: a teacher's logits along a text are Q-values, and these are returns.

Shared by the policy gradient, anchored and PPO: `Induced` has the student write and the teacher
read; `KStepReturns` makes one return a token of it.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from brim.advantages import leave_one_out_baseline, time_mean_baseline
from brim.divergences import expected_value
from brim.models import Decoding, Features, LanguageModel, ServerTeacher, Teacher, whole
from brim.objectives.base import Objective, Sums, return_metrics, return_sums, total
from brim.objectives.reward import RewardedConfig
from brim.objectives.settings import (
    AnchoredConfig,
    BlockConfig,
    ClipConfig,
    InductionConfig,
    OneStepConfig,
)
from brim.objectives.steps import Steps
from brim.returns import block_returns
from brim.support.timing import timed
from brim.types import ActionValues, Batch, Rollout


class Induced(Objective):
    """A method whose credit is induced from the teacher's Q-values along the student's own text."""

    settings: InductionConfig | AnchoredConfig

    def __init__(self, settings: InductionConfig | AnchoredConfig, decoding: Decoding) -> None:
        super().__init__(settings, decoding)
        if decoding.strategy == "greedy":
            warnings.warn(
                "greedy rollouts: the policy gradient is an expectation over samples, so its "
                "estimate is biased; set decoding.strategy=sampling unless the paper's greedy "
                "selection is what you study",
                stacklevel=3,
            )

    def collect(
        self, batch: Batch, student: LanguageModel, teacher: Teacher | None
    ) -> tuple[Rollout, Sums]:
        """Write, score, and weigh each token: lines 2 to 12 of Algorithm 1.

        Each prompt is completed `settings.num_generations` times. The rollout has the task's score
        of each text where `settings.reward` asks for it.

        Raises:
            ValueError: there is no teacher.
        """
        rollout, q = self._write_and_score(batch, student, teacher)
        with timed("credit"):
            return self.assign_credit(rollout, q, student)

    @abstractmethod
    def assign_credit(
        self, rollout: Rollout, q: ActionValues, student: LanguageModel | None = None
    ) -> tuple[Rollout, Sums]:
        """Return the rollout with the weight of each token, and what is logged of it.

        Args:
            rollout: what `student` wrote, B completions of at most T tokens.
            q: the teacher's values along it, centered as `settings.q_centering` says.
            student: the behavior policy, where its probabilities are needed.
        """

    def _write_and_score(
        self, batch: Batch, student: LanguageModel, teacher: Teacher | None
    ) -> tuple[Rollout, ActionValues]:
        """What the student writes, `y ~ π(· | x)`, and the teacher's Q-values along it."""
        if teacher is None:
            raise ValueError("returns are induced from a teacher; none was given")
        settings, scoring = self.settings, None
        if isinstance(teacher, ServerTeacher):  # it reads what has ended while others are written
            scoring = teacher.begin(**_asked(settings))
        try:
            with timed("rollout"):
                prompts = batch.repeat(settings.num_generations)
                hand_on = {"on_finished": scoring.add} if scoring else {}
                rollout = student.generate(prompts, self.decoding, **hand_on)
            rollout = _with_scores(rollout, student, settings)
            with timed("teacher"):
                if scoring is not None:
                    return rollout, scoring.finish(rollout)
                return rollout, score(teacher, rollout, student, settings, self.decoding)
        finally:
            if scoring is not None:
                scoring.cancel()


def _asked(settings: InductionConfig | AnchoredConfig) -> dict[str, Any]:
    """The arguments of `action_values`."""
    return {"centering": settings.q_centering, "bootstrap": settings.truncated == "bootstrap"}


def _with_scores(
    rollout: Rollout, student: LanguageModel, settings: InductionConfig | AnchoredConfig
) -> Rollout:
    """The rollout with the task's score of each text, where the settings ask for it."""
    if settings.reward is None:
        return rollout
    with timed("reward"):
        scores = settings.reward.score(student.decode(rollout), rollout.batch.examples)
        found = torch.tensor(scores, dtype=torch.float32, device=rollout.mask.device)
        return replace(rollout, task_scores=found)


def score(
    teacher: Teacher,
    rollout: Rollout,
    student: LanguageModel,
    settings: InductionConfig | AnchoredConfig,
    decoding: Decoding,
) -> ActionValues:
    """Return the teacher's Q-values along a rollout, centered as the settings say; (B, T) each.

    Args:
        teacher: whose logits they are.
        rollout: B completions of at most T tokens.
        student: gives its expected Q-values where they are the center (`q_centering: policy`).
        settings: `q_centering` and `truncated`; and whether the loss compares with all logits.
        decoding: the distribution that the student samples from.
    """
    asked, keep = _asked(settings), settings.passes().compared > 0
    if settings.q_centering != "policy" and not keep:
        return teacher.map(rollout, lambda part: teacher.action_values(part, **asked))

    def of_all_logits(part: Rollout) -> ActionValues:
        with teacher.evaluating():
            features = whole(teacher).features(part, after=asked["bootstrap"])
            center, device = settings.q_centering, part.mask.device
            values = features.action_values("none" if center == "policy" else center)
        if keep:
            values = replace(values, hidden=features.padded_hidden())
        values = values.to(device)
        if center != "policy":
            return values
        expected = student.statistics(
            part,
            distribution=decoding.distribution,
            comparison=features.to(device).comparison(expected_value),
        ).compared
        assert expected is not None
        return replace(values, q_taken=values.q_taken - expected, q_max=values.q_max - expected)

    return teacher.map(rollout, of_all_logits)


def scored_features(teacher: Teacher, rollout: Rollout) -> Features:
    """Return the teacher's features of what `score` scored: as it kept them, else made again.

    Raises:
        ModelError: the teacher shows two numbers a token only.
    """
    kept = None if rollout.values is None else rollout.values.hidden
    with teacher.evaluating():
        found = whole(teacher).features(replace(rollout, values=None), kept=kept)
        return found.to(rollout.mask.device)


class KStepReturns:
    """`Ĝ_t` of every token by a method's settings, and their clip.

    Attributes:
        settings: how long blocks are, how they end, what is clipped.
    """

    def __init__(self, settings: OneStepConfig | BlockConfig) -> None:
        self.settings = settings

    def __call__(
        self, rollout: Rollout, values: ActionValues, *, future_only: bool = False
    ) -> tuple[Rollout, Tensor, dict[str, Tensor]]:
        """Return a rollout with its returns, what is learned from them, and sums to be logged.

        Args:
            rollout: B completions of at most T tokens.
            values: the teacher's, along them.
            future_only: leave each token's own Q-value out of what is learned from.

        Returns:
            The rollout with `values` and `returns`, without the tokens of completions that are
            dropped; the credit, (B, T), of clipped rewards if rewards are clipped, but before
            `clip_credit`; sums over rows and tokens.
        """
        mask, clip = rollout.mask, self.settings.clip
        returns = credit = self._induce(values, mask)
        rollout = replace(rollout, values=values, returns=returns)
        sums = return_sums(rollout)
        if clip.range is not None and clip.target == "reward":
            credit = self._induce(values, mask, clip.range)
        sums["clipped"] = total(credit != returns)
        if self.settings.truncated == "drop":
            rollout = replace(rollout, mask=mask & ~rollout.truncated[:, None])
        if future_only:
            credit = torch.where(rollout.mask, credit - values.q_taken, 0.0)
        return rollout, credit + weighted_scores(rollout, self.settings), sums

    def _induce(
        self, values: ActionValues, mask: Tensor, reward_range: float | None = None
    ) -> Tensor:
        """Ĝ of each token, that of its step, (B, T)."""
        settings, steps = self.settings, Steps(values, mask)
        returns = block_returns(
            steps.last(values.q_taken),
            steps.last(values.q_max),
            steps.mask,
            k=settings.k,
            tail=settings.tail,
            reward_range=reward_range,
        )
        returns = steps.spread(returns)
        if values.bootstrap is None:
            return returns
        # What follows the last action is charged once to every return before it.
        return torch.where(mask, returns - values.bootstrap[:, None], 0.0)

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return metrics of return, reward, length, and what K and the clip did."""
        return {
            **return_metrics(sums),
            "rollout/clipped": sums["clipped"] / max(sums["tokens"], 1.0),
        }


def weighted_scores(rollout: Rollout, settings: RewardedConfig) -> Tensor | float:
    """Return what the task's reward at the end adds to each token's return, (B, T), or 0.

    Raises:
        ValueError: the settings have a reward, and the rollout no scores.
    """
    if settings.reward is None:
        return 0.0
    if rollout.task_scores is None:
        raise ValueError("a task reward needs a rollout with task_scores, as collect makes it")
    return torch.where(rollout.mask, settings.reward.weight * rollout.task_scores[:, None], 0.0)


def centered_scores(rollout: Rollout, settings: InductionConfig | AnchoredConfig) -> Tensor | float:
    """Return `weighted_scores` less their mean over other completions than the row's own.

    Of the same prompt where there are several of it, else of the whole rollout batch, all processes
    included. A baseline that the row's actions do not change: the expected gradient stays.

    Args:
        rollout: dropped completions have no tokens, and count for no mean.
        settings: see `weighted_scores`.
    """
    weighted = weighted_scores(rollout, settings)
    if isinstance(weighted, float):
        return weighted
    scores, counts = weighted[:, :1], rollout.mask[:, :1]
    if settings.num_generations > 1:
        mean = leave_one_out_baseline(scores, counts, group_size=settings.num_generations)
    else:
        mean = time_mean_baseline(scores, counts, num_steps=1, total=sum_over_processes)
    return torch.where(rollout.mask, weighted - mean, 0.0)


def clip_credit(credit: Tensor, clip: ClipConfig, sums: dict[str, Tensor] | None = None) -> Tensor:
    """Return the credit within its range, if it is what is clipped; counted in `sums`."""
    if clip.range is None or clip.target == "reward":
        return credit
    clipped = credit.clamp(-clip.range, clip.range)
    if sums is not None:
        sums["clipped"] = total(clipped != credit)
    return clipped


def behavior_logprobs(rollout: Rollout, student: LanguageModel, decoding: Decoding) -> Tensor:
    """Return log-probabilities (B, T) of a student that samples by `decoding`."""
    distribution = decoding.distribution
    return student.map(
        rollout, lambda part: student.statistics(part, distribution=distribution).logprobs
    )


def sum_over_processes(partial: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes that share the rollout batch."""
    state = PartialState()
    if state.num_processes == 1:
        return partial
    added: Tensor = reduce(partial.to(state.device), "sum")
    return added.to(partial.device)
