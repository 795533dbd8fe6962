import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from brim.errors import ConfigError, DataError
from brim.models import train_tokenizer
from brim.models.scratch import TokenizerKind

KINDS: list[TokenizerKind] = ["word", "bpe"]
NAMES = ("Anna", "Carla", "Dmitri", "Émile", "Wei")
THINGS = ("apples", "oranges", "books", "marbles", "stickers", "pencils")


def problems(count: int = 300) -> list[str]:
    """Worked word problems in GSM8K's form."""
    draw = random.Random(0)
    texts = []
    for _ in range(count):
        a, b = draw.randint(2, 300), draw.randint(2, 300)
        name, things = draw.choice(NAMES), draw.choice(THINGS)
        texts.append(
            f"{name} has {a} {things} and buys {b} more {things}.  How many {things} are there?\n"
            f"There are {a}+{b}=<<{a}+{b}={a + b}>>{a + b} {things}.\n#### {a + b}"
        )
    return texts


BPE = train_tokenizer(problems(), kind="bpe", vocab_size=400)
PHONEMES = ["k r e g e r", "K R IY1 G ER0"]
WORDS = train_tokenizer(PHONEMES, kind="word", vocab_size=100)
TRAINED = {"word": WORDS, "bpe": BPE}

task_like = st.lists(
    st.sampled_from([*NAMES, *THINGS, " ", "  ", "\n", "\n\n", "\r\n", "\t", "#### ", "<<", ">>"])
    | st.integers(-9999, 9999).map(str)
    | st.text(string.punctuation, max_size=3),
    max_size=30,
).map("".join)
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def through(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    return str(tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True))


@given(text=task_like | any_text)
@settings(max_examples=300)
def test_any_text_comes_back_exactly(text):
    assert not {BPE.pad_token_id, BPE.unk_token_id} & set(BPE(text).input_ids)
    assert through(BPE, text) == text


@given(
    words=st.lists(st.sampled_from(" ".join(PHONEMES).split())), gap=st.sampled_from([" ", "  "])
)
def test_words_come_back_with_single_spaces(words, gap):
    assert through(WORDS, gap.join(words)) == " ".join(words)
    assert len(WORDS(gap.join(words)).input_ids) == len(words) + 1


def test_digits_stand_alone_and_frequent_words_are_one_token():
    assert all(len(token) == 1 for token in BPE.get_vocab() if set(token) & set(string.digits))
    assert [t for t in BPE.tokenize("1234, 56") if t.isdigit()] == list("123456")
    assert len(BPE.tokenize("Carla buys apples")) == 3


@pytest.mark.parametrize("text", ["</s>", "a</s>b", "<pad>", "<unk> <pad>"])
def test_special_tokens_spelled_out_are_text(text, tmp_path):
    BPE.save_pretrained(tmp_path)
    for tokenizer in (BPE, AutoTokenizer.from_pretrained(tmp_path)):
        ids = tokenizer(text).input_ids
        assert not {0, 1, 2} & set(ids[:-1])
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens(kind):
    tokenizer = TRAINED[kind]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.bos_token is None
    text = PHONEMES[1]
    plain = tokenizer(text, add_special_tokens=False).input_ids
    assert not {0, 1, 2} & set(plain)
    assert tokenizer(text).input_ids == [*plain, 1]
    assert set(tokenizer(text)) == {"input_ids", "attention_mask"}
    assert tokenizer.decode(tokenizer(text).input_ids) in (f"{text}</s>", f"{text} </s>")


def test_a_new_word_is_unknown():
    assert WORDS("K Q9 R").input_ids[1] == WORDS.unk_token_id


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_texts_give_the_same_tokenizer(kind):
    texts = PHONEMES if kind == "word" else problems()
    first, second = (
        train_tokenizer(iter(texts), kind=kind, vocab_size=400).backend_tokenizer.to_str()
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_reads_back_the_same(kind, tmp_path):
    tokenizer = TRAINED[kind]
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert again.special_tokens_map == tokenizer.special_tokens_map
    text = "K R , don ' t 12\n\n 3 ."
    assert again(text) == tokenizer(text)
    assert again.decode(again(text).input_ids) == tokenizer.decode(tokenizer(text).input_ids)


@pytest.mark.parametrize("vocab_size", [259, 300])
def test_the_vocabulary_keeps_its_bound(vocab_size):
    tokenizer = train_tokenizer(problems(), kind="bpe", vocab_size=vocab_size)
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocab_size))
    assert through(tokenizer, "Wei, 12\n\n▁ 日本🙂") == "Wei, 12\n\n▁ 日本🙂"


@pytest.mark.parametrize("text", ["a", "é", "12", "aaaa " * 50])
def test_little_text_is_enough(text):
    tokenizer = train_tokenizer([text], kind="bpe", vocab_size=1000)
    assert len(tokenizer) < 300
    assert through(tokenizer, text) == text


def test_words_must_fit():
    needed = len(set(" ".join(PHONEMES).split())) + 3
    assert len(train_tokenizer(PHONEMES, kind="word", vocab_size=needed)) == needed
    with pytest.raises(ConfigError, match=f"vocab_size: {needed - 1} has no room for all words"):
        train_tokenizer(PHONEMES, kind="word", vocab_size=needed - 1)


def test_bytes_must_fit():
    with pytest.raises(ConfigError, match=r"258 is too small .* need 259"):
        train_tokenizer(PHONEMES, kind="bpe", vocab_size=258)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [[], [""], [" \n", ""]])
def test_there_must_be_text(kind, texts):
    with pytest.raises(DataError, match="no text"):
        train_tokenizer(texts, kind=kind, vocab_size=500)


def test_an_unknown_kind():
    with pytest.raises(ConfigError, match="'wordpiece' is not known; choose one of word, bpe"):
        train_tokenizer(PHONEMES, kind="wordpiece", vocab_size=500)  # type: ignore[arg-type]
