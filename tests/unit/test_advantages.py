import math

import pytest
import torch

from brim.advantages import (
    gae,
    leave_one_out_baseline,
    mean_baseline,
    min_variance_baseline,
    normalize,
    time_mean_baseline,
)

NAN = math.nan
RETURNS = torch.tensor([[1.0, 2.0, 3.0], [-10.0, NAN, NAN], [4.0, 6.0, NAN], [NAN, NAN, NAN]])
MASK = RETURNS.isfinite()
NORMS = torch.tensor([[1.0, 0.0, 2.0], [0.5, NAN, NAN], [1.0, 3.0, NAN], [NAN, NAN, NAN]])


class Waiting(Exception):  # noqa: N818
    pass


def over_processes(function, parts):
    """What each process gets whose `total` adds up over all, replayed until no sum is missing."""
    known = []
    while True:
        results, partials = [], []
        for part in parts:
            remaining = iter(known)

            def total(partial, remaining=remaining, partials=partials):
                for result in remaining:
                    return result
                partials.append(partial)
                raise Waiting

            try:
                results.append(function(*part, total=total))
            except Waiting:
                continue
        if not partials:
            return results
        known.append(sum(partials))


def test_mean_baseline_weighs_tokens_not_rows():
    returns = torch.tensor([[1.0, 2.0, 3.0], [-10.0, math.nan, math.nan]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert mean_baseline(returns, mask).item() == -1


def test_min_variance_baseline_by_hand():
    baseline = min_variance_baseline(RETURNS, MASK, NORMS)
    assert baseline.item() == pytest.approx((1 + 2 * 3 - 0.5 * 10 + 4 + 3 * 6) / 7.5)


def test_min_variance_baseline_of_equal_norms_is_the_mean():
    norms = torch.full_like(RETURNS, 0.25)
    torch.testing.assert_close(
        min_variance_baseline(RETURNS, MASK, norms), mean_baseline(RETURNS, MASK)
    )


def test_min_variance_baseline_of_a_policy_without_gradient_is_0():
    assert min_variance_baseline(RETURNS, MASK, torch.zeros_like(RETURNS)).item() == 0


def test_time_mean_baseline_by_hand():
    # Steps of a row's own padding too: they count nothing of their own.
    expected = [[-3.0, 6.0, 0.0], [2.5, 4.0, 3.0], [-4.5, 2.0, 3.0], [-5 / 3, 4.0, 3.0]]
    torch.testing.assert_close(
        time_mean_baseline(RETURNS, MASK, num_steps=3), torch.tensor(expected)
    )


def test_leave_one_out_baseline_by_hand():
    # Groups (0, 1) and (2, 3); the last row has no token.
    baseline = leave_one_out_baseline(RETURNS, MASK, group_size=2)
    assert baseline.tolist() == [[-10.0], [2.0], [0.0], [5.0]]


def test_leave_one_out_weighs_the_tokens_of_the_others():
    baseline = leave_one_out_baseline(RETURNS, MASK, group_size=4)
    torch.testing.assert_close(
        baseline, torch.tensor([[0 / 3], [16 / 5], [-4 / 4], [6 / 6]]), rtol=1e-6, atol=1e-6
    )


def test_leave_one_out_keeps_to_its_group():
    returns = torch.cat([RETURNS, 100 * RETURNS])
    mask = torch.cat([MASK, MASK])
    first, second = leave_one_out_baseline(returns, mask, group_size=4).split(4)
    torch.testing.assert_close(second, 100 * first)
    alone = leave_one_out_baseline(RETURNS, MASK, group_size=4)
    torch.testing.assert_close(first, alone)


def test_leave_one_out_of_no_rows():
    empty = torch.zeros(0, 3)
    assert leave_one_out_baseline(empty, empty.bool(), group_size=4).shape == (0, 1)


@pytest.mark.parametrize("group_size", [1, 0, -2])
def test_groups_without_another_row_are_refused(group_size):
    with pytest.raises(ValueError, match="group_size must be at least 2"):
        leave_one_out_baseline(RETURNS, MASK, group_size=group_size)


def test_rows_that_fill_no_group_are_refused():
    with pytest.raises(ValueError, match="group_size 3 does not divide the 4 rows"):
        leave_one_out_baseline(RETURNS, MASK, group_size=3)


def test_a_common_width_below_the_own_one_is_refused():
    with pytest.raises(ValueError, match="num_steps must be at least T = 3, got 2"):
        time_mean_baseline(RETURNS, MASK, num_steps=2)


def test_gae_by_hand():
    rewards = torch.tensor([[1.0, 2.0, NAN], [3.0, NAN, NAN]])
    values = torch.tensor([[0.5, 4.0, NAN], [1.0, NAN, NAN]])
    mask = rewards.isfinite()
    # δ = 1 + 0.5 · 4 - 0.5, 2 - 4 and 3 - 1.
    expected = [[2.5 + 0.25 * -2, -2.0, 0.0], [2.0, 0.0, 0.0]]
    assert gae(rewards, values, mask, discount=0.5, lambda_=0.5).tolist() == expected


@pytest.mark.parametrize("name", ["discount", "lambda_"])
@pytest.mark.parametrize("number", [-0.1, 1.1, NAN])
def test_factors_outside_the_unit_interval_are_refused(name, number):
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\]"):
        gae(RETURNS, RETURNS, MASK, **{name: number})


def test_gae_refuses_masks_with_holes():
    mask = torch.tensor([[True, False, True]])
    with pytest.raises(ValueError, match="row 0 turns"):
        gae(torch.zeros(1, 3), torch.zeros(1, 3), mask)


def test_normalize_by_hand():
    advantages = torch.tensor([[1.0, 3.0, NAN], [5.0, NAN, NAN], [7.0, NAN, NAN]])
    scaled = normalize(advantages, advantages.isfinite())
    expected = torch.tensor([[-3.0, -1.0, 0.0], [1.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    torch.testing.assert_close(scaled, expected / math.sqrt(5))


@pytest.mark.parametrize("value", [0.0, 0.1, -1e-3, 123.456, -98765.43])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_advantages_are_normalized_to_0(value, dtype):
    # In float32 the mean of thousands of them is off by its last digits.
    for shape in ((1, 1), (3, 333), (64, 300)):
        advantages = torch.full(shape, value, dtype=dtype)
        assert not normalize(advantages, torch.ones(shape, dtype=torch.bool)).any()


def test_normalize_keeps_a_small_spread_about_a_large_mean():
    generator = torch.Generator().manual_seed(310)
    advantages = 1e5 + torch.randn(8, 300, generator=generator)
    mask = torch.arange(300) < torch.tensor([[300, 1, 50, 299, 7, 7, 100, 0]]).T
    exact = advantages.double()[mask]
    exact = (exact - exact.mean()) / exact.std(correction=0)
    torch.testing.assert_close(normalize(advantages, mask)[mask].double(), exact, rtol=0, atol=1e-5)


def test_what_is_not_finite_shows():
    broken = torch.where(torch.arange(3) == 1, NAN, torch.ones(2, 3))
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert normalize(broken, mask).isnan().all()
    assert min_variance_baseline(torch.ones(2, 3), mask, broken).isnan()
    assert gae(broken, torch.zeros(2, 3), mask)[:, 0].isnan().all()
    assert time_mean_baseline(broken, mask, num_steps=3)[:, 1].isnan().all()
    assert leave_one_out_baseline(broken, mask, group_size=2).isnan().all()


def test_a_batch_without_tokens_is_normalized_to_0():
    assert not normalize(RETURNS, torch.zeros_like(MASK)).any()


@pytest.mark.parametrize(
    "function",
    [
        mean_baseline,
        lambda r, m, n, **total: min_variance_baseline(r, m, n, **total),
        lambda r, m, n, **total: time_mean_baseline(r, m, num_steps=5, **total),
        lambda r, m, n, **total: normalize(r, m, **total),
    ],
    ids=["mean", "min_variance", "time_mean", "normalize"],
)
def test_processes_that_share_a_batch_get_what_one_would(function):
    arguments = (RETURNS, MASK, NORMS)
    if function is mean_baseline:
        arguments = arguments[:2]
    whole = function(*arguments, total=lambda partial: partial)
    # The second process has shorter rows, so it is narrower.
    parts = [[tensor[:1] for tensor in arguments], [tensor[1:, :2] for tensor in arguments]]
    first, second = over_processes(function, parts)
    if whole.dim() == 0:
        torch.testing.assert_close([first, second], [whole, whole])
    else:
        torch.testing.assert_close(first, whole[:1])
        torch.testing.assert_close(second, whole[1:, :2])


FUNCTIONS = {
    "mean": mean_baseline,
    "min_variance": lambda r, m: min_variance_baseline(r, m, r),
    "time_mean": lambda r, m: time_mean_baseline(r, m, num_steps=9),
    "leave_one_out": lambda r, m: leave_one_out_baseline(r, m, group_size=2),
    "gae": lambda r, m: gae(r, r, m),
    "normalize": normalize,
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_what_is_under_the_padding_never_matters(function):
    clean = function(torch.where(MASK, RETURNS, 0.0), MASK)
    for filler in (NAN, math.inf, -math.inf, 1e30):
        assert torch.equal(function(torch.where(MASK, RETURNS, filler), MASK), clean)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_half_precision_is_computed_in_float32(function):
    half = (RETURNS / 3).bfloat16()
    result = function(half, MASK)
    assert result.dtype == torch.float32
    assert torch.equal(result, function(half.float(), MASK))


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_other_shapes_are_refused(function):
    with pytest.raises(ValueError, match="must have the mask's shape"):
        function(torch.zeros(2), torch.ones(2, 3, dtype=torch.bool))
