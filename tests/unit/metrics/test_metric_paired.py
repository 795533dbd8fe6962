"""Paired tests of corpus scores: exact on small cases, calibrated, without side effects."""

import itertools
import random

import numpy as np
import pytest
from scipy import stats

from brim.errors import ConfigError, DataError
from brim.metrics import (
    METRICS,
    Pair,
    WinTieLoss,
    approximate_randomization,
    paired_bootstrap,
    paired_difference,
    score,
    sentence_statistics,
    win_tie_loss,
)
from brim.metrics.base import mean_of_sums, with_counts

REFERENCES = [
    ("the cat sat on the mat",), ("a dog ran to the park today",), ("it is raining again",),
    ("she reads a long book",), ("we went home by train",), ("the door was open",),
    ("he bought two red apples",),
]  # fmt: skip
A = [
    "the cat sat on the mat", "a dog ran in the park today", "it is raining", "she reads long book",
    "we went home by train", "the door was open", "he bought two apples",
]  # fmt: skip
B = [
    "the cat sat on a mat", "a dog ran to park", "it is raining again", "she read the book",
    "we went home with a train", "the door was closed", "he bought two red apple",
]  # fmt: skip


def pair_of(name: str, a: list[str] = A, b: list[str] = B) -> Pair:
    statistics = [sentence_statistics(name, texts, REFERENCES[: len(a)]) for texts in (a, b)]
    return Pair(*statistics, METRICS[name].corpus_score)


def means(a: np.ndarray, b: np.ndarray) -> Pair:
    return Pair(with_counts(a), with_counts(b), mean_of_sums)


def corpus_difference(pair: Pair, rows_a: list[np.ndarray], rows_b: list[np.ndarray]) -> float:
    return float(pair.corpus_score(np.sum(rows_a, 0)) - pair.corpus_score(np.sum(rows_b, 0)))


def within_chance(p_value: float, exact: float, draws: int) -> bool:
    return abs(p_value - exact) < 4 * np.sqrt(exact * (1 - exact) / draws) + 1 / draws


@pytest.mark.parametrize("name", ["bleu", "chrf", "ter", "rouge1", "exact_match"])
def test_randomization_against_all_swaps(name):
    pair = pair_of(name)
    observed = abs(corpus_difference(pair, list(pair.a), list(pair.b)))
    differences = []
    for swaps in itertools.product([False, True], repeat=len(A)):
        sides = [
            (b, a) if swap else (a, b) for a, b, swap in zip(pair.a, pair.b, swaps, strict=True)
        ]
        differences.append(abs(corpus_difference(pair, *map(list, zip(*sides, strict=True)))))
    exact = np.mean(np.array(differences) >= observed - 1e-9)
    assert 0.01 < exact < 1
    found = approximate_randomization({name: pair}, num_trials=20_000)[name]
    assert within_chance(found, exact, 20_000)


@pytest.mark.parametrize("name", ["bleu", "ter", "rouge1"])
def test_bootstrap_against_all_resamples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brim.metrics.significance.FEW", 0)
    pair = pair_of(name, A[:5], B[:5])
    observed = corpus_difference(pair, list(pair.a), list(pair.b))
    differences = np.array(
        [
            corpus_difference(pair, [pair.a[i] for i in rows], [pair.b[i] for i in rows])
            for rows in itertools.product(range(5), repeat=5)
        ]
    )
    exact = np.mean(np.abs(differences - observed) >= abs(observed) - 1e-9)
    test = paired_bootstrap({name: pair}, num_resamples=20_000)[name]
    assert test.difference == pytest.approx(observed)
    assert within_chance(test.p_value, exact, 20_000)
    # Ends of the interval have the tail mass that they should, up to the steps of so small a case.
    for end, mass in ((test.low, 0.025), (test.high, 0.975)):
        below, at_most = (differences < end - 1e-6).mean(), (differences < end + 1e-6).mean()
        assert below - 0.005 <= mass <= at_most + 0.005


def test_intervals_are_those_of_single_systems_and_of_paired_differences():
    """`score` and `paired_difference` with the same seed meet the same resamples."""
    options = {"seed": 3, "num_resamples": 500, "confidence": 0.9}
    test = paired_bootstrap({"bleu": pair_of("bleu")}, **options)["bleu"]
    for texts, interval in ((A, test.interval_a), (B, test.interval_b)):
        single = score(["bleu"], texts, REFERENCES, **options)["bleu"]
        assert interval == pytest.approx((single.low, single.high))
    a, b = np.random.default_rng(0).normal(size=(2, 40))
    test = paired_bootstrap({"x": means(a, b)}, **options)["x"]
    expected = paired_difference(a, b, **options)
    assert (test.difference, test.low, test.high) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )


@pytest.mark.parametrize("ratio", [False, True])
def test_p_values_are_uniform_where_nothing_differs(ratio):
    """A mean, and a ratio of sums as TER is; both systems draw from one distribution."""
    generator = np.random.default_rng(1)
    found = []
    for trial in range(300):
        if ratio:
            lengths = generator.integers(5, 20, size=80)
            a, b = (generator.binomial(lengths, 0.3) for _ in range(2))
            pair = Pair(
                np.column_stack([a, lengths]).astype(float),
                np.column_stack([b, lengths]).astype(float),
                METRICS["ter"].corpus_score,
            )
        else:
            pair = means(*generator.exponential(size=(2, 80)))
        bootstrap = paired_bootstrap({"x": pair}, seed=trial, num_resamples=300)["x"].p_value
        found.append(
            (bootstrap, approximate_randomization({"x": pair}, seed=trial, num_trials=300)["x"])
        )
    for p_values in np.transpose(found):
        # Standard error of the rate: 1.3 points. sacrebleu's bootstrap would reject 10 %.
        assert 0.015 <= np.mean(p_values < 0.05) <= 0.09
        assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_few_pairs_are_told_apart_by_the_t_test_and_by_chance_no_more_often() -> None:
    a, b = np.random.default_rng(5).normal(size=(2, 1000, 5))
    tests = [paired_bootstrap({"x": means(*row)})["x"] for row in zip(a, b, strict=True)]
    expected = stats.ttest_rel(a, b, axis=1)
    assert [test.p_value for test in tests] == pytest.approx(expected.pvalue)
    # Standard error of the rate: 0.7 points; a percentile bootstrap rejects 17.7 %.
    assert 0.02 < np.mean([test.p_value < 0.05 for test in tests]) < 0.08
    assert [not test.low <= 0 <= test.high for test in tests] == [t.p_value < 0.05 for t in tests]


def test_the_jackknife_of_a_metric_is_near_its_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many examples as have percentiles: BLEU's spread is the same by both."""
    rows = np.random.default_rng(7).integers(7, size=200)
    pair = pair_of("bleu")
    many = Pair(pair.a[rows], pair.b[rows], pair.corpus_score)
    by_percentiles = paired_bootstrap({"x": many}, num_resamples=2000)["x"]
    monkeypatch.setattr("brim.metrics.significance.FEW", 1000)
    by_t = paired_bootstrap({"x": many})["x"]
    widths = [test.high - test.low for test in (by_percentiles, by_t)]
    assert widths[0] == pytest.approx(widths[1], rel=0.1)
    assert by_t.detectable == by_percentiles.detectable > 0


def test_p_values_agree_with_the_t_test_on_many_examples() -> None:
    generator = np.random.default_rng(2)
    a, b = generator.normal(size=(2, 400))
    a += 0.13
    expected = stats.ttest_rel(a, b).pvalue
    assert 0.001 < expected < 0.2
    pairs = {"x": means(a, b)}
    assert paired_bootstrap(pairs)["x"].p_value == pytest.approx(expected, abs=0.02)
    assert approximate_randomization(pairs)["x"] == pytest.approx(expected, abs=0.02)


def test_the_same_texts_differ_by_nothing():
    pairs = {name: pair_of(name, A, A) for name in ("bleu", "chrf", "ter", "rouge1")}
    for name, test in paired_bootstrap(pairs, num_resamples=200).items():
        assert (test.difference, test.low, test.high, test.p_value) == (0, 0, 0, 1), name
        assert test.interval_a == test.interval_b
    assert set(approximate_randomization(pairs, num_trials=200).values()) == {1}


def test_a_difference_beyond_doubt_has_the_smallest_p_value():
    a = np.random.default_rng(3).normal(size=200)
    pairs = {"x": means(a + 5, a + np.random.default_rng(4).normal(size=200))}
    assert paired_bootstrap(pairs, num_resamples=999)["x"].p_value == 1 / 1000
    assert approximate_randomization(pairs, num_trials=999)["x"] == 1 / 1000


def test_one_example_shows_nothing():
    pairs = {"x": means(np.array([9.0]), np.array([1.0]))}
    test = paired_bootstrap(pairs, num_resamples=50)["x"]
    assert (test.difference, test.low, test.high, test.p_value) == (8, None, None, 1)
    assert test.detectable is None
    assert approximate_randomization(pairs, num_trials=50)["x"] == 1


def test_swapping_the_systems_turns_the_signs():
    pair = pair_of("bleu")
    turned = Pair(pair.b, pair.a, pair.corpus_score)
    one = paired_bootstrap({"x": pair}, num_resamples=400)["x"]
    other = paired_bootstrap({"x": turned}, num_resamples=400)["x"]
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low))
    assert (other.interval_a, other.interval_b) == (one.interval_b, one.interval_a)
    assert other.p_value == one.p_value
    assert approximate_randomization({"x": turned}) == approximate_randomization({"x": pair})


def test_draws_depend_on_the_seed_and_on_nothing_else(monkeypatch):
    alone = {name: pair_of(name) for name in ("chrf", "ter")}
    together = {"bleu": pair_of("bleu"), **alone}

    def run(pairs: dict[str, Pair], seed: int = 5) -> tuple[object, object]:
        bootstrap = paired_bootstrap(pairs, seed=seed, num_resamples=300)
        swaps = approximate_randomization(pairs, seed=seed, num_trials=300)
        return {name: (bootstrap[name], swaps[name]) for name in alone}

    before = random.getstate(), np.random.get_state()[1].tolist()
    first = run(alone)
    assert run(together) == first
    assert run(alone, seed=6) != first
    monkeypatch.setattr("brim.metrics.bootstrap._MAX_DRAWS", 40)
    blocks = run(alone)
    assert str(blocks) == str(first)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


@pytest.mark.parametrize(
    ("a", "b", "options", "counts"),
    [
        ([1, 2, 3, 4], [0, 2, 4, 1], {}, (2, 1, 1)),
        ([1, 2, 3, 4], [0, 2, 4, 1], {"higher_is_better": False}, (1, 1, 2)),
        ([0.1 + 0.2, 100.0], [0.3, 300 / 3], {}, (0, 2, 0)),
        ([100 * (2 / 3)], [200 / 3], {}, (0, 1, 0)),
    ],
)
def test_wins_ties_and_losses(a, b, options, counts):
    found = win_tie_loss(a, b, **options)
    assert (found.wins, found.ties, found.losses) == counts


def test_sign_test_worked_out_by_hand():
    # Nine heads of ten: 2 (1 + 10) / 2^10. Ties are no throws.
    found = win_tie_loss([1.0] * 9 + [0.0] * 6, [0.0] * 9 + [0.0] * 5 + [1.0])
    assert found == WinTieLoss(9, 5, 1, pytest.approx(22 / 1024))
    assert win_tie_loss([1.0], [1.0]).p_value == 1


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1.0], [1.0, 2.0], "1 values against 2"),
        ([], [], "values have shape"),
        ([1.0, float("nan")], [1.0, 2.0], "value 1 is nan"),
    ],
)
def test_values_that_cannot_be_counted(a, b, message):
    with pytest.raises(DataError, match=message):
        win_tie_loss(a, b)


def test_options_out_of_bounds():
    pairs = {"bleu": pair_of("bleu")}
    with pytest.raises(ConfigError, match="num_resamples is 0"):
        paired_bootstrap(pairs, num_resamples=0)
    with pytest.raises(ConfigError, match="confidence is 1"):
        paired_bootstrap(pairs, confidence=1)
    with pytest.raises(ConfigError, match="num_trials is 0"):
        approximate_randomization(pairs, num_trials=0)


def test_pairs_that_do_not_go_together():
    a = with_counts(np.zeros(3))
    with pytest.raises(DataError, match="x: statistics of shapes"):
        paired_bootstrap({"x": Pair(a, a[:2], mean_of_sums)})
    with pytest.raises(DataError, match="y: statistics of shapes"):
        approximate_randomization(
            {"x": Pair(a, a, mean_of_sums), "y": Pair(a[:2], a[:2], mean_of_sums)}
        )
    with pytest.raises(DataError, match="no examples"):
        paired_bootstrap({"x": Pair(a[:0], a[:0], mean_of_sums)})
    with pytest.raises(DataError, match="name a metric"):
        approximate_randomization({})
