"""Tests over seeds against published numbers and by their properties."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from brim.errors import ConfigError, DataError
from brim.metrics import PairedTest, detectable_difference, holm, paired_t_test, spread

# Student (1908), hours of sleep that two drugs gave the same ten patients; R's `sleep`.
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
numbers = st.floats(-100, 100).map(lambda x: round(x, 3))


def test_student_s_sleep_data():
    test = paired_t_test(DRUG_1, DRUG_2)
    # R: t.test(extra ~ group, paired = TRUE): t = -4.0621, p = 0.002833, [-2.4598858, -0.7001142].
    assert (test.num_pairs, test.confidence) == (10, 0.95)
    assert test.difference == pytest.approx(-1.58)
    assert (test.low, test.high) == pytest.approx((-2.4598858, -0.7001142), abs=1e-7)
    assert test.p_value == pytest.approx(0.002833, abs=5e-7)
    assert test.effect_size == pytest.approx(-4.0621 / np.sqrt(10), abs=1e-5)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=8))
def test_swapping_the_systems_turns_the_signs(pairs):
    a, b = zip(*pairs, strict=True)
    test, turned = paired_t_test(a, b), paired_t_test(b, a)
    assert turned.p_value == pytest.approx(test.p_value)
    assert turned.difference == pytest.approx(-test.difference)
    if test.low is None:  # all differences are equal
        assert turned.low is turned.high is test.high is None
    else:
        assert (turned.low, turned.high) == pytest.approx((-test.high, -test.low))
    if test.effect_size is not None:
        assert turned.effect_size == pytest.approx(-test.effect_size)


@given(
    st.lists(st.tuples(numbers, numbers), min_size=2, max_size=8), st.sampled_from([0.5, 0.9, 0.99])
)
def test_interval_leaves_out_zero_exactly_where_the_test_rejects(pairs, confidence):
    a, b = zip(*pairs, strict=True)
    test = paired_t_test(a, b, confidence=confidence)
    if test.low is not None and abs(test.p_value - (1 - confidence)) > 1e-9:
        assert (test.low > 0 or test.high < 0) == (test.p_value < 1 - confidence)


def test_p_values_are_uniform_where_nothing_differs():
    generator = np.random.default_rng(0)
    rejected = [paired_t_test(*generator.normal(size=(2, 5))).p_value < 0.05 for _ in range(1000)]
    # Exact under normality; the standard error of the rate is 0.7 points.
    assert 0.03 <= np.mean(rejected) <= 0.07


def test_one_pair_has_a_difference_and_nothing_else() -> None:
    assert paired_t_test([3.0], [1.0]) == PairedTest(1, 2.0, None, None, None, None, 0.95, None)


@pytest.mark.parametrize(("n", "alpha"), [(3, 0.05), (5, 0.05), (5, 0.035), (10, 0.01), (80, 0.05)])
def test_the_detectable_difference_is_found_in_80_percent_of_cases(n: int, alpha: float) -> None:
    differences = np.random.default_rng(n).normal(size=n)
    found = paired_t_test(differences, np.zeros(n), alpha=alpha).detectable
    center = found / differences.std(ddof=1) * np.sqrt(n)
    critical = stats.t.isf(alpha / 2, n - 1)
    beyond = stats.nct.sf(critical, n - 1, center), stats.nct.cdf(-critical, n - 1, center)
    assert sum(beyond) == pytest.approx(0.8, abs=1e-4)
    assert paired_t_test(3 * differences, np.zeros(n), alpha=alpha).detectable == pytest.approx(
        3 * found
    )


def test_detectable_differences_that_are_known() -> None:
    # Of many pairs it is (z_0.975 + z_0.8) s / √n; of five with s = 0.23 it is about 0.4.
    expected = (stats.norm.isf(0.025) + stats.norm.isf(0.2)) / 100
    assert detectable_difference(1.0, 10_000) == pytest.approx(expected, rel=1e-3)
    assert detectable_difference(0.23, 5) == pytest.approx(0.4, rel=0.05)
    assert detectable_difference(0.0, 5) == 0
    # Of two pairs at such a level the critical value is beyond 100,000, and the search has no end.
    assert detectable_difference(1.0, 2, alpha=1e-6) == pytest.approx(
        100 * detectable_difference(1.0, 2, alpha=1e-4), rel=0.01
    )


@pytest.mark.parametrize("shift", [0.0, 0.1, -7.0, 1e-3])
def test_differences_that_never_vary(shift):
    b = np.array([0.1, 0.7, 34.3, 1 / 3, 99.9])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        test = paired_t_test(b + shift, b)  # not quite constant, by rounding
    assert test.difference == pytest.approx(shift)
    # Of the 2⁵ signs that five differences could have, two are as far from 0: no certainty.
    assert test.p_value == (1 if shift == 0 else 2 / 2**5)
    assert (test.low, test.high) == ((0, 0) if shift == 0 else (None, None))
    assert test.detectable is None  # nothing says how far they vary
    assert test.effect_size is None
    assert paired_t_test([2.0, 3.0], [1.0, 2.0]).p_value == 0.5


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1.0, 2.0], [1.0], "2 values against 1"),
        ([], [], "values have shape"),
        ([1.0, float("nan")], [1.0, 2.0], "value 1 is nan"),
        ([[1.0]], [[1.0]], "values have shape"),
    ],
)
def test_values_that_are_no_pairs(a, b, message):
    with pytest.raises(DataError, match=message):
        paired_t_test(a, b)


def test_confidence_out_of_bounds():
    with pytest.raises(ConfigError, match="confidence is 95"):
        paired_t_test([1.0, 2.0], [1.0, 3.0], confidence=95)


def test_holm_worked_out_by_hand():
    # 4 x 0.005, 3 x 0.01, 2 x 0.03; 1 x 0.04 would be below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # R: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_what_stepping_down_rejects(p_values, level):
    """Holm (1979): go on, smallest first, while p_(i) < level / (m - i + 1)."""
    adjusted = holm(p_values)
    rejected = set()
    for i, position in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        if not p_values[position] * (len(p_values) - i) < level:
            break
        rejected.add(position)
    assert {i for i, value in enumerate(adjusted) if value < level} == rejected
    assert all(0 <= p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))


@pytest.mark.parametrize("p_value", [-0.1, 1.1, float("nan")])
def test_holm_of_something_else(p_value):
    with pytest.raises(DataError, match="each must be a number from 0 to 1"):
        holm([0.5, p_value])


def test_spread_is_of_a_sample():
    assert spread([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]) == pytest.approx((5, np.sqrt(32 / 7)))
    assert spread([3.0]) == (3.0, None)
    with pytest.raises(DataError, match="values have shape"):
        spread([])
