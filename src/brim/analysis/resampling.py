"""Numbers with bootstrap intervals over prompts, whatever they are computed from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from brim.metrics.base import Array
from brim.metrics.bootstrap import resample_counts


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the estimate; NaN where it is not defined, such as a root of a negative estimate.
        low, high: ends of the percentile bootstrap interval over prompts; NaN where the number is
            undefined in some of the resamples.
    """

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """Plain values for JSON, null for what is undefined."""
        return {name: _finite(getattr(self, name)) for name in self.__slots__}

    def __format__(self, spec: str) -> str:
        spec = spec or ".3g"
        if not math.isfinite(self.value):
            return "—"
        if not math.isfinite(self.low):
            return f"{self.value:{spec}} [—]"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


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
        return Estimate(*(float(row[0]) for row in self.intervals(values[:, None])))

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
