"""Bootstrap intervals of corpus scores, from a random generator of their own; of few examples, t.

Efron (1979); for corpus metrics of text Koehn (2004), "Statistical significance tests for machine
translation evaluation". Percentiles of a few values are too narrow: of five, a 95 % interval misses
the truth in 18 % of cases. There it is Tukey's jackknife with Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from brim.errors import ConfigError
from brim.metrics.base import ANY, Array, Ends
from brim.seeding import derive_seed

FEW = 30  # examples below which there is no percentile interval
_MAX_DRAWS = 2**20  # examples drawn at once; bounds the memory to some 30 MB


def blocks(num_examples: int, num_draws: int, name: str) -> Iterator[int]:
    """Yield numbers of draws that add up to all, few enough at once for the memory.

    Raises:
        ConfigError: fewer than one draw; `name` is what it is called.
    """
    check_draws(num_draws, name)
    block = max(1, _MAX_DRAWS // num_examples)
    for start in range(0, num_draws, block):
        yield min(block, num_draws - start)


def resample_counts(
    num_examples: int, num_resamples: int, seed: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield how often each resample holds each example, blocks (r, N) that sum to N along a row.

    The counts depend on the arguments alone, so metrics and systems that are scored on the same
    examples with the same seed have the same resamples.

    Raises:
        ConfigError: fewer than one resample.
    """
    generator = np.random.default_rng(derive_seed(seed, "bootstrap"))
    for rows in blocks(num_examples, num_resamples, "num_resamples"):
        drawn = generator.integers(num_examples, size=(rows, num_examples))
        drawn += num_examples * np.arange(rows)[:, None]  # row i counts into cells of its own
        counts = np.bincount(drawn.ravel(), minlength=rows * num_examples)
        yield counts.reshape(rows, num_examples)


def bootstrap_interval(
    statistics: Array,
    corpus_score: Callable[[Array], Array],
    *,
    seed: int,
    num_resamples: int,
    confidence: float,
    bounds: Ends = ANY,
) -> Ends | tuple[None, None]:
    """Return the percentile bootstrap interval of a corpus score; of few examples the t interval.

    Args:
        statistics: (N, S), one row an example.
        corpus_score: (R, S) sums of statistics -> (R,) scores.
        seed: of the resamples; global generators are neither read nor moved.
        num_resamples: corpora drawn with replacement.
        confidence: coverage aimed at, 0.95 for the quantiles 0.025 and 0.975.
        bounds: of the score.

    Raises:
        ConfigError: fewer than one resample, or a confidence outside (0, 1).
    """
    check_confidence(confidence)
    check_draws(num_resamples, "num_resamples")
    if len(statistics) < FEW:
        return t_interval(statistics, corpus_score, confidence=confidence, bounds=bounds)
    counts = resample_counts(len(statistics), num_resamples, seed)
    scores = np.concatenate([corpus_score(block @ statistics) for block in counts])
    return percentile_interval(scores, confidence)


def pseudo_values(statistics: Array, corpus_score: Callable[[Array], Array]) -> Array:
    """Return (N,) values whose mean and variance stand for those of a corpus score.

    `N θ − (N − 1) θ₋ᵢ`, with θ₋ᵢ the score without example i (Tukey, 1958). Of a mean they are the
    values themselves.
    """
    n, sums = len(statistics), statistics.sum(axis=0)
    if n == 1:
        return np.asarray(corpus_score(statistics))
    return np.asarray(n * corpus_score(sums) - (n - 1) * corpus_score(sums - statistics))


def t_interval(
    statistics: Array,
    corpus_score: Callable[[Array], Array],
    *,
    confidence: float,
    bounds: Ends = ANY,
) -> Ends | tuple[None, None]:
    """Return Student's t interval of a corpus score by the jackknife; a single example has none.

    Arguments are those of `bootstrap_interval`.
    """
    n = len(statistics)
    if n == 1:
        return None, None
    from scipy.special import stdtrit

    center = float(corpus_score(statistics.sum(axis=0)))
    deviation = float(pseudo_values(statistics, corpus_score).std(ddof=1))
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * deviation / math.sqrt(n)
    return max(center - half, bounds[0]), min(center + half, bounds[1])


def percentile_interval(scores: Array, confidence: float) -> tuple[float, float]:
    """Return the ends between which a share `confidence` of the (R,) scores lies."""
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def check_confidence(confidence: float) -> None:
    """Raise a ConfigError unless an interval can have this coverage."""
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}: it must lie between 0 and 1, as 0.95 does")


def check_draws(num_draws: int, name: str) -> None:
    """Raise a ConfigError unless there is a draw; `name` is what their number is called."""
    if num_draws < 1:
        raise ConfigError(f"{name} is {num_draws}: it must be at least 1")
