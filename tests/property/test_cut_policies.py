"""top_k and top_p: the gradient is that of the distribution that sampled, on every completion.

The truth is made here, from the definition of the kept tokens; the estimate by the objectives' own
code and the package's chunked head.
"""

from dataclasses import replace
from itertools import product

import pytest
import torch
from makers import policy_gradient, ppo_brim, q_of
from mdp import PrefixMDP, TabularModel, Trajectories, expectation, gradients_by_row, make_batch
from torch import Tensor

from brim.models import SOFTMAX, Decoding, Distribution
from brim.returns import rewards_to_go

CUTS = [
    {"top_k": 2},
    {"top_p": 0.8},
    {"top_k": 2, "top_p": 0.8},
    {"temperature": 0.6, "top_k": 2},
    {"temperature": 1.7, "top_p": 0.8},
]
CENTERINGS = ["none", "mean", "max", "logsumexp", "policy"]
each_cut = pytest.mark.parametrize("cut", CUTS, ids=str)
each_immediate = pytest.mark.parametrize("immediate", ["sampled", "expected"])
MDP = PrefixMDP(horizon=3, seed=84122)
ALL = MDP.all_trajectories()


def kept(table: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """By the definition, (num_states, 3) bool."""
    result = torch.zeros(table.shape, dtype=torch.bool)
    for row, logits in zip(result, table, strict=True):
        order = logits.argsort(descending=True)[:top_k]
        mass = 0.0
        for token, share in zip(order, logits[order].softmax(0), strict=True):
            row[token] = top_p is None or mass < top_p
            mass += float(share)
    return result


def sampler(table: Tensor, temperature: float = 1.0, **cut) -> Tensor:
    """Logits of the distribution that samples, differentiable."""
    logits = table / temperature
    return logits.masked_fill(~kept(logits.detach(), **cut), -1e30)


def decoding(mdp: PrefixMDP, **cut) -> Decoding:
    return Decoding(max_tokens=mdp.horizon, **cut)


def models(mdp: PrefixMDP) -> tuple[TabularModel, TabularModel]:
    """Student and teacher."""
    return tuple(TabularModel(table, mdp, chunked=True) for table in (mdp.student, mdp.teacher))


def expected_gradient(mdp, cut, trajectories, **settings) -> Tensor:
    student, teacher = models(mdp)
    objective = policy_gradient(
        decoding(mdp, **cut), **{"k": 1, "clip": {"range": None}, "q_centering": "none", **settings}
    )
    rollout = trajectories.rollout()
    values = q_of(objective, rollout, student, teacher)
    rollout, _ = objective.assign_credit(rollout, values, student)
    weights = trajectories.probabilities(sampler(mdp.student, **cut))[:, None]

    def weighted(rollout, **how):
        tokens = student(rollout, **how)
        compared = None if tokens.compared is None else weights * tokens.compared
        return replace(tokens, logprobs=weights * tokens.logprobs, compared=compared)

    return -torch.autograd.grad(objective.loss(weighted, rollout, teacher).loss, student.table)[0]


def true_gradient(mdp, cut, trajectories) -> Tensor:
    """Of the expected return (Eq 3) of what samples, in the student's table."""
    table = mdp.student.clone().requires_grad_()
    taken, best = trajectories.values(mdp.teacher)
    returns = rewards_to_go(taken, best, trajectories.mask)[:, 0]
    expected = trajectories.probabilities(sampler(table, **cut)) @ returns
    return torch.autograd.grad(expected, table)[0]


def relative_error(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


@each_cut
@each_immediate
@pytest.mark.parametrize("q_centering", CENTERINGS)
@pytest.mark.parametrize("baseline", ["none", "mean", "min_variance"])
def test_the_expected_gradient_is_the_true_one(cut, immediate, q_centering, baseline):
    found = expected_gradient(
        MDP, cut, ALL, immediate=immediate, q_centering=q_centering, baseline=baseline
    )
    assert relative_error(found, true_gradient(MDP, cut, ALL)) < 1e-3


def test_each_cut_leaves_something_out_and_something_to_choose():
    for cut in CUTS:
        numbers = (sampler(MDP.student, **cut) > -1e30).sum(1)
        assert numbers.min() < 3
        assert numbers.max() > 1
        assert true_gradient(MDP, cut, ALL).norm() > 0.1


SMALL = PrefixMDP(horizon=2, seed=310)


@each_cut
@each_immediate
@pytest.mark.parametrize("baseline", ["time_mean", "leave_one_out"])
def test_the_baseline_of_other_completions_leaves_it(cut, immediate, baseline):
    # Over every batch of two completions that can be written.
    every = SMALL.all_trajectories()
    probabilities = every.probabilities(sampler(SMALL.student, **cut))
    student, teacher = models(SMALL)
    objective = policy_gradient(
        decoding(SMALL, **cut),
        k=1,
        clip={"range": None},
        q_centering="mean",
        num_generations=2,
        baseline=baseline,
        immediate=immediate,
    )
    found = torch.zeros_like(SMALL.student)
    for rows in product(probabilities.nonzero().flatten().tolist(), repeat=2):
        parts = (every.states, every.actions, every.mask)
        pair = Trajectories(*(part[list(rows)] for part in parts))
        values = q_of(objective, pair.rollout(), student, teacher)
        rollout, _ = objective.assign_credit(pair.rollout(), values, student)
        loss = objective.loss(student, rollout, teacher).loss / 2
        found -= probabilities[list(rows)].prod() * torch.autograd.grad(loss, student.table)[0]
    assert relative_error(found, true_gradient(SMALL, cut, every)) < 1e-3


@each_cut
@pytest.mark.parametrize("returns", [{"k": 2}, {"k": 2, "tail": "none"}], ids=str)
def test_no_centring_moves_the_expected_gradient_of_any_return(cut, returns):
    plain = expected_gradient(MDP, cut, ALL, **returns)
    for q_centering, immediate in product(CENTERINGS[1:], ("sampled", "expected")):
        other = expected_gradient(
            MDP, cut, ALL, q_centering=q_centering, immediate=immediate, **returns
        )
        assert relative_error(other, plain) < 1e-3


def gradient_of_a_constant(cut, loss_cut, kind, **options) -> Tensor:
    """Expected under a cut, of a loss under a cut, where every token weighs 8."""
    student, _ = models(MDP)
    teacher = TabularModel(torch.zeros_like(MDP.teacher), MDP, chunked=True)
    objective = kind(decoding(MDP, **loss_cut), **options)
    objective.prepare(student)
    rollout = ALL.rollout()
    values = q_of(objective, rollout, student, teacher)
    rollout, _ = objective.assign_credit(rollout, values, student)
    rollout = replace(rollout, advantages=torch.full(rollout.mask.shape, 8.0))
    gradients = gradients_by_row(objective, rollout, student, teacher)
    return expectation(ALL.probabilities(sampler(MDP.student, **cut)), gradients)[0]


@each_cut
@pytest.mark.parametrize(
    ("kind", "options"),
    [(policy_gradient, {}), (policy_gradient, {"rollout_reuse": 2}), (ppo_brim, {})],
)
def test_with_nothing_to_learn_a_constant_weight_moves_nothing(cut, kind, options):
    assert gradient_of_a_constant(cut, cut, kind, **options).norm() < 1e-5
    # With the log-probabilities of the whole softmax it would.
    whole = {"temperature": cut.get("temperature", 1.0)}
    assert gradient_of_a_constant(cut, whole, kind, **options).norm() > 0.1


@each_cut
def test_chunked_and_naive_statistics_agree_with_their_gradients(cut):
    distribution = decoding(MDP, **cut).distribution
    weights = torch.linspace(-1, 1, ALL.mask.numel(), dtype=torch.float64).view(ALL.mask.shape)
    gradients = []
    for chunked in (True, False):
        student = TabularModel(MDP.student, MDP, chunked=chunked)
        tokens = student(ALL.rollout(), distribution=distribution, chunk_tokens=4)
        (gradient,) = torch.autograd.grad((weights * tokens.logprobs).sum(), student.table)
        gradients.append((tokens.logprobs, tokens.entropy, gradient))
    for chunked, naive in zip(*gradients, strict=True):
        torch.testing.assert_close(chunked.double(), naive, rtol=1e-5, atol=1e-5)


@each_cut
def test_under_policy_centring_what_samples_expects_nothing(cut):
    student, teacher = models(MDP)
    objective = policy_gradient(decoding(MDP, **cut), q_centering="policy")
    values = q_of(objective, ALL.rollout(), student, teacher)
    probabilities = sampler(MDP.student, **cut).softmax(1)
    expected = (probabilities * MDP.teacher).sum(1)[ALL.states]
    moved = ALL.values(MDP.teacher)[0] - values.q_taken
    possible = ALL.mask & (probabilities[ALL.states, ALL.actions] > 0)
    torch.testing.assert_close(moved[possible], expected[possible], rtol=1e-5, atol=1e-5)
    # What the teacher says of the text knows no cut.
    logprobs = ALL.logprobs(MDP.teacher)
    torch.testing.assert_close(
        values.logprobs.double()[ALL.mask], logprobs[ALL.mask], rtol=1e-5, atol=1e-5
    )


@each_cut
def test_the_logged_kl_is_that_of_what_samples(cut):
    student, teacher = models(MDP)
    objective = policy_gradient(decoding(MDP, **cut))
    rollout = ALL.rollout()
    rollout, _ = objective.assign_credit(
        rollout, q_of(objective, rollout, student, teacher), student
    )
    probabilities = ALL.probabilities(sampler(MDP.student, **cut))
    found = 0.0
    for row, probability in enumerate(probabilities.tolist()):
        sums = objective.loss(student, rollout.select([row])).sums
        found += probability * float(sums["policy/kl_to_teacher"])
    possible = probabilities > 0
    divergence = (probabilities / ALL.probabilities(MDP.teacher))[possible].log()
    assert found == pytest.approx(float(probabilities[possible] @ divergence), abs=1e-5)
    assert found > 0


@pytest.mark.parametrize("cut", CUTS[:3], ids=str)
@each_immediate
def test_importance_weights_make_an_older_policys_text_as_good(cut, immediate):
    # Of one step, where both keep the same tokens.
    mdp = PrefixMDP(horizon=1, seed=34007)
    move = torch.tensor([[-0.1, 0.2, 0.05]], dtype=torch.float64)
    every, old, new = mdp.all_trajectories(), mdp.student, mdp.student + move
    own = [cut.get("top_k"), cut.get("top_p")]
    assert torch.equal(kept(old, *own), kept(new, *own))
    results = []
    for table, reuse in ((old, 2), (new, 1)):
        writer, policy = (TabularModel(x, mdp, chunked=True) for x in (table, new))
        teacher = TabularModel(mdp.teacher, mdp, chunked=True)
        objective = policy_gradient(
            decoding(mdp, **cut),
            k=1,
            clip={"range": None},
            max_importance_weight=None,
            rollout_reuse=reuse,
            immediate=immediate,
        )
        rollout = every.rollout()
        values = q_of(objective, rollout, writer, teacher)
        rollout, _ = objective.assign_credit(rollout, values, writer)
        gradients = gradients_by_row(objective, rollout, policy, teacher)
        results.append(expectation(every.probabilities(sampler(table, **cut)), gradients)[0])
    assert relative_error(*results) < 1e-3


@each_cut
@pytest.mark.parametrize("kind", [policy_gradient, ppo_brim])
def test_text_that_is_no_longer_kept_has_a_finite_loss_and_can_come_back(cut, kind):
    # A policy that has turned over since: what it wrote is now the least likely.
    old = TabularModel(MDP.student, MDP, chunked=True)
    new = TabularModel(-20 * MDP.student, MDP, chunked=True)
    _, teacher = models(MDP)
    options = {"rollout_reuse": 2} if kind is policy_gradient else {"num_epochs": 2}
    objective = kind(decoding(MDP, **cut), **options)
    objective.prepare(old)
    rollout, _ = objective.collect(make_batch(20), old, teacher)
    out = objective.loss(new, rollout, teacher)
    (gradient,) = torch.autograd.grad(out.loss, new.table)
    assert out.loss.isfinite()
    assert gradient.isfinite().all()
    assert all(value.isfinite() and value.abs() < 1e12 for value in out.sums.values())
    tokens = new(rollout, distribution=objective.decoding.distribution)
    (pull,) = torch.autograd.grad(tokens.logprobs.sum(), new.table)
    assert tokens.logprobs.min() > -1e3
    assert pull.norm() > 1


def test_a_cut_that_cuts_nothing_is_the_whole_softmax():
    rollout = ALL.rollout()
    plain = TabularModel(MDP.student, MDP, chunked=True)
    for distribution in (Distribution(top_k=3), Distribution(top_k=50), Distribution(top_p=1.0)):
        for name in ("logprobs", "entropy"):
            one, other = (
                getattr(plain(rollout, distribution=d), name) for d in (distribution, SOFTMAX)
            )
            assert torch.equal(one, other)


@each_cut
def test_no_other_tokens_are_written(cut):
    student = TabularModel(MDP.student, MDP)
    rollout = student.generate(make_batch(200), decoding(MDP, **cut))
    states = student.features(rollout).hidden.detach()
    stay = kept(states / cut.get("temperature", 1.0), cut.get("top_k"), cut.get("top_p"))
    assert stay.gather(1, rollout.completion_ids[rollout.mask][:, None]).all()
