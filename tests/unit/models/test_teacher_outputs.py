"""A student learns the tokens that its teacher wrote, not a new tokenization of their text."""

import json
from pathlib import Path

import pytest
import torch
from makers import seqkd
from rounding import assert_rounding
from tiny import DECODERS, ENCODER_DECODERS, tiny, word_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from brim.divergences import forward_kl
from brim.examples import Example, Target
from brim.models import Decoding, LanguageModel
from brim.objectives import make_objective
from brim.objectives.divergence_settings import KLConfig
from brim.support.progress import Meter
from brim.training.completions import CompletedExamples, write_completions
from brim.types import Batch, Rollout

# Bytes, and pieces that the same text is tokenized into: what a teacher wrote byte by byte is read
# back as fewer tokens.
PIECES = ["the", "Ġcat", "he", "Ġc", "Ġca", "th"]
SPECIAL = ["<pad>", "</s>", "<unk>"]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_tokenizer(*, appends_eos: bool) -> PreTrainedTokenizerFast:
    vocab = {token: i for i, token in enumerate([*SPECIAL, *BYTES, *PIECES])}
    merges = [("t", "h"), ("h", "e"), ("th", "e"), ("Ġ", "c"), ("Ġc", "a"), ("Ġca", "t")]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if appends_eos:
        backend.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


NUM_TOKENS = len(SPECIAL) + len(BYTES) + len(PIECES)


def model(family: str) -> LanguageModel:
    tokenizer = byte_tokenizer(appends_eos=family in ENCODER_DECODERS)
    return LanguageModel(tiny(family, num_rows=NUM_TOKENS).eval(), tokenizer)


def ids_of(tokenizer: PreTrainedTokenizerFast, *tokens: str) -> tuple[int, ...]:
    return tuple(tokenizer.convert_tokens_to_ids(list(tokens)))


def learnt(student: LanguageModel, example: Example, limit: int = 8) -> tuple[list[int], bool]:
    batch = student.encode([example], max_tokens=None)
    rollout, _ = seqkd(Decoding(max_tokens=limit)).collect(batch, student, None)
    return rollout.completion_ids[rollout.mask].tolist(), bool(rollout.truncated[0])


def test_a_cut_text_is_learnt_token_by_token_and_without_an_end():
    student = model("llama")
    ids = ids_of(student.tokenizer, *"theĠcatĠ")
    text = student.tokenizer.decode(ids)
    assert text == "the cat "
    as_text = Example("a", "w", (text,))
    whole = ids_of(student.tokenizer, "the", "Ġcat", "Ġ", "</s>")
    assert learnt(student, as_text) == ([*whole], False)
    as_written = Example("a", "w", (text,), target=Target(ids, truncated=True))
    assert learnt(student, as_written) == ([*ids], True)


def test_bytes_of_half_a_character_are_learnt_as_they_are():
    student = model("llama")
    ids = student.tokenizer("€", add_special_tokens=False).input_ids
    assert len(ids) == 3
    half = ids[:2]
    text = student.tokenizer.decode(half)
    assert student.tokenizer(text, add_special_tokens=False).input_ids[:2] != half
    example = Example("a", "w", (text,), target=Target(tuple(half), truncated=True))
    assert learnt(student, example) == (half, True)


def test_the_writers_own_end_is_kept_where_there_are_several():
    inner = tiny("llama", num_rows=NUM_TOKENS)
    other = byte_tokenizer(appends_eos=False).convert_tokens_to_ids("!")
    inner.generation_config.eos_token_id = [1, other]
    student = LanguageModel(inner, byte_tokenizer(appends_eos=False))
    ids = (*ids_of(student.tokenizer, "the"), other)
    example = Example("a", "w", ("the",), target=Target(ids, truncated=False))
    assert learnt(student, example) == ([*ids], False)
    assert learnt(student, example, limit=1) == ([ids[0]], True)


def write(teacher: LanguageModel, examples: list[Example], path: Path, limit: int) -> list[Example]:
    decoding = Decoding(max_tokens=limit, strategy="greedy")
    meter = Meter("teacher outputs", len(examples))
    write_completions(teacher, examples, path, decoding, max_prompt_tokens=None, meter=meter)
    return list(CompletedExamples(examples, path))


def teacher_rollout(teacher: LanguageModel, batch: Batch, limit: int) -> Rollout:
    return teacher.generate(batch, Decoding(max_tokens=limit, strategy="greedy"))


@pytest.mark.parametrize("family", [*ENCODER_DECODERS, *DECODERS])
def test_seqkd_and_divergences_learn_exactly_what_the_teacher_wrote(family, tmp_path):
    teacher, limit = model(family), 7
    prompts = ["the cat", "cat", "a thecat", "he", "t", "é €", "  ", "12"]
    examples = [Example(str(i), text, ("data",)) for i, text in enumerate(prompts)]
    completed = write(teacher, examples, tmp_path / "train.jsonl", limit)
    batch = teacher.encode(completed, max_tokens=None)
    written = teacher_rollout(teacher, batch, limit)
    student = teacher.copy()
    decoding = Decoding(max_tokens=limit)
    given, _ = seqkd(decoding).collect(batch, student, None)
    objective = make_objective(KLConfig(), decoding)
    divergence, _ = objective.collect(batch, student, teacher)
    for rollout in (given, divergence):
        assert torch.equal(rollout.mask, written.mask)
        assert torch.equal(
            rollout.completion_ids[rollout.mask], written.completion_ids[written.mask]
        )
        assert torch.equal(rollout.truncated, written.truncated)
    # The divergence is that along the teacher's own tokens.
    with torch.no_grad():
        student.model.get_output_embeddings().weight *= 1.5
        own = student.features(written).token_statistics(
            comparison=teacher.features(written).comparison(forward_kl)
        )
        loss = objective.loss(student, divergence, teacher).loss
    assert own.compared is not None
    assert_rounding(loss, own.compared.sum())
    texts = [json.loads(line)["text"] for line in (tmp_path / "train.jsonl").open()]
    assert texts == [row.references[0] for row in completed] == teacher.decode(written)


def test_a_student_of_another_tokenizer_learns_the_text(tmp_path):
    teacher, limit = model("t5"), 7
    examples = [Example(str(i), text) for i, text in enumerate(["the cat", "é €", "  "])]
    written = write(teacher, examples, tmp_path / "train.jsonl", limit)
    words = LanguageModel(tiny("llama"), word_tokenizer()).encoder
    learned = CompletedExamples(examples, tmp_path / "train.jsonl", encoder=words)
    assert learned.count_unspelled() == sum(bool(row.references[0].split()) for row in written)
    bytewise = model("llama").encoder
    for own, other in zip(
        written,
        CompletedExamples(examples, tmp_path / "train.jsonl", encoder=bytewise),
        strict=True,
    ):
        assert own.references == other.references
        assert own.target.truncated == other.target.truncated
        ids = other.target.token_ids
        assert bytewise.texts([ids]) == [*other.references]
        assert (ids[-1:] == bytewise.eos_token_ids) != other.target.truncated


# -- what is scored is what was written -----------------------------------------------------------


@pytest.mark.parametrize("family", ["t5", "bart", "marian", "llama"])
def test_only_what_frames_a_text_is_left_out_of_it(family):
    tokenizer = byte_tokenizer(appends_eos=family in ENCODER_DECODERS)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<sep>"]})
    tokenizer.add_tokens(["<col>"])
    tokenizer.clean_up_tokenization_spaces = True  # as many saved ones say
    perfect = LanguageModel(tiny(family, num_rows=NUM_TOKENS + 2), tokenizer)
    targets = ["a <sep> b", "<sep>", "x<col>y <sep>", "' ,", "it ' s . n't ? !", "1 , 2 .", "<unk>"]
    batch = perfect.encode([Example(str(i), "a") for i in range(len(targets))], max_tokens=None)
    rollout = perfect.encode_completions(batch, targets, max_tokens=64)
    assert perfect.decode(rollout) == targets
    # Padding, and what opens the decoder, are no text wherever they are.
    ids = rollout.completion_ids.clone()
    ids[:, 0] = tokenizer.pad_token_id
    padded = Rollout(batch, ids, rollout.mask, rollout.truncated)
    assert not any("<pad>" in text or "</s>" in text for text in perfect.decode(padded))
