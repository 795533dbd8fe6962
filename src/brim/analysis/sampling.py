"""M rollouts of each of P prompts, and what the teacher says of them, asked once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from brim.divergences import forward_kl, reverse_kl
from brim.errors import ConfigError
from brim.examples import Example
from brim.metrics.base import Array
from brim.metrics.bootstrap import resample_counts
from brim.models import LanguageModel
from brim.objectives.anchored import Anchored
from brim.objectives.credit import score
from brim.objectives.policy_gradient import PolicyGradient
from brim.seeding import derive_seed
from brim.types import ActionValues, Batch, Rollout

# Rows that are written and scored between two looks at the clock.
ROWS = 256


@dataclass(frozen=True)
class Samples:
    """Rollouts in rounds: each has `num_generations` completions of each prompt, as in training.

    Attributes:
        rollout: B = num_rounds · num_prompts · num_generations rows, sorted by round, prompt and
            number, with the teacher's values.
        num_rounds, num_prompts, num_generations: B's factors.
    """

    rollout: Rollout
    num_rounds: int
    num_prompts: int
    num_generations: int

    @property
    def num_samples(self) -> int:
        """M, completions of a prompt."""
        return self.num_rounds * self.num_generations

    def rounds(self) -> list[range]:
        """The rows of each round."""
        size = self.num_prompts * self.num_generations
        return [range(number * size, (number + 1) * size) for number in range(self.num_rounds)]

    def halves(self, prompt: int) -> list[list[int]]:
        """The rows of a prompt in the first half of the rounds, and those in the second."""
        rows = np.arange(len(self.rollout)).reshape(self.num_rounds, self.num_prompts, -1)
        return [part.ravel().tolist() for part in np.split(rows[:, prompt], 2)]

    def by_prompt(self, values: Tensor) -> Array:
        """(B,) values as (P, M) float64."""
        table = values.double().cpu().numpy().reshape(self.num_rounds, self.num_prompts, -1)
        result: Array = table.transpose(1, 0, 2).reshape(self.num_prompts, -1)
        return result


def check_samples(
    objective: PolicyGradient | Anchored, *, num_samples: int, num_prompts: int
) -> None:
    """Whether these rollouts have a variance that can be measured.

    Raises:
        ConfigError: the decoding does not sample, there are fewer than two prompts, or
            `num_samples` is no multiple of twice the objective's `num_generations`.
    """
    group = objective.settings.num_generations
    if objective.decoding.strategy != "sampling":
        raise ConfigError(
            "decoding.strategy: greedy rollouts of a prompt do not vary; set it to sampling"
        )
    if num_prompts < 2:
        raise ConfigError(
            f"prompts: a variance over prompts needs at least 2, not {num_prompts}; give more, or "
            "another split"
        )
    if num_samples < 2 or num_samples % (2 * group):
        raise ConfigError(
            f"samples: {num_samples} rollouts a prompt cannot be halved into rounds of "
            f"objective.num_generations = {group}; give a multiple of {2 * group}"
        )


def draw_samples(
    objective: PolicyGradient | Anchored,
    student: LanguageModel,
    teacher: LanguageModel,
    examples: Sequence[Example],
    *,
    num_samples: int,
    seed: int,
    max_prompt_tokens: int | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> Samples:
    """Write `num_samples` completions of each example by the objective's decoding, and score them.

    A completion depends on the student, `seed`, the example's position and the completion's number
    alone; students meet the same random numbers.

    Raises:
        ConfigError: see `check_samples`.
    """
    check_samples(objective, num_samples=num_samples, num_prompts=len(examples))
    group = objective.settings.num_generations
    num_rounds, prompts = num_samples // group, range(len(examples))
    at_once = max(1, ROWS // (len(examples) * group))
    parts = []
    for start in range(0, num_rounds, at_once):
        rounds = range(start, min(start + at_once, num_rounds))
        numbers = [(i, n * group + g) for n in rounds for i in prompts for g in range(group)]
        batch = student.encode(
            [examples[i] for i, _ in numbers],
            max_tokens=max_prompt_tokens,
            seeds=[derive_seed(seed, "analysis", i, number) for i, number in numbers],
        )
        rollout = student.generate(batch, objective.decoding)
        values = score(teacher, rollout, student, objective.settings, objective.decoding)
        values = replace(values, hidden=None)  # of all rounds it would be much
        parts.append(replace(rollout, values=values))
        advance(len(numbers))
    return Samples(_join(parts), num_rounds, len(examples), group)


def token_divergences(
    samples: Samples, student: LanguageModel, teacher: LanguageModel
) -> dict[str, Array]:
    """Sums over each prompt's tokens of the KL of whole next-token distributions, (P,) each.

    `reverse_kl` is KL(student ‖ teacher), `forward_kl` KL(teacher ‖ student), in nats, both models
    at temperature 1, at the states that the student's own completions pass through.
    """
    functions = {"reverse_kl": reverse_kl, "forward_kl": forward_kl}

    def ask(part: Rollout) -> Tensor:
        with teacher.evaluating():
            features = teacher.features(part).to(part.mask.device)
        columns = []
        for function in functions.values():
            compared = student.statistics(part, comparison=features.comparison(function)).compared
            assert compared is not None
            columns.append(compared.sum(dim=1))
        return torch.stack(columns, dim=1)

    sums = teacher.map(samples.rollout, ask)
    return {name: samples.by_prompt(sums[:, i]).sum(axis=1) for i, name in enumerate(functions)}


def _join(parts: Sequence[Rollout]) -> Rollout:
    """Rollouts of the same prompts, one after the other."""
    width = max(part.mask.shape[1] for part in parts)

    def tokens(name: str, of: Callable[[Rollout], Rollout | ActionValues | None]) -> Tensor:
        values = [getattr(of(part), name) for part in parts]
        return torch.cat([F.pad(value, (0, width - value.shape[1])) for value in values])

    following = [part.values.bootstrap for part in parts if part.values is not None]
    kept = [value for value in following if value is not None]
    return Rollout(
        batch=Batch(
            examples=tuple(example for part in parts for example in part.batch.examples),
            prompt_ids=torch.cat([part.batch.prompt_ids for part in parts]),
            prompt_mask=torch.cat([part.batch.prompt_mask for part in parts]),
            seeds=tuple(seed for part in parts for seed in part.batch.seeds),
        ),
        completion_ids=tokens("completion_ids", lambda part: part),
        mask=tokens("mask", lambda part: part),
        truncated=torch.cat([part.truncated for part in parts]),
        values=ActionValues(
            q_taken=tokens("q_taken", lambda part: part.values),
            q_max=tokens("q_max", lambda part: part.values),
            logprobs=tokens("logprobs", lambda part: part.values),
            bootstrap=torch.cat(kept) if kept else None,
        ),
    )


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the estimate; NaN where it is not defined, such as a root of a negative estimate.
        low, high: ends of the percentile bootstrap interval over prompts; NaN where the number is
            undefined in some of the resamples.
        outside: whether noise took the estimate out of the number's range, to whose end it is put.
    """

    value: float
    low: float
    high: float
    outside: bool = False

    def within(self, least: float, greatest: float) -> Estimate:
        """The estimate and its interval cut to the range of the number.

        No interval covers less for it, and no estimate comes further from the truth.
        """
        value, low, high = np.clip((self.value, self.low, self.high), least, greatest).tolist()
        return Estimate(value, low, high, outside=abs(self.value - value) > 1e-9)  # not by rounding

    def as_dict(self) -> dict[str, float | bool | None]:
        """Plain values for JSON, null for what is undefined; `outside` where it is true."""
        numbers = {name: _finite(getattr(self, name)) for name in ("value", "low", "high")}
        return numbers | ({"outside": True} if self.outside else {})

    def __format__(self, spec: str) -> str:
        spec = spec or ".3g"
        if not math.isfinite(self.value):
            return "—"
        value = f"{self.value:{spec}}{'†' if self.outside else ''}"
        if not math.isfinite(self.low):
            return f"{value} [—]"
        return f"{value} [{self.low:{spec}}, {self.high:{spec}}]"


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class Resamples:
    """How often each resample of the prompts holds each of them.

    The same for everything that is computed of the same prompts, so that differences are paired.

    Attributes:
        counts: (1 + R, P) float64; the first row is all ones, the sample itself.
        confidence: coverage of the intervals.
    """

    counts: Array
    confidence: float

    @classmethod
    def draw(
        cls, num_prompts: int, *, num_resamples: int = 1000, confidence: float = 0.95, seed: int = 0
    ) -> Resamples:
        """`num_resamples` resamples of as many prompts, with replacement."""
        blocks = resample_counts(num_prompts, num_resamples, seed)
        ones = np.ones((1, num_prompts))
        return cls(np.concatenate([ones, *blocks]).astype(np.float64), confidence)

    def estimate(self, function: Callable[[Array], Array]) -> Estimate:
        """The number that `function` makes of counts, (1 + R, P) -> (1 + R,), with its interval."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.interval(function(self.counts))

    def mean(self, values: Array) -> Estimate:
        """Mean of (P,) values."""
        return self.estimate(lambda counts: counts @ values / values.size)

    def ratio(self, numerators: Array, denominators: Array) -> Estimate:
        """Sum of (P,) numerators over the sum of the denominators."""
        return self.estimate(lambda counts: (counts @ numerators) / (counts @ denominators))

    def interval(self, values: Array) -> Estimate:
        """(1 + R,) values, the first of the sample itself."""
        value, low, high = self.intervals(values[:, None])[:, 0].tolist()
        return Estimate(value, low, high)

    def intervals(self, values: Array) -> Array:
        """(1 + R, N) values, those of N numbers: (3, N), the numbers, lower and upper ends."""
        tails = [(1 - self.confidence) / 2, (1 + self.confidence) / 2]
        ends = np.quantile(values[1:], tails, axis=0)  # NaN if any of them is
        return np.concatenate([values[:1], ends])


def pooled_variance(counts: Array, tokens: Array, sums: Array, squares: Array) -> Array:
    """Variance over the tokens of all prompts, of sums by prompt: (…, P) counts -> (…,).

    The mean of the squares less the square of the mean, as training's `rollout/var_return_k`.
    """
    number = counts @ tokens
    variance: Array = counts @ squares / number - (counts @ sums / number) ** 2
    return variance
