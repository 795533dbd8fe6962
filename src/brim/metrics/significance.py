"""Significance over seeds: a paired t-test, Holm's correction, mean and standard deviation.

The paper's appendix E: runs of two methods with the same seeds, a two-sided paired t-test, and the
mean over the seeds with its standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from brim.errors import ConfigError, DataError
from brim.metrics.base import Array

# Differences that vary by less than this part of the values vary by rounding only.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class PairedTest:
    """A two-sided paired t-test of the mean difference `a - b`.

    One pair has no variance to judge by: interval, p-value and effect size are None. Differences
    that are all the same leave no doubt to measure: the interval is a point, the p-value 1 where
    they are 0 and else 0, and the effect size, which divides by their deviation, is None.

    Attributes:
        num_pairs: seeds that both have.
        difference: the mean of `a - b`, in the unit of the values.
        low: lower end of the t interval of the difference.
        high: upper end of it.
        p_value: how often a difference as large, in either direction, comes about without cause.
        effect_size: Cohen's d_z, the mean of the differences over their standard deviation.
        confidence: coverage of the interval, 0.95 for 95 %.
    """

    num_pairs: int
    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    effect_size: float | None
    confidence: float


def paired_t_test(a: npt.ArrayLike, b: npt.ArrayLike, *, confidence: float = 0.95) -> PairedTest:
    """Test whether the mean of `a - b` over pairs is other than 0 (Student's t, n − 1 degrees).

    Args:
        a: (n,) finite numbers of system A, one a seed.
        b: (n,) finite numbers of system B with the same seeds, in the same order.
        confidence: coverage of the interval of the difference.

    Raises:
        ConfigError: a confidence outside (0, 1).
        DataError: no values, different lengths, or a value that is not a finite number.
    """
    check_confidence(confidence)
    first, second = _check(a), _check(b)
    if len(first) != len(second):
        raise DataError(f"{len(first)} values against {len(second)}; pairs need the same seeds")
    differences = first - second
    mean, n = float(differences.mean()), len(differences)
    if n == 1:
        return PairedTest(1, mean, None, None, None, None, confidence)
    largest = max(np.abs(first).max(), np.abs(second).max())
    if np.ptp(differences) <= _ROUNDING * largest:
        same = abs(mean) <= _ROUNDING * largest
        mean = 0.0 if same else mean
        return PairedTest(n, mean, mean, mean, 1.0 if same else 0.0, None, confidence)
    from scipy import stats

    result = stats.ttest_rel(first, second)
    low, high = result.confidence_interval(confidence)
    return PairedTest(
        num_pairs=n,
        difference=mean,
        low=float(low),
        high=float(high),
        p_value=float(result.pvalue),
        effect_size=mean / float(differences.std(ddof=1)),
        confidence=confidence,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm, 1979), in the order they came in.

    Rejecting where an adjusted value is below 0.05 makes any false rejection in the whole family
    at most 5 % likely, however the tests depend on each other. The i-th smallest of m is multiplied
    by m − i + 1, and is never smaller than the one before.

    Raises:
        DataError: a value that is not a probability.
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or not np.all((values >= 0) & (values <= 1)):
        raise DataError(f"p-values are {list(p_values)}: each must be a number from 0 to 1")
    order = np.argsort(values, kind="stable")
    scaled = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return [float(value) for value in adjusted]


def spread(values: npt.ArrayLike) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n − 1); a single value has none.

    Raises:
        DataError: no values, or one that is not a finite number.
    """
    array = _check(values)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


def check_confidence(confidence: float) -> None:
    """Raise a ConfigError unless it is a coverage an interval can have."""
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}: it must lie between 0 and 1, as 0.95 does")


def _check(values: npt.ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise DataError(f"values are {array.tolist()}; give finite numbers, one a seed")
    return array
