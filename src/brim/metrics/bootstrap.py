"""Bootstrap intervals of corpus scores, from a random generator of their own.

Efron (1979); for corpus metrics of text Koehn (2004), "Statistical significance tests for machine
translation evaluation".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from brim.errors import ConfigError
from brim.metrics.base import Array
from brim.seeding import derive_seed

_MAX_DRAWS = 2**20  # examples drawn at once; bounds the memory to some 30 MB


def blocks(num_examples: int, num_draws: int, name: str) -> Iterator[int]:
    """Yield numbers of draws that add up to all, few enough at once for the memory.

    Raises:
        ConfigError: fewer than one draw; `name` is what it is called.
    """
    if num_draws < 1:
        raise ConfigError(f"{name} is {num_draws}: it must be at least 1")
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
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a corpus score.

    Args:
        statistics: (N, S), one row an example.
        corpus_score: (R, S) sums of statistics -> (R,) scores.
        seed: of the resamples; global generators are neither read nor moved.
        num_resamples: corpora drawn with replacement.
        confidence: coverage aimed at, 0.95 for the quantiles 0.025 and 0.975.

    Raises:
        ConfigError: fewer than one resample, or a confidence outside (0, 1).
    """
    check_confidence(confidence)
    counts = resample_counts(len(statistics), num_resamples, seed)
    scores = np.concatenate([corpus_score(block @ statistics) for block in counts])
    return percentile_interval(scores, confidence)


def percentile_interval(scores: Array, confidence: float) -> tuple[float, float]:
    """Return the ends between which a share `confidence` of the (R,) scores lies."""
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def check_confidence(confidence: float) -> None:
    """Raise a ConfigError unless an interval can have this coverage."""
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}: it must lie between 0 and 1, as 0.95 does")
