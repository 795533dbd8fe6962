"""Generation settings that are part of a model: tokens never written, tokens always written."""

import json
import logging
from typing import Any

import pytest
import torch
from tiny import (
    EOS,
    PAD,
    UNK,
    bart_sizes,
    encoded,
    tiny,
    tiny_language_model,
    word_tokenizer,
)
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
)

from brim.divergences import forward_kl
from brim.errors import DataError, ModelError
from brim.examples import Example
from brim.models import BeamSearch, Decoding, LanguageModel, load_model, loading, share_vocabulary
from brim.types import Batch, Rollout

LIMIT = 7
LENGTHS = (3, 1, 6, 2, 4, 5, 2, 3)


def bart(**settings: Any) -> LanguageModel:
    """A BART whose text begins with one forced token and, at the limit, ends with another."""
    model = tiny("bart", num_rows=40)
    forced = {"forced_bos_token_id": UNK, "forced_eos_token_id": EOS}
    model.generation_config.update(**forced, **settings)
    return LanguageModel(model, word_tokenizer(appends_eos=True)).eval()


def marian() -> LanguageModel:
    """A Marian that would like to write its padding token, which it never may."""
    model = tiny("marian", num_rows=40)
    with torch.no_grad():
        model.final_logits_bias[0, PAD] = 20.0
    model.generation_config.update(bad_words_ids=[[PAD]], forced_eos_token_id=EOS)
    return LanguageModel(model, word_tokenizer(appends_eos=True)).eval()


PIECES = [(piece, -2.0) for piece in ("▁", *(f"▁w{i}" for i in range(3, 40)), "w", "3")]


def of_languages(kind: str) -> LanguageModel:
    """An mBART, whose decoder starts with a language, or an NLLB, which is forced to write one."""
    first = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    languages = {"vocab": first + PIECES, "src_lang": "en_XX", "tgt_lang": "ro_RO"}
    tokenizer = (MBartTokenizer if kind == "mbart" else MBart50Tokenizer)(**languages)
    language = tokenizer.convert_tokens_to_ids("ro_RO")
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    ids["decoder_start_token_id"] = language if kind == "mbart" else 2
    ids["forced_eos_token_id"] = 2 if kind == "mbart" else None
    options = bart_sizes(len(tokenizer), **ids, scale_embedding=True)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if kind == "mbart":
            model = MBartForConditionalGeneration(MBartConfig(**options))
        else:
            model = M2M100ForConditionalGeneration(M2M100Config(**options))
            model.generation_config.forced_bos_token_id = language
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return LanguageModel(model, tokenizer).eval()


MODELS = {
    "bart": bart,
    "marian": marian,
    "mbart": lambda: of_languages("mbart"),
    "nllb": lambda: of_languages("nllb"),
}


def plainly(model: Any, batch: Batch, **options: Any) -> Tensor:
    """What transformers' own `generate` writes behind the decoder's start token."""
    with torch.no_grad():
        ids = model.generate(
            batch.prompt_ids, attention_mask=batch.prompt_mask.long(), do_sample=False, **options
        )
    return ids[:, 1:]


def chosen(model: LanguageModel, rows: Tensor) -> list[list[int]]:
    """Of what `generate` wrote the tokens that were chosen: until the first end or the limit."""
    start, limit = len(model.rules.forced_start), LIMIT - model.rules.forces_end
    cut = [row[start:limit] for row in rows.tolist()]
    return [row[: row.index(e) + 1] if (e := model.eos_token_ids[0]) in row else row for row in cut]


def texts(rollout: Rollout) -> list[list[int]]:
    return [
        ids[mask].tolist() for ids, mask in zip(rollout.completion_ids, rollout.mask, strict=True)
    ]


@pytest.mark.parametrize("engine", ["loop", "generate"])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_is_that_of_plain_generate(name, engine, tmp_path):
    model = MODELS[name]()
    batch = encoded(model, LENGTHS)
    rollout = model.generate(batch, Decoding(max_tokens=LIMIT, strategy="greedy", engine=engine))
    model.save(tmp_path)
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    expected = plainly(plain, batch, max_new_tokens=LIMIT)
    assert texts(rollout) == chosen(model, expected)
    # Forced tokens are in the limit, and no part of what the model did.
    assert (rollout.lengths[rollout.truncated] == LIMIT - model.rules.num_forced).all()
    assert rollout.truncated.any()
    for token in model.rules.forced_start:
        assert (expected[:, 0] == token).all()
    assert not torch.isin(rollout.completion_ids[rollout.mask], torch.tensor([PAD])).any()


@pytest.mark.parametrize("name", MODELS)
def test_beams_are_those_of_plain_generate(name):
    model = MODELS[name]()
    batch = encoded(model, LENGTHS)
    options: dict[str, Any] = {"num_beams": 3, "length_penalty": 0.7}
    decoding = BeamSearch(max_tokens=LIMIT, **options)
    rollout = model.generate(batch, decoding)
    exactly = {"early_stopping": "never", "renormalize_logits": True, **options}
    expected = plainly(model.model, batch, max_new_tokens=LIMIT, **exactly)
    assert texts(rollout) == chosen(model, expected)


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_the_whole_sequence_that_was_written(name):
    model = MODELS[name]()
    batch = encoded(model, LENGTHS)
    rollout = model.generate(batch, Decoding(max_tokens=LIMIT))
    start = model.model.generation_config.decoder_start_token_id
    opened = torch.tensor([[start, *model.rules.forced_start]]).expand(len(batch), -1)
    inputs = torch.cat([opened, rollout.completion_ids], dim=1)
    with torch.no_grad():
        logits = model.model(
            input_ids=batch.prompt_ids,
            attention_mask=batch.prompt_mask.long(),
            decoder_input_ids=inputs,
        ).logits[:, opened.shape[1] - 1 : -1]
    logits[..., model.excluded_rows] = -torch.inf
    taken = logits.gather(2, rollout.completion_ids[..., None]).squeeze(2)
    values = model.action_values(rollout, bootstrap=True)
    mask = rollout.mask
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(values.q_taken[mask], taken[mask], **close)
    torch.testing.assert_close(values.q_max[mask], logits.amax(2)[mask], **close)
    expected = (taken - logits.logsumexp(2))[mask]
    torch.testing.assert_close(model.logprobs(rollout)[mask], expected, **close)
    assert values.bootstrap is not None
    assert values.bootstrap[rollout.truncated].abs().max() < 1e4


def two_ends() -> LanguageModel:
    model = tiny("gpt2", num_rows=40)
    model.generation_config.update(eos_token_id=[EOS, 9], suppress_tokens=[9, 10])
    return LanguageModel(model, word_tokenizer()).eval()


@pytest.mark.parametrize("engine", ["loop", "generate"])
@pytest.mark.parametrize(("make", "never"), [(marian, [PAD]), (two_ends, [9, 10])])
def test_sampling_is_without_what_is_excluded(make, never, engine):
    model = make()
    rollout = model.generate(encoded(model).repeat(100), Decoding(max_tokens=4, engine=engine))
    assert not torch.isin(rollout.completion_ids[rollout.mask], torch.tensor(never)).any()


def test_end_tokens_and_forced_tokens_that_are_excluded_too():
    """transformers takes an end token for no bad word, and writes what is forced in any case."""
    model = bart(bad_words_ids=[[EOS], [UNK], [5], [6, 7]], suppress_tokens=[8])
    assert model.rules.excluded == {UNK, 5, 8}
    batch = encoded(model, LENGTHS)
    expected = chosen(model, plainly(model.model, batch, max_new_tokens=LIMIT))
    for engine in ("loop", "generate"):
        decoding = Decoding(max_tokens=LIMIT, strategy="greedy", engine=engine)  # type: ignore[arg-type]
        rollout = model.generate(batch, decoding)
        assert texts(rollout) == expected
    endless = tiny("gpt2")
    endless.generation_config.suppress_tokens = [EOS]
    with pytest.raises(ModelError, match=r"excludes token 1, which ends a text"):
        LanguageModel(endless, word_tokenizer())


def test_a_decoder_is_forced_to_end_and_not_to_begin():
    model = tiny("gpt2", num_rows=40)
    model.generation_config.update(forced_eos_token_id=EOS, forced_bos_token_id=5)
    policy = LanguageModel(model, word_tokenizer()).eval()
    batch = encoded(policy, (3, 3, 3))
    for engine in ("loop", "generate"):
        decoding = Decoding(max_tokens=LIMIT, strategy="greedy", engine=engine)  # type: ignore[arg-type]
        rollout = policy.generate(batch, decoding)
        with torch.no_grad():
            plain = model.generate(batch.prompt_ids, max_new_tokens=LIMIT, do_sample=False)
        assert texts(rollout) == chosen(policy, plain[:, 3:])


def test_a_limit_that_forced_tokens_fill():
    model = bart()
    batch = encoded(model)
    with pytest.raises(ModelError, match="none is left to choose"):
        model.generate(batch, Decoding(max_tokens=2))
    with pytest.raises(ModelError, match="none is left to choose"):
        model.encode_completions(batch, ["w3"] * len(batch), max_tokens=2)


@pytest.mark.parametrize("kind", ["mbart", "nllb"])
def test_targets_are_the_tokens_that_the_model_chooses(kind):
    model = of_languages(kind)
    batch = encoded(model, (3, 2))
    rollout = model.encode_completions(batch, ["w5 w6", "w7 w8 w9 w10"], max_tokens=LIMIT - 3)
    pieces = [model.tokenizer.convert_ids_to_tokens(row) for row in texts(rollout)]
    assert pieces == [["▁w5", "▁w6", "</s>"], ["▁w7", "▁w8", "▁w9"]]
    assert rollout.truncated.tolist() == [False, True]
    assert model.tokenizer.convert_ids_to_tokens(batch.prompt_ids[0])[-1] in ("en_XX", "</s>")


def test_a_beginning_that_is_not_forced_is_an_action_and_no_text():
    model = of_languages("nllb")
    model.model.generation_config.forced_bos_token_id = None
    model = LanguageModel(model.model, model.tokenizer)
    rollout = model.encode_completions(encoded(model, (3,)), ["w5 w6"], max_tokens=LIMIT)
    pieces = model.tokenizer.convert_ids_to_tokens(rollout.completion_ids[0])
    assert pieces == ["ro_RO", "▁w5", "▁w6", "</s>"]
    assert model.decode(rollout) == ["w5 w6"]


def test_a_language_that_the_model_is_not_forced_to_write():
    model = of_languages("nllb")
    model.tokenizer.tgt_lang = "de_DE"
    other = LanguageModel(model.model, model.tokenizer)
    with pytest.raises(ModelError, match=r"begins a target with 'de_DE' .* 'ro_RO'; .*tgt_lang"):
        other.encode_completions(encoded(other, (3,)), ["w5"], max_tokens=LIMIT)


def test_a_target_that_can_never_be_written_is_a_bad_row():
    model = bart(suppress_tokens=[7])
    batch = encoded(model, (3, 2))
    with pytest.raises(DataError, match=r"example '1' holds 'w7', .*suppress_tokens.*remove"):
        model.encode_completions(batch, ["w5", "w6 w7 w8"], max_tokens=LIMIT)


def pair() -> tuple[LanguageModel, LanguageModel]:
    """A teacher that never writes the last token of the vocabulary, and a student that would."""
    teacher, student = tiny("gpt2"), tiny("qwen2")
    teacher.generation_config.suppress_tokens = [39, 5]
    student.generation_config.bad_words_ids = [[6]]
    return tuple(LanguageModel(model, word_tokenizer()).eval() for model in (teacher, student))


def test_no_score_is_made_of_a_token_that_a_model_never_writes():
    teacher, student = pair()
    rollout = student.encode_completions(encoded(student, (3,)), ["w39 w4"], max_tokens=LIMIT)
    for token in ("w39", "w5"):
        rollout = student.encode_completions(encoded(student, (3,)), [token], max_tokens=LIMIT)
        for score in (teacher.action_values, teacher.logprobs, teacher.gradient_norms):
            with pytest.raises(ModelError, match=rf"\({token}\), which this model never writes"):
                score(rollout)


def test_a_pair_writes_the_same_tokens(tmp_path):
    teacher, student = pair()
    share_vocabulary(teacher, student)
    assert teacher.rules.excluded == student.rules.excluded == {39, 5, 6}
    batch = encoded(student, LENGTHS).repeat(40)
    rollout = student.generate(batch, Decoding(max_tokens=4))
    assert not torch.isin(rollout.completion_ids, torch.tensor([5, 6, 39])).any()
    values = teacher.action_values(rollout)
    assert values.q_taken.abs().max() < 1e4
    comparison = teacher.features(rollout).comparison(forward_kl)
    divergences = student.statistics(rollout, comparison=comparison).compared
    assert divergences is not None
    assert 0 < divergences[rollout.mask].max() < 1e4
    # The student that is saved is the one that was trained, in plain transformers too.
    student.save(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.excluded_rows == student.excluded_rows
    assert loaded.rules.excluded == frozenset(student.excluded_rows)  # with rows of no token
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    row = encoded(student, (3,))
    greedy = student.generate(row, Decoding(max_tokens=LIMIT, strategy="greedy"))
    with torch.no_grad():
        expected = plain.generate(row.prompt_ids, max_new_tokens=LIMIT, do_sample=False)[:, 3:]
    assert torch.equal(greedy.completion_ids, expected[:, : greedy.completion_ids.shape[1]])
    share_vocabulary(teacher, student)  # changes nothing any more
    assert teacher.rules.excluded == {39, 5, 6}


def test_one_excludes_what_ends_the_text_of_the_other():
    teacher, student = pair()
    teacher.exclude([9])
    student.tokenizer.eos_token = "w9"
    student = LanguageModel(student.model, student.tokenizer)
    teacher.tokenizer.eos_token = "w9"
    with pytest.raises(ModelError, match="excludes token 9, which ends a text"):
        share_vocabulary(teacher, student)


def test_what_is_not_followed_is_named_once(tmp_path, caplog):
    loading._warn_of_ignored.cache_clear()
    model = tiny_language_model("bart")
    settings = {"temperature": 0.7, "num_beams": 4, "max_length": 9, "early_stopping": True}
    neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0}
    followed = {"suppress_tokens": [5], "forced_eos_token_id": EOS, "bad_words_ids": [[6]]}
    model.model.generation_config.update(do_sample=True, **settings, **neutral, **followed)
    model.save(tmp_path)
    with caplog.at_level(logging.WARNING, logger="brim"):
        load_model(tmp_path)
    assert caplog.messages == []
    heard_of = {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "min_length": 4,
        "begin_suppress_tokens": [7],
        "bad_words_ids": [[6], [7, 8]],
    }
    model.model.generation_config.update(**heard_of)
    model.save(tmp_path)
    file = tmp_path / "generation_config.json"
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert saved["bad_words_ids"] == [[6]]
    assert {*heard_of} & {*saved} == {"bad_words_ids"}
    # As another program saves them:
    file.write_text(json.dumps({**saved, **heard_of}), encoding="utf-8")
    with caplog.at_level(logging.WARNING, logger="brim"):
        load_model(tmp_path)
        load_model(tmp_path)
    (message,) = caplog.messages
    assert str(tmp_path) in message
    assert all(name in message for name in heard_of)
    assert not any(name in message for name in (*settings, "do_sample", "suppress_tokens=[5]"))


@pytest.mark.parametrize(("kind", "ends"), [("mbart", ["</s>", "en_XX"]), ("nllb", ["</s>"])])
def test_a_cut_prompt_keeps_what_the_tokenizer_puts_around_it(kind, ends):
    model = of_languages(kind)
    begins = [] if kind == "mbart" else ["en_XX"]
    example = Example(id="0", prompt=" ".join(f"w{i}" for i in range(3, 20)))
    for limit in range(1, 8):
        ids = model.encode([example], max_tokens=limit).prompt_ids[0]
        assert len(ids) == limit
        pieces = model.tokenizer.convert_ids_to_tokens(ids)
        room = limit - len(begins) - len(ends)
        if room >= 0:
            words = [f"▁w{3 + i}" for i in range(room)]
            assert pieces == [*begins, *words, *ends]
