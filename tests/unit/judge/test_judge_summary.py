import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from brim.judge import VARIANTS, Verdict, summarize
from brim.judge.summary import pair_score, wilson

A, B, TIE = Verdict.A, Verdict.B, Verdict.TIE
REFUSAL, UNPARSABLE = Verdict.REFUSAL, Verdict.UNPARSABLE
FOR_A = [Verdict(variant.id_of_a) for variant in VARIANTS]
FOR_B = [A if verdict is B else B for verdict in FOR_A]
FIRST = [Verdict(variant.ids[0]) for variant in VARIANTS]
SECOND = [A if verdict is B else B for verdict in FIRST]
ALWAYS_A, ALWAYS_B = [A] * 4, [B] * 4
ANY = st.sampled_from([*Verdict, None])


def test_a_judge_that_always_says_a_gives_half_and_is_flagged():
    found = summarize([ALWAYS_A] * 20)
    assert found.win_rate == found.query_win_rate == 0.5
    assert found.id_biased
    assert not found.position_biased
    assert found.id_a.rate == 1.0
    assert found.first_position.rate == 0.5
    assert found.by_id.rate == 1.0
    assert found.by_order.rate == 0.0
    assert (found.pairs_won, found.pairs_lost, found.pairs_split) == (0, 0, 20)
    assert found.p_value == 1.0


@pytest.mark.parametrize(("answers", "rate"), [(FIRST, 1.0), (SECOND, 0.0)])
def test_a_judge_that_looks_at_the_position_gives_half_and_is_flagged(answers, rate):
    found = summarize([answers] * 20)
    assert found.win_rate == 0.5
    assert found.position_biased
    assert found.first_position.rate == rate
    assert found.by_order.rate == 1.0
    # With its ID a text changes its name and not its place: the verdict follows the place.
    assert found.by_id.rate == 0.0
    assert not found.id_biased


def test_an_honest_judge_has_no_bias_whatever_it_prefers():
    found = summarize([FOR_A] * 30 + [FOR_B] * 10)
    assert found.win_rate == 0.75
    assert (found.pairs_won, found.pairs_lost, found.pairs_split) == (30, 10, 0)
    assert found.first_position.rate == found.id_a.rate == 0.5
    assert not found.position_biased
    assert not found.id_biased
    assert found.by_order.rate == found.by_id.rate == 0.0
    assert found.p_value == pytest.approx(binomtest(30, 40).pvalue)


@pytest.mark.parametrize("bad", [REFUSAL, UNPARSABLE, None])
def test_a_reply_without_a_verdict_is_nobodys_loss(bad):
    spoilt = [bad, *FOR_A[1:]]
    found = summarize([FOR_A] * 5 + [spoilt] * 3)
    assert found.win_rate == 1.0
    assert (found.num_pairs, found.num_incomplete) == (5, 3)
    assert found.query_win_rate == 1.0
    assert (found.wins, found.losses, found.ties) == (29, 0, 0)
    assert found.refusals + found.unparsable + found.unanswered == 3
    assert (found.refusals, found.unparsable, found.unanswered) == (
        3 * (bad is REFUSAL),
        3 * (bad is UNPARSABLE),
        3 * (bad is None),
    )


def test_without_a_verdict_there_is_no_win_rate():
    found = summarize([[UNPARSABLE] * 4] * 3)
    assert found.win_rate is found.low is found.high is found.query_win_rate is None
    assert found.id_a.rate is found.by_id.rate is None
    assert (found.num_incomplete, found.unparsable) == (3, 12)
    assert summarize([]).win_rate is None


def test_ties_and_equal_texts_are_half_a_win():
    found = summarize([[TIE] * 4, FOR_A], num_identical=2)
    assert found.win_rate == (0.5 + 1 + 2 * 0.5) / 4
    assert found.query_win_rate == (2 + 4) / 8
    assert (found.ties, found.pairs_split, found.num_pairs) == (4, 3, 4)


def test_the_interval_is_wilsons_over_pairs():
    found = summarize([FOR_A] * 30 + [FOR_B] * 10)
    exact = binomtest(30, 40).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize(("wins", "n"), [(0, 5), (5, 5), (1, 2), (349, 500)])
def test_wilson_is_scipys(wins, n):
    exact = binomtest(wins, n).proportion_ci(confidence_level=0.9, method="wilson")
    assert wilson(wins / n, n, 0.9) == pytest.approx((exact.low, exact.high), abs=1e-12)


@given(st.lists(st.tuples(ANY, ANY, ANY, ANY), max_size=12), st.integers(0, 3))
def test_every_query_is_counted_once_and_rates_are_rates(pairs, num_identical):
    found = summarize(pairs, num_identical=num_identical)
    counted = (found.wins, found.losses, found.ties, found.refusals, found.unparsable)
    assert sum(counted) + found.unanswered == 4 * len(pairs)
    assert found.num_pairs + found.num_incomplete == len(pairs) + num_identical
    assert found.pairs_won + found.pairs_lost + found.pairs_split == found.num_pairs
    if found.win_rate is not None:
        assert 0 <= found.low <= found.win_rate <= found.high <= 1


@given(st.lists(st.tuples(ANY, ANY, ANY, ANY), max_size=12))
def test_swapping_the_systems_turns_the_win_rate_round(pairs):
    # Asked about the systems the other way round, variant i is variant 3 - i with the same prompt.
    found = summarize(pairs)
    swapped = summarize([answers[::-1] for answers in pairs])
    if found.win_rate is not None:
        assert swapped.win_rate == pytest.approx(1 - found.win_rate)
        assert (swapped.low, swapped.high) == pytest.approx((1 - found.high, 1 - found.low))
    assert swapped.by_order == found.by_order
    assert swapped.first_position == found.first_position
    assert swapped.id_a == found.id_a


@given(st.lists(st.tuples(ANY, ANY, ANY, ANY), min_size=2, max_size=12))
def test_the_interval_is_at_least_as_wide_as_the_scores_own(pairs):
    scores = [score for answers in pairs if (score := pair_score(answers)) is not None]
    found = summarize(pairs)
    if len(scores) > 1:
        mean = math.fsum(scores) / len(scores)
        variance = math.fsum((score - mean) ** 2 for score in scores) / len(scores)
        assert variance <= found.win_rate * (1 - found.win_rate) + 1e-12


def test_equal_texts_alone_are_no_win_rate_where_the_judge_said_nothing_of_the_others():
    found = summarize([[UNPARSABLE] * 4] * 5, num_identical=3)
    assert (found.win_rate, found.low, found.high) == (None, None, None)
    assert summarize([], num_identical=3).win_rate is None
    assert summarize([[UNPARSABLE] * 4, FOR_A], num_identical=1).win_rate == 0.75


def test_bias_is_tested_over_pairs_not_queries():
    # Three pairs cannot show a bias, however sure the twelve queries about them look.
    assert not summarize([ALWAYS_A] * 3).id_biased
    assert summarize([ALWAYS_A] * 3).id_a.p_value == pytest.approx(0.25)
    assert summarize([ALWAYS_A] * 8 + [ALWAYS_B] * 8).id_a.p_value == pytest.approx(1.0)


@pytest.mark.parametrize("counts", [(1, 0), (3, 3), (7, 2), (260, 240), (900, 700), (0, 40)])
def test_p_values_are_scipys_exact_ones(counts):
    found = summarize([FOR_A] * counts[0] + [FOR_B] * counts[1])
    assert found.p_value == pytest.approx(binomtest(counts[0], sum(counts)).pvalue, rel=1e-9)
