"""Bootstrap intervals: reproducible, of the right width and coverage, and without side effects."""

import random
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from brim.errors import ConfigError, DataError
from brim.metrics import mean_score, paired_difference, score
from brim.metrics.bootstrap import resample_counts

REFERENCES = [("the cat " + "sat on the mat by a dog ran off it "[: 5 + i],) for i in range(30)]
PREDICTIONS = [group[0].replace("abcdefgh"[i % 8], "x") for i, group in enumerate(REFERENCES)]


def test_counts_are_resamples_and_do_not_depend_on_the_block_size(monkeypatch):
    whole = np.concatenate(list(resample_counts(13, 200, seed=3)))
    assert whole.shape == (200, 13)
    assert (whole.sum(axis=1) == 13).all()
    assert len(np.unique(whole, axis=0)) == 200
    monkeypatch.setattr("brim.metrics.bootstrap._MAX_DRAWS", 40)  # three rows at once
    blocks = list(resample_counts(13, 200, seed=3))
    assert {len(block) for block in blocks} == {3, 2}
    assert (np.concatenate(blocks) == whole).all()


def test_counts_are_uniform_over_examples():
    counts = np.concatenate(list(resample_counts(20, 5000, seed=0)))
    # One cell is Binomial(20, 1/20): mean 1, variance 0.95; the bound is five standard errors.
    assert np.abs(counts.mean(axis=0) - 1).max() < 5 * np.sqrt(0.95 / 5000)
    assert counts.var() == pytest.approx(0.95, rel=0.03)


def test_same_seed_same_interval_other_seed_other_interval():
    names = ["bleu", "chrf", "ter", "rouge1"]
    first = score(names, PREDICTIONS, REFERENCES, seed=5)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    assert score(names, PREDICTIONS, REFERENCES, seed=5) == first
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    other = score(names, PREDICTIONS, REFERENCES, seed=6)
    for name in names:
        assert other[name].value == first[name].value
        assert other[name].low != first[name].low
        assert other[name].high != first[name].high


def test_coverage_of_the_mean():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        result = mean_score("x", generator.normal(3, 2, size=80), seed=trial, num_resamples=400)
        covered += result.low <= 3 <= result.high
    # 95 % less a little for 80 examples; the standard error of the rate is 1.1 points.
    assert 0.91 <= covered / 400 <= 0.98


@pytest.mark.parametrize(("confidence", "z"), [(0.5, 0.6745), (0.95, 1.96), (0.99, 2.576)])
def test_width_is_that_of_the_normal_approximation(confidence, z):
    values = np.random.default_rng(1).normal(size=900)
    result = mean_score("x", values, num_resamples=4000, confidence=confidence)
    assert result.value == pytest.approx(values.mean())
    assert result.confidence == confidence
    expected = 2 * z * values.std() / np.sqrt(900)
    assert result.high - result.low == pytest.approx(expected, rel=0.08)


def test_interval_follows_an_affine_map_of_the_values():
    """Systems scored on the same examples with the same seed meet the same resamples."""
    values = np.random.default_rng(2).exponential(size=50)
    plain, mapped = mean_score("x", values), mean_score("x", 4 * values - 30)
    assert [mapped.low, mapped.high] == pytest.approx([4 * plain.low - 30, 4 * plain.high - 30])


@pytest.mark.parametrize("name", ["bleu", "chrf", "ter", "rouge1", "rouge2", "rougeL"])
def test_interval_brackets_the_corpus_score(name):
    result = score([name], PREDICTIONS, REFERENCES)[name]
    assert result.low < result.value < result.high
    assert result.num_examples == 30


def test_one_example_has_no_interval() -> None:
    result = mean_score("x", [-2.5])
    assert (result.value, result.low, result.high, result.num_examples) == (-2.5, None, None, 1)
    assert f"{result}" == "x -2.5"


@pytest.mark.parametrize("size", [2, 5, 29])
def test_few_examples_have_the_t_interval(size: int) -> None:
    values = np.random.default_rng(size).normal(size=size)
    expected = stats.t.interval(0.9, size - 1, values.mean(), stats.sem(values))
    found = mean_score("x", values, confidence=0.9)
    assert (found.low, found.high) == pytest.approx(expected)
    # A ratio of sums with equal weights is the same mean; its scale is theirs.
    ratio = mean_score("x", values, weights=np.full(size, 4.0), confidence=0.9)
    assert [4 * ratio.low, 4 * ratio.high] == pytest.approx(expected)


def rate_of_misses(trials: int) -> float:
    """How often the interval of five values misses the mean that they are drawn from."""
    drawn = np.random.default_rng(0).normal(7, 2, size=(trials, 5))
    found = [mean_score("x", row, num_resamples=300) for row in drawn]
    return np.mean([not result.low <= 7 <= result.high for result in found])


def test_few_values_miss_the_truth_no_more_often_than_they_say(monkeypatch) -> None:
    # Standard error of the rate: 0.7 points at 5 %, 1.9 at 17.7 %.
    assert 0.02 < rate_of_misses(1000) < 0.08
    monkeypatch.setattr("brim.metrics.bootstrap.FEW", 0)  # percentiles
    assert rate_of_misses(400) > 0.1


def test_a_ratio_of_sums_weighs_examples_by_their_length() -> None:
    values, weights = np.random.default_rng(4).uniform(1, 9, size=(2, 50))
    found = mean_score("x", values, weights=weights, higher_is_better=False)
    assert found.value == pytest.approx(values.sum() / weights.sum())
    assert found.low < found.value < found.high
    with pytest.raises(DataError, match="2 values against 1"):
        mean_score("x", [1.0, 2.0], weights=[1.0])


def test_an_interval_of_few_stays_where_scores_can_be() -> None:
    found = score(["exact_match", "ter"], ["a b", "c d"], [("a b",), ("x",)])
    assert (found["exact_match"].low, found["exact_match"].high) == (0, 100)
    assert found["ter"].low == 0
    assert found["ter"].high > 100


def test_paired_difference_sees_what_separate_intervals_hide() -> None:
    generator = np.random.default_rng(3)
    hardness = generator.normal(scale=10, size=300)
    a = hardness + 1 + generator.normal(scale=0.5, size=300)
    b = hardness + generator.normal(scale=0.5, size=300)
    assert mean_score("a", a).low < mean_score("b", b).high
    difference = paired_difference(a, b)
    assert 0.8 < difference.low < difference.value < difference.high < 1.2
    assert difference.value == pytest.approx(a.mean() - b.mean())
    swapped = paired_difference(b, a)
    assert [swapped.low, swapped.high] == pytest.approx([-difference.high, -difference.low])


def test_memory_is_bounded_by_the_block():
    values = np.zeros(400_000)
    tracemalloc.start()
    mean_score("x", values, num_resamples=30)  # 96 MB of counts if held at once
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_resamples": 0}, "num_resamples is 0"),
        ({"confidence": 95}, "confidence is 95"),
        ({"confidence": 0}, "confidence is 0"),
    ],
)
def test_options_out_of_bounds(options, message):
    with pytest.raises(ConfigError, match=message):
        mean_score("x", [1.0], **options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "return: values have shape"),
        (np.zeros((2, 2)), "return: values have shape"),
        ([1.0, float("nan")], "return: value 1 is nan"),
        ([float("-inf")], "return: value 0 is -inf"),
    ],
)
def test_values_that_have_no_mean(values, message):
    with pytest.raises(DataError, match=message):
        mean_score("return", values)
    with pytest.raises(DataError, match=message):
        paired_difference(values, values, name="return")


def test_pairs_of_different_lengths():
    with pytest.raises(DataError, match="1 values against 2"):
        paired_difference([1.0], [1.0, 2.0])
