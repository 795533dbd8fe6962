"""Averaged teachers are the mean of their logits; of routed ones each example has its own."""

from dataclasses import replace

import pytest
import torch
from tiny import NUM_TOKENS, prompts, tiny, word_tokenizer

from brim.errors import DataError, ModelError
from brim.examples import Example
from brim.models import (
    AveragedTeacher,
    Decoding,
    LanguageModel,
    TeacherOfEach,
    build_model,
    share_vocabulary,
    train_tokenizer,
    whole,
)

TEXTS = ["the cat sat on a mat", "a dog ran far away", "one two three"]
TOKENIZER = train_tokenizer(TEXTS, kind="bpe", vocab_size=300)
EXAMPLES = [
    Example(str(i), text, teacher=("math", "code")[i % 2]) for i, text in enumerate(TEXTS * 2)
]
DECODING = Decoding(max_tokens=6)
FAMILIES = {
    "t5": {"family": "t5", "d_model": 16},
    "t5_tied": {"family": "t5", "tied": True, "d_model": 16},  # which scales what its head reads
    "llama": {"family": "llama", "d_model": 16},
}


def build(family, seed, width=16):
    description = {**FAMILIES[family], "layers": 1, "heads": 2, "dropout": 0.0, "d_model": width}
    model = build_model(description, TOKENIZER, seed=seed).eval().requires_grad_(False)
    model.model.get_output_embeddings().weight *= 3
    return model


def written(model, **changes):
    batch = model.encode(EXAMPLES, max_tokens=None)
    return model.generate(batch, DECODING.model_copy(update=changes))


def logits(model, rollout):
    features = model.features(rollout)
    return features.head.logits(features.hidden).double()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mean_is_of_logits(family):
    parts = [build(family, 1), build(family, 2, width=24), build(family, 3)]
    own = [build(family, 1), build(family, 2, width=24), build(family, 3)]
    teacher = AveragedTeacher(parts, [1, 2, 5])
    rollout = written(own[0])
    expected = sum(w * logits(m, rollout) for w, m in zip((1, 2, 5), own, strict=True)) / 8
    torch.testing.assert_close(logits(teacher, rollout), expected, atol=1e-4, rtol=1e-4)

    values = teacher.map(rollout, teacher.action_values)
    assert torch.equal(values.q_taken > values.q_max, torch.zeros_like(rollout.mask))
    best = expected.max(1).values
    torch.testing.assert_close(values.q_max[rollout.mask].double(), best, atol=1e-4, rtol=1e-4)
    assert whole(teacher) is teacher
    assert teacher.num_parameters == sum(model.num_parameters for model in own)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_writes_what_the_mean_finds_likeliest(family):
    teacher = AveragedTeacher([build(family, 1), build(family, 2)], [1, 3])
    rollout = written(teacher, strategy="greedy")
    values = teacher.action_values(rollout)
    # Token by token with caches, or in one pass: equal up to rounding.
    gap = (values.q_max - values.q_taken)[rollout.mask]
    assert float(gap.max()) < 1e-3
    assert len(set(rollout.lengths.tolist())) > 1 or rollout.num_tokens > len(rollout)


def test_weights_are_shares_and_one_teacher_twice_is_that_teacher():
    model = build("llama", 1)
    teacher = AveragedTeacher([build("llama", 1), build("llama", 1)], [3, 9])
    rollout = written(model)
    torch.testing.assert_close(
        logits(teacher, rollout), logits(model, rollout), atol=1e-4, rtol=1e-4
    )


def test_what_a_student_cannot_write_none_of_them_writes():
    teacher = AveragedTeacher([build("llama", 1), build("llama", 2)], [1, 1])
    student = build("llama", 3)
    token = int(written(teacher, strategy="greedy").completion_ids[0, 0])
    student.exclude([token])
    logits(teacher, written(student))  # what it keeps of its heads is of before
    share_vocabulary(teacher, student)
    assert token in teacher.rules.excluded
    assert token not in written(teacher, strategy="greedy").completion_ids
    assert all(token in part.rules.excluded for part in teacher.parts)


def test_a_mean_is_of_like_models():
    with pytest.raises(ModelError, match="two teachers or more"):
        AveragedTeacher([build("llama", 1)], [1])
    with pytest.raises(ModelError, match="encoder-decoder"):
        AveragedTeacher([build("llama", 1), build("t5", 1)], [1, 1])
    with pytest.raises(ValueError, match="weight"):
        AveragedTeacher([build("llama", 1), build("llama", 2)], [1, 0])


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_each_example_has_its_own_teacher(family):
    models = {"math": build(family, 1), "code": build(family, 2)}
    teacher = TeacherOfEach(models)
    student = build(family, 3)
    rollout = written(student)
    read = {name: m.map(rollout, m.action_values) for name, m in models.items()}
    with teacher.evaluating():
        values = teacher.map(rollout, lambda part: teacher.action_values(part))
    for row, example in enumerate(EXAMPLES):
        expected = read[example.teacher]
        torch.testing.assert_close(values.q_taken[row], expected.q_taken[row])
        torch.testing.assert_close(values.q_max[row], expected.q_max[row])

    texts = written(teacher, strategy="greedy")
    of_each = {name: written(model, strategy="greedy") for name, model in models.items()}
    for row, example in enumerate(EXAMPLES):
        assert teacher.decode(texts)[row] == models["math"].decode(of_each[example.teacher])[row]
    assert teacher.num_positions == models["math"].num_positions
    assert teacher.num_parameters == sum(model.num_parameters for model in models.values())
    assert teacher.returns_centering == "none"
    teacher.check_room(3, 4)
    teacher.exclude([5])
    assert all(5 in model.rules.excluded for model in (teacher, *models.values()))


def test_an_example_without_a_teacher_is_named():
    teacher = TeacherOfEach({"math": build("llama", 1), "code": build("llama", 2)})
    teacher.check_examples(EXAMPLES)
    with pytest.raises(DataError, match="'7' names no teacher; there are math, code"):
        teacher.check_examples([Example("7", "a")])
    with pytest.raises(DataError, match="names the teacher 'law'"):
        teacher.check_examples([replace(EXAMPLES[0], teacher="law")])
    with pytest.raises(ModelError, match="two numbers"):
        whole(teacher)


def test_layers_of_each_are_compiled(monkeypatch):
    teacher = AveragedTeacher([build("llama", 1), build("llama", 2)], [1, 1])
    seen = []
    for part in teacher.parts:
        monkeypatch.setattr(part, "compile_layers", lambda: seen.append(1))
    teacher.compile_layers()
    assert seen == [1, 1]


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_padding_that_only_some_of_the_teachers_have(family, order):
    def make(added):
        tokenizer = word_tokenizer(pad=family == "t5")
        if added:
            tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        return LanguageModel(tiny(family, num_rows=NUM_TOKENS + added), tokenizer).eval()

    def teachers():
        made = [make(added) for added in (True, False, False)]
        first, *others = (made[i] for i in order)
        for _ in range(2):  # as a run does
            for other in others:
                share_vocabulary(first, other)
        return first, *others

    for student in (make(True), make(False)):
        by_name = dict(zip("abc", teachers(), strict=True))
        for teacher in (AveragedTeacher(teachers(), [1, 1, 1]), TeacherOfEach(by_name)):
            share_vocabulary(teacher, student)
            assert NUM_TOKENS in teacher.encoder.unshared  # and in no prompt
            examples = [replace(e, teacher="abc"[i % 3]) for i, e in enumerate(prompts())]
            batch = student.encode(examples, max_tokens=None)
            rollout = student.generate(batch, DECODING)
            values = teacher.action_values(rollout)
            alone = teacher.action_values(rollout.select([1])).q_taken
            torch.testing.assert_close(values.q_taken[1:2], alone, rtol=1e-4, atol=1e-5)
            text = teacher.generate(teacher.encode(examples, max_tokens=None), DECODING)
            assert int(text.completion_ids[text.mask].max()) < NUM_TOKENS
