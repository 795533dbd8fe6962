from dataclasses import replace

import pytest
import torch
from tiny import DECODERS, ENCODER_DECODERS, EOS, tiny, tiny_language_model, word_tokenizer
from tokenizers import processors

from brim.errors import DataError, ModelError
from brim.examples import Example
from brim.models import LanguageModel, read_text

BOS = 3
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ message['role'] }} {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}w9{% endif %}"
)


def with_bos(family: str, *, appends_eos: bool) -> LanguageModel:
    tokenizer = word_tokenizer()
    tokenizer.bos_token = "w3"
    ending = " </s>" if appends_eos else ""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"w3 $A{ending}", special_tokens=[("w3", BOS), ("</s>", EOS)]
    )
    return LanguageModel(tiny(family), tokenizer)


def rows(model: LanguageModel, texts: list[str], max_tokens: int | None = None) -> list[list[int]]:
    return rows_of(model, [Example(str(i), t) for i, t in enumerate(texts)], max_tokens)


def rows_of(
    model: LanguageModel, examples: list[Example], max_tokens: int | None = None
) -> list[list[int]]:
    batch = model.encode(examples, max_tokens=max_tokens)
    return [
        ids[mask].tolist() for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)
    ]


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_an_encoder_reads_from_the_left_to_its_eos(family):
    model = tiny_language_model(family)
    batch = model.encode([Example("a", "w5 w6"), Example("b", "w7")], max_tokens=None)
    assert batch.prompt_ids.tolist() == [[5, 6, EOS], [7, EOS, 0]]
    assert batch.prompt_mask.tolist() == [[True, True, True], [True, True, False]]


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_reads_up_to_the_right_edge(family):
    model = tiny_language_model(family)
    batch = model.encode([Example("a", "w5 w6"), Example("b", "w7")], max_tokens=None)
    assert batch.prompt_ids.tolist() == [[5, 6], [0, 7]]
    assert batch.prompt_mask.tolist() == [[True, True], [False, True]]


def test_a_long_prompt_is_cut_where_it_matters_least():
    texts = ["w5 w6 w7 w8", "w9", "w10 w11 w12"]
    encoder = tiny_language_model("t5")
    assert rows(encoder, texts, 3) == [[5, 6, EOS], [9, EOS], [10, 11, EOS]]
    decoder = tiny_language_model("llama")
    assert rows(decoder, texts, 3) == [[6, 7, 8], [9], [10, 11, 12]]
    opened = with_bos("llama", appends_eos=False)
    assert rows(opened, texts, 3) == [[BOS, 7, 8], [BOS, 9], [BOS, 11, 12]]
    assert rows(opened, texts, 1) == [[8], [9], [12]]
    assert rows(encoder, texts, 1) == [[EOS], [EOS], [EOS]]
    examples = [Example(str(i), text) for i, text in enumerate(texts)]
    assert encoder.encode(examples, max_tokens=3).num_truncated_prompts == 2
    assert decoder.encode(examples, max_tokens=3).num_truncated_prompts == 1
    assert decoder.encode(examples, max_tokens=None).num_truncated_prompts == 0


def test_a_decoder_only_prompt_does_not_end_with_the_end_token():
    model = with_bos("llama", appends_eos=True)
    assert rows(model, ["w5 w6", ""]) == [[BOS, 5, 6], [BOS]]
    rollout = model.encode_completions(
        model.encode([Example("a", "w5")], max_tokens=None), ["w7"], max_tokens=9
    )
    assert rollout.completion_ids.tolist() == [[7, EOS]]


def test_an_empty_prompt_is_something_to_start_from():
    assert rows(tiny_language_model("llama"), ["", "w5"]) == [[EOS], [5]]
    assert rows(tiny_language_model("t5"), ["", "w5"]) == [[EOS], [5, EOS]]
    bare = LanguageModel(tiny("t5"), word_tokenizer())
    assert rows(bare, ["", "w5"]) == [[EOS], [5]]
    named = word_tokenizer()
    named.bos_token = "w3"
    assert rows(LanguageModel(tiny("llama"), named), ["", "w5"]) == [[BOS], [5]]


def test_an_encoder_decoder_target_has_its_tokenizers_special_tokens():
    model = with_bos("bart", appends_eos=True)
    batch = model.encode([Example("a", "w5")], max_tokens=None)
    assert model.encode_completions(batch, ["w7"], max_tokens=9).completion_ids.tolist() == [
        [BOS, 7, EOS]
    ]
    bare = LanguageModel(tiny("t5"), word_tokenizer())
    rollout = bare.encode_completions(batch, ["w7"], max_tokens=9)
    assert rollout.completion_ids.tolist() == [[7, EOS]]


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_target_that_ends_too_early(family):
    model = tiny_language_model(family)
    batch = model.encode([Example("row-17", "w5")], max_tokens=None)
    with pytest.raises(DataError, match=r"'row-17' spells out an end-of-sequence token"):
        model.encode_completions(batch, ["w7 </s> w8"], max_tokens=9)


def test_chats_go_through_the_template_beside_plain_prompts():
    chat = Example("chat", "", messages=({"role": "w5", "content": "w6"},))
    for family, end in (("llama", []), ("t5", [EOS])):
        model = tiny_language_model(family)
        with pytest.raises(ModelError, match=r"'chat' is a chat but the tokenizer has no chat"):
            model.encode([chat], max_tokens=None)
        model.tokenizer.chat_template = TEMPLATE
        batch = model.encode([Example("a", "w7 w8"), chat, Example("b", "w4")], max_tokens=None)
        ids = [r[m].tolist() for r, m in zip(batch.prompt_ids, batch.prompt_mask, strict=True)]
        assert ids == [[7, 8, *end], [5, 6, 9, *end], [4, *end]]
        refused = Example("c", "", messages=({"role": "tool", "content": "w6"},))
        with pytest.raises(DataError, match=r"example 'c': no tools here"):
            model.encode([refused], max_tokens=None)


def test_a_template_gets_tools_and_calls():
    model = tiny_language_model("llama")
    model.tokenizer.chat_template = (
        "{% for tool in tools or [] %}{{ tool.name }} {% endfor %}"
        "{% for message in messages %}{% for call in message.tool_calls or [] %}"
        "{{ call.name }} {% endfor %}{{ message.content }} {% endfor %}"
    )
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "w6"}]}
    chat = Example("a", "", messages=({"role": "user", "content": "w5"}, call))
    tooled = replace(chat, tools=({"name": "w7"}, {"name": "w8"}))
    assert rows_of(model, [chat]) == [[5, 6]]
    assert rows_of(model, [tooled, chat]) == [[7, 8, 5, 6], [5, 6]]


def test_a_template_writes_the_start_token_itself():
    model = with_bos("llama", appends_eos=False)
    model.tokenizer.chat_template = "{{ bos_token }} " + TEMPLATE
    chat = Example("chat", "", messages=({"role": "w5", "content": "w6"},))
    assert model.encode([chat], max_tokens=None).prompt_ids.tolist() == [[BOS, 5, 6, 9]]


def test_seeds():
    model = tiny_language_model("llama")
    examples = [Example("a", "w5 w6"), Example("b", "w7")]
    assert model.encode(examples, max_tokens=None).seeds == (0, 1)
    assert model.encode(examples, max_tokens=None, seeds=[2**62, 5]).seeds == (2**62, 5)
    assert model.encode(examples, max_tokens=None).prompt_ids.dtype == torch.int64


def test_a_template_that_asks_for_the_date_gets_the_same_one_every_day():
    model = tiny_language_model("llama")
    chat = Example("chat", "", messages=({"role": "w5", "content": "w6"},))
    llama = (  # the words of Llama 3.2
        "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
        '{%- set date_string = strftime_now("%d %b %Y") %}'
        '{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}{%- endif %}'
    )
    for template, text in (
        ("{{ strftime_now('%Y-%m-%d %H:%M') }} " + TEMPLATE, "2024-07-26 00:00 w5 w6 w9"),
        (f"{llama}{{{{ date_string }}}} {TEMPLATE}", "26 Jul 2024 w5 w6 w9"),
        ("\n  {% if strftime_now('%B, %A') %}w3{% endif %}\nw4", "\nw3w4"),
        ("{% macro day() %}{{ strftime_now('%B, %A') }}{% endmacro %}{{ day() }}", "July, Friday"),
    ):
        model.tokenizer.chat_template = template
        assert model.encoder.render(chat) == text
    model.tokenizer.chat_template = {"default": "w4", "tool_use": "{{ strftime_now('w%d') }}"}
    assert rows_of(model, [chat, replace(chat, tools=({"name": "w7"},))]) == [[4], [26]]


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_chat_ends_as_its_template_ends_answers(family):
    turns = "{% for m in messages %}w4 {{ m.content }} w8 {% endfor %}{{ eos_token }}"
    chat = Example("chat", "", messages=({"role": "user", "content": "w6"},))
    endings = {
        turns: 8,  # as Gemma's, Phi-3's: not the tokenizer's own end
        turns.replace("w8", "w9"): EOS,  # w9 ends no text of this model
        "{% for m in messages %}{{ m.content }} {% endfor %}": EOS,
        "{{ messages[0].content }}": EOS,
        "{% if messages|length > 1 %}{{ raise_exception('one') }}{% endif %}": EOS,
    }
    for template, end in endings.items():
        inner = tiny(family)
        inner.generation_config.eos_token_id = [EOS, 8]
        model = LanguageModel(inner, word_tokenizer(appends_eos=family == "t5"))
        model.tokenizer.chat_template = template
        examples = [chat, Example("plain", "w6")]
        assert model.encoder.completions(examples, ["w7", "w7 w3"]) == [[7, end], [7, 3, EOS]]
        readings = read_text(model.encoder, ["w7", "w7"], [True, True], examples)
        assert [reading.ids for reading in readings] == [[7, end], [7, EOS]]
        [cut] = read_text(model.encoder, ["w7"], [False], [chat])
        assert cut.ids == [7]
