"""Rows that no model can use, and text that a tokenizer cannot spell, are found at load."""

import pytest
from tiny import tiny, tiny_language_model, word_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from brim.errors import ModelError
from brim.examples import Example
from brim.models import LanguageModel, RowReport, inspect_rows

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('no system message') }}{% endif %}{{ m['content'] }} {% endfor %}"
)


def chat(name: str, role: str = "user") -> Example:
    return Example(name, "", ("w7",), messages=({"role": role, "content": "w5 w6"},))


def inspect(
    *models: LanguageModel, examples: list[Example], limit: int | None = None, max_tokens: int = 8
) -> RowReport:
    return inspect_rows(models, examples, max_prompt_tokens=limit, max_tokens=max_tokens)


def test_chats_that_either_template_refuses():
    strict, lax = tiny_language_model("llama"), tiny_language_model("llama")
    strict.tokenizer.chat_template = TEMPLATE
    lax.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    examples = [chat("0"), chat("1", "system"), Example("2", "w5", ("w6",)), chat("3", "system")]
    assert inspect(lax, examples=examples).unusable == {}
    for pair in ((strict, lax), (lax, strict)):
        report = inspect(*pair, examples=examples)
        assert report.unusable.keys() == {1, 3}
        assert "no system message" in report.unusable[1]
    lax.tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        inspect(lax, examples=examples)


def test_templates_by_name_and_templates_that_fail_in_their_own_code():
    several, own = tiny_language_model("llama"), tiny_language_model("llama")
    several.tokenizer.chat_template = {"default": TEMPLATE, "tool_use": TEMPLATE}
    # As templates of tools do with arguments that are text in place of a mapping.
    own.tokenizer.chat_template = "{% for k, v in messages[0].content|items %}{{ k }}{% endfor %}"
    examples = [chat("0"), Example("1", "w5", ("w6",)), chat("2", "system")]
    assert inspect(several, examples=examples).unusable.keys() == {2}
    report = inspect(several, own, examples=examples)
    assert report.unusable.keys() == {0, 2}
    assert "the chat template refuses the messages of example '0'" in report.unusable[0]


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_targets_that_end_too_early(family):
    model = tiny_language_model(family)
    targets = ["w5", "w5 </s> w6", "w5 </s>", "</s> w5"]
    examples = [Example(str(i), "w3", (text,)) for i, text in enumerate(targets)]
    examples += [Example("several", "w3", ("w5", "w6 </s> w7")), Example("none", "w3")]
    assert inspect(model, examples=examples).unusable.keys() == {1, 3, 4}


@pytest.mark.parametrize(
    ("family", "longest"),
    [("gpt2", 64 - 8 + 1), ("bart", 64), ("t5", None)],
)
def test_prompts_longer_than_the_positions(family, longest):
    model = tiny_language_model(family)
    end = model.is_encoder_decoder
    lengths = [10, 56, 57, 58, 63, 64, 65, 300]
    examples = [Example(str(n), " ".join(["w3"] * (n - end))) for n in lengths]
    found = inspect(model, examples=examples).unusable
    expected = {i for i, n in enumerate(lengths) if longest is not None and n > longest}
    assert found.keys() == expected
    # One that is cut to fit can be used; where even the rest has no room, none can.
    assert inspect(model, examples=examples, limit=57).unusable == {}
    if longest is not None:
        assert len(inspect(model, examples=examples, max_tokens=100).unusable) == len(lengths)


def test_the_smaller_of_two_models_decides():
    small, large = tiny_language_model("gpt2"), tiny_language_model("gpt2")
    large.model.config.max_position_embeddings = 4096
    examples = [Example("0", "w3 " * 100), Example("1", "w3")]
    assert inspect(large, examples=examples).unusable == {}
    assert inspect(large, small, examples=examples).unusable.keys() == {0}


def t5_like() -> PreTrainedTokenizerFast:
    """Neither `<` nor a line break, and runs of spaces become one, as in T5."""
    letters = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters += [(c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz0123456789+=>'.,?"]
    backend = Tokenizer(models.Unigram(letters, unk_id=2))
    backend.normalizer = normalizers.Replace(" {2,}", " ")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_text_that_the_vocabulary_lacks_is_counted(family):
    model = LanguageModel(tiny(family), t5_like())
    texts = ["so <<2+3=5>>5", "fine, isn't it?", "two\nlines", "a { b", "ok ' , ok"]
    examples = [Example(str(i), "q", (text,)) for i, text in enumerate(texts)]
    examples.append(Example("prompt", "x ~ y", ("fine",)))
    report = inspect(model, examples=examples)
    assert report.unusable == {}
    assert (report.num_rows, report.num_unknown, report.num_changed) == (6, 3, 4)
    assert report.num_misspelled == 4
    assert [row for row, _, _ in report.samples] == [0, 2, 3]
    _, text, back = report.samples[0]
    assert text == "so <<2+3=5>>5"
    assert "2+3=5>>5" in back
    assert "<<2" not in back
    summary = report.summary(["train.jsonl:1", "train.jsonl:3", "train.jsonl:4"])
    assert "4 of 6 rows (66.7%)" in summary
    assert r"train.jsonl:3: 'two\nlines' comes back as 'two lines'" in summary


def test_samples_show_where_the_texts_differ():
    model = LanguageModel(tiny("llama"), t5_like())
    long = "word " * 50 + "< here " + "word " * 50
    (_, text, back), *_ = inspect(model, examples=[Example("0", "q", (long,))]).samples
    assert "< here" in text
    assert "<unk> here" in back
    assert max(len(text), len(back)) < 50


def test_an_unknown_token_that_ends_texts_is_no_unknown_token():
    tokenizer = word_tokenizer()
    tokenizer.unk_token = tokenizer.eos_token  # GPT-2's is its end
    model = LanguageModel(tiny("gpt2"), tokenizer)
    report = inspect(model, examples=[Example("0", "w5", ("w6",))])
    assert report.num_misspelled == 0


def test_targets_of_tokens_that_the_model_never_writes():
    model = tiny("t5")
    model.generation_config.update(suppress_tokens=[6], bad_words_ids=[[7], [8, 9]])
    examples = [Example(w, f"{w} w7", (f"w3 {w}",)) for w in ("w5", "w6", "w7", "w8")]
    report = inspect(LanguageModel(model, word_tokenizer(appends_eos=True)), examples=examples)
    assert report.unusable.keys() == {1, 2}
