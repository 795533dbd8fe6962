"""A task reward on every completion of an MDP: what it adds to the expected gradient, exactly."""

from dataclasses import replace
from itertools import product

import makers
import pytest
import torch
from makers import anchored, q_of
from mdp import PrefixMDP, TabularModel, Trajectories

from brim.models import Decoding
from brim.objectives.credit import centered_scores
from brim.returns import rewards_to_go

MDP = PrefixMDP(horizon=3, seed=84122)
ALL = MDP.all_trajectories()
NUM = len(ALL.mask)
SCORES = torch.rand(NUM, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
WEIGHT = 2.5
REWARD = {"metric": "exact_match", "weight": WEIGHT}
DECODING = Decoding(max_tokens=MDP.horizon)
TEACHER = TabularModel(MDP.teacher, MDP)
UNCLIPPED = {"clip": {"range": None}}
near = {"rtol": 0, "atol": 1e-12}

# Every pair of completions, one after the other: two of one prompt, or a batch of two prompts.
PAIRS = torch.tensor(list(product(range(NUM), repeat=2)))
ROWS = PAIRS.reshape(-1)


def policy_gradient(**settings):
    return makers.policy_gradient(DECODING, **{**UNCLIPPED, **settings})


def ppo_brim(**settings):
    return makers.ppo_brim(DECODING, normalize_advantages=False, **{**UNCLIPPED, **settings})


def ppo_anchored(**settings):
    free = {"normalize_advantages": False, "gae_lambda": 0.7, "num_generations": 2}
    return makers.ppo_llmr(DECODING, critic="anchored", **{**UNCLIPPED, **free, **settings})


def anchor(**settings):
    return anchored(DECODING, **{**UNCLIPPED, **settings})


def credited(objective, rows=ROWS):
    """The completions of these rows, scored and weighed as one rollout batch."""
    some = Trajectories(ALL.states[rows], ALL.actions[rows], ALL.mask[rows])
    student = TabularModel(MDP.student, MDP)
    objective.prepare(student)
    rollout = replace(some.rollout(), task_scores=SCORES[rows])
    values = q_of(objective, rollout, student, TEACHER)
    if hasattr(objective, "remaining"):
        return objective.assign_credit(rollout, values)
    return objective.assign_credit(rollout, values, student)


def expected(weights):
    """E Σ_t w_t ∇ log π of two independent completions, for (2 N², T) weights; the mean of both."""
    table = MDP.student.clone().requires_grad_()
    chances = ALL.probabilities(MDP.student)[PAIRS].prod(1).repeat_interleave(2) / 2
    logprobs = ALL.logprobs(table)[ROWS]
    return torch.autograd.grad((chances[:, None] * weights * logprobs).sum(), table)[0]


def exact(weight, of_teacher=1.0):
    """The gradient of `of_teacher · E[return] + weight · E[score]`."""
    table = MDP.student.clone().requires_grad_()
    taken, best = ALL.values(MDP.teacher)
    returns = rewards_to_go(taken, best, ALL.mask)[:, 0]
    objective = ALL.probabilities(table) @ (of_teacher * returns + weight * SCORES)
    return torch.autograd.grad(objective, table)[0]


METHODS = {
    "llmr": (policy_gradient, {}),
    "brim": (policy_gradient, {"k": 2}),
    "no tail": (policy_gradient, {"k": 2, "tail": "none", "q_centering": "policy"}),
    "expected": (policy_gradient, {"k": 2, "immediate": "expected"}),
    "leave_one_out": (policy_gradient, {"baseline": "leave_one_out", "num_generations": 2}),
    "reward clipped": (policy_gradient, {"clip": {"range": 1.0, "target": "reward"}}),
    "ppo_brim": (ppo_brim, {"k": 2}),
    "ppo_anchored": (ppo_anchored, {}),
    **{
        f"anchored {lambda_} {immediate} {regrets}": (
            anchor,
            {
                "lambda_": lambda_,
                "immediate": immediate,
                "expected_regrets": regrets,
                "num_generations": 2,
            },
        )
        for lambda_, immediate, regrets in product(
            [0.0, 0.7, 1.0], ["sampled", "expected"], [False, True]
        )
    },
}
each_method = pytest.mark.parametrize(("make", "settings"), METHODS.values(), ids=METHODS)


@each_method
def test_what_it_adds_is_the_gradient_of_the_expected_score(make, settings):
    with_reward, without = (
        credited(make(reward=reward, **settings))[0].advantages for reward in (REWARD, None)
    )
    added = expected(torch.where(ALL.mask[ROWS], with_reward - without, 0.0))
    torch.testing.assert_close(added, exact(WEIGHT, of_teacher=0.0), **near)
    nothing = credited(make(reward={**REWARD, "weight": 0.0}, **settings))[0].advantages
    assert torch.equal(nothing, without)


@pytest.mark.parametrize(
    "objective",
    [
        policy_gradient(reward=REWARD, q_centering="none"),
        policy_gradient(reward=REWARD, q_centering="mean"),
        anchor(
            reward=REWARD,
            lambda_=1.0,
            immediate="sampled",
            remaining_regret="none",
            num_generations=2,
        ),
    ],
    ids=["llmr", "llmr centered", "anchored"],
)
def test_unbiased_methods_follow_the_sum_of_both(objective):
    torch.testing.assert_close(expected(credited(objective)[0].advantages), exact(WEIGHT), **near)


def test_the_other_prompts_of_a_batch_are_the_mean_where_each_has_one_completion():
    objective = anchor(reward=REWARD)
    parts = []
    for pair in PAIRS:
        rollout = replace(ALL.rollout(), task_scores=SCORES).select(pair.tolist())
        parts.append(centered_scores(rollout, objective.settings))
    weights = torch.cat(parts)
    torch.testing.assert_close(expected(weights), exact(WEIGHT, of_teacher=0.0), **near)
    others = (SCORES.sum() - SCORES) / (NUM - 1)
    found = centered_scores(replace(ALL.rollout(), task_scores=SCORES), objective.settings)
    torch.testing.assert_close(found[:, 0], WEIGHT * (SCORES - others), **near)
    assert not found[~ALL.mask].any()


def test_dropped_completions_are_nobodys_mean():
    cut = ALL.rollout().truncated
    kept = (~cut).nonzero()[:, 0]
    found = credited(anchor(reward=REWARD, truncated="drop"), torch.arange(NUM))[0]
    alone = credited(anchor(reward=REWARD), kept)[0]
    assert not found.advantages[cut].any()
    torch.testing.assert_close(found.advantages[kept], alone.advantages, **near)


@pytest.mark.parametrize("make", [policy_gradient, anchor, ppo_brim])
def test_the_clip_bounds_the_sum(make):
    large, bound = {**REWARD, "weight": 50.0}, 1.5
    free, cut = (
        credited(make(reward=large, clip={"range": clip}))[0].advantages for clip in (None, bound)
    )
    assert free.abs().max() > bound
    assert torch.equal(cut, free.clamp(-bound, bound))


@each_method
def test_what_is_logged_of_the_teacher_stays_the_teachers(make, settings):
    def described(reward):
        sums = credited(make(reward=reward, **settings))[1]
        return make(reward=reward, **settings).describe({k: float(v) for k, v in sums.items()})

    with_reward, without = described(REWARD), described(None)
    assert with_reward["rollout/task_reward"] == pytest.approx(float(SCORES.mean()))
    variance = float(SCORES.var(correction=0))
    assert with_reward["rollout/var_task_reward"] == pytest.approx(variance)
    for key in ("rollout/return", "rollout/return_k", "rollout/var_return_k", "rollout/bias"):
        assert with_reward[key] == without[key]


def test_a_rollout_without_scores_is_refused():
    objective = policy_gradient(reward=REWARD)
    rollout, student = ALL.rollout(), TabularModel(MDP.student, MDP)
    with pytest.raises(ValueError, match="task_scores"):
        objective.assign_credit(rollout, q_of(objective, rollout, student, TEACHER), student)
