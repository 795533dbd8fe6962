import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from makers import anchored, policy_gradient, q_of
from mdp import EOS, PrefixMDP, TabularModel, expectation, gradients_by_row, make_batch

from brim.analysis.choice import choose
from brim.analysis.estimators import Estimator, plan_of, weigh
from brim.analysis.gradients import (
    GradientMoments,
    GradientSketch,
    gradient_moments,
    measure_gradients,
)
from brim.analysis.sampling import Resamples, draw_samples, token_divergences
from brim.analysis.subjects import AnalyzedModel
from brim.analysis.variance import describe_student
from brim.divergences import forward_kl, reverse_kl
from brim.errors import ConfigError
from brim.examples import Example
from brim.models import Decoding
from brim.returns import block_returns
from brim.types import Batch

HORIZON = 4
PLAN = [
    Estimator(1, "one_step"),
    Estimator(2, "one_step"),
    Estimator(9, "one_step"),
    Estimator(2, "none"),
    Estimator(9, "none"),
]


class Writer(TabularModel):
    """A table that reads prompts: all of them are the empty one."""

    def encode(self, examples, *, max_tokens, seeds=None) -> Batch:
        batch = make_batch(len(examples))
        return Batch(tuple(examples), batch.prompt_ids, batch.prompt_mask, tuple(seeds))


class Setting:
    """P prompts that are all alike, M completions each, and the exact answers."""

    def __init__(self, num_prompts, num_samples, make=policy_gradient, **settings):
        mdp = PrefixMDP(HORIZON, seed=3)
        self.objective = make(Decoding(max_tokens=HORIZON), **settings)
        self.plan = PLAN if make is policy_gradient else plan_of(self.objective, [])
        self.student, self.teacher = Writer(mdp.student, mdp), Writer(mdp.teacher, mdp)
        self.teacher.requires_grad_(False)
        self.examples = [Example(f"{i}", "prompt") for i in range(num_prompts)]
        self.samples = draw_samples(
            self.objective, self.student, self.teacher, self.examples,
            num_samples=num_samples, seed=1,
        )  # fmt: skip
        self.weights = [weigh(self.samples, e.of(self.objective), self.student) for e in self.plan]
        self.all = mdp.all_trajectories()
        self.probabilities = self.all.probabilities(mdp.student)
        self.mean_length = float(self.probabilities @ self.all.mask.sum(1).double())
        self.mdp = mdp

    def exact_returns(self, estimator):
        rollout = self.all.rollout()
        values = q_of(self.objective, rollout, self.student, self.teacher)
        k, tail = estimator.value, estimator.tail
        return block_returns(values.q_taken, values.q_max, rollout.mask, k=k, tail=tail)

    def exact_gradient(self, estimator):
        """Mean and total variance of a completion's contribution."""
        rollout = self.all.rollout()
        values = q_of(self.objective, rollout, self.student, self.teacher)
        objective = estimator.of(self.objective)
        student = () if self.plan is not PLAN else (self.student,)
        scored, _ = objective.assign_credit(rollout, values, *student)
        gradients = gradients_by_row(objective, scored, self.student, self.teacher)
        gradients = gradients / self.mean_length
        return expectation(self.probabilities, gradients)

    def measure(self, num_dimensions=1024):
        return measure_gradients(
            self.samples, self.weights, self.objective, self.student, self.teacher,
            num_dimensions=num_dimensions, seed=0, batch_tokens=8192,
        )  # fmt: skip


@pytest.fixture(scope="module")
def many():
    return Setting(num_prompts=300, num_samples=8)


def describe(setting, gradients, num_resamples=200):
    divergences = token_divergences(setting.samples, setting.student, setting.teacher)
    return describe_student(
        AnalyzedModel("student"), setting.samples, setting.plan, setting.weights, gradients,
        divergences, Resamples.draw(len(setting.examples), num_resamples=num_resamples),
        own_tail="one_step" if setting.plan is PLAN else "", batch_prompts=32,
    )  # fmt: skip


@pytest.fixture(scope="module")
def measured(many):
    return describe(many, many.measure())


def near(estimate, exact):
    """Within twice the reach of a 95 % interval: four standard errors."""
    reach = 2 * (estimate.high - estimate.low) / 2 + 1e-9
    return abs(estimate.value - exact) <= reach


def test_variance_and_bias_are_those_of_enumeration(many, measured):
    exact = many.exact_returns(PLAN[0])
    mask, p = many.all.mask, many.probabilities
    tokens = float((p[:, None] * mask).sum())
    for estimator, row in zip(PLAN, measured.rows, strict=True):
        returns = many.exact_returns(estimator)
        mean = float(p @ returns[:, 0])
        assert near(row.numbers["variance_first"], float(p @ (returns[:, 0] - mean).square()))
        assert near(row.numbers["bias_first"], float(p @ (returns - exact)[:, 0]))
        each = p[:, None] * mask / tokens
        mean = float((each * returns).sum())
        assert near(row.numbers["variance_tokens"], float((each * (returns - mean) ** 2).sum()))
        assert near(row.numbers["bias_tokens"], float((each * (returns - exact)).sum()))


def check_gradients(many, measured):
    """Those of each estimator; the exact alignments."""
    alignments = []
    reference, _ = many.exact_gradient(many.plan[0])
    for estimator, row in zip(many.plan, measured.rows, strict=True):
        mean, variance = many.exact_gradient(estimator)
        assert near(row.numbers["gradient_squared_norm"], float(mean.square().sum()))
        assert near(row.numbers["gradient_variance"], variance)
        assert near(row.numbers["gradient_variance_within"], variance)  # prompts are all alike
        bias = float((mean - reference).square().sum())
        assert near(row.numbers["gradient_squared_bias"], bias)
        cosine = torch.cosine_similarity(mean.flatten(), reference.flatten(), dim=0)
        assert near(row.numbers["gradient_cosine"], float(cosine))
        alignment = float(cosine) / math.sqrt(1 + variance / 32 / float(mean.square().sum()))
        assert near(row.numbers["gradient_alignment"], alignment)
        alignments.append(alignment)
    return alignments


def test_gradients_have_the_mean_and_the_variance_of_enumeration(many, measured):
    check_gradients(many, measured)


def test_so_have_those_of_anchored_advantages_whose_best_is_chosen():
    many = Setting(120, 6, anchored, remaining_regret="none")
    found = describe(many, many.measure(num_dimensions=512))
    assert [row.as_dict()["lambda"] for row in found.rows] == [1, 0.9, 0.7, 0.5, 0.3, 0]
    exact = dict(zip(found.choice.shares, check_gradients(many, found), strict=True))
    assert exact[found.choice.best] > 0.97 * max(exact.values())
    assert min(exact.values()) < 0.9 * max(exact.values())
    assert "of λ = 1" in found.choice.text


def two_steps_back(depends):
    """Three words a text; a regret of 4 at the second, by that word or by the first alone."""
    mdp = PrefixMDP(3, seed=0)
    student, teacher = torch.zeros(2, mdp.num_states, 3, dtype=torch.float64)
    student[:, EOS] = -60.0  # never written
    if depends:
        teacher[2] = torch.tensor([-4.0, -4.0, 0.0])
    else:
        teacher[1:3] = torch.tensor([0.0, -4.0, -9.0])
    return mdp, student, teacher


def exact_moments(mdp, student, teacher, ks):
    """The law of the returns of all K, and the moments of the gradients that they make."""
    everything = mdp.all_trajectories()
    probabilities = everything.probabilities(student)
    rollout, means = everything.rollout(), []
    for k in ks:
        objective = policy_gradient(Decoding(max_tokens=3), k=k, q_centering="max")
        model, judge = TabularModel(student, mdp), TabularModel(teacher, mdp)
        values = q_of(objective, rollout, model, judge)
        scored, _ = objective.assign_credit(rollout, values, model)
        gradients = gradients_by_row(objective, scored, model)
        means.append((scored.returns, *expectation(probabilities, gradients)))
    of_one = means[0][1]
    moments = [
        GradientMoments(*(np.full(9, float(x)) for x in (
            mean.square().sum(), variance, variance, (mean * of_one).sum(),
            (mean - of_one).square().sum(), of_one.square().sum(),
        )))
        for _, mean, variance in means
    ]  # fmt: skip
    law = {}
    together = torch.cat([returns for returns, *_ in means], dim=1)
    for row, probability in zip(together.tolist(), probabilities.tolist(), strict=True):
        if probability > 1e-9:
            law[tuple(row)] = law.get(tuple(row), 0.0) + probability
    return law, moments


def test_what_the_returns_look_like_does_not_say_which_k_is_biased():
    """Why K is chosen by gradients: the same returns of each K, by chance or by the first word."""
    found = [exact_moments(*two_steps_back(depends), (1, 2)) for depends in (False, True)]
    (law, by_chance), (same_law, by_choice) = found
    assert law == pytest.approx(same_law)
    assert len(law) > 1
    resamples = Resamples.draw(8, num_resamples=8)
    for moments, k in ((by_chance, 2), (by_choice, 1)):
        assert choose([1, 2], moments, resamples, num_prompts=4).value == k
    assert by_chance[1].squared_bias[0] < 1e-12
    assert by_choice[1].squared_norm[0] < 1e-12 < by_choice[1].reference[0]


def test_divergences_are_those_of_enumeration(many, measured):
    tokens = many.probabilities[:, None] * many.all.mask
    for name, function in {"reverse_kl": reverse_kl, "forward_kl": forward_kl}.items():
        by_state = function(many.mdp.student, many.mdp.teacher)
        exact = float((tokens * by_state[many.all.states]).sum() / tokens.sum())
        assert near(measured.numbers[name], exact)
    assert near(measured.numbers["length"], many.mean_length)


def test_k_1_has_no_bias_and_k_above_the_length_is_k_1_with_the_one_step_tail(many):
    setting = Setting(num_prompts=6, num_samples=4)
    gradients = setting.measure(num_dimensions=64)
    found = describe(setting, gradients)
    one, _, nine, *_, untailed = found.rows
    for name in ("bias_first", "bias_tokens", "gradient_squared_bias"):
        assert one.numbers[name].value == one.numbers[name].high == 0
    # Written out, for NaN is not itself.
    assert repr(nine.numbers) == repr(one.numbers)
    assert np.array_equal(gradients.sketches["scaled"][0], gradients.sketches["scaled"][2])
    assert (nine.active, found.longest <= HORIZON) == (0.0, True)
    assert untailed.numbers["bias_first"].value > 0
    assert (one.llmr, nine.llmr, untailed.llmr) == (False, True, False)
    assert 9 not in found.choice.shares
    assert found.choice.text.endswith("K = 9.")


def test_bias_is_never_negative_and_without_a_tail_grows_with_k(many, measured):
    biases = [measured.row(k, "none").numbers["bias_first"].value for k in (1, 2, 9)]
    assert biases == sorted(biases)
    smallest = min(min(prompt["bias_first"]) for prompt in measured.prompts)
    assert smallest >= -1e-12  # rounding


def test_intervals_of_a_prompt_hold_its_own_variance_and_bias_mostly(many, measured):
    exact = many.exact_returns(PLAN[0])
    for i, estimator in enumerate(PLAN):
        returns = many.exact_returns(estimator)[:, 0]
        mean = many.probabilities @ returns
        truths = {
            "variance_first": float(many.probabilities @ (returns - mean).square()),
            "bias_first": float(many.probabilities @ (returns - exact[:, 0])),
        }
        for name, truth in truths.items():
            values, low, high = (
                np.array([prompt[f"{name}{end}"][i] for prompt in measured.prompts])
                for end in ("", "_low", "_high")
            )
            assert np.all((low <= values + 1e-9) & (values <= high + 1e-9))
            # Eight rollouts: percentile intervals of 95 % hold the truth less often.
            assert ((low <= truth + 1e-9) & (truth <= high + 1e-9)).mean() > 0.5


def test_completions_that_are_all_dropped_are_an_error_and_those_that_are_not_the_pilot():
    setting = Setting(num_prompts=12, num_samples=2)
    for weights in setting.weights:
        weights.mask[[i % 12 < 10 for i in range(24)]] = False
    assert (setting.measure(num_dimensions=8).sketches["scaled"][:, 10:] != 0).any(axis=-1).all()
    for weights in setting.weights:
        weights.mask[:] = False
    with pytest.raises(ConfigError, match="all completions are cut"):
        setting.measure(num_dimensions=8)


@pytest.mark.parametrize(
    "settings",
    [
        {"baseline": "mean"},
        {"baseline": "time_mean"},
        {"baseline": "leave_one_out", "num_generations": 2},
        {"clip": {"range": 0.5}},
        {"immediate": "expected"},
        {"q_centering": "policy"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_weights_are_those_of_training(settings):
    setting = Setting(num_prompts=5, num_samples=4, **settings)
    objective = PLAN[1].of(setting.objective)
    for rows in setting.samples.rounds():
        batch = setting.samples.rollout.select(rows)
        rollout, _ = objective.assign_credit(batch, batch.values, setting.student)
        torch.testing.assert_close(setting.weights[1].advantages[rows], rollout.advantages)
    group = settings.get("num_generations", 1)
    names = [example.id for example in setting.samples.rollout.batch.examples]
    assert names[: 2 * group] == ["0"] * group + ["1"] * group
    assert len(setting.measure(num_dimensions=8).sketches["whole"]) == len(PLAN)


def test_the_mean_over_prompts_is_the_gradient_of_all_rollouts_at_once():
    setting = Setting(num_prompts=3, num_samples=4, immediate="expected")
    found = setting.measure().sketches["whole"][1].mean(axis=(0, 1))
    everything = replace(setting.samples.rollout, advantages=setting.weights[1].advantages)
    loss = setting.objective.loss(setting.student, everything, setting.teacher).loss
    (gradient,) = torch.autograd.grad(loss, setting.student.table)
    sketch = GradientSketch([gradient.numel()], num_dimensions=1024, seed=0)
    expected = -sketch([gradient]).sum(0).numpy() / int(everything.mask.sum())
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_impossible_numbers_are_refused():
    with pytest.raises(ConfigError, match="multiple of 4"):
        Setting(num_prompts=3, num_samples=6, num_generations=2)
    with pytest.raises(ConfigError, match="at least 2"):
        Setting(num_prompts=1, num_samples=2)
    mdp = PrefixMDP(HORIZON, seed=3)
    with pytest.warns(UserWarning, match="greedy rollouts"):
        greedy = policy_gradient(Decoding(max_tokens=HORIZON, strategy="greedy"))
    with pytest.raises(ConfigError, match="greedy rollouts of a prompt do not vary"):
        draw_samples(greedy, Writer(mdp.student, mdp), Writer(mdp.teacher, mdp),
                     [Example("a", "p")] * 2, num_samples=2, seed=0)  # fmt: skip


def test_squares_of_norms_are_unbiased_over_sketches_and_samples():
    setting = Setting(num_prompts=60, num_samples=2)
    mean, _ = setting.exact_gradient(PLAN[0])
    found = []
    for start in range(0, 60, 6):
        few = Setting(num_prompts=60, num_samples=2)
        few.samples = draw_samples(
            few.objective, few.student, few.teacher, few.examples, num_samples=2, seed=start
        )
        few.weights = [weigh(few.samples, PLAN[0].of(few.objective), few.student)]
        (moments,) = gradient_moments(few.measure(), "whole", np.ones((1, 60)))
        found.append(float(moments.squared_norm[0]))
    error = np.std(found) / math.sqrt(len(found) - 1)
    assert np.mean(found) == pytest.approx(float(mean.square().sum()), abs=4 * error)
