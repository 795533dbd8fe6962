"""The pieces of PPO by hand: ratios, advantages, the critic, cut completions, padding."""

import itertools
from dataclasses import replace

import pytest
import torch
from enumerable import DECODING, EXAMPLES, build, pair
from makers import ppo_brim, ppo_llmr, q_of
from pydantic import ValidationError

from brim.losses import clipped_surrogate_loss
from brim.models import ActorCritic, Decoding
from brim.objectives.settings import PPOBRIMConfig, PPOLLMRConfig
from brim.returns import block_returns
from brim.training.trainer import name_suspects
from brim.types import Rollout, TokenStatistics


def written(student, rows=8, decoding=DECODING) -> Rollout:
    batch = student.encode(list(itertools.islice(itertools.cycle(EXAMPLES), rows)), max_tokens=None)
    return student.generate(replace(batch, seeds=tuple(range(rows))), decoding)


def credited(objective, rollout, student, teacher):
    objective.prepare(student)
    return objective.assign_credit(rollout, q_of(objective, rollout, student, teacher), student)


def floats(*sums):
    return {key: float(value) for part in sums for key, value in part.items()}


def with_state_values(objective, number):
    """A critic that says something: the value head's weights are not 0."""
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in objective.module.value_head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


# The loss


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.6}], ids=str
)
def test_at_ratio_1_the_gradient_is_that_of_the_policy_gradient(sampling):
    student, teacher = pair()
    decoding = DECODING.model_copy(update=dict(**sampling))
    objective = ppo_brim(decoding, k=2)
    rollout, _ = credited(objective, written(student, decoding=decoding), student, teacher)
    out = objective.loss(student, rollout)
    gradients = torch.autograd.grad(out.loss, list(student.parameters()))
    logprobs = student(rollout, distribution=decoding.distribution).logprobs
    weighted = -(rollout.advantages * logprobs).sum()
    expected = torch.autograd.grad(weighted, list(student.parameters()))
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)
    assert out.sums["ppo/clip_fraction"] == 0
    assert float(out.sums["ppo/approx_kl"]) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(rollout.logprobs, logprobs.detach())


def test_what_is_logged_of_the_ratios():
    student, teacher = pair()
    objective = ppo_brim(DECODING, k=1, epsilon=0.2)
    rollout, _ = credited(objective, written(student), student, teacher)
    moves = torch.tensor([0.0, 0.19, -0.24, 0.1, -0.1, 0.5])
    tokens = rollout.mask.nonzero()[: len(moves)]
    difference = torch.zeros(rollout.mask.shape)
    difference[tokens[:, 0], tokens[:, 1]] = moves

    def policy(rollout, *, distribution, comparison=None):
        logprobs = (rollout.logprobs + difference).requires_grad_()
        return TokenStatistics(logprobs, torch.zeros_like(logprobs))

    out = objective.loss(policy, rollout)
    # exp of 0.19 and -0.24 is 1.209 and 0.787, of 0.5 is 1.649.
    assert out.sums["ppo/clip_fraction"] == 3
    assert float(out.sums["ppo/approx_kl"]) == pytest.approx(
        float((moves.exp() - 1 - moves).sum()), abs=1e-6
    )
    torch.testing.assert_close(
        out.loss.detach(),
        clipped_surrogate_loss(
            rollout.logprobs + difference,
            rollout.logprobs,
            rollout.advantages,
            rollout.mask,
            clip_range=0.2,
        ),
    )


def test_a_rollout_without_credit_is_refused():
    student, _ = pair()
    with pytest.raises(ValueError, match="collect"):
        ppo_brim(DECODING).loss(student, written(student))


def test_enough_compares_a_mean_over_tokens():
    objective = ppo_brim(DECODING, target_kl=0.1)
    assert not objective.enough({"ppo/approx_kl": 1.0}, num_tokens=10)
    assert objective.enough({"ppo/approx_kl": 1.01}, num_tokens=10)
    assert not objective.enough({"ppo/approx_kl": 0.0}, num_tokens=0)
    assert not ppo_brim(DECODING).enough({"ppo/approx_kl": 1e9}, num_tokens=1)


def test_one_teacher_value_that_is_not_finite_names_its_example():
    student, teacher = pair()
    objective = ppo_brim(DECODING)
    objective.prepare(student)
    rollout = written(student, 2)
    values = q_of(objective, rollout, student, teacher)
    values.q_taken[1, 0] = torch.nan
    rollout, _ = objective.assign_credit(rollout, values, student)
    assert not rollout.advantages[rollout.mask].isfinite().any()  # normalized together
    assert name_suspects(rollout) == EXAMPLES[1].id


# ppo_brim


@pytest.mark.parametrize("settings", [{}, {"tail": "none"}], ids=str)
@pytest.mark.parametrize("clip_range", [1.0, None])
@pytest.mark.parametrize("truncated", ["keep", "drop"])
def test_brims_advantages_are_the_clipped_returns_normalized(settings, clip_range, truncated):
    student, teacher = pair()
    objective = ppo_brim(DECODING, k=2, clip={"range": clip_range}, truncated=truncated, **settings)
    rollout, sums = credited(objective, written(student, 24), student, teacher)
    assert rollout.truncated.any()
    assert not rollout.truncated.all()
    advantages = rollout.advantages[rollout.mask].double()
    assert float(advantages.mean()) == pytest.approx(0, abs=1e-6)
    assert float(advantages.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert not rollout.advantages[~rollout.mask].any()
    limit = clip_range or 1e9
    clipped = rollout.returns[rollout.mask].double().clamp(-limit, limit)
    slope, offset = clipped.std(correction=0), clipped.mean()
    assert slope > 0
    torch.testing.assert_close(advantages * slope + offset, clipped, rtol=0, atol=1e-5)
    assert (float(sums["clipped"]) > 0) == (clip_range is not None)


@pytest.mark.parametrize("kind", [ppo_brim, ppo_llmr])
def test_advantages_are_left_as_they_are_if_not_normalized(kind):
    student, teacher = pair()
    rollout = written(student, 24)
    objective = kind(DECODING, clip={"range": 1.0}, normalize_advantages=False)
    plain, _ = credited(objective, rollout, student, teacher)
    # With a critic that says 0 so far, its bounded targets are the advantages.
    wanted = plain.returns.clamp(-1.0, 1.0) if kind is ppo_brim else plain.value_targets
    torch.testing.assert_close(plain.advantages[plain.mask], wanted[plain.mask])
    scaled, _ = credited(kind(DECODING, clip={"range": 1.0}), rollout, student, teacher)
    tokens = plain.advantages[plain.mask]
    expected = (tokens - tokens.mean()) / tokens.std(correction=0)
    torch.testing.assert_close(scaled.advantages[scaled.mask], expected, rtol=0, atol=1e-4)


def test_brim_clips_rewards_if_told_to():
    student, teacher = pair()
    objective = ppo_brim(DECODING, k=1, clip={"range": 1.0, "target": "reward"})
    rollout, _ = credited(objective, written(student, 24), student, teacher)
    values = rollout.values
    returns = block_returns(values.q_taken, values.q_max, rollout.mask, k=1, reward_range=1.0)
    tokens = returns[rollout.mask]
    expected = (tokens - tokens.mean()) / tokens.std(correction=0)
    torch.testing.assert_close(rollout.advantages[rollout.mask], expected, rtol=0, atol=1e-4)


# ppo_llmr


def gae_by_hand(rewards, values, discount, trace):
    """One row: (advantages, errors)."""
    errors = [
        r + discount * following - value
        for r, value, following in zip(rewards, values, [*values[1:], 0.0], strict=True)
    ]
    advantages = [
        sum((discount * trace) ** (i - t) * errors[i] for i in range(t, len(errors)))
        for t in range(len(errors))
    ]
    return advantages, errors


@pytest.mark.parametrize("truncated", ["keep", "drop", "bootstrap"])
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_llmrs_credit_by_hand(truncated, critic):
    student, teacher = pair()
    objective = ppo_llmr(
        DECODING,
        critic=critic,
        truncated=truncated,
        clip={"range": 2.0},
        discount=0.9,
        gae_lambda=0.8,
        q_centering="mean",
    )
    objective.prepare(student)
    with_state_values(objective, 3)
    rollout = written(student, 24)
    values = q_of(objective, rollout, student, teacher)
    rollout, sums = objective.assign_credit(rollout, values, student)
    torch.testing.assert_close(
        rollout.state_values, objective.module(rollout).state_values.detach()
    )

    def clip(number):
        return max(-2.0, min(2.0, number))

    targets, advantages, errors, residuals = [], [], [], []
    for row in range(len(rollout)):
        cut = bool(rollout.truncated[row])
        length = int((rollout.completion_ids[row] == student.eos_token_ids[0]).int().argmax()) + 1
        length = DECODING.max_tokens if cut else length
        taken, best = values.q_taken[row, :length].tolist(), values.q_max[row, :length].tolist()
        rewards = [a - b for a, b in zip(taken, [*best[1:], 0.0], strict=True)]
        if cut and truncated == "bootstrap":
            rewards[-1] -= float(values.bootstrap[row])  # not clipped with the rewards
        state_values = rollout.state_values[row, :length].tolist()
        if cut and truncated == "drop":
            assert not rollout.mask[row].any()
            continue
        some, deltas = gae_by_hand(rewards, state_values, 0.9, 0.8)
        goals = [a + v for a, v in zip(some, state_values, strict=True)]
        goals = [clip(goal) for goal in goals]
        assert rollout.value_targets[row, :length].tolist() == pytest.approx(goals, abs=1e-4)
        residuals += [g - v for g, v in zip(goals, state_values, strict=True)]
        targets, errors = targets + goals, errors + deltas
        advantages += rollout.advantages[row, :length].tolist()
    expected = torch.tensor(residuals)
    expected = (expected - expected.mean()) / expected.std(correction=0)
    torch.testing.assert_close(torch.tensor(advantages), expected, rtol=0, atol=1e-4)

    metrics = objective.describe(floats(sums))
    assert metrics["ppo/td_error"] == pytest.approx(
        sum(e * e for e in errors) / len(errors), rel=1e-4
    )
    variances = [torch.tensor(x).var(correction=0).item() for x in (residuals, targets)]
    assert metrics["ppo/explained_variance"] == pytest.approx(
        1 - variances[0] / variances[1], rel=1e-3, abs=1e-4
    )


def test_targets_that_never_vary_have_no_explained_variance():
    student, teacher = pair()
    objective = ppo_llmr(DECODING, truncated="drop")
    rollout = written(student, 8, Decoding(max_tokens=1))
    rollout = rollout.select(rollout.truncated.nonzero()[:, 0].tolist())
    assert len(rollout) > 1
    rollout, sums = credited(objective, rollout, student, teacher)
    assert rollout.num_tokens == 0
    assert not rollout.advantages.any()
    metrics = objective.describe(floats(sums))
    assert "ppo/explained_variance" not in metrics
    assert metrics["ppo/td_error"] == 0
    out = objective.loss(objective.module, rollout)
    out.loss.backward()
    assert out.loss == 0
    assert all(not p.grad.any() for p in objective.module.parameters())


def test_the_critics_loss_is_in_units_of_the_clip():
    student, teacher = pair()
    settings = {"value_coefficient": 0.3, "value_clip_range": None}
    objective = ppo_llmr(DECODING, clip={"range": 5.0}, **settings)
    rollout, _ = credited(objective, written(student), student, teacher)
    with_state_values(objective, 1)
    out = objective.loss(objective.module, rollout)
    errors = (objective.module(rollout).state_values - rollout.value_targets)[rollout.mask] / 5
    expected = errors.square().sum() / 2
    torch.testing.assert_close(out.sums["ppo/value_loss"], expected.detach())
    surrogate = ppo_brim(DECODING).loss(student, rollout).loss
    torch.testing.assert_close(out.loss, surrogate + 0.3 * expected, rtol=1e-4, atol=1e-4)


def test_a_value_far_from_the_old_one_has_no_gradient():
    student, teacher = pair()
    objective = ppo_llmr(DECODING, clip={"range": 5.0}, value_clip_range=0.1)
    rollout, _ = credited(objective, written(student), student, teacher)
    # At the rollout all values were 0; now each is past the bound, on the target's side.
    values = (2.0 * rollout.value_targets.sign()).requires_grad_()
    rollout = replace(rollout, value_targets=10 * rollout.value_targets.sign())
    (gradient,) = torch.autograd.grad(objective.critic.loss(values, rollout), values)
    assert not gradient.any()
    unclipped = ppo_llmr(DECODING, clip={"range": 5.0}, value_clip_range=None)
    (gradient,) = torch.autograd.grad(unclipped.critic.loss(values, rollout), values)
    assert gradient[rollout.mask].all()


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_the_critic_learns_what_each_state_is_worth(critic):
    student, teacher = pair()
    objective = ppo_llmr(DECODING, critic=critic, value_clip_range=None, clip={"range": 10.0})
    rollout, _ = credited(objective, written(student, 2), student, teacher)
    optimizer = torch.optim.Adam(objective.module.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss = objective.critic.loss(objective.module(rollout).state_values, rollout)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


# Cut completions


@pytest.mark.parametrize("centering", ["none", "mean", "logsumexp"])
@pytest.mark.parametrize("objective", [ppo_llmr, ppo_brim])
def test_bootstrap_gives_the_last_action_the_reward_it_would_have_had(objective, centering):
    # The same tokens as the beginning of longer completions, whose next state is known.
    student, teacher = pair("llama")
    teacher.eos_token_ids = student.eos_token_ids = (10**6,)  # nothing ends
    longer = written(student, 8, Decoding(max_tokens=6))
    cut = Rollout(
        longer.batch, longer.completion_ids[:, :4], longer.mask[:, :4], torch.ones(8).bool()
    )
    settings = {"gae_lambda": 1.0} if objective is ppo_llmr else {"k": 1}
    objective = objective(DECODING, truncated="bootstrap", q_centering=centering, **settings)
    rollout, _ = credited(objective, cut, student, teacher)
    values = teacher.action_values(longer, centering=centering)
    rewards = (values.q_taken[:, :-1] - values.q_max[:, 1:])[:, :4]
    expected = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(rollout.returns, expected, rtol=1e-4, atol=1e-4)
    if rollout.value_targets is not None:
        torch.testing.assert_close(rollout.value_targets, expected, rtol=1e-4, atol=1e-4)


# Padding


@pytest.mark.parametrize("cls", [ppo_brim, ppo_llmr])
@pytest.mark.parametrize("filler", [torch.nan, torch.inf])
@pytest.mark.parametrize("truncated", ["keep", "drop", "bootstrap"])
def test_padding_reaches_nothing(cls, filler, truncated):
    def spoil(tensor, mask):
        return None if tensor is None else tensor.masked_fill(~mask, filler)

    def run(spoiled):
        student, teacher = pair()
        objective = cls(DECODING, truncated=truncated, kl_coefficient=0.1)
        objective.prepare(student)
        rollout = written(student, 16)
        values = q_of(objective, rollout, student, teacher)
        written_mask = rollout.mask
        if spoiled:
            values = replace(
                values,
                q_taken=spoil(values.q_taken, written_mask),
                q_max=spoil(values.q_max, written_mask),
                logprobs=spoil(values.logprobs, written_mask),
            )
        rollout, sums = objective.assign_credit(rollout, values, student)
        if spoiled:
            rollout = replace(
                rollout,
                **{
                    name: spoil(getattr(rollout, name), rollout.mask)
                    for name in ("advantages", "logprobs", "state_values", "value_targets")
                },
            )
        out = objective.loss(objective.module, rollout)
        out.loss.backward()
        grads = [p.grad for p in objective.module.parameters()]
        return out.loss, grads, objective.describe(floats(sums, out.sums)), out.sums

    clean, spoiled = run(False), run(True)
    assert clean[0] == spoiled[0]
    assert clean[0].isfinite()
    for one, other in zip(clean[1], spoiled[1], strict=True):
        assert torch.equal(one, other)
    assert clean[2] == spoiled[2]
    assert floats(clean[3]) == floats(spoiled[3])


# Modules and settings


def test_what_is_trained():
    student, _ = pair()
    assert ppo_brim(DECODING).prepare(student) is student
    for critic in ("shared", "separate"):
        module = ppo_llmr(DECODING, critic=critic, clip={"range": 7.0}).prepare(student)
        assert isinstance(module, ActorCritic)
        assert module.student is student
        assert (module.critic is None) == (critic == "shared")
        assert module.unit == 7


def test_no_copy_of_the_start_without_a_charge():
    student = build("t5", 1)
    for coefficient in (0.0, 0.5):
        objective = ppo_brim(DECODING, kl_coefficient=coefficient)
        objective.prepare(student)
        assert (objective.start is None) == (coefficient == 0)
    assert not any(p.requires_grad for p in objective.start.parameters())
    assert not objective.start.training
    assert all(p.requires_grad for p in student.parameters())


def test_dropout_neither_writes_nor_judges():
    student, teacher = build("t5", 1, dropout=0.5), pair()[1]
    objective = ppo_llmr(DECODING, kl_coefficient=0.2)
    objective.prepare(student)
    student.train()
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        batch = student.encode(EXAMPLES * 4, max_tokens=None)
        results.append(objective.collect(batch, student, teacher)[0])
    assert torch.equal(results[0].logprobs, results[1].logprobs)
    assert torch.equal(results[0].state_values, results[1].state_values)
    assert torch.equal(results[0].advantages, results[1].advantages)
    assert objective.module.student.training


def test_settings_say_how_often_a_rollout_is_used():
    assert PPOLLMRConfig(num_epochs=1, num_minibatches=1).updates.on_policy
    assert not PPOBRIMConfig(num_epochs=2, num_minibatches=3).updates.on_policy
    # Even then: dropout would move the policy before its first update.
    assert PPOLLMRConfig(num_epochs=1, num_minibatches=1).compares_policies


@pytest.mark.parametrize("clip", [{"range": None}, {"target": "reward"}])
def test_a_critic_needs_bounded_returns(clip):
    with pytest.raises(ValidationError, match="units of clip.range"):
        PPOLLMRConfig(clip=clip)
