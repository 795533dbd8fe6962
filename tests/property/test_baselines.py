"""Baselines against the exact gradients of an MDP that can be enumerated, and GAE's reductions."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mdp import PrefixMDP
from torch import Tensor

from brim.advantages import (
    gae,
    leave_one_out_baseline,
    mean_baseline,
    min_variance_baseline,
    normalize,
    time_mean_baseline,
)
from brim.masking import zero_padding
from brim.returns import block_returns, induced_rewards, rewards_to_go

MDP = PrefixMDP(horizon=3, seed=19083)
ALL = MDP.all_trajectories()
PROBABILITIES = ALL.probabilities(MDP.student)
TAKEN, BEST = ALL.values(MDP.teacher)
RETURNS = {
    "llmr": rewards_to_go(TAKEN, BEST, ALL.mask),
    "brim": block_returns(TAKEN, BEST, ALL.mask, k=2),
}


def exact_gradient(advantages: Tensor, probabilities: Tensor = PROBABILITIES[:, None]) -> Tensor:
    """E[Σ_t A_t ∇ log π(a_t|s_t)], given the advantages of every completion there is."""
    student = MDP.student.clone().requires_grad_()
    weights = probabilities * zero_padding(advantages, ALL.mask)
    (weights * ALL.logprobs(student)).sum().backward()
    return student.grad


def expected_gradient_of_pairs(returns: Tensor, baseline) -> Tensor:
    """E of the mean gradient of a batch of two completions, over every pair of them there is."""
    weights = torch.zeros_like(returns)
    for pair in product(range(len(returns)), repeat=2):
        rows = list(pair)
        advantages = returns[rows] - baseline(returns[rows], ALL.mask[rows])
        weights.index_add_(0, torch.tensor(rows), PROBABILITIES[rows].prod() * advantages / 2)
    return exact_gradient(weights, torch.ones(1))


def mean_at_the_step(returns: Tensor, mask: Tensor) -> Tensor:
    return zero_padding(returns, mask).sum(0) / mask.sum(0).clamp(min=1)


# Expected gradients


@pytest.mark.parametrize("returns", RETURNS.values(), ids=RETURNS)
@pytest.mark.parametrize(
    "baseline",
    [
        lambda returns, mask: time_mean_baseline(returns, mask, num_steps=MDP.horizon),
        lambda returns, mask: leave_one_out_baseline(returns, mask, group_size=2),
    ],
    ids=["time_mean", "leave_one_out"],
)
def test_baselines_of_other_rows_leave_the_expected_gradient(returns, baseline):
    torch.testing.assert_close(
        expected_gradient_of_pairs(returns, baseline), exact_gradient(returns), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("baseline", [mean_baseline, mean_at_the_step])
def test_with_the_own_row_a_baseline_shrinks_the_expected_gradient(baseline):
    """So the test above can fail, and leaving the own row out is worth its line."""
    biased = expected_gradient_of_pairs(RETURNS["llmr"], baseline)
    exact = exact_gradient(RETURNS["llmr"])
    assert (biased - exact).abs().max() > 0.05
    assert biased.norm() < 0.9 * exact.norm()


# The scalar of least variance


def token_gradients() -> Tensor:
    """(N, T, num_states, 3): ∇ log π(a_t | s_t) of each token, 0 in the padding."""

    def logprobs(student):
        return zero_padding(ALL.logprobs(student), ALL.mask)

    return torch.autograd.functional.jacobian(logprobs, MDP.student)


@pytest.mark.parametrize("returns", RETURNS.values(), ids=RETURNS)
def test_no_scalar_has_less_variance_than_the_min_variance_baseline(returns):
    gradients = token_gradients()

    def moments(baseline):
        """Expectation and variance of one completion's gradient."""
        advantages = zero_padding(returns - baseline, ALL.mask)
        samples = torch.einsum("nt,ntsa->nsa", advantages, gradients)
        mean = torch.einsum("n,nsa->sa", PROBABILITIES, samples)
        return mean, float(PROBABILITIES @ (samples - mean).square().sum((1, 2)))

    # An expectation over completions: each token weighs as much as its completion is likely.
    norms = PROBABILITIES[:, None] * gradients.square().sum((2, 3))
    best = min_variance_baseline(returns, ALL.mask, norms)
    mean, least = moments(best)
    torch.testing.assert_close(mean, exact_gradient(returns), rtol=0, atol=1e-12)
    # The variance is a parabola; 2e-3 away from its lowest point it is 4e-6 times its curvature up.
    for step in torch.linspace(-4, 4, 4001, dtype=torch.float64):
        if step.abs() > 1e-9:
            assert moments(best + step)[1] > least
    for other in (0.0, (PROBABILITIES @ returns).sum() / (PROBABILITIES @ ALL.mask.double()).sum()):
        assert moments(other)[1] > least * 1.001


# Generalised advantage estimation

numbers = st.floats(-20, 20, width=32)
rows_of_pairs = st.lists(st.lists(st.tuples(numbers, numbers), max_size=9), min_size=1, max_size=4)
factors = st.floats(0, 1)


def pad(rows):
    """rewards, values, mask: (B, T) with NaN in the padding."""
    width = max(len(row) for row in rows) + 1
    rewards = torch.full((len(rows), width), math.nan, dtype=torch.float64)
    values = rewards.clone()
    for i, row in enumerate(rows):
        for t, pair in enumerate(row):
            rewards[i, t], values[i, t] = pair
    return rewards, values, rewards.isfinite()


def discounted_sum(terms, factor):
    return math.fsum(term * factor**i for i, term in enumerate(terms))


def temporal_differences(row, discount):
    rewards = [reward for reward, _ in row]
    values = [value for _, value in row] + [0.0]
    return [r + discount * values[t + 1] - values[t] for t, r in enumerate(rewards)]


def assert_rows_equal(actual, mask, expected):
    for row, keep, terms in zip(actual, mask, expected, strict=True):
        assert row[keep].tolist() == pytest.approx(terms, rel=1e-9, abs=1e-9)
        assert (row[~keep] == 0).all()


@given(rows_of_pairs, factors, factors)
def test_gae_is_the_exponentially_weighted_sum_of_temporal_differences(rows, discount, lambda_):
    expected = []
    for row in rows:
        errors = temporal_differences(row, discount)
        expected.append([discounted_sum(errors[t:], discount * lambda_) for t in range(len(row))])
    rewards, values, mask = pad(rows)
    assert_rows_equal(
        gae(rewards, values, mask, discount=discount, lambda_=lambda_), mask, expected
    )


@given(rows_of_pairs, factors)
def test_gae_with_a_full_trace_is_the_return_less_the_value(rows, discount):
    expected = []
    for row in rows:
        rewards = [reward for reward, _ in row]
        expected.append(
            [discounted_sum(rewards[t:], discount) - row[t][1] for t in range(len(row))]
        )
    rewards, values, mask = pad(rows)
    assert_rows_equal(gae(rewards, values, mask, discount=discount, lambda_=1.0), mask, expected)


@given(rows_of_pairs, factors)
def test_gae_without_a_trace_is_the_temporal_difference(rows, discount):
    expected = [temporal_differences(row, discount) for row in rows]
    rewards, values, mask = pad(rows)
    assert_rows_equal(gae(rewards, values, mask, discount=discount, lambda_=0.0), mask, expected)


def test_with_the_teachers_best_value_as_critic_the_errors_are_the_regrets():
    rewards = induced_rewards(TAKEN, BEST, ALL.mask)
    torch.testing.assert_close(
        gae(rewards, BEST, ALL.mask, lambda_=0.0), zero_padding(TAKEN - BEST, ALL.mask)
    )


def test_gae_with_a_full_trace_keeps_the_expected_gradient_whatever_the_critic_says():
    generator = torch.Generator().manual_seed(310)
    critic = 5 * torch.randn(MDP.num_states, dtype=torch.float64, generator=generator)
    rewards = induced_rewards(TAKEN, BEST, ALL.mask)
    exact = exact_gradient(RETURNS["llmr"])

    def gradient(lambda_):
        return exact_gradient(gae(rewards, critic[ALL.states], ALL.mask, lambda_=lambda_))

    torch.testing.assert_close(gradient(1.0), exact, rtol=0, atol=1e-12)
    assert (gradient(0.5) - exact).abs().max() > 0.05


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 0.95])
def test_gae_with_the_true_values_keeps_the_expected_gradient_whatever_the_trace(lambda_):
    weights = zero_padding(PROBABILITIES[:, None].expand_as(TAKEN), ALL.mask)
    states = ALL.states[ALL.mask]
    visits, totals = torch.zeros(2, MDP.num_states, dtype=torch.float64)
    visits.index_add_(0, states, weights[ALL.mask])
    totals.index_add_(0, states, (weights * RETURNS["llmr"])[ALL.mask])
    values = (totals / visits)[ALL.states]
    rewards = induced_rewards(TAKEN, BEST, ALL.mask)
    torch.testing.assert_close(
        exact_gradient(gae(rewards, values, ALL.mask, lambda_=lambda_)),
        exact_gradient(RETURNS["llmr"]),
        rtol=0,
        atol=1e-12,
    )


# Normalised advantages


@given(rows_of_pairs, st.floats(0.01, 100), st.floats(-100, 100))
def test_normalized_advantages_have_mean_0_and_deviation_1_in_any_unit(rows, scale, offset):
    advantages, _, mask = pad(rows)
    tokens = advantages[mask]
    scaled = normalize(advantages, mask)
    assert not scaled[~mask].any()
    if len(tokens) < 2 or tokens.std(correction=0) < 1e-3:
        return
    assert float(scaled[mask].mean()) == pytest.approx(0, abs=1e-9)
    assert float(scaled[mask].std(correction=0)) == pytest.approx(1, abs=1e-4)
    # eps is absolute: next to a deviation of 1e-5 it is 1e-3.
    torch.testing.assert_close(
        normalize(scale * advantages + offset, mask), scaled, rtol=2e-3, atol=1e-9
    )
