"""What the settings of the policy gradient do to the weight of each token."""

from dataclasses import replace

import pytest
import torch
from makers import policy_gradient

from brim.examples import Example
from brim.models import Decoding, Distribution
from brim.objectives import make_objective
from brim.objectives.base import return_metrics
from brim.objectives.settings import BRIMConfig, LLMRConfig
from brim.returns import block_returns, rewards_to_go
from brim.types import ActionValues, Batch, Rollout, TokenStatistics

DECODING = Decoding(max_tokens=6)
LENGTHS = [6, 3, 5, 1]
TRUNCATED = [True, False, False, False]


def make_rollout() -> tuple[Rollout, ActionValues]:
    generator = torch.Generator().manual_seed(0)
    rows = len(LENGTHS)
    batch = Batch(
        examples=tuple(Example(f"e{i}", "prompt") for i in range(rows)),
        prompt_ids=torch.ones(rows, 2, dtype=torch.long),
        prompt_mask=torch.ones(rows, 2, dtype=torch.bool),
        seeds=tuple(range(rows)),
    )
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    best = torch.randn(rows, 6, generator=generator) * 3 + 5
    taken = best - torch.rand(rows, 6, generator=generator) * 4
    rollout = Rollout(
        batch=batch,
        completion_ids=torch.ones(rows, 6, dtype=torch.long),
        mask=mask,
        truncated=torch.tensor(TRUNCATED),
    )
    values = ActionValues(
        taken.masked_fill(~mask, torch.nan),
        best.masked_fill(~mask, torch.nan),
        logprobs=-torch.rand(rows, 6, generator=generator),
    )
    return rollout, values


def assign(**settings):
    rollout, values = make_rollout()
    if settings.get("truncated") == "bootstrap":
        values = replace(values, bootstrap=torch.tensor([2.5, 0.0, 0.0, 0.0]))
    return policy_gradient(DECODING, **settings).assign_credit(rollout, values)


def test_llmr_weighs_by_the_return():
    rollout, _ = assign(k=1)
    _, values = make_rollout()
    expected = rewards_to_go(values.q_taken, values.q_max, rollout.mask)
    torch.testing.assert_close(rollout.advantages, expected)


def test_clipped_return():
    rollout, sums = assign(k=2, clip={"range": 3.0})
    torch.testing.assert_close(rollout.advantages, rollout.returns.clamp(-3, 3))
    outside = (rollout.returns.abs() > 3).sum()
    assert sums["clipped"] == outside > 0


def test_clipped_reward():
    rollout, _ = assign(k=2, clip={"range": 2.0, "target": "reward"})
    _, values = make_rollout()
    expected = block_returns(values.q_taken, values.q_max, rollout.mask, k=2, reward_range=2.0)
    torch.testing.assert_close(rollout.advantages, expected)


def test_clipped_rewards_are_counted_by_the_returns_that_they_change():
    rollout, sums = assign(k=2, clip={"range": 2.0, "target": "reward"})
    changed = (rollout.advantages != rollout.returns).sum()
    assert sums["clipped"] == changed > 0
    metrics = policy_gradient(DECODING, k=2).describe({k: float(v) for k, v in sums.items()})
    assert metrics["rollout/clipped"] == pytest.approx(int(changed) / sum(LENGTHS))


@pytest.mark.parametrize("target", ["reward", "return"])
def test_without_a_range_nothing_is_clipped(target):
    rollout, sums = assign(k=2, clip={"range": None, "target": target})
    assert torch.equal(rollout.advantages, rollout.returns)
    assert sums["clipped"] == 0


def test_the_bootstrap_value_is_not_clipped_with_the_rewards():
    clipped, _ = assign(k=2, clip={"range": 2.0, "target": "reward"})
    bootstrapped, _ = assign(k=2, clip={"range": 2.0, "target": "reward"}, truncated="bootstrap")
    difference = clipped.advantages - bootstrapped.advantages
    torch.testing.assert_close(difference[0], torch.full((6,), 2.5))
    assert not difference[1:].any()


def test_returns_need_a_teacher():
    rollout, _ = make_rollout()
    with pytest.raises(ValueError, match="teacher"):
        policy_gradient(DECODING).collect(rollout.batch, None, None)


@pytest.mark.parametrize("truncated", ["keep", "drop"])
def test_mean_baseline_is_over_the_tokens_that_count(truncated):
    rollout, _ = assign(k=2, baseline="mean", truncated=truncated)
    advantages = rollout.advantages[rollout.mask]
    assert advantages.mean().abs() < 1e-5
    shifts = (rollout.returns - rollout.advantages)[rollout.mask]
    torch.testing.assert_close(shifts, shifts[:1].expand_as(shifts))


def test_dropped_completions_leave_loss_and_denominator():
    rollout, sums = assign(k=2, truncated="drop")
    assert rollout.num_tokens == sum(LENGTHS[1:])
    assert sums["tokens"] == sum(LENGTHS)  # what is logged is what was written
    assert sums["truncated"] == 1


def test_bootstrap_charges_the_cut_completions_only():
    kept, _ = assign(k=2)
    bootstrapped, _ = assign(k=2, truncated="bootstrap")
    difference = kept.returns - bootstrapped.returns
    torch.testing.assert_close(difference[0], torch.full((6,), 2.5))
    assert not difference[1:].any()


def test_loss_is_the_weighted_sum_under_the_distribution_that_sampled():
    rollout, _ = assign(k=2)
    asked = {}

    def policy(rollout, *, distribution, comparison=None):
        asked["distribution"] = distribution
        logprobs = torch.full(rollout.mask.shape, -0.5, requires_grad=True)
        return TokenStatistics(logprobs, torch.zeros_like(logprobs))

    decoding = Decoding(max_tokens=6, temperature=0.7, top_k=3, top_p=0.9)
    objective = policy_gradient(decoding, k=2)
    out = objective.loss(policy, rollout)
    assert asked["distribution"] == Distribution(0.7, top_k=3, top_p=0.9)
    expected = 0.5 * rollout.advantages[rollout.mask].sum()
    torch.testing.assert_close(out.loss.detach(), expected)
    kl = (-0.5 - rollout.values.logprobs[rollout.mask]).sum()
    torch.testing.assert_close(out.sums["policy/kl_to_teacher"], kl)


def test_logged_moments_are_those_of_the_tokens():
    rollout, sums = assign(k=3)
    metrics = return_metrics({key: float(value) for key, value in sums.items()})
    estimate = rollout.returns[rollout.mask].double()
    exact = rewards_to_go(rollout.values.q_taken, rollout.values.q_max, rollout.mask)
    assert metrics["rollout/var_return_k"] == pytest.approx(estimate.var(correction=0).item())
    exact_tokens = exact[rollout.mask].double()
    assert metrics["rollout/var_return"] == pytest.approx(exact_tokens.var(correction=0).item())
    assert metrics["rollout/bias"] == pytest.approx((estimate - exact_tokens).mean().item())
    assert metrics["rollout/bias"] > 0
    assert metrics["rollout/return"] == pytest.approx(exact[:, 0].mean().item())
    assert metrics["rollout/length"] == sum(LENGTHS) / 4


def test_greedy_rollouts_are_warned_about():
    with pytest.warns(UserWarning, match="sampling"):
        make_objective(BRIMConfig(k=4), Decoding(max_tokens=4, strategy="greedy"))


def test_llmr_is_brim_of_one():
    weights = []
    for settings in (LLMRConfig(), BRIMConfig(k=1)):
        rollout, _ = make_objective(settings, DECODING).assign_credit(*make_rollout())
        weights.append(rollout.advantages)
    assert torch.equal(*weights)
