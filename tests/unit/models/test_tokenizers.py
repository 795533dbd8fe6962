import json
import re
from typing import Any

import pytest
import torch
from tiny import EOS, NUM_ROWS, NUM_TOKENS, encoded, tiny, tiny_language_model, word_tokenizer
from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from brim.divergences import forward_kl
from brim.errors import DataError, ModelError
from brim.examples import Example
from brim.models import (
    AveragedTeacher,
    Decoding,
    LanguageModel,
    check_same_tokenizer,
    load_model,
    read_text,
    share_vocabulary,
)


def edited(change: Any, **special: str) -> PreTrainedTokenizerFast:
    """The word tokenizer with its tokenizer.json changed."""
    definition = json.loads(word_tokenizer().backend_tokenizer.to_str())
    change(definition)
    backend = Tokenizer.from_str(json.dumps(definition))
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def swap(definition: dict[str, Any]) -> None:
    vocabulary = definition["model"]["vocab"]
    vocabulary["w17"], vocabulary["w30"] = vocabulary["w30"], vocabulary["w17"]


def lowercase(definition: dict[str, Any]) -> None:
    definition["normalizer"] = {"type": "Lowercase"}


def split_by_bytes(definition: dict[str, Any]) -> None:
    definition["pre_tokenizer"] = {"type": "Whitespace"}


def unchanged(_definition: dict[str, Any]) -> None: ...


def test_the_same_tokenizer_with_heads_of_different_sizes():
    small, large = (LanguageModel(tiny("qwen2", num_rows=n), word_tokenizer()) for n in (40, 64))
    check_same_tokenizer(large, small)
    check_same_tokenizer(small, large)


def test_the_state_of_a_call_is_no_difference():
    teacher, student = tiny_language_model("qwen2"), tiny_language_model("llama")
    teacher.tokenizer(["w3 w4", "w5"], padding=True, truncation=True, max_length=2)
    teacher.tokenizer.pad_token = "w9"
    check_same_tokenizer(teacher, student)


@pytest.mark.parametrize(
    ("student", "difference"),
    [
        (edited(swap), "token id 17 is 'w17' for the teacher and 'w30' for the student"),
        (word_tokenizer(41), "token id 40 is unset for the teacher and 'w40' for the student"),
        (word_tokenizer(38), "token id 38 is 'w38' for the teacher and unset for the student"),
        (edited(unchanged, eos_token="w5"), "eos_token is '</s>' for the teacher and 'w5'"),
        (edited(unchanged, bos_token="w5"), "bos_token is unset for the teacher and 'w5'"),
        (edited(lowercase), "the normalizer part of tokenizer.json differs"),
        (edited(split_by_bytes), "the pre_tokenizer part of tokenizer.json differs"),
    ],
)
def test_the_first_difference_is_named(student, difference):
    teacher = tiny_language_model("qwen2")
    with pytest.raises(ModelError, match=difference):
        check_same_tokenizer(teacher, LanguageModel(tiny("qwen2"), student))


def test_the_merges_of_a_byte_pair_encoding_count():
    def pairs(definition: dict[str, Any], merges: list[list[str]]) -> None:
        words = [*definition["model"]["vocab"], "w3w3", "w4w4"][:NUM_ROWS]
        definition["model"] = {
            "type": "BPE",
            "vocab": {word: i for i, word in enumerate(words)},
            "merges": merges,
        }

    merges = [["w3", "w3"], ["w4", "w4"]]
    teacher = LanguageModel(tiny("qwen2"), edited(lambda d: pairs(d, merges)))
    student = LanguageModel(tiny("qwen2"), edited(lambda d: pairs(d, merges[::-1])))
    with pytest.raises(ModelError, match=r"the model\.merges part"):
        check_same_tokenizer(teacher, student)


def test_an_encoder_decoder_and_a_decoder_are_no_pair():
    with pytest.raises(ModelError, match="encoder-decoder and the student decoder-only"):
        check_same_tokenizer(tiny_language_model("t5"), tiny_language_model("gpt2"))


def test_end_tokens_are_those_of_tokenizer_and_generation_settings():
    model = tiny("qwen2")
    model.generation_config.eos_token_id = [7, EOS, 9]
    assert LanguageModel(model, word_tokenizer()).eos_token_ids == (EOS, 7, 9)
    model.generation_config.eos_token_id = 7
    assert LanguageModel(model, word_tokenizer()).eos_token_ids == (EOS, 7)
    model.generation_config.eos_token_id = None
    assert LanguageModel(model, word_tokenizer()).eos_token_ids == (EOS,)
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        LanguageModel(model, tokenizer)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("family", ["qwen2", "t5"])
def test_where_one_of_a_pair_ends_the_other_ends_too(family, several, tmp_path):
    student = tiny_language_model(family).eval()
    greedy = Decoding(strategy="greedy", max_tokens=12)
    end = int(student.generate(encoded(student), greedy).completion_ids[0, 1])
    assert end != EOS
    other = tiny(family, spread=0.3)
    other.generation_config.eos_token_id = [EOS, end]
    teacher: Any = LanguageModel(other, student.tokenizer).eval()
    if several:
        plain = tiny_language_model(family, spread=0.5).eval()
        teacher = AveragedTeacher([teacher, plain], [1, 1])
    share_vocabulary(teacher, student)
    assert teacher.eos_token_ids == student.eos_token_ids == (EOS, end)
    student.save(tmp_path)  # the student that is loaded ends there too
    for model in (student, load_model(tmp_path).eval()):
        rollout = model.generate(encoded(model), greedy)
        row = rollout.completion_ids[0][rollout.mask[0]].tolist()
        assert row.index(end) == len(row) - 1
        assert not rollout.truncated[0]
        assert rollout.mask.sum(1).tolist() == rollout.lengths.tolist()
    # A target that spells it out before its end would be a text behind the end of a text.
    spelled = student.tokenizer.convert_ids_to_tokens(end)
    with pytest.raises(DataError, match="spells out an end"):
        student.encode_completions(encoded(student), [f"{spelled} w3"] * 3, max_tokens=9)


def test_a_tokenizer_that_is_larger_than_the_head():
    with pytest.raises(ModelError, match="token id 39 but the model's head has 32 rows"):
        LanguageModel(tiny("t5", num_rows=32), word_tokenizer(NUM_TOKENS))


def with_added_pad(spelling: str = "[PAD]") -> PreTrainedTokenizerFast:
    tokenizer = word_tokenizer(pad=False)
    tokenizer.add_special_tokens({"pad_token": spelling})
    return tokenizer


@pytest.mark.parametrize("added", ["teacher", "student", "both"])
def test_an_added_padding_token_is_no_difference(added):
    plain = word_tokenizer(pad=False)
    teacher, student = (
        LanguageModel(
            # One whose embedding was not resized has no row for the other's padding.
            tiny(family, num_rows=NUM_TOKENS + (added in (role, "both"))),
            with_added_pad(f"[PAD of {role}]") if added in (role, "both") else plain,
        ).eval()
        for family, role in (("gpt2", "teacher"), ("qwen2", "student"))
    )
    check_same_tokenizer(teacher, student)
    share_vocabulary(teacher, student)
    batch = encoded(student)  # padded with what only the student may know
    rollout = student.generate(batch, Decoding(max_tokens=5))
    assert int(rollout.completion_ids[rollout.mask].max()) < NUM_TOKENS
    values = teacher.action_values(rollout)
    # The teacher's view of a row does not depend on how the others are padded.
    alone = teacher.action_values(rollout.select([2])).q_taken
    torch.testing.assert_close(values.q_taken[2:3], alone, rtol=1e-4, atol=1e-5)
    comparison = teacher.features(rollout).comparison(forward_kl)
    compared = student(rollout, comparison=comparison).compared
    assert compared[rollout.mask].isfinite().all()
    if added != "teacher":
        spelled = Example(id="7", prompt=f"w3 {student.tokenizer.pad_token}")
        with pytest.raises(DataError, match=r"prompt of example '7' spells out '\[PAD"):
            student.encode([spelled], max_tokens=None)


def with_mask(*, special: bool = True) -> PreTrainedTokenizerFast:
    """The word tokenizer with a token more, as BART-large-CNN or Gemma 3 have one."""
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(AddedToken("<mask>", special=special), special_tokens=special)
    return tokenizer


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("family", ["bart", "qwen2"])
def test_an_added_token_without_a_row_is_in_no_text(family, special, tmp_path):
    tiny(family, num_rows=NUM_TOKENS).save_pretrained(tmp_path / "published")
    with_mask(special=special).save_pretrained(tmp_path / "published")
    model = load_model(tmp_path / "published")
    model.save(tmp_path / "saved")
    for loaded in (model, load_model(tmp_path / "saved")):
        plain, spelled = Example("5", "w3 w4"), Example("7", "w3 <mask> w4")
        batch = loaded.encode([plain], max_tokens=None)
        rollout = loaded.generate(batch, Decoding(max_tokens=5))
        assert loaded.action_values(rollout).q_max.isfinite().all()
        with pytest.raises(DataError, match="prompt of example '7' spells out '<mask>'"):
            loaded.encode([spelled], max_tokens=None)
        with pytest.raises(DataError, match="target of example '5' spells out '<mask>'"):
            loaded.encode_completions(batch, ["w6 <mask>"], max_tokens=9)
        [reading] = read_text(loaded.encoder, ["w6 <mask>"], [True])
        assert max(reading.ids) < NUM_TOKENS
    with pytest.raises(ModelError, match="token id 39 but"):
        model.resize(NUM_TOKENS - 1)
    model.resize(NUM_ROWS)
    model.exclude([5])  # as anything that has the rules read again
    assert NUM_TOKENS in model.excluded_rows
    larger = LanguageModel(tiny(family), with_mask(special=special))
    with pytest.raises(ModelError, match="token id 40 but"):
        larger.resize(NUM_TOKENS)  # which would take its row away


@pytest.mark.parametrize("without", ["teacher", "student"])
@pytest.mark.parametrize("family", ["bart", "qwen2"])
def test_what_one_has_no_row_for_neither_writes(family, without):
    teacher, student = (
        LanguageModel(
            tiny(family, num_rows=NUM_TOKENS if role == without else NUM_ROWS), with_mask()
        ).eval()
        for role in ("teacher", "student")
    )
    larger = student if without == "teacher" else teacher
    share_vocabulary(teacher, student)
    assert NUM_TOKENS in larger.excluded_rows
    rollout = student.generate(encoded(student), Decoding(max_tokens=5))
    compared = student(rollout, comparison=teacher.features(rollout).comparison(forward_kl))
    assert compared.compared[rollout.mask].isfinite().all()
    for model in (teacher, student):
        with pytest.raises(DataError, match="spells out '<mask>'"):
            model.encode([Example("7", "w3 <mask>")], max_tokens=None)


@pytest.mark.parametrize("name", ["pad_token", "eos_token", "bos_token", "unk_token"])
def test_tokens_that_a_model_needs_have_rows(name):
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({name: "<new>"})
    with pytest.raises(ModelError, match="token id 40 but the model's head has 40 rows"):
        LanguageModel(tiny("qwen2", num_rows=NUM_TOKENS), tokenizer)


def test_padding_that_is_another_token_is_a_difference():
    teacher = LanguageModel(tiny("qwen2"), with_added_pad())
    student = LanguageModel(tiny("qwen2"), word_tokenizer(41, pad=False))
    with pytest.raises(ModelError, match=r"token id 40 is '\[PAD\]' for the teacher and 'w40'"):
        check_same_tokenizer(teacher, student)
    ends = with_added_pad()
    ends.eos_token = ends.pad_token  # then it is no padding alone
    with pytest.raises(ModelError, match="token id 40"):
        check_same_tokenizer(
            LanguageModel(tiny("qwen2"), ends), LanguageModel(tiny("qwen2"), word_tokenizer())
        )


def test_base_and_instruct_become_a_pair_as_the_error_says(tmp_path):
    teacher = LanguageModel(tiny("qwen2"), edited(unchanged, eos_token="w9", bos_token="w8"))
    tiny_language_model("qwen2").save(tmp_path)
    with pytest.raises(ModelError) as caught:
        check_same_tokenizer(teacher, load_model(tmp_path))
    message = str(caught.value)
    assert "\n" not in message
    settings = dict(re.findall(r"(\w+) to '(\w+)'", message))
    assert settings == {"eos_token": "w9", "bos_token": "w8"}
    assert "the student's tokenizer_config.json" in message
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    student = load_model(tmp_path)
    check_same_tokenizer(teacher, student)
    assert student.eos_token_ids[0] == teacher.eos_token_ids[0] == 9


def test_tokens_that_only_instruct_has_are_mended_as_the_error_says(tmp_path):
    instruct = word_tokenizer()
    instruct.add_special_tokens({"extra_special_tokens": ["<turn>", "</turn>"]})
    teacher = LanguageModel(tiny("qwen2"), instruct)
    tiny_language_model("qwen2").save(tmp_path)  # its head has rows to spare
    with pytest.raises(ModelError, match=r"copy the teacher's tokenizer files .* than 42 rows"):
        check_same_tokenizer(teacher, load_model(tmp_path))
    instruct.save_pretrained(tmp_path)
    check_same_tokenizer(teacher, load_model(tmp_path))


@pytest.mark.parametrize("appended", ["$A </s>", "$A </s> </s>", "w3 $A </s>"])
@pytest.mark.parametrize("behind", [None, processors.ByteLevel(trim_offsets=False)])
def test_a_decoder_s_tokenizer_appends_no_end(appended, behind):
    tokenizer = word_tokenizer()
    template = processors.TemplateProcessing(
        single=appended,
        pair="$A </s> $B:1 </s>:1",
        special_tokens=[("</s>", EOS), ("w3", 3)],
    )
    steps = template if behind is None else processors.Sequence([behind, template])
    tokenizer.backend_tokenizer.post_processor = steps
    before = tokenizer("w7 w8").input_ids
    start = [3] if appended.startswith("w3") else []
    decoder = LanguageModel(tiny("gpt2"), tokenizer)
    assert decoder.tokenizer("w7 w8").input_ids == [*start, 7, 8]
    assert decoder.tokenizer("w7", "w8").input_ids == [7, EOS, 8]
    assert tokenizer("w7 w8").input_ids == before  # the caller's own is as it was
    assert before[-1] == EOS
    encoder_decoder = LanguageModel(tiny("t5"), tokenizer)
    assert encoder_decoder.tokenizer("w7 w8").input_ids == before


def test_an_end_that_is_appended_is_no_difference_between_decoders():
    plain, appending = (word_tokenizer(appends_eos=appends) for appends in (False, True))
    models = [LanguageModel(tiny("gpt2"), tokenizer) for tokenizer in (plain, appending)]
    check_same_tokenizer(*models)
    prompt = [Example(id="1", prompt="w7 w8")]
    ids = [model.encode(prompt, max_tokens=None).prompt_ids.tolist() for model in models]
    assert ids == [[[7, 8]], [[7, 8]]]
