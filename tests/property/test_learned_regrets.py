"""Û of a head on the states, and PPO over `V* − Û`, on every completion of an MDP."""

from dataclasses import replace

import pytest
import test_anchored
import torch
from makers import anchored, ppo_llmr, q_of
from mdp import PrefixMDP, TabularModel, expectation, gradients_by_row
from test_anchored import (
    ALL,
    MDP,
    TEACHER,
    UNCLIPPED,
    by_step,
    decoding,
    expected_to_come,
    gradient_of,
    near,
    predicted,
    regret_table,
    student,
)
from torch import nn

MEANS = torch.tensor([1.9, 1.2, 0.8, 0.3, 0.0], dtype=torch.float64)  # nothing is behind the limit
STATES = TabularModel(torch.arange(MDP.num_states).double()[:, None].expand(-1, 3), MDP)
each_form = pytest.mark.parametrize("immediate", ["sampled", "expected"])
each_regret = pytest.mark.parametrize("expected_regrets", [False, True])


class WithHead(nn.Module):
    """The tabular student, and a table of what a head says of each state."""

    def __init__(self, said):
        super().__init__()
        self.student, self.said = student(), nn.Parameter(said.clone())
        self.table = self.student.table

    def values(self, rollout):
        states = STATES.features(rollout)
        return states.scatter(self.said[states.hidden[:, 0].long()])

    def forward(self, rollout, **options):
        return replace(self.student(rollout, **options), state_values=self.values(rollout))


def learned(remaining=None, **settings):
    """The objective whose Û is `remaining`, a table of states; by default its head has not learned.

    What a batch says of a step is given, so that nothing of Û depends on the batch.
    """
    objective = anchored(decoding(), remaining_regret="learned", **UNCLIPPED, **settings)
    means = by_step(MEANS[:-1])
    objective.critic = WithHead((means if remaining is None else remaining) / means - 1)
    objective.remaining = lambda to_come, mask: MEANS.expand(len(mask), -1)
    return objective


def credited(objective, trajectories=ALL):
    rollout = trajectories.rollout()
    return objective.assign_credit(rollout, q_of(objective, rollout, student(), TEACHER))[0]


def mean_gradient(objective):
    gradients = gradients_by_row(objective, credited(objective), objective.critic, TEACHER)
    return expectation(ALL.probabilities(MDP.student), gradients)[0]


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0])
@each_regret
@each_form
def test_whatever_the_head_says_the_bias_is_that_of_the_derivation(
    lambda_, expected_regrets, immediate
):
    generator = torch.Generator().manual_seed(5)
    guess = 3 * torch.rand(MDP.num_states, dtype=torch.float64, generator=generator)
    settings = {"expected_regrets": expected_regrets, "immediate": immediate}
    found = mean_gradient(learned(guess, lambda_=lambda_, **settings))
    torch.testing.assert_close(found, gradient_of(predicted(guess, lambda_)), **near)


@each_regret
@each_form
def test_a_head_that_knows_leaves_no_bias_even_at_lambda_0(expected_regrets, immediate):
    true = expected_to_come(regret_table())
    exact = gradient_of(predicted(true, 1.0))
    settings = {"lambda_": 0.0, "expected_regrets": expected_regrets, "immediate": immediate}
    torch.testing.assert_close(mean_gradient(learned(true, **settings)), exact, **near)
    assert (mean_gradient(learned(**settings)) - exact).norm() > 0.1 * exact.norm()


@each_form
def test_a_head_that_says_0_is_the_mean_of_the_others_to_the_bit(immediate):
    ours = anchored(decoding(), remaining_regret="learned", immediate=immediate)
    ours.critic = WithHead(torch.zeros(MDP.num_states, dtype=torch.float64))
    one, other = credited(ours), credited(anchored(decoding(), immediate=immediate))
    assert torch.equal(one.advantages, other.advantages)
    if immediate == "expected":
        assert torch.equal(one.end_values, other.end_values)


@pytest.mark.parametrize("lambda_", [0.0, 0.7])
def test_to_begin_at_the_mean_is_nearer_to_the_true_gradient_than_to_begin_at_0(
    lambda_, monkeypatch
):
    for seed in range(20):
        mdp = PrefixMDP(horizon=4, seed=seed)
        every = mdp.all_trajectories()
        monkeypatch.setattr(test_anchored, "MDP", mdp)
        monkeypatch.setattr(test_anchored, "ALL", every)
        exact = gradient_of(predicted(expected_to_come(regret_table()), 1.0))
        regrets = regret_table()[every.states, every.actions] * every.mask
        weights = every.probabilities(mdp.student)[:, None] * every.mask
        means = (weights * regrets.flip(1).cumsum(1).flip(1)).sum(0) / weights.sum(0)
        errors = [
            gradient_of(predicted(guess, lambda_)) - exact
            for guess in (by_step(means), by_step(0 * means))
        ]
        assert errors[0].norm() < errors[1].norm()


def test_what_the_head_says_below_none_is_none():
    objective = learned(torch.full((MDP.num_states,), -2.0, dtype=torch.float64))
    none = anchored(decoding(), remaining_regret="none", **UNCLIPPED)
    assert torch.equal(credited(objective).advantages, credited(none).advantages)


@each_regret
def test_the_heads_loss_is_least_where_it_says_the_true_regrets(expected_regrets):
    true = expected_to_come(regret_table())
    probabilities = ALL.probabilities(MDP.student)

    def gradient(remaining):
        objective = learned(remaining, expected_regrets=expected_regrets, immediate="sampled")
        rollout = credited(objective)
        rows = [objective.loss(objective.critic, rollout.select([i])) for i in range(len(rollout))]
        loss = probabilities @ torch.stack([row.loss for row in rows])
        assert all(row.sums["anchored/remaining_loss"] >= 0 for row in rows)
        return torch.autograd.grad(loss, objective.critic.said)[0]

    assert gradient(true).abs().max() < 1e-12
    for state in range(MDP.num_states):  # from both sides
        for factor, sign in ((1.1, 1), (0.9, -1)):
            moved = true.clone()
            moved[state] *= factor
            assert gradient(moved)[state].sign() == sign


def test_the_heads_loss_is_in_units_of_the_batch():
    losses = []
    for scale in (1.0, 7.0):
        objective = anchored(decoding(), remaining_regret="learned", **UNCLIPPED)
        objective.critic = WithHead(torch.linspace(-0.9, 0.9, MDP.num_states).double())
        rollout = ALL.rollout()
        teacher = TabularModel(scale * MDP.teacher, MDP)
        rollout = objective.assign_credit(rollout, q_of(objective, rollout, student(), teacher))[0]
        sums = objective.loss(objective.critic, rollout, teacher).sums
        losses.append(sums["anchored/remaining_loss"])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=0)


@each_form
def test_padding_is_not_read(immediate):
    objective, rollout = learned(immediate=immediate), ALL.rollout()
    values = q_of(objective, rollout, student(), TEACHER)
    dirty = replace(
        values,
        q_taken=torch.where(ALL.mask, values.q_taken, torch.nan),
        q_max=torch.where(ALL.mask, values.q_max, torch.inf),
    )
    found = [objective.assign_credit(rollout, q)[0] for q in (values, dirty)]
    for name in ("advantages", "end_values", "state_values", "value_targets"):
        one, other = (getattr(each, name) for each in found)
        assert one is other is None or torch.equal(one, other)


def test_a_batch_without_regrets_teaches_nothing_and_breaks_nothing():
    objective = anchored(decoding(), remaining_regret="learned")
    objective.critic = WithHead(torch.ones(MDP.num_states, dtype=torch.float64))
    rollout = ALL.rollout()
    flat = TabularModel(torch.zeros_like(MDP.teacher), MDP)
    rollout = objective.assign_credit(rollout, q_of(objective, rollout, student(), flat))[0]
    out = objective.loss(objective.critic, rollout, flat)
    gradients = torch.autograd.grad(out.loss, [objective.critic.said, objective.critic.table])
    assert not any(gradient.any() for gradient in gradients)


# PPO over the same critic


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("centering", ["none", "mean"])
@pytest.mark.parametrize(
    "settings",
    [UNCLIPPED, {**UNCLIPPED, "truncated": "drop"}, {"clip": {"range": 0.5}}],
    ids=str,
)
def test_ppos_advantages_over_the_anchored_critic_are_those_of_anchored(
    lambda_, centering, settings
):
    ppo = ppo_llmr(
        decoding(),
        critic="anchored",
        gae_lambda=lambda_,
        normalize_advantages=False,
        q_centering=centering,
        **settings,
    )
    ours = anchored(
        decoding(), lambda_=lambda_, expected_regrets=False, immediate="sampled", **settings
    )
    policy, rollout = student(), ALL.rollout()
    assert ppo.prepare(policy) is policy
    found, sums = ppo.assign_credit(rollout, q_of(ppo, rollout, policy, TEACHER), policy)
    torch.testing.assert_close(found.advantages, credited(ours).advantages, **near)
    out = ppo.loss(policy, found)
    assert "ppo/value_loss" not in out.sums
    metrics = ppo.describe({name: float(number) for name, number in sums.items()})
    assert metrics["ppo/td_error"] > 0
