"""Who writes, what is compared, and what is learnt from it, on tiny models of both kinds."""

from dataclasses import replace

import pytest
import torch
from enumerable import build, every_completion, make_trainer, pair, probabilities
from pydantic import ValidationError
from torch import Tensor

from brim.divergences import (
    forward_kl,
    jensen_shannon,
    reverse_kl,
    student_to_mixture,
    teacher_to_mixture,
    total_variation,
)
from brim.examples import Example
from brim.models import Decoding, LanguageModel
from brim.objectives import make_objective
from brim.objectives.divergence import Divergence
from brim.objectives.divergence_settings import JSConfig, KLConfig, RKLConfig, TVDConfig
from brim.types import Batch, Rollout

DECODING = Decoding(max_tokens=8)
SEEDS = tuple(range(100, 107))
CONFIGS = {
    "kl": KLConfig(),
    "rkl": RKLConfig(),
    "js": JSConfig(),
    "js_both": JSConfig(terms="both", beta=0.3),
    "tvd": TVDConfig(),
    "kl_mixed_warm": KLConfig(student_fraction=0.5, temperature=2.0),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
each_family = pytest.mark.parametrize("family", ["t5", "llama"])


def make_batch(model: LanguageModel, *, references: bool = True) -> Batch:
    examples = [
        Example(
            id=str(i),
            prompt="a b b a"[: 1 + 2 * (i % 4)],
            references=("b a a b a b b b a b"[: 3 + 8 * (i % 3)],) if references else (),
        )
        for i in range(len(SEEDS))
    ]
    return model.encode(examples, max_tokens=None, seeds=SEEDS)


def make_student(family: str = "t5") -> LanguageModel:
    return build(family, 11)


def make_pair(family: str, *, dropout: float = 0.0) -> tuple[LanguageModel, LanguageModel]:
    teacher = build(family, 12, dropout=dropout, sharpness=8.0)
    return make_student(family), teacher.requires_grad_(False)


def collect(objective: Divergence, student: LanguageModel, batch: Batch | None = None) -> Rollout:
    with torch.no_grad():
        return objective.collect(batch or make_batch(student), student, None)[0]


def logits(model: LanguageModel, rollout: Rollout, temperature: float) -> Tensor:
    """(B, T, V) at once."""
    features = model.features(rollout)
    flat = features.head.logits(features.hidden) / temperature
    return flat.new_zeros(*rollout.mask.shape, flat.shape[1]).masked_scatter(
        rollout.mask[..., None], flat
    )


# -- who writes ---------------------------------------------------------------------------------


def test_the_writer_of_a_row_does_not_depend_on_its_batch():
    student = make_student()
    objective = make_objective(TVDConfig(), DECODING)
    batch = make_batch(student)
    rollout = collect(objective, student, batch)
    assert rollout.by_student.any()
    assert not rollout.by_student.all()
    for rows in ([0], [1], [2, 5], [6, 4, 3, 1, 0]):
        some = collect(objective, student, batch.select(rows))
        assert some.by_student.tolist() == rollout.by_student[rows].tolist()
        width = some.mask.shape[1]
        assert torch.equal(some.mask, rollout.mask[rows, :width])
        assert not rollout.mask[rows, width:].any()
        assert torch.equal(some.completion_ids, rollout.completion_ids[rows, :width])


def test_a_larger_share_of_the_students_rows_holds_the_smaller_one():
    student, seeds = make_student(), range(4000)
    batch = student.encode([Example("0", "a", ("b",))] * len(seeds), max_tokens=None, seeds=seeds)
    drawn = {}
    for fraction in (0.0, 0.25, 0.7, 1.0):
        objective = make_objective(KLConfig(student_fraction=fraction), Decoding(max_tokens=1))
        drawn[fraction] = collect(objective, student, batch).by_student.tolist()
    assert not any(drawn[0.0])
    assert all(drawn[1.0])
    for fraction in (0.25, 0.7):
        deviation = (fraction * (1 - fraction) / len(seeds)) ** 0.5
        assert abs(sum(drawn[fraction]) / len(seeds) - fraction) < 4 * deviation
    assert all(more or not less for less, more in zip(drawn[0.25], drawn[0.7], strict=True))


@each_family
@pytest.mark.parametrize("limit", [8, 20])
def test_the_rollout_is_that_of_both_writers_in_the_batchs_order(family, limit):
    student, decoding = make_student(family), Decoding(max_tokens=limit)
    batch = make_batch(student)
    rollout = collect(make_objective(TVDConfig(), decoding), student, batch)
    own = rollout.by_student.nonzero().flatten().tolist()
    others = (~rollout.by_student).nonzero().flatten().tolist()
    written = student.generate(batch.select(own), decoding)
    texts = [batch.examples[row].references[0] for row in others]
    given = student.encode_completions(batch.select(others), texts, max_tokens=limit)
    for rows, part in ((own, written), (others, given)):
        width = part.mask.shape[1]
        assert torch.equal(rollout.completion_ids[rows, :width], part.completion_ids)
        assert torch.equal(rollout.mask[rows, :width], part.mask)
        assert not rollout.mask[rows, width:].any()
        assert (rollout.completion_ids[rows, width:] == student.pad_token_id).all()
        assert torch.equal(rollout.truncated[rows], part.truncated)
    assert rollout.batch is batch
    if limit == 8:
        assert given.truncated.any(), "a target must be cut"
    else:
        assert given.mask.shape != written.mask.shape, "one must be padded"


def test_nobody_is_asked_to_write_nothing(monkeypatch):
    student = make_student()

    def refuse(*args, **kwargs):
        raise AssertionError("called")

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "generate", refuse)
        rollout = collect(make_objective(KLConfig(), DECODING), student)
        assert not rollout.by_student.any()
    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "encode_completions", refuse)
        batch = make_batch(student, references=False)
        rollout = collect(make_objective(RKLConfig(), DECODING), student, batch)
        assert rollout.by_student.all()


def test_targets_are_asked_for_where_there_are_any():
    assert KLConfig().needed_targets == "teacher"
    assert TVDConfig(targets="data").needed_targets == "data"
    assert RKLConfig().needed_targets is None
    with pytest.raises(ValidationError, match="no effect"):
        RKLConfig(targets="data")
    assert RKLConfig(student_fraction=0.9).needed_targets == "teacher"


# -- what is compared ---------------------------------------------------------------------------


@each_family
@pytest.mark.parametrize(
    ("config", "on_targets", "on_student"),
    [
        (KLConfig(student_fraction=0.5), forward_kl, forward_kl),
        (RKLConfig(student_fraction=0.5, temperature=0.6), reverse_kl, reverse_kl),
        (TVDConfig(temperature=3.0), total_variation, total_variation),
        (
            JSConfig(beta=0.2),
            lambda q, p: teacher_to_mixture(q, p, 0.2),
            lambda q, p: student_to_mixture(q, p, 0.2),
        ),
        (JSConfig(beta=0.2, terms="both"), *[lambda q, p: jensen_shannon(q, p, 0.2)] * 2),
    ],
    ids=["kl", "rkl", "tvd", "js", "js_both"],
)
def test_the_loss_is_the_divergence_of_full_logits(family, config, on_targets, on_student):
    student, teacher = make_pair(family)
    objective = make_objective(config, DECODING)
    rollout, collected = objective.collect(make_batch(student), student, teacher)
    out = objective.loss(student, rollout, teacher)
    pair = [logits(model, rollout, config.temperature) for model in (student, teacher)]
    own = rollout.by_student[:, None] & rollout.mask
    others = ~rollout.by_student[:, None] & rollout.mask
    on_student, on_targets = on_student(*pair)[own], on_targets(*pair)[others]
    assert len(on_student)
    assert len(on_targets)
    torch.testing.assert_close(out.loss, on_student.sum() + on_targets.sum())

    sums = {key: float(value) for key, value in {**collected, **out.sums}.items()}
    metrics = objective.describe(sums)
    assert metrics["policy/divergence_on_student"] == pytest.approx(on_student.mean().item())
    assert metrics["policy/divergence_on_targets"] == pytest.approx(on_targets.mean().item())
    assert metrics["rollout/by_student"] == rollout.by_student.float().mean()
    assert metrics["rollout/length"] == pytest.approx(rollout.num_tokens / len(SEEDS))
    assert sums["policy/divergence"] == pytest.approx(out.loss.item())


@pytest.mark.parametrize(("config", "absent"), [(KLConfig(), "student"), (RKLConfig(), "targets")])
def test_a_writer_without_text_has_no_metric(config, absent):
    student, teacher = make_pair("llama")
    objective = make_objective(config, DECODING)
    rollout, collected = objective.collect(make_batch(student), student, teacher)
    out = objective.loss(student, rollout, teacher)
    sums = {key: float(value) for key, value in {**collected, **out.sums}.items()}
    metrics = objective.describe(sums)
    (present,) = (name for name in metrics if name.startswith("policy/divergence_on_"))
    assert not present.endswith(absent)
    assert metrics[present] == pytest.approx(out.loss.item() / rollout.num_tokens)


@each_family
@each_config
def test_micro_batches_add_up(config, family):
    student, teacher = make_pair(family)
    objective = make_objective(config, DECODING)
    rollout = collect(objective, student)
    whole = objective.loss(student, rollout, teacher)
    rows = (rollout.select([i]) for i in range(len(rollout)))
    parts = [objective.loss(student, row, teacher) for row in rows]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    for name, value in whole.sums.items():
        torch.testing.assert_close(sum(part.sums[name] for part in parts), value)


def test_the_policy_is_called_once_whoever_wrote():
    student, teacher = make_pair("t5")
    objective = make_objective(JSConfig(temperature=1.5), DECODING)
    rollout = collect(objective, student)
    calls = []

    def policy(rollout, *, distribution, comparison=None):
        calls.append(distribution.temperature)
        return student(rollout, distribution=distribution, comparison=comparison)

    objective.loss(policy, rollout, teacher)
    assert calls == [1.5]


@each_config
def test_the_teacher_is_asked_without_dropout_and_keeps_its_mode(config):
    student, teacher = make_pair("t5", dropout=0.5)
    teacher.requires_grad_(True)
    objective = make_objective(config, DECODING)
    rollout = collect(objective, student)
    expected = objective.loss(student, rollout, teacher.eval()).loss
    teacher.train()
    loss = objective.loss(student, rollout, teacher).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    assert teacher.model.training
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_tokens_outside_the_mask_do_not_count():
    student, teacher = make_pair("llama")
    objective = make_objective(TVDConfig(), DECODING)
    rollout = collect(objective, student)
    nothing = replace(rollout, mask=torch.zeros_like(rollout.mask))
    out = objective.loss(student, nothing, teacher)
    out.loss.backward()
    assert out.loss == 0
    assert all(
        parameter.grad is None or not parameter.grad.any() for parameter in student.parameters()
    )


def test_a_loss_without_a_teacher_is_refused():
    student, _ = make_pair("t5")
    objective = make_objective(KLConfig(), DECODING)
    with pytest.raises(ValueError, match="teacher"):
        objective.loss(student, collect(objective, student))


# -- what is learnt -----------------------------------------------------------------------------


def gradient(objective: Divergence, student, rollout, teacher) -> list[Tensor]:
    loss = objective.loss(student, rollout, teacher).loss
    grads = torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
    return [
        torch.zeros_like(parameter) if grad is None else grad
        for grad, parameter in zip(grads, student.parameters(), strict=True)
    ]


@each_family
@each_config
def test_a_student_that_is_its_teacher_learns_nothing(config, family):
    student, other = make_pair(family)
    objective = make_objective(config, DECODING)
    rollout = collect(objective, student)
    assert objective.loss(student, rollout, student.copy()).loss.abs() < 1e-4
    assert objective.loss(student, rollout, other).loss > 0.1
    if config.name == "tvd":
        return  # it has a kink there, and rounding decides on which side of it we are
    assert all(grad.abs().max() < 1e-4 for grad in gradient(objective, student, rollout, student))
    assert any(grad.abs().max() > 0.1 for grad in gradient(objective, student, rollout, other))


@each_family
@each_config
def test_the_gradient_is_the_loss_slope(config, family):
    student, teacher = make_pair(family)
    objective = make_objective(config, DECODING)
    rollout = collect(objective, student)
    grads = gradient(objective, student, rollout, teacher)
    norm = sum(grad.square().sum() for grad in grads).sqrt()
    step = 5e-4

    def loss_at(distance: float) -> float:
        with torch.no_grad():
            for parameter, grad in zip(student.parameters(), grads, strict=True):
                parameter.add_(grad / norm, alpha=distance)
            return float(objective.loss(student, rollout, teacher).loss)

    slope = (loss_at(step) - loss_at(-2 * step)) / (2 * step)
    assert slope == pytest.approx(float(norm), rel=0.01)


@each_family
@each_config
def test_a_few_steps_lower_the_divergence(config, family):
    student, teacher = make_pair(family)
    objective = make_objective(config, DECODING)
    batch = make_batch(student)
    watched = collect(objective, student, batch)
    before = objective.loss(student, watched, teacher).loss.item()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    for step in range(12):
        seeds = tuple(seed + 1000 * step for seed in batch.seeds)
        rollout = collect(objective, student, replace(batch, seeds=seeds))
        loss = objective.loss(student, rollout, teacher).loss / rollout.num_tokens
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert objective.loss(student, watched, teacher).loss.item() < 0.8 * before


@pytest.mark.parametrize("config", [RKLConfig(), JSConfig(student_fraction=0.5)], ids=["rkl", "js"])
def test_the_trainer_brings_the_students_text_closer_to_the_teachers(config, tmp_path):
    student, teacher = pair("llama")
    rollout = every_completion(student)

    def reverse_kl_of_texts() -> float:
        q, p = probabilities(student, rollout), probabilities(teacher, rollout)
        return float((q * (q / p).log()).sum())

    before = reverse_kl_of_texts()
    trainer, logged = make_trainer(make_objective(config, DECODING), student, teacher, tmp_path)
    trainer.train()
    assert reverse_kl_of_texts() < 0.7 * before
    for metrics in logged:
        assert metrics["policy/divergence"] == pytest.approx(metrics["train/loss"])
        assert 0 < metrics["rollout/by_student"] <= 1
        assert metrics["policy/divergence_on_student"] > 0
