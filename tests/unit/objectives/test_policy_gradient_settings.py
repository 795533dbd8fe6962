"""The policy gradient's settings: what is refused, and what real models make of them."""

import itertools
from dataclasses import replace

import pytest
import torch
from enumerable import (
    DECODING,
    EXAMPLES,
    build,
    every_completion,
    expected_return,
    highest_return,
    make_trainer,
    pair,
    probabilities,
)
from makers import policy_gradient, q_of
from pydantic import TypeAdapter, ValidationError

from brim.config.loading import Config, load_config
from brim.config.yaml import parse
from brim.errors import ConfigError
from brim.models import Decoding
from brim.objectives import ObjectiveConfig, make_objective
from brim.objectives.method import Updates
from brim.objectives.policy_gradient import PolicyGradient
from brim.objectives.settings import BRIMConfig, LLMRConfig, overrides_of_what_is_gone
from brim.seeding import derive_seed

BOTH = ["llmr", "brim"]
ALL = [*BOTH, "ppo_llmr", "ppo_brim"]
BLOCKS = ["brim", "ppo_brim"]
REFUSED = [
    *((name, {"baseline": "leave_one_out"}, "set num_generations to 2 or more") for name in BOTH),
    *(
        (
            name,
            {"truncated": "bootstrap", "q_centering": centering},
            f"q_centering={centering} does not leave as it is",
        )
        for name in ALL
        for centering in ("max", "policy")
    ),
    *((name, {"phase": "average"}, "average is gone; use the method anchored") for name in BLOCKS),
    ("brim", {"phase": "other"}, "phase"),
    *((name, {"k": "auto"}, "auto is gone; brim analyze variance") for name in BLOCKS),
    ("brim", {"adaptive": {"smoothing": 0.5}}, "adaptive"),
    ("brim", {"k": 0}, "k"),
    ("llmr", {"k": 2}, "k"),
    ("llmr", {"rollout_reuse": 0}, "rollout_reuse"),
    ("llmr", {"sync_every": 0}, "sync_every"),
    ("llmr", {"num_generations": 0}, "num_generations"),
    ("llmr", {"max_importance_weight": 0.5}, "max_importance_weight"),
    ("llmr", {"clip": {"range": 0}}, "clip"),
    ("llmr", {"target_kl": 0.1}, "target_kl"),
    ("anchored", {"lambda": 1.5}, "lambda"),
    ("anchored", {"remaining_regret": "critic"}, "remaining_regret"),
    ("anchored", {"truncated": "bootstrap"}, "truncated"),
    ("anchored", {"clip": {"target": "reward"}}, "has no meaning for advantages"),
    ("ppo_llmr", {"baseline": "mean"}, "baseline"),
    ("ppo_llmr", {"k": 2}, "k"),
    ("ppo_llmr", {"gae_lambda": 1.5}, "gae_lambda"),
    ("ppo_llmr", {"discount": 0}, "discount"),
    ("ppo_llmr", {"value_coefficient": 0}, "value_coefficient"),
    ("ppo_llmr", {"value_clip_range": 0}, "value_clip_range"),
    ("ppo_llmr", {"critic": "none"}, "critic"),
    *(
        ("ppo_llmr", {"critic": "anchored", name: value}, f"anchored takes no {name}")
        for name, value in (
            ("discount", 0.99),
            ("value_coefficient", 0.2),
            ("value_clip_range", None),
            ("truncated", "bootstrap"),
        )
    ),
    ("ppo_llmr", {"critic": "anchored", "clip": {"target": "reward"}}, "clip.target=return"),
    ("ppo_brim", {"critic": "shared"}, "critic"),
    ("ppo_brim", {"num_minibatches": 0}, "num_minibatches"),
    ("ppo_brim", {"num_epochs": 0}, "num_epochs"),
    ("ppo_brim", {"clip_range": 0}, "clip_range"),
    ("ppo_brim", {"kl_coefficient": -0.1}, "kl_coefficient"),
    ("ppo_brim", {"target_kl": 0}, "target_kl"),
]
ACCEPTED = [
    ("llmr", {"baseline": "leave_one_out", "num_generations": 2}),
    ("brim", {"truncated": "bootstrap", "q_centering": "logsumexp"}),
    ("ppo_llmr", {"truncated": "bootstrap"}),
    ("ppo_llmr", {"critic": "anchored", "clip": {"range": None}, "truncated": "drop"}),
    ("anchored", {"remaining_regret": "learned", "per_token": False}),
]


class Holder(Config):
    objective: ObjectiveConfig


@pytest.mark.parametrize(("name", "settings", "message"), REFUSED, ids=str)
def test_what_does_not_fit_together_is_refused_in_one_line(name, settings, message, tmp_path):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(ObjectiveConfig).validate_python({"name": name, **settings})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"objective: { ({'name': name, **settings})!r}".replace("None", "null"))
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(Holder, recipe)
    assert str(recipe) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "settings"), ACCEPTED, ids=str)
def test_what_fits_together_is_built(name, settings):
    config = TypeAdapter(ObjectiveConfig).validate_python({"name": name, **settings})
    objective = make_objective(config, DECODING)
    assert objective.settings is config
    assert objective.decoding is DECODING


def test_settings_say_how_often_a_rollout_is_used():
    reused = BRIMConfig(rollout_reuse=3, sync_every=2)
    assert reused.updates == Updates(num_epochs=3, num_minibatches=1, sync_every=2)
    assert reused.compares_policies
    assert LLMRConfig().updates.on_policy
    assert not LLMRConfig().compares_policies


# Several completions of a prompt


def encoded(model, rows=4):
    examples = list(itertools.islice(itertools.cycle(EXAMPLES), rows))
    return replace(model.encode(examples, max_tokens=None), seeds=tuple(range(100, 100 + rows)))


def test_generations_are_adjacent_differ_and_begin_with_the_one_there_would_be():
    student, teacher = pair()
    decoding = Decoding(max_tokens=6)
    batch = encoded(student)
    single, _ = policy_gradient(decoding).collect(batch, student, teacher)
    several, sums = policy_gradient(decoding, num_generations=5).collect(batch, student, teacher)
    assert len(several) == sums["rows"] == 20
    assert [e.id for e in several.batch.examples] == [e.id for e in batch.examples for _ in "12345"]
    width = single.completion_ids.shape[1]
    assert torch.equal(several.completion_ids[::5, :width] * several.mask[::5, :width],
                       single.completion_ids * single.mask)  # fmt: skip
    assert several.batch.seeds[5:8] == (101, *(derive_seed(101, "generation", i) for i in (1, 2)))
    texts = [tuple(row) for row in several.completion_ids.tolist()]
    for start in range(0, 20, 5):
        assert len(set(texts[start : start + 5])) >= 3


@pytest.mark.parametrize("immediate", ["sampled", "expected"])
def test_leave_one_out_subtracts_the_mean_of_the_prompts_other_tokens(immediate):
    student, teacher = pair()
    settings = {"num_generations": 3, "k": 2, "clip": {"range": 2.0}, "immediate": immediate}
    batch = encoded(student)
    plain, _ = policy_gradient(DECODING, **settings).collect(batch, student, teacher)
    others, _ = policy_gradient(DECODING, baseline="leave_one_out", **settings).collect(
        batch, student, teacher
    )
    assert torch.equal(plain.completion_ids, others.completion_ids)
    for row in range(len(plain)):
        group = range(row - row % 3, row - row % 3 + 3)
        tokens = [plain.advantages[other][plain.mask[other]] for other in group if other != row]
        expected = plain.advantages[row] - torch.cat(tokens).mean()
        keep = plain.mask[row]
        torch.testing.assert_close(others.advantages[row][keep], expected[keep])


# Baselines of real models


SAMPLING = [{}, {"temperature": 0.5}, {"top_k": 2}, {"temperature": 2.0, "top_p": 0.6}]
each_sampling = pytest.mark.parametrize("sampling", SAMPLING, ids=str)


@pytest.mark.parametrize("family", ["t5", "llama"])
@each_sampling
def test_min_variance_weighs_by_the_output_layers_gradients(family, sampling):
    student, teacher = pair(family)
    decoding = DECODING.model_copy(update=dict(**sampling, batch_tokens=30))
    batch = encoded(student, 8)
    plain, _ = policy_gradient(decoding, k=1).collect(batch, student, teacher)
    rollout, _ = policy_gradient(decoding, k=1, baseline="min_variance").collect(
        batch, student, teacher
    )
    head = student.model.get_output_embeddings().weight
    weighted = total = 0.0
    for row, step in rollout.mask.nonzero().tolist():
        logprob = student(rollout, distribution=decoding.distribution).logprobs[row, step]
        norm = float(torch.autograd.grad(logprob, head)[0].square().sum())
        weighted += norm * float(plain.advantages[row, step])
        total += norm
    shift = (plain.advantages - rollout.advantages)[rollout.mask]
    torch.testing.assert_close(shift, torch.full_like(shift, weighted / total), rtol=1e-4, atol=0)


# Cuts of real models


@pytest.mark.parametrize("family", ["t5", "llama_tied"])
@pytest.mark.parametrize("cut", [{"top_k": 3}, {"top_p": 0.6}, {"top_k": 3, "top_p": 0.6}], ids=str)
def test_what_is_written_is_what_the_loss_keeps(family, cut):
    student, _ = pair(family)
    decoding = DECODING.model_copy(update=dict(temperature=0.7, **cut))
    written = student.generate(encoded(student, 400), decoding)
    assert (probabilities(student, written, decoding.distribution) > 0).all()
    every = every_completion(student)
    possible = probabilities(student, every, decoding.distribution)
    assert possible.view(len(EXAMPLES), -1).sum(1).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert (possible == 0).sum() > len(possible) / 4
    # Where a token is possible, its log-probability in a loss is the one it was drawn with.
    logprobs = student(every, distribution=decoding.distribution).logprobs.detach()
    torch.testing.assert_close(
        logprobs.sum(1).exp().double()[possible > 0], possible[possible > 0], rtol=1e-4, atol=1e-6
    )


# Expected immediate credit, with real models


@each_sampling
def test_expected_credit_has_the_expected_gradient_of_sampling(sampling):
    student, teacher = pair()
    decoding = DECODING.model_copy(update=dict(**sampling))
    rollout = every_completion(student)
    weights = probabilities(student, rollout, decoding.distribution).float()[:, None]
    gradients = []
    for immediate in ("sampled", "expected"):
        objective = policy_gradient(decoding, k=2, immediate=immediate, clip={"range": None})
        values = q_of(objective, rollout, student, teacher)
        scored, _ = objective.assign_credit(rollout, values, student)

        def policy(rollout, *, distribution, comparison=None):
            tokens = student(rollout, distribution=distribution, comparison=comparison)
            compared = None if tokens.compared is None else weights * tokens.compared
            return replace(tokens, logprobs=weights * tokens.logprobs, compared=compared)

        loss = objective.loss(policy, scored, teacher).loss
        parameters = list(student.parameters())
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)
    assert gradients[0].norm() > 0.1


# Through the real trainer


@pytest.mark.parametrize(
    "settings",
    [
        {"k": 1, "immediate": "expected", "q_centering": "policy", "baseline": "time_mean"},
        {"k": 2, "tail": "none", "baseline": "min_variance"},
        {"k": 1, "num_generations": 4, "baseline": "leave_one_out"},
        {"k": 1, "rollout_reuse": 3},
        {"k": 1, "sync_every": 3},
    ],
    ids=str,
)
def test_training_raises_the_exact_expected_return(settings, tmp_path):
    student, teacher = pair()
    before = expected_return(student, teacher)
    rows = 32 // settings.get("num_generations", 1)
    objective = policy_gradient(DECODING, **settings)
    trainer, logged = make_trainer(objective, student, teacher, tmp_path, rows=rows, lr=0.02)
    trainer.train()
    after = expected_return(student, teacher)
    assert after > before + 0.75 * (highest_return(teacher) - before)
    sizes = [metrics.get("policy/effective_sample_size") for metrics in logged]
    if objective.settings.updates.on_policy:
        assert sizes == [None] * 10
    elif objective.settings.updates.sync_every == 3:
        # Every third step writes with the student as it is.
        assert all((size < 0.999) == bool(step % 3) for step, size in enumerate(sizes[:9]))
    else:
        assert min(sizes) < 1
    assert {metrics["optim/updates"] for metrics in logged} == {settings.get("rollout_reuse", 1)}


class Counting(PolicyGradient):
    """One that keeps something from step to step."""

    steps = 0

    def collect(self, *arguments):
        self.steps += 1
        return super().collect(*arguments)

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def test_a_resumed_run_goes_on_to_the_same_bits_with_its_old_writer_and_its_state(tmp_path):
    def run(directory, *steps):
        for last in steps:
            student, teacher = pair()
            settings = BRIMConfig(k=2, sync_every=3, rollout_reuse=2, num_generations=2)
            objective = Counting(settings, DECODING)
            trainer, logged = make_trainer(
                objective, student, teacher, directory, steps=last, rows=8
            )
            trainer.train()
        return student.state_dict(), trainer.updater.behavior.state_dict(), logged[-1], objective

    whole, resumed = run(tmp_path / "whole", 5), run(tmp_path / "resumed", 2, 5)
    for one, other in zip(whole[:2], resumed[:2], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole[2] == resumed[2]
    assert whole[3].steps == resumed[3].steps == 5
    assert whole[2]["policy/effective_sample_size"] < 1


def test_weights_are_those_of_the_policy_that_wrote():
    writer, (student, teacher) = build("t5", 5), pair()
    objective = policy_gradient(DECODING, k=1, sync_every=2, max_importance_weight=None)
    rollout, _ = objective.collect(encoded(writer, 8), writer, teacher)
    torch.testing.assert_close(rollout.logprobs, writer.statistics(rollout).logprobs)
    sums = objective.loss(student, rollout, teacher).sums
    ratios = (student.statistics(rollout).logprobs - writer.statistics(rollout).logprobs).exp()
    assert float(sums["policy/importance_weight"]) == pytest.approx(
        float(ratios[rollout.mask].sum()), rel=1e-5
    )


@pytest.mark.parametrize(
    "gone", [{"k": "auto", "adaptive": {"smoothing": 0.5}}, {"phase": "average"}]
)
def test_what_is_gone_is_refused_and_a_run_that_had_it_opens(gone):
    with pytest.raises(ValidationError, match="is gone"):
        BRIMConfig(**gone)
    overrides = dict(text.split("=") for text in overrides_of_what_is_gone(gone))
    changed = {key.removeprefix("objective."): parse(v, str).data for key, v in overrides.items()}
    assert overrides.keys() == {f"objective.{key}" for key in changed}
    BRIMConfig(**{**gone, **changed})
    assert overrides_of_what_is_gone({"k": 2, "phase": "aligned"}) == []
