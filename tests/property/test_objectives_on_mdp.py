"""The objectives' own code on every completion of an MDP: exact gradients and exact variances."""

import math
from itertools import combinations, product

import makers
import pytest
import torch
from makers import ppo_brim, q_of
from mdp import (
    PrefixMDP,
    TabularModel,
    Trajectories,
    expectation,
    gradients_by_row,
    make_batch,
)
from torch import Tensor

from brim.losses import policy_gradient_loss
from brim.models import Decoding
from brim.objectives.policy_gradient import PolicyGradient
from brim.objectives.ppo import PPO
from brim.returns import rewards_to_go
from brim.seeding import minibatch_numbers

MDP = PrefixMDP(horizon=4, seed=84122)
ALL = MDP.all_trajectories()
PROBABILITIES = ALL.probabilities(MDP.student)
TEACHER = TabularModel(MDP.teacher, MDP)
CENTERINGS = ["none", "mean", "max", "logsumexp", "policy"]
RETURNS = [
    {"k": 1},
    {"k": 2},
    {"k": 3, "tail": "none"},
]
near = {"rtol": 0, "atol": 1e-12}


def decoding(**options) -> Decoding:
    return Decoding(max_tokens=MDP.horizon, **options)


def policy_gradient(temperature=1.0, **settings) -> PolicyGradient:
    return makers.policy_gradient(
        decoding(temperature=temperature), **{"clip": {"range": None}, "k": 1, **settings}
    )


def judged(objective, student, teacher=TEACHER, trajectories=ALL):
    rollout = trajectories.rollout()
    values = q_of(objective, rollout, student, teacher)
    return objective.assign_credit(rollout, values, student)[0]


def moments(objective, trajectories=ALL, probabilities=PROBABILITIES, table=MDP.student):
    """Expectation and variance of a completion's gradient."""
    student = TabularModel(table, MDP)
    rollout = judged(objective, student, trajectories=trajectories)
    gradients = gradients_by_row(objective, rollout, student, TEACHER)
    return expectation(probabilities, gradients)


def expected_return(table: Tensor, mdp=MDP, trajectories=ALL) -> Tensor:
    """J(θ) of Eq 3 with Eq 2's rewards, differentiable."""
    taken, best = trajectories.values(mdp.teacher)
    first = rewards_to_go(taken, best, trajectories.mask)[:, 0]
    return trajectories.probabilities(table) @ first


# Policy gradient


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_llmr_follows_the_expected_return_of_the_policy_that_sampled(temperature):
    table = MDP.student.clone().requires_grad_()
    (exact,) = torch.autograd.grad(expected_return(table / temperature), table)
    mean, _ = moments(
        policy_gradient(temperature, q_centering="none"),
        probabilities=ALL.probabilities(MDP.student / temperature),
    )
    torch.testing.assert_close(mean, exact, **near)


@pytest.mark.parametrize("returns", RETURNS, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_centring_changes_the_variance_alone(returns, temperature):
    probabilities = ALL.probabilities(MDP.student / temperature)
    means, variances = zip(
        *(
            moments(
                policy_gradient(temperature, q_centering=centering, **returns),
                probabilities=probabilities,
            )
            for centering in CENTERINGS
        ),
        strict=True,
    )
    for mean in means[1:]:
        torch.testing.assert_close(mean, means[0], **near)
    for one, other in combinations(variances, 2):
        assert abs(one - other) > 1e-3 * one


def test_policy_centring_leaves_no_expected_value():
    student = TabularModel(MDP.student, MDP)
    objective = policy_gradient(0.6, q_centering="policy")
    values = q_of(objective, ALL.rollout(), student, TEACHER)
    expected = ((MDP.student / 0.6).softmax(-1) * MDP.teacher).sum(-1)[ALL.states]
    plain = TEACHER.action_values(ALL.rollout())
    for name in ("q_taken", "q_max"):
        moved = getattr(plain, name) - getattr(values, name)
        torch.testing.assert_close(moved[ALL.mask], expected[ALL.mask].detach(), **near)
    assert torch.equal(values.logprobs, plain.logprobs)


@pytest.mark.parametrize("returns", RETURNS, ids=str)
@pytest.mark.parametrize("baseline", ["mean", "min_variance"])
def test_one_number_as_baseline_changes_the_variance_alone(returns, baseline):
    mean, variance = moments(policy_gradient(baseline=baseline, q_centering="none", **returns))
    plain, without = moments(policy_gradient(q_centering="none", **returns))
    torch.testing.assert_close(mean, plain, **near)
    assert abs(variance - without) > 0.01 * without


def test_the_min_variance_baseline_is_the_best_one_number():
    # On a batch that holds each completion as often as it is likely, under a uniform policy.
    table = torch.zeros_like(MDP.student)
    copies = 3 ** (MDP.horizon - ALL.mask.sum(1))
    batch = Trajectories(
        *(part.repeat_interleave(copies, 0) for part in (ALL.states, ALL.actions, ALL.mask))
    )
    equal = torch.full((3**MDP.horizon,), 3.0**-MDP.horizon, dtype=torch.float64)

    def measure(baseline):
        objective = policy_gradient(baseline=baseline, k=2, q_centering="mean")
        student = TabularModel(table, MDP)
        rollout = judged(objective, student, trajectories=batch)
        return rollout, gradients_by_row(objective, rollout, student)

    plain, gradients = measure("none")
    centred, least = measure("min_variance")
    # The parabola's lowest point, from the whole gradients: E[g · s] / E[s · s], s = Σ ∇ log π.
    shift = (plain.advantages - centred.advantages)[:, 0]
    scores = (gradients - least) / shift[:, None, None]
    best = (gradients * scores).sum() / (scores * scores).sum()
    torch.testing.assert_close(shift, best.expand_as(shift), rtol=1e-9, atol=0)
    assert expectation(equal, least)[1] < 0.95 * expectation(equal, gradients)[1]


SMALL = PrefixMDP(horizon=2, seed=310)


@pytest.mark.parametrize("baseline", ["time_mean", "leave_one_out"])
@pytest.mark.parametrize("immediate", ["sampled", "expected"])
def test_the_baseline_of_other_completions_leaves_the_expected_gradient(baseline, immediate):
    # Over every batch of two completions that there is, by the objective's own settings.
    completions = SMALL.all_trajectories()
    teacher, student = TabularModel(SMALL.teacher, SMALL), TabularModel(SMALL.student, SMALL)
    probabilities = completions.probabilities(SMALL.student)

    def mean_of_pairs(baseline):
        objective = policy_gradient(
            baseline=baseline, immediate=immediate, num_generations=2, q_centering="none"
        )
        mean = torch.zeros_like(SMALL.student)
        for rows in product(range(len(probabilities)), repeat=2):
            pair = Trajectories(
                *(getattr(completions, x)[list(rows)] for x in ("states", "actions", "mask"))
            )
            rollout = judged(objective, student, teacher, pair)
            gradients = gradients_by_row(objective, rollout, student, teacher)
            mean += probabilities[list(rows)].prod() * gradients.mean(0)
        return mean

    plain = mean_of_pairs("none")
    torch.testing.assert_close(mean_of_pairs(baseline), plain, **near)
    # The test could fail: a mean that a token has a share in does move it.
    assert (mean_of_pairs("mean") - plain).abs().max() > 0.01


def test_dropped_completions_have_no_gradient():
    objective = policy_gradient(truncated="drop")
    student = TabularModel(MDP.student, MDP)
    gradients = gradients_by_row(objective, judged(objective, student), student)
    cut = ALL.rollout().truncated
    assert not gradients[cut].any()
    kept = gradients_by_row(policy_gradient(), judged(policy_gradient(), student), student)
    torch.testing.assert_close(gradients[~cut], kept[~cut], **near)


@pytest.mark.parametrize(
    "settings",
    [{"q_centering": "mean"}, {"baseline": "mean"}, {"immediate": "expected"}],
    ids=str,
)
def test_where_completions_are_dropped_nothing_is_a_state_only_baseline(settings):
    # Whether a token counts then depends on the token. That the docstrings say so is why.
    plain, _ = moments(policy_gradient(truncated="drop", q_centering="none"))
    moved, _ = moments(policy_gradient(truncated="drop", **{"q_centering": "none", **settings}))
    assert (moved - plain).abs().max() > 0.05


# Old rollouts


def reweighted(mdp: PrefixMDP, max_weight: float | None, **settings) -> tuple[Tensor, Tensor]:
    """Expected gradient at a new policy from an old one's text, and from the new one's own."""
    every = mdp.all_trajectories()
    generator = torch.Generator().manual_seed(5)
    move = torch.randn(mdp.student.shape, dtype=torch.float64, generator=generator)
    old, new = TabularModel(mdp.student, mdp), TabularModel(mdp.student + move, mdp)
    teacher = TabularModel(mdp.teacher, mdp)
    results = []
    for writer, reuse in ((old, 2), (new, 1)):
        objective = policy_gradient(
            rollout_reuse=reuse, max_importance_weight=max_weight, **settings
        )
        rollout = judged(objective, writer, teacher, every)
        gradients = gradients_by_row(objective, rollout, new, teacher)
        results.append(expectation(every.probabilities(writer.table.detach()), gradients)[0])
    return results[0], results[1]


@pytest.mark.parametrize("immediate", ["sampled", "expected"])
def test_importance_weights_make_old_completions_of_one_step_as_good_as_new(immediate):
    old, new = reweighted(PrefixMDP(horizon=1, seed=34007), None, immediate=immediate)
    torch.testing.assert_close(old, new, **near)


def test_a_bounded_weight_and_more_steps_do_bias_it():
    old, new = reweighted(PrefixMDP(horizon=1, seed=34007), 1.0)
    assert (old - new).abs().max() > 0.01
    # Of a token's weight the earlier tokens are no part: where a text got to is the old policy's.
    old, new = reweighted(MDP, None)
    assert (old - new).abs().max() > 0.01


def test_effective_sample_size():
    student, other = TabularModel(MDP.student, MDP), TabularModel(MDP.student * 0.3, MDP)
    objective = policy_gradient(rollout_reuse=3, max_importance_weight=1.5)
    rollout = ALL.rollout()
    rollout, sums = objective.assign_credit(
        rollout, q_of(objective, rollout, student, TEACHER), student
    )

    def measure(policy):
        floats = {**sums, **objective.loss(policy, rollout).sums}
        return objective.describe({key: float(value) for key, value in floats.items()})

    assert measure(student)["policy/effective_sample_size"] == pytest.approx(1, abs=1e-12)
    logprobs = ALL.logprobs(MDP.student * 0.3) - ALL.logprobs(MDP.student)
    weights = [min(1.5, math.exp(x)) for x in logprobs[ALL.mask].tolist()]
    expected = sum(weights) ** 2 / sum(w * w for w in weights) / len(weights)
    assert measure(other)["policy/effective_sample_size"] == pytest.approx(expected, abs=1e-9)
    assert expected < 0.95
    assert "policy/effective_sample_size" not in policy_gradient().describe(
        {key: float(value) for key, value in sums.items()}
    )


# PPO


def prepared(table=MDP.student, mdp=MDP, **settings) -> tuple[PPO, TabularModel]:
    student = TabularModel(table, mdp)
    objective = ppo_brim(decoding(), **{"k": 2, **settings})
    assert objective.prepare(student) is student
    return objective, student


def test_the_surrogate_begins_as_the_policy_gradient_of_normalized_advantages():
    objective, student = prepared()
    rollout = judged(objective, student)
    gradients = gradients_by_row(objective, rollout, student)
    tokens = rollout.returns[ALL.mask]
    advantages = (rollout.returns - tokens.mean()) / tokens.std(correction=0)
    for row, gradient in zip(range(len(ALL.mask)), gradients, strict=True):
        (expected,) = torch.autograd.grad(
            policy_gradient_loss(
                student(rollout).logprobs[[row]], advantages[[row]], ALL.mask[[row]]
            ),
            student.table,
        )
        torch.testing.assert_close(gradient, -expected, rtol=0, atol=1e-6)


def train(objective, student, mdp=MDP, teacher=TEACHER, *, steps=30, rows=64, lr=0.05) -> list[int]:
    """The trainer's loop in short; updates of each step."""
    optimizer = torch.optim.Adam(student.parameters(), lr=lr)
    counts = []
    for step in range(steps):
        rollout, _ = objective.collect(make_batch(rows, seed=step), student, teacher)
        counts.append(0)
        updates = objective.settings.updates
        for epoch, number in product(range(updates.num_epochs), range(updates.num_minibatches)):
            numbers = minibatch_numbers(rows, updates.num_minibatches, seed=100 * step + epoch)
            part = rollout.select((numbers == number).nonzero()[0].tolist())
            out = objective.loss(student, part, teacher)
            optimizer.zero_grad()
            (out.loss / part.num_tokens).backward()
            optimizer.step()
            counts[-1] += 1
            if objective.enough({k: float(v) for k, v in out.sums.items()}, part.num_tokens):
                break
    return counts


def test_several_updates_of_each_rollout_raise_the_exact_expected_return():
    taken, best = ALL.values(MDP.teacher)
    highest = float(rewards_to_go(taken, best, ALL.mask)[:, 0].max())
    objective, student = prepared(k=1, num_epochs=2, num_minibatches=2)
    before = float(expected_return(student.table.detach()))
    assert train(objective, student) == [4] * 30
    after = float(expected_return(student.table.detach()))
    assert after > before + 0.8 * (highest - before)


def kl_from_start(table: Tensor) -> float:
    """KL of the whole completions' distribution from the first student's."""
    probabilities = ALL.probabilities(table.detach())
    return float(probabilities @ (probabilities / PROBABILITIES).log())


def test_a_kl_coefficient_keeps_the_policy_near_its_start():
    distances = []
    for coefficient in (0.0, 1.0, 10.0):
        objective, student = prepared(
            k=1, num_epochs=2, num_minibatches=2, kl_coefficient=coefficient
        )
        train(objective, student)
        distances.append(kl_from_start(student.table))
    assert distances[0] > 1.5 * distances[1] > 1.5 * 1.5 * distances[2]


def test_a_kl_charge_is_the_log_ratio_from_each_token_on():
    objective, student = prepared(kl_coefficient=0.5, clip={"range": None})
    with torch.no_grad():
        student.table *= 0.3
    rollout = ALL.rollout()
    values = q_of(objective, rollout, student, TEACHER)
    credited, sums = objective.assign_credit(rollout, values, student)
    ratios = (ALL.logprobs(0.3 * MDP.student) - ALL.logprobs(MDP.student)) * ALL.mask
    charged = credited.returns - 0.5 * ratios.flip(1).cumsum(1).flip(1)
    tokens = charged[ALL.mask]
    expected = (tokens - tokens.mean()) / tokens.std(correction=0)
    torch.testing.assert_close(credited.advantages[ALL.mask], expected, rtol=0, atol=1e-6)
    assert float(sums["kl_to_start"]) == pytest.approx(float(ratios.sum()))
    assert not objective.start.table.requires_grad
    torch.testing.assert_close(objective.start.table, MDP.student)


def test_a_target_kl_ends_the_updates_of_a_step():
    settings = {"num_epochs": 4, "num_minibatches": 2, "k": 1}
    assert train(*prepared(target_kl=1e6, **settings), steps=5) == [8] * 5
    counts = train(*prepared(target_kl=1e-3, **settings), steps=5)
    # The first update's policy is the one that wrote.
    assert all(2 <= count < 8 for count in counts)
