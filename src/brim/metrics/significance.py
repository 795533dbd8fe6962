"""Significance over seeds: a paired t-test, Holm's correction, mean and standard deviation.

The paper's appendix E: runs of two methods with the same seeds, a two-sided paired t-test, and the
mean over the seeds with its standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from brim.errors import DataError
from brim.metrics.base import ANY, Array, Ends, finite_values, paired_values
from brim.metrics.bootstrap import (
    FEW,
    blocks,
    check_confidence,
    check_draws,
    percentile_interval,
    pseudo_values,
    resample_counts,
    t_interval,
)
from brim.seeding import derive_seed

# Differences that vary by less than this part of the values vary by rounding only.
_ROUNDING = 1e-12
# Scores that differ by less than this part of themselves differ by rounding only.
_PAIR_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class PairedTest:
    """A two-sided paired t-test of the mean difference `a - b`.

    One pair has no variance to judge by: all but the difference is None. Nor have differences that
    are all the same: where they are 0 the p-value is 1 and the interval a point; else t would be
    infinite, and the p-value is that of the signs, 2^(1 − n), and what needs a variance is None.

    Attributes:
        num_pairs: seeds that both have.
        difference: the mean of `a - b`, in the unit of the values.
        low: lower end of the t interval of the difference.
        high: upper end of it.
        p_value: how often a difference as large, in either direction, comes about without cause.
        effect_size: Cohen's d_z, the mean of the differences over their standard deviation.
        confidence: coverage of the interval, 0.95 for 95 %.
        detectable: what such a test sees with 80 % power, see `detectable_difference`.
    """

    num_pairs: int
    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    effect_size: float | None
    confidence: float
    detectable: float | None


def paired_t_test(
    a: npt.ArrayLike, b: npt.ArrayLike, *, confidence: float = 0.95, alpha: float | None = None
) -> PairedTest:
    """Test whether the mean of `a - b` over pairs is other than 0 (Student's t, n − 1 degrees).

    Args:
        a: (n,) finite numbers of system A, one a seed.
        b: (n,) finite numbers of system B with the same seeds, in the same order.
        confidence: coverage of the interval of the difference.
        alpha: level at which `detectable` is seen; what the interval leaves out by default.

    Raises:
        ConfigError: a confidence outside (0, 1).
        DataError: no values, different lengths, or a value that is not a finite number.
    """
    check_confidence(confidence)
    alpha = 1 - confidence if alpha is None else alpha
    first, second = paired_values("seeds", a, b)
    differences = first - second
    mean, n = float(differences.mean()), len(differences)
    if n == 1:
        return PairedTest(1, mean, None, None, None, None, confidence, None)
    largest = max(np.abs(first).max(), np.abs(second).max())
    if np.ptp(differences) <= _ROUNDING * largest:
        if abs(mean) <= _ROUNDING * largest:
            return PairedTest(n, 0.0, 0.0, 0.0, 1.0, None, confidence, None)
        # No spread to judge by, and t would be infinite: what is known is that all signs agree.
        return PairedTest(n, mean, None, None, 2.0 ** (1 - n), None, confidence, None)
    from scipy import stats

    result = stats.ttest_rel(first, second)
    low, high = result.confidence_interval(confidence)
    deviation = float(differences.std(ddof=1))
    return PairedTest(
        num_pairs=n,
        difference=mean,
        low=float(low),
        high=float(high),
        p_value=float(result.pvalue),
        effect_size=mean / deviation,
        confidence=confidence,
        detectable=detectable_difference(deviation, n, alpha=alpha),
    )


def detectable_difference(
    deviation: float, num_pairs: int, *, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Return the true mean difference that a two-sided paired t-test finds this often.

    `δ = c s / √n`, with c the noncentrality of Student's t (n − 1 degrees of freedom) that is above
    the critical value with probability `power`; that it is below the negative one is neglected.

    Args:
        deviation: s, the standard deviation of the differences.
        num_pairs: n, at least 2.
        alpha: level of the test.
        power: how often the difference is to be found.
    """
    from scipy.special import chdtri, nctdtrinc, stdtrit

    freedom = num_pairs - 1
    critical = stdtrit(freedom, 1 - alpha / 2)
    if critical < 1e3:
        noncentrality = nctdtrinc(freedom, 1 - power, critical)
    else:  # nctdtrinc does not end, and only the chance in the deviation counts
        noncentrality = critical * math.sqrt(chdtri(freedom, 1 - power) / freedom)
    return float(noncentrality) * deviation / math.sqrt(num_pairs)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm, 1979), in the order they came in.

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
    """Return mean and sample standard deviation (n − 1); a single value has none.

    Raises:
        DataError: no values, or one that is not a finite number.
    """
    array = finite_values("seeds", values)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


@dataclass(frozen=True, slots=True)
class Pair:
    """What two systems wrote for the same N examples, as the statistics of one metric.

    Attributes:
        a: (N, S) additive statistics of system A.
        b: (N, S) of system B, the same examples in the same order.
        corpus_score: sums of statistics (..., S) -> scores (...,).
        bounds: of a score.
    """

    a: Array
    b: Array
    corpus_score: Callable[[Array], Array]
    bounds: Ends = ANY

    @property
    def scores(self) -> tuple[float, float]:
        """The corpus scores of A and B."""
        a, b = self.corpus_score(np.stack([self.a.sum(axis=0), self.b.sum(axis=0)]))
        return float(a), float(b)


@dataclass(frozen=True, slots=True)
class BootstrapTest:
    """The difference of two corpus scores over resamples of their examples.

    Attributes:
        difference: score of A minus score of B.
        low, high: ends of the percentile interval of the difference.
        interval_a, interval_b: percentile intervals of the scores, from the same resamples.
        p_value: two-sided, see `paired_bootstrap`.
        detectable: the difference that a test on as many such examples sees with 80 % power, by the
            jackknife; None where no difference varies.
    """

    difference: float
    low: float | None
    high: float | None
    interval_a: Ends | tuple[None, None]
    interval_b: Ends | tuple[None, None]
    p_value: float
    detectable: float | None


@dataclass(frozen=True, slots=True)
class WinTieLoss:
    """Examples on which A is better than B, as good, and worse.

    Attributes:
        wins, ties, losses: numbers of examples.
        p_value: of the two-sided sign test: how often a fair coin, thrown once for each example
            that is no tie, comes down at least as unevenly; 1 where all are ties.
    """

    wins: int
    ties: int
    losses: int
    p_value: float


def paired_bootstrap(
    pairs: Mapping[str, Pair],
    *,
    seed: int = 0,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
) -> dict[str, BootstrapTest]:
    """Resample the examples with replacement, the same ones for A and B, and score both anew.

    The p-value moves the distribution of the resampled differences d* to a mean of nothing, as the
    null hypothesis has it, and asks how often they are as far out as the difference d that was
    seen: `(1 + #{|d* - d| >= |d|}) / (1 + R)`. Of fewer than 30 examples the resamples are too much
    alike: intervals and p-value are then those of a t-test of the jackknife's pseudo-values. Of a
    single example nothing can be said: p is 1.

    Args:
        pairs: by the name of the metric; all of the same N examples.
        seed: of the resamples, those of `score` for N examples with the same seed.
        num_resamples: R.
        confidence: coverage of the intervals.

    Raises:
        ConfigError: fewer than one resample, or a confidence outside (0, 1).
        DataError: statistics of different shapes, or of no examples.
    """
    check_confidence(confidence)
    num_examples = _check_pairs(pairs)
    check_draws(num_resamples, "num_resamples")
    if num_examples < FEW:
        return {name: _of_few(pair, confidence) for name, pair in pairs.items()}
    statistics = _side_by_side(pairs)
    resamples = resample_counts(num_examples, num_resamples, seed)
    scores = _scores(pairs, (counts @ statistics for counts in resamples))
    tests = {}
    for name, pair in pairs.items():
        a, b = pair.scores
        difference, resampled = a - b, scores[name][0] - scores[name][1]
        far = np.abs(resampled - difference) >= abs(difference) - _slack(a, b)
        (low, high), interval_a, interval_b = (
            percentile_interval(of, confidence) for of in (resampled, *scores[name])
        )
        p_value = (1 + int(far.sum())) / (1 + num_resamples)
        detectable = _jackknifed(pair, confidence).detectable
        tests[name] = BootstrapTest(
            difference, low, high, interval_a, interval_b, p_value, detectable
        )
    return tests


def _jackknifed(pair: Pair, confidence: float) -> PairedTest:
    a, b = (pseudo_values(side, pair.corpus_score) for side in (pair.a, pair.b))
    return paired_t_test(a, b, confidence=confidence)


def _of_few(pair: Pair, confidence: float) -> BootstrapTest:
    test, (a, b) = _jackknifed(pair, confidence), pair.scores
    interval_a, interval_b = (
        t_interval(side, pair.corpus_score, confidence=confidence, bounds=pair.bounds)
        for side in (pair.a, pair.b)
    )
    p_value = 1.0 if test.p_value is None else test.p_value
    return BootstrapTest(
        a - b, test.low, test.high, interval_a, interval_b, p_value, test.detectable
    )


def approximate_randomization(
    pairs: Mapping[str, Pair], *, seed: int = 0, num_trials: int = 10_000
) -> dict[str, float]:
    """Two-sided p-values of the differences of corpus scores, by swapping texts at random.

    If A and B were as good as each other it would not matter who wrote which of the two texts of
    an example. A trial swaps those of each example with probability 1/2 and takes the difference
    d* of the scores; `p = (1 + #{|d*| >= |d|}) / (1 + R)` for the difference d that was seen.

    Args:
        pairs: by the name of the metric; all of the same N examples.
        seed: of the swaps, which all metrics share.
        num_trials: R; p is never below 1 / (1 + R).

    Raises:
        ConfigError: fewer than one trial.
        DataError: statistics of different shapes, or of no examples.
    """
    num_examples = _check_pairs(pairs)
    statistics = _side_by_side(pairs)
    swapped = np.hstack([side for pair in pairs.values() for side in (pair.b, pair.a)])
    start, changes = statistics.sum(axis=0), swapped - statistics
    trials = _swaps(num_examples, num_trials, seed)
    scores = _scores(pairs, (start + swaps @ changes for swaps in trials))
    p_values = {}
    for name, pair in pairs.items():
        a, b = pair.scores
        far = np.abs(scores[name][0] - scores[name][1]) >= abs(a - b) - _slack(a, b)
        p_values[name] = (1 + int(far.sum())) / (1 + num_trials)
    return p_values


def win_tie_loss(
    a: npt.ArrayLike, b: npt.ArrayLike, *, higher_is_better: bool = True
) -> WinTieLoss:
    """Count the examples on which A is better than B, with a sign test.

    Args:
        a: (N,) finite numbers of system A, one an example.
        b: (N,) finite numbers of system B on the same examples.
        higher_is_better: False for an error rate.

    Raises:
        DataError: no values, different lengths, or a value that is not a finite number.
    """
    first, second = paired_values("examples", a, b)
    difference = first - second if higher_is_better else second - first
    apart = ~np.isclose(first, second, rtol=_PAIR_ROUNDING, atol=_PAIR_ROUNDING)
    wins = int((apart & (difference > 0)).sum())
    losses = int(apart.sum()) - wins
    return WinTieLoss(wins, len(first) - wins - losses, losses, sign_test(wins, losses))


def sign_test(wins: int, losses: int) -> float:
    """Return how often a fair coin comes down at least as unevenly, to either side; 1 of no throw.

    Twice the smaller tail of the binomial distribution.
    """
    from scipy.special import bdtr

    return min(2.0 * float(bdtr(min(wins, losses), wins + losses, 0.5)), 1.0)


def _side_by_side(pairs: Mapping[str, Pair]) -> Array:
    """(N, 2 ΣS): of each metric the statistics of A, then those of B."""
    return np.hstack([side for pair in pairs.values() for side in (pair.a, pair.b)])


def _scores(pairs: Mapping[str, Pair], blocks: Iterable[Array]) -> dict[str, tuple[Array, Array]]:
    """Blocks (r, 2 ΣS) of sums, `_side_by_side` -> by metric the (R,) scores of A and of B."""
    scores: dict[str, list[Array]] = {name: [] for name in pairs}
    for sums in blocks:
        column = 0
        for name, pair in pairs.items():
            width = pair.a.shape[1]
            both = sums[:, column : column + 2 * width].reshape(-1, 2, width)
            scores[name].append(pair.corpus_score(both))
            column += 2 * width
    joined = {name: np.concatenate(parts) for name, parts in scores.items()}
    return {name: (both[:, 0], both[:, 1]) for name, both in joined.items()}


def _swaps(num_examples: int, num_trials: int, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Blocks (r, N) of fair coins, 0 or 1; the same whatever the size of the blocks."""
    generator = np.random.default_rng(derive_seed(seed, "randomization"))
    words = -(-num_examples // 64)
    for rows in blocks(num_examples, num_trials, "num_trials"):
        drawn = generator.integers(2**64, size=(rows, words), dtype=np.uint64)
        yield np.unpackbits(drawn.astype("<u8").view(np.uint8), axis=1)[:, :num_examples]


def _slack(a: float, b: float) -> float:
    return _PAIR_ROUNDING * max(abs(a), abs(b))


def _check_pairs(pairs: Mapping[str, Pair]) -> int:
    """The number of examples."""
    if not pairs:
        raise DataError("nothing to compare: name a metric")
    num_examples = len(next(iter(pairs.values())).a)
    for metric, pair in pairs.items():
        if pair.a.shape != pair.b.shape or pair.a.ndim != 2 or len(pair.a) != num_examples:
            raise DataError(
                f"{metric}: statistics of shapes {pair.a.shape} and {pair.b.shape} for "
                f"{num_examples} examples; both systems need the same examples"
            )
    if not num_examples:
        raise DataError("nothing to compare: there are no examples")
    return num_examples
