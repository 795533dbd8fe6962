"""What must hold of rewards and returns, against the paper's loops and without them."""

import math
from itertools import pairwise

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from brim.returns import block_returns, induced_rewards, rewards_to_go

TAILS = {"one_step": reference.algorithm_1, "none": reference.equation_7}

values = st.floats(-50, 50, width=32)
regrets = st.floats(0, 20, width=32)
# One completion is a list of steps (taken, regret); a batch is some of them, empty ones too.
completion = st.lists(st.tuples(values, regrets), max_size=13)
completions = st.lists(completion, min_size=1, max_size=4)
block_lengths = st.integers(1, 16)
tails = st.sampled_from(sorted(TAILS))
limits = st.sampled_from([0.5, 5.0, 30.0, math.inf])


def pad(rows, extra=1, filler=math.nan):
    """taken, best, mask: (B, T) with `filler` in the padding."""
    width = max(len(row) for row in rows) + extra
    taken = torch.full((len(rows), width), filler, dtype=torch.float64)
    best = taken.clone()
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        for t, (value, regret) in enumerate(row):
            taken[i, t], best[i, t], mask[i, t] = value, value + regret, True
    return taken, best, mask


def assert_rows_equal(actual: Tensor, mask: Tensor, expected):
    """Each row equals its list to 1e-9 and is 0 in the padding."""
    for row, keep, numbers in zip(actual, mask, expected, strict=True):
        assert row[keep].tolist() == pytest.approx(numbers, rel=1e-9, abs=1e-9)
        assert (row[~keep] == 0).all()


@given(completions)
def test_rewards_are_equation_2_and_their_sums_equation_4(rows):
    taken, best, mask = pad(rows)
    lists = [tuple(zip(*[(v, v + d) for v, d in row], strict=True)) or ((), ()) for row in rows]
    assert_rows_equal(
        induced_rewards(taken, best, mask), mask, [reference.equation_2(*row) for row in lists]
    )
    assert_rows_equal(
        rewards_to_go(taken, best, mask), mask, [reference.equation_4(*row) for row in lists]
    )


@given(completions, block_lengths, tails, limits)
def test_block_returns_are_algorithm_1_or_equation_7(rows, k, tail, limit):
    taken, best, mask = pad(rows)
    loop = TAILS[tail]
    expected = [
        loop([v for v, _ in row], [v + d for v, d in row], k, limit) if row else [] for row in rows
    ]
    reward_range = None if limit == math.inf else limit
    actual = block_returns(taken, best, mask, k=k, tail=tail, reward_range=reward_range)
    assert_rows_equal(actual, mask, expected)


# Fact 1


@given(completions, tails)
def test_one_step_blocks_are_llmr(rows, tail):
    taken, best, mask = pad(rows)
    torch.testing.assert_close(
        block_returns(taken, best, mask, k=1, tail=tail),
        rewards_to_go(taken, best, mask),
        rtol=0,
        atol=0,
    )


@given(completions, block_lengths, tails)
def test_a_teacher_greedy_completion_returns_what_it_took(rows, k, tail):
    greedy = [[(value, 0.0) for value, _ in row] for row in rows]
    taken, best, mask = pad(greedy)
    expected = [[value for value, _ in row] for row in rows]
    assert_rows_equal(block_returns(taken, best, mask, k=k, tail=tail), mask, expected)


# Fact 2


@given(completions, block_lengths, tails)
def test_block_returns_are_never_below_the_return(rows, k, tail):
    taken, best, mask = pad(rows)
    bias = block_returns(taken, best, mask, k=k, tail=tail) - rewards_to_go(taken, best, mask)
    assert (bias >= -1e-9).all()


# Fact 3


@given(completions, st.integers(0, 5))
def test_with_the_tail_a_block_longer_than_the_completion_is_llmr_again(rows, excess):
    taken, best, mask = pad(rows)
    longest = max(len(row) for row in rows)
    torch.testing.assert_close(
        block_returns(taken, best, mask, k=max(1, longest + excess)),
        rewards_to_go(taken, best, mask),
        rtol=1e-9,
        atol=1e-9,
    )


@given(completions, st.integers(0, 5))
def test_without_the_tail_a_block_longer_than_the_completion_keeps_no_regret(rows, excess):
    taken, best, mask = pad(rows)
    longest = max(len(row) for row in rows)
    returns = block_returns(taken, best, mask, k=max(1, longest + excess), tail="none")
    assert_rows_equal(returns, mask, [[value for value, _ in row] for row in rows])


def regrets_counted(length: int, k: int, tail: str) -> Tensor:
    """How many regrets Ĝ[t] subtracts: every one is 1 and every taken value 0."""
    taken, best, mask = pad([[(0.0, 1.0)] * length])
    return -block_returns(taken, best, mask, k=k, tail=tail)[0, :length]


@given(st.integers(1, 40))
def test_without_the_tail_larger_blocks_count_fewer_regrets(length):
    counts = [regrets_counted(length, k, "none") for k in range(1, length + 2)]
    assert all((after <= before).all() for before, after in pairwise(counts))
    for k, count in enumerate(counts, start=1):
        assert count.tolist() == [(length - t) // k for t in range(1, length + 1)]


@given(completions, st.integers(1, 5), st.integers(1, 4))
def test_without_the_tail_multiples_of_k_only_raise_the_return(rows, k, factor):
    taken, best, mask = pad(rows)
    low = block_returns(taken, best, mask, k=k, tail="none")
    high = block_returns(taken, best, mask, k=k * factor, tail="none")
    assert (high - low >= -1e-9).all()


def test_with_the_tail_larger_blocks_may_count_more_regrets():
    counts = [int(regrets_counted(8, k, "one_step")[0]) for k in (1, 2, 4, 8, 16)]
    assert counts == [7, 4, 4, 7, 7]


# Fact 4


@given(completion.filter(len), st.data(), block_lengths, tails, values)
def test_an_offset_of_one_steps_logits_moves_that_steps_return_alone(row, data, k, tail, offset):
    step = data.draw(st.integers(0, len(row) - 1))
    taken, best, mask = pad([row])
    shift = torch.zeros_like(taken)
    shift[0, step] = offset
    before = block_returns(taken, best, mask, k=k, tail=tail)
    after = block_returns(taken + shift, best + shift, mask, k=k, tail=tail)
    torch.testing.assert_close(after, before + shift, rtol=1e-9, atol=1e-9)


# Fact 5 (Theorem 1)


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_variance_counts_the_terms_of_iid_values(k):
    num_rows, length = 60_000, 20
    generator = torch.Generator().manual_seed(84122)
    draws = torch.randn(2, num_rows, length, dtype=torch.float64, generator=generator)
    taken, best = 2.0 * draws[0], 1.5 * draws[1]
    mask = torch.ones(num_rows, length, dtype=torch.bool)
    variance = block_returns(taken, best, mask, k=k, tail="none").var(dim=0)
    later_blocks = torch.arange(length - 1, -1, -1, dtype=torch.float64) // k
    # Theorem 1 counts blocks + 1 terms of each kind; the last has no `best`, which is 0 there.
    expected = (later_blocks + 1) * 2.0**2 + later_blocks * 1.5**2
    # The estimate's standard error is sqrt(2 / rows) = 0.6 %; one term more is 5 % or more.
    torch.testing.assert_close(variance, expected, rtol=0.025, atol=0)


# Padding, batches, precision


@given(completions, block_lengths, tails, st.integers(0, 9))
def test_padding_and_neighbours_change_nothing(rows, k, tail, extra):
    def run(batch, **padding):
        taken, best, mask = pad(batch, **padding)
        return block_returns(taken, best, mask, k=k, tail=tail), mask

    together, mask = run(rows, extra=1, filler=1e30)
    for filler in (math.nan, math.inf, -math.inf):
        again, wide = run(rows, extra=extra + 1, filler=filler)
        assert torch.equal(again[:, : mask.shape[1]], together)
        assert not again[~wide].any()
    for i, row in enumerate(rows):
        alone, own = run([row])
        assert torch.equal(alone[own], together[i][mask[i]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    generator = torch.Generator().manual_seed(0)
    best = torch.randn(3, 50, generator=generator).to(dtype)
    taken = (best - torch.rand(3, 50, generator=generator)).to(dtype)
    mask = torch.arange(50) < torch.tensor([[50], [17], [2]])
    for function in (
        induced_rewards,
        rewards_to_go,
        lambda *a: block_returns(*a, k=4),
    ):
        result = function(taken, best, mask)
        assert result.dtype == torch.float32
        assert torch.equal(result, function(taken.float(), best.float(), mask))


@pytest.mark.parametrize("k", [1, 4])
def test_float32_is_accurate_over_4096_steps(k):
    generator = torch.Generator().manual_seed(0)
    best = 20 + 5 * torch.randn(8, 4096, generator=generator)
    taken = best - torch.rand(8, 4096, generator=generator)
    mask = torch.ones(8, 4096, dtype=torch.bool)
    exact = block_returns(taken.double(), best.double(), mask, k=k)
    error = block_returns(taken, best, mask, k=k) - exact
    # Values of 20 have float32 steps of 2e-6; the rounding of thousands of them adds up to 1e-4.
    assert error.abs().max() < 5e-4


def test_gradients_stay_finite_next_to_nan_padding():
    taken, best, mask = pad([[(1.0, 0.5)] * 3, [(2.0, 1.0)] * 7], extra=2)
    taken.requires_grad_()
    best.requires_grad_()
    block_returns(taken, best, mask, k=2, reward_range=100.0).sum().backward()
    # A row of 3: Ĝ1 = taken1 - best3 + Ĝ3, Ĝ2 = taken2 - best3 + Ĝ3, Ĝ3 = taken3.
    assert taken.grad[0].tolist() == [1, 1, 3, 0, 0, 0, 0, 0, 0]
    assert best.grad[0].tolist() == [0, 0, -2, 0, 0, 0, 0, 0, 0]
    assert taken.grad.isfinite().all()
    assert best.grad.isfinite().all()


class CountOperations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("k", [1, 3])
def test_the_number_of_operations_does_not_grow_with_time(k):
    def operations(length):
        taken = torch.zeros(2, length)
        mask = torch.ones(2, length, dtype=torch.bool)
        with CountOperations() as operations:
            block_returns(taken, taken, mask, k=k)
        return operations.count

    assert operations(1000) == operations(10) > 0
