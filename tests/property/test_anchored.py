"""Anchored advantages by the objective's own code, on every completion of an MDP."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from makers import anchored, policy_gradient, q_of
from mdp import EOS, NUM_WORDS, PrefixMDP, TabularModel, expectation, gradients_by_row

from brim.models import Decoding
from brim.objectives.regrets import mean_per_token
from brim.types import ActionValues, Segments

MDP = PrefixMDP(horizon=4, seed=84122)
ALL = MDP.all_trajectories()
TEACHER = TabularModel(MDP.teacher, MDP)
UNCLIPPED = {"clip": {"range": None}}
near = {"rtol": 0, "atol": 1e-12}


def decoding(temperature=1.0, **options) -> Decoding:
    return Decoding(max_tokens=MDP.horizon, temperature=temperature, **options)


def student() -> TabularModel:
    return TabularModel(MDP.student, MDP)


def credited(objective, trajectories=ALL, teacher=TEACHER):
    policy = student()
    rollout = trajectories.rollout()
    values = q_of(objective, rollout, policy, teacher)
    return objective.assign_credit(rollout, values)[0]


def moments(objective, temperature=1.0, teacher=TEACHER):
    """Expectation and variance of a completion's gradient."""
    policy, rollout = student(), credited(objective, teacher=teacher)
    gradients = gradients_by_row(objective, rollout, policy, teacher)
    return expectation(ALL.probabilities(MDP.student / temperature), gradients)


def with_remaining(objective, by_state):
    """The objective with Û given as a table of states, in place of what a batch says."""
    # Behind the last token of a completion nothing remains.
    table = torch.cat([by_state[ALL.states] * ALL.mask, torch.zeros(len(ALL.mask), 1)], dim=1)
    objective.remaining = lambda to_come, mask: table.to(to_come.dtype)
    return objective


def by_step(number_of_step):
    """A table of states that knows the step only."""
    depth = (torch.arange(MDP.num_states) + 1).double().log2().floor().long()
    return number_of_step[depth]


def policy_table(temperature=1.0):
    return (MDP.student / temperature).softmax(-1)


def regret_table():
    return MDP.teacher.amax(-1, keepdim=True) - MDP.teacher


def successors():
    """(num_states, 3): the next state of each action; -1 where the text ends or is cut."""
    children = NUM_WORDS * torch.arange(MDP.num_states)[:, None] + 1 + torch.arange(3)
    children[:, EOS] = -1
    return children.masked_fill(children >= MDP.num_states, -1)


def expected_to_come(of_action, decay=1.0, temperature=1.0):
    """(num_states,): what is expected of a sum over the states from each on, by recursion."""
    values = torch.zeros(MDP.num_states, dtype=torch.float64)
    following = successors()
    for state in reversed(range(MDP.num_states)):
        later = torch.where(following[state] >= 0, values[following[state]], 0.0)
        values[state] = policy_table(temperature)[state] @ (of_action[state] + decay * later)
    return values


def at_successor(values):
    following = successors()
    return torch.where(following >= 0, values[following], 0.0)


def gradient_of(advantages, temperature=1.0):
    """E Σ_t A(s_t, a_t) ∇ log π for a table of advantages, exactly."""
    table = MDP.student.clone().requires_grad_()
    logprobs = (table / temperature).log_softmax(-1)[ALL.states, ALL.actions]
    weights = advantages[ALL.states, ALL.actions] * ALL.mask
    probabilities = ALL.probabilities(MDP.student / temperature)
    (gradient,) = torch.autograd.grad((probabilities[:, None] * weights * logprobs).sum(), table)
    return gradient


def predicted(remaining, lambda_, temperature=1.0):
    """The advantages that method.md derives: A^π − ε(s) + (1 − λ) Σ_i λ^(i−1) E[ε(s_i) | s, a]."""
    true = expected_to_come(regret_table(), temperature=temperature)
    advantage = -regret_table() + true[:, None] - at_successor(true)
    error = true - remaining
    later = expected_to_come(error[:, None].expand(-1, 3), lambda_, temperature)
    return advantage - error[:, None] + (1 - lambda_) * at_successor(later)


# What it reduces to


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_lambda_1_without_a_critic_is_llmr_centered_by_max_to_the_bit(temperature):
    ours = anchored(
        decoding(temperature),
        **{"lambda": 1},
        remaining_regret="none",
        expected_regrets=False,
        immediate="sampled",
    )
    llmr = policy_gradient(decoding(temperature), q_centering="max")
    assert torch.equal(credited(ours).advantages, credited(llmr).advantages)


def test_lambda_0_without_a_critic_is_the_weight_of_aggrevated():
    ours = anchored(
        decoding(),
        lambda_=0,
        remaining_regret="none",
        expected_regrets=False,
        immediate="sampled",
        **UNCLIPPED,
    )
    expected = -regret_table()[ALL.states, ALL.actions] * ALL.mask
    torch.testing.assert_close(credited(ours).advantages, expected, **near)


# The expected gradient


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("expected_regrets", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_bias_is_that_of_the_derivation_for_any_estimate(
    lambda_, expected_regrets, temperature
):
    guess = torch.rand(
        MDP.num_states, dtype=torch.float64, generator=torch.Generator().manual_seed(5)
    )
    objective = anchored(
        decoding(temperature),
        lambda_=lambda_,
        expected_regrets=expected_regrets,
        immediate="sampled",
        **UNCLIPPED,
    )
    mean, _ = moments(with_remaining(objective, guess), temperature)
    expected = gradient_of(predicted(guess, lambda_, temperature), temperature)
    torch.testing.assert_close(mean, expected, **near)


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("expected_regrets", [False, True])
@pytest.mark.parametrize("remaining", ["none", "by step"])
def test_the_own_step_over_all_tokens_has_the_same_expectation(
    lambda_, expected_regrets, remaining
):
    numbers = torch.tensor([1.9, 1.2, 0.8, 0.3], dtype=torch.float64)
    guess = by_step(numbers if remaining == "by step" else numbers * 0)
    settings = {"lambda_": lambda_, "expected_regrets": expected_regrets, **UNCLIPPED}
    sampled = with_remaining(anchored(decoding(), immediate="sampled", **settings), guess)
    exact = anchored(decoding(), immediate="expected", **settings)
    # Û of the next step, also where the text has ended: what an end would save.
    steps = torch.cat([guess[[0, 1, 3, 7]], torch.zeros(1, dtype=torch.float64)])
    exact.remaining = lambda to_come, mask: steps.expand(len(mask), -1)
    mean, variance = moments(exact)
    torch.testing.assert_close(mean, gradient_of(predicted(guess, lambda_)), **near)
    torch.testing.assert_close(mean, moments(sampled)[0], **near)
    assert variance < moments(sampled)[1]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_with_the_true_remaining_regrets_no_lambda_is_biased(temperature):
    true = expected_to_come(regret_table(), temperature=temperature)
    exact = gradient_of(predicted(true, 1.0, temperature), temperature)
    for lambda_, expected_regrets in product([0.0, 0.3, 0.7, 1.0], [False, True]):
        objective = anchored(
            decoding(temperature),
            lambda_=lambda_,
            expected_regrets=expected_regrets,
            immediate="sampled",
            **UNCLIPPED,
        )
        mean, _ = moments(with_remaining(objective, true), temperature)
        torch.testing.assert_close(mean, exact, **near)


def test_at_lambda_1_it_is_the_gradient_of_the_expected_return():
    llmr = policy_gradient(decoding(), q_centering="none", **UNCLIPPED)
    exact, _ = moments(llmr)
    for immediate, expected_regrets in product(["sampled", "expected"], [False, True]):
        ours = anchored(
            decoding(),
            lambda_=1,
            remaining_regret="none",
            expected_regrets=expected_regrets,
            immediate=immediate,
            **UNCLIPPED,
        )
        torch.testing.assert_close(moments(ours)[0], exact, **near)


@pytest.mark.parametrize("lambda_", [0.5, 0.7, 1.0])
def test_expected_regrets_change_the_variance_alone(lambda_):
    true = expected_to_come(regret_table())
    found = []
    for expected_regrets in (True, False):
        settings = {"lambda_": lambda_, "expected_regrets": expected_regrets, **UNCLIPPED}
        objective = anchored(decoding(), immediate="sampled", **settings)
        found.append(moments(with_remaining(objective, true)))
    torch.testing.assert_close(found[0][0], found[1][0], **near)
    assert found[0][1] < found[1][1]


@pytest.mark.parametrize("cut", [{"top_k": 2}, {"top_p": 0.8}], ids=str)
def test_under_a_cut_the_regrets_are_those_of_what_samples(cut):
    objective = anchored(decoding(**cut), **UNCLIPPED)
    values = q_of(objective, ALL.rollout(), student(), TEACHER)
    kept = MDP.student >= MDP.student.topk(2).values[:, -1:]
    if "top_p" in cut:
        ordered, order = policy_table().sort(descending=True)
        few = ordered.cumsum(-1) - ordered < cut["top_p"]
        kept = torch.zeros_like(kept).scatter(1, order, few)
    sampling = MDP.student.masked_fill(~kept, -torch.inf).softmax(-1)
    expected = (sampling * regret_table()).sum(-1)[ALL.states]
    # Where a completion holds a token outside, it would not have been written.
    possible = (kept[ALL.states, ALL.actions] | ~ALL.mask).all(1)
    mask = ALL.mask & possible[:, None]
    torch.testing.assert_close(values.q_max[mask], expected[mask], rtol=0, atol=1e-9)


# Per token


def gradient_per_token(temperature):
    """∇ of −E[Σ d] / E[length] times the mean length, and the ratio, exactly."""
    table = MDP.student.clone().requires_grad_()
    probabilities = ALL.probabilities(table / temperature)
    regrets = probabilities @ (regret_table()[ALL.states, ALL.actions] * ALL.mask).sum(1)
    length = probabilities @ ALL.mask.sum(1).double()
    (gradient,) = torch.autograd.grad(-regrets / length * length.detach(), table)
    return gradient, (regrets / length).detach()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("expected_regrets", [False, True])
@pytest.mark.parametrize("immediate", ["sampled", "expected"])
def test_per_token_it_is_the_gradient_of_the_regret_per_token(
    temperature, expected_regrets, immediate
):
    exact, rate = gradient_per_token(temperature)
    total = {"remaining_regret": "none", "immediate": immediate, **UNCLIPPED}
    total |= {"expected_regrets": expected_regrets, "lambda_": 1}
    objective = anchored(decoding(temperature), per_token=True, **total)
    objective.rate = lambda regrets, mask: rate
    found, _ = moments(objective, temperature)
    torch.testing.assert_close(found, exact, **near)
    of_texts, _ = moments(anchored(decoding(temperature), **total), temperature)
    assert (found - of_texts).norm() > 0.1 * of_texts.norm()


def test_per_token_no_lambda_is_biased_with_the_true_remaining_regrets():
    exact, rate = gradient_per_token(1.0)
    true = expected_to_come(regret_table())
    left = expected_to_come(torch.ones_like(regret_table()))
    for lambda_, expected_regrets in product([0.0, 0.3, 0.7, 1.0], [False, True]):
        settings = {"lambda_": lambda_, "expected_regrets": expected_regrets, **UNCLIPPED}
        objective = anchored(decoding(), per_token=True, immediate="sampled", **settings)
        objective.rate = lambda regrets, mask: rate
        with_remaining(objective, true)
        of_regrets, of_tokens = objective.remaining, with_remaining(objective, left).remaining
        both = iter([of_regrets, of_tokens])
        objective.remaining = lambda *batch, both=both: next(both)(*batch)
        mean, _ = moments(objective)
        torch.testing.assert_close(mean, exact, **near)


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_where_all_tokens_have_the_same_regret_no_length_is_better_per_token(lambda_):
    # One best action, never taken: every token that is written costs 1.
    costly = torch.ones(MDP.num_states, 3, dtype=torch.float64)
    policy, rollout = student(), ALL.rollout()
    of_state = TabularModel(costly, MDP)
    settings = {"expected_regrets": False, "immediate": "sampled", "lambda_": lambda_}

    def advantages(**more):
        objective = anchored(decoding(), **settings, **more)
        values = q_of(objective, rollout, policy, of_state)
        values = replace(values, q_max=torch.where(ALL.mask, values.q_max + 1, 0.0))
        return objective.assign_credit(rollout, values)[0].advantages

    torch.testing.assert_close(
        advantages(per_token=True), ALL.mask * 0.0, rtol=0, atol=1e-12, check_dtype=False
    )
    assert advantages(remaining_regret="none").abs().max() > 0.5


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_tokens_count_where_a_teacher_reads_text_and_not_its_segments(lambda_):
    # Each token costs 1, in a text of one segment as in one of four.
    index = torch.tensor([[0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1, 1]])
    mask = torch.ones(3, 4, dtype=torch.bool)
    regrets = torch.zeros(3, 4, dtype=torch.float64)
    regrets[0, 3], regrets[1], regrets[2, [1, 3]] = 4, 1, 2
    segments = Segments(index, *torch.zeros(2, 3, dtype=torch.long))
    values = ActionValues(-regrets, regrets * 0, regrets * 0, segments=segments)
    rollout = replace(ALL.rollout().select(torch.arange(3)), mask=mask, completion_ids=index)
    objective = anchored(
        decoding(), expected_regrets=False, immediate="sampled", lambda_=lambda_, per_token=True
    )
    found = objective.assign_credit(rollout, values)[0].advantages
    torch.testing.assert_close(found, mask * 0.0, rtol=0, atol=1e-12, check_dtype=False)


def test_a_row_has_no_part_in_its_mean_per_token():
    mask = torch.arange(4) < torch.tensor([4, 2, 3])[:, None]
    regrets = torch.rand(3, 4, dtype=torch.float64) * mask
    found = mean_per_token(regrets, mask)
    torch.testing.assert_close(found[0, 0], regrets[1:].sum() / 5)
    assert mean_per_token(regrets[:1], mask[:1]).tolist() == [[0.0]]  # no other


@pytest.mark.parametrize("per_token", [False, True])
def test_what_remains_is_expected_of_a_row_without_its_own_regrets(per_token):
    objective, rollout = anchored(decoding(), per_token=per_token), ALL.rollout()
    values = q_of(objective, rollout, student(), TEACHER)
    worse = values.q_max.clone()
    worse[2] += 9 * ALL.mask[2]
    one, other = (
        objective.assign_credit(rollout, q)[0].end_values
        for q in (values, replace(values, q_max=worse))
    )
    torch.testing.assert_close(one[2], other[2], **near)
    assert (one[:2] != other[:2]).any()


def test_per_token_has_no_learned_share():
    with pytest.raises(ValueError, match="set it to time_mean"):
        anchored(decoding(), per_token=True, remaining_regret="learned")


# What it does not depend on


SETTINGS = [
    {"per_token": True},
    {},
    {"immediate": "sampled"},
    {"expected_regrets": False},
    {"expected_regrets": False, "immediate": "sampled", "lambda_": 1.0},
    {"remaining_regret": "none"},
    {"truncated": "drop"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_is_added_to_all_values_of_a_state_changes_nothing(settings):
    offsets = 10 * torch.randn(MDP.num_states, 1, dtype=torch.float64)
    moved = TabularModel(MDP.teacher + offsets, MDP)
    objective = anchored(decoding(), **settings)
    for one, other in zip(moments(objective), moments(objective, teacher=moved), strict=True):
        torch.testing.assert_close(
            torch.as_tensor(one), torch.as_tensor(other), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_padding_is_not_read(settings):
    objective, policy = anchored(decoding(), **settings), student()
    rollout = ALL.rollout()
    values = q_of(objective, rollout, policy, TEACHER)
    dirty = replace(
        values,
        q_taken=torch.where(ALL.mask, values.q_taken, torch.nan),
        q_max=torch.where(ALL.mask, values.q_max, torch.inf),
    )
    clean, spoilt = (objective.assign_credit(rollout, q)[0] for q in (values, dirty))
    assert torch.equal(clean.advantages, spoilt.advantages)
    if clean.end_values is not None:
        assert torch.equal(clean.end_values, spoilt.end_values)


def test_a_row_s_critic_does_not_know_the_row():
    objective = anchored(decoding())
    to_come = torch.rand(6, 4, dtype=torch.float64).cumsum(1).flip(1)
    mask = torch.arange(4) < torch.tensor([4, 2, 3, 4, 1, 4])[:, None]
    to_come = to_come * mask
    found = objective.remaining(to_come, mask)
    changed = to_come.clone()
    changed[2] *= 9
    torch.testing.assert_close(objective.remaining(changed, mask)[2], found[2], **near)
    assert (objective.remaining(changed, mask)[0] != found[0]).any()
    others = to_come[:, 0].sum() - to_come[:, 0]
    torch.testing.assert_close(found[:, 0], others / 5)
    assert (found[:, 4] == 0).all()  # nothing is behind the limit


def test_several_completions_of_a_prompt_are_each_others_critic():
    objective = anchored(decoding(), num_generations=2)
    mask = torch.arange(4) < torch.tensor([4, 2, 3, 4])[:, None]
    to_come = torch.tensor([[4.0, 3, 2, 1], [9, 8, 0, 0], [3, 2, 1, 0], [7, 6, 5, 4]])
    found = objective.remaining(to_come, mask)
    assert found[0].tolist() == [9, 8, 3, 4, 0]  # its other has ended: the mean of all others
    assert found[1].tolist() == [4, 3, 2, 1, 0]
    assert found[3].tolist() == [3, 2, 1, 1, 0]


def test_dropped_completions_teach_nothing_and_are_no_critic():
    objective = anchored(decoding(), truncated="drop")
    rollout = credited(objective)
    cut = ALL.rollout().truncated
    assert cut.any()
    assert not rollout.mask[cut].any()
    assert not rollout.advantages[cut].any()
    kept = [index for index, dropped in enumerate(cut.tolist()) if not dropped]
    alone = anchored(decoding(), truncated="keep")
    policy, some = student(), ALL.rollout().select(kept)
    values = q_of(alone, some, policy, TEACHER)
    expected = alone.assign_credit(some, values)[0].advantages
    torch.testing.assert_close(rollout.advantages[~cut], expected, **near)


def test_the_clip_is_of_the_advantage():
    settings = {"lambda_": 1.0, "immediate": "sampled", "remaining_regret": "none"}
    free = credited(anchored(decoding(), **settings, **UNCLIPPED)).advantages
    bound = credited(anchored(decoding(), **settings, clip={"range": 1.0})).advantages
    assert free.abs().max() > 1
    assert torch.equal(bound, free.clamp(-1, 1))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_chunked_and_naive_have_the_same_gradients(settings):
    objective = anchored(decoding(0.6), **settings)
    rollout = credited(objective)
    rollout = replace(rollout, values=replace(rollout.values, hidden=None))  # each asks its own
    naive, chunked = (TabularModel(MDP.student, MDP, chunked=flag) for flag in (False, True))
    teachers = (TEACHER, TabularModel(MDP.teacher, MDP, chunked=True))
    losses = [
        objective.loss(policy, rollout, teacher).loss
        for policy, teacher in zip((naive, chunked), teachers, strict=True)
    ]
    torch.testing.assert_close(losses[1].double(), losses[0], rtol=1e-5, atol=1e-4)
    gradients = [
        torch.autograd.grad(loss, policy.table)[0]
        for loss, policy in zip(losses, (naive, chunked), strict=True)
    ]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


def test_metrics_say_how_good_the_critic_is():
    objective = anchored(decoding())
    policy, rollout = student(), ALL.rollout()
    values = q_of(objective, rollout, policy, TEACHER)
    sums = objective.assign_credit(rollout, values)[1]
    metrics = objective.describe({name: float(number) for name, number in sums.items()})
    assert metrics["anchored/regrets_to_come"] > 0
    assert 0 < metrics["anchored/explained_variance"] < 1
    none = anchored(decoding(), remaining_regret="none")
    sums = none.assign_credit(rollout, values)[1]
    metrics = none.describe({name: float(number) for name, number in sums.items()})
    assert metrics["anchored/explained_variance"] == pytest.approx(0, abs=1e-12)
