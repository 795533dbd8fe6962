"""`immediate: expected` by the objective's own loss, on every completion of an MDP."""

import statistics

import pytest
import torch
from makers import policy_gradient, q_of
from mdp import PrefixMDP, TabularModel, expectation, gradients_by_row

from brim.models import Decoding

SEEDS = [19083, 34007, 84122, 310, 55080]
RETURNS = [
    {"k": 1},
    {"k": 2},
    {"k": 2, "tail": "none"},
    {"k": 1, "q_centering": "none"},
    {"k": 2, "q_centering": "policy"},
    {"k": 1, "q_centering": "max", "baseline": "mean"},
    {"k": 2, "clip": {"target": "reward", "range": 1.0}},
]


def moments(mdp: PrefixMDP, immediate: str, temperature: float = 1.0, **settings):
    """Expectation and variance of a completion's gradient, and the gradients."""
    every = mdp.all_trajectories()
    student, teacher = TabularModel(mdp.student, mdp), TabularModel(mdp.teacher, mdp)
    objective = policy_gradient(
        Decoding(max_tokens=mdp.horizon, temperature=temperature),
        **{"clip": {"range": None}, "immediate": immediate, **settings},
    )
    rollout = every.rollout()
    values = q_of(objective, rollout, student, teacher)
    rollout, _ = objective.assign_credit(rollout, values, student)
    gradients = gradients_by_row(objective, rollout, student, teacher)
    return *expectation(every.probabilities(mdp.student / temperature), gradients), gradients


@pytest.mark.parametrize("returns", RETURNS, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_expected_gradient_is_that_of_sampling(returns, temperature):
    mdp = PrefixMDP(horizon=3, seed=SEEDS[0])
    sampled, _, some = moments(mdp, "sampled", temperature, **returns)
    expected, _, others = moments(mdp, "expected", temperature, **returns)
    torch.testing.assert_close(expected, sampled, rtol=0, atol=1e-12)
    assert (some - others).abs().max() > 0.1


@pytest.mark.parametrize("q_centering", ["none", "mean", "policy"])
@pytest.mark.parametrize("k", [1, 2])
def test_the_variance_is_mostly_smaller(q_centering, k):
    # No law: where a token's own value and its future are opposed, sampling both cancels some.
    ratios = []
    for seed in range(25):
        mdp = PrefixMDP(horizon=3, seed=seed)
        variances = (
            moments(mdp, immediate, q_centering=q_centering, k=k)[1]
            for immediate in ("expected", "sampled")
        )
        ratios.append(next(variances) / next(variances))
    assert statistics.median(ratios) < 0.85
    assert sum(ratio < 1 for ratio in ratios) >= 19
    assert max(ratios) > 1


def test_without_a_future_nothing_is_left_to_chance():
    mdp = PrefixMDP(horizon=1, seed=SEEDS[1])
    mean, variance, gradients = moments(mdp, "expected")
    assert variance < 1e-24
    table = mdp.student.clone().requires_grad_()
    (exact,) = torch.autograd.grad((table.softmax(-1) * mdp.teacher).sum(), table)
    torch.testing.assert_close(mean, exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients, exact.expand_as(gradients), rtol=0, atol=1e-12)
    assert moments(mdp, "sampled")[1] > 0.1


def test_what_is_left_to_sampling_does_not_know_the_centring():
    # Centring moves a return by what its own value moves: the future is the same.
    mdp = PrefixMDP(horizon=3, seed=SEEDS[2])
    gradients = [
        moments(mdp, "expected", k=2, q_centering=centering)[2]
        for centering in ("none", "mean", "policy")
    ]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients[2], gradients[0], rtol=0, atol=1e-12)


def test_the_clip_is_the_futures():
    mdp = PrefixMDP(horizon=3, seed=SEEDS[3])
    every = mdp.all_trajectories()
    student, teacher = TabularModel(mdp.student, mdp), TabularModel(mdp.teacher, mdp)
    objective = policy_gradient(Decoding(max_tokens=3), immediate="expected", clip={"range": 1.0})
    values = q_of(objective, every.rollout(), student, teacher)
    rollout, sums = objective.assign_credit(every.rollout(), values, student)
    regrets = ((values.q_max - values.q_taken) * every.mask).flip(1).cumsum(1).flip(1)
    future = torch.nn.functional.pad(-regrets[:, 1:], (0, 1)) * every.mask
    torch.testing.assert_close(rollout.advantages, future.clamp(-1, 1))
    assert sums["clipped"] == (future < -1).sum() > 0
