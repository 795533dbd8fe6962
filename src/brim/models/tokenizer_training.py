"""Tokenizers trained on a task's text, for models from scratch."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Literal, get_args

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from brim.errors import ConfigError, DataError

TokenizerKind = Literal["word", "bpe"]

_PAD, _EOS, _UNK = _SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2, as T5 has them

# A printable character for each of the 256 bytes. All of them have tokens, so that any text, seen
# or not, becomes tokens that decode to exactly this text.
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def train_tokenizer(
    texts: Iterable[str], *, kind: TokenizerKind, vocab_size: int
) -> PreTrainedTokenizerBase:
    """A tokenizer of the texts' words, or of pieces of them; the same texts give the same one.

    `word`: what stands between spaces, for texts that are sequences of symbols. It decodes to the
    words with single spaces between them; one that was not in the texts becomes `<unk>`.

    `bpe`: bytes, and frequent pieces of words merged from them. Any text decodes to itself, spaces
    and newlines included, and each digit is a token of its own.

    `<pad>` is 0, `</s>` 1 and `<unk>` 2. `</s>` is appended where special tokens are asked for.

    Args:
        texts: prompts and targets; read once.
        kind: as above.
        vocab_size: the most tokens there may be, special ones included; little text gives fewer.

    Raises:
        ConfigError: an unknown kind, or a vocabulary too small for the words or the bytes.
        DataError: there is no text.
    """
    if kind not in get_args(TokenizerKind):
        choices = ", ".join(get_args(TokenizerKind))
        raise ConfigError(f"tokenizer: kind: {kind!r} is not known; choose one of {choices}")
    texts = (text for text in texts if text and not text.isspace())
    first = next(texts, None)
    if first is None:
        raise DataError("tokenizer: there is no text to train it on; give examples with text")
    train = _train_words if kind == "word" else _train_bpe
    tokenizer = train(chain([first], texts), vocab_size)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {_EOS}", special_tokens=[(_EOS, _SPECIAL_TOKENS.index(_EOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        eos_token=_EOS,
        unk_token=_UNK,
        split_special_tokens=True,  # "</s>" in a text is text
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _train_words(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token=_UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # One more than allowed, to see whether a word would be left out.
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size + 1, special_tokens=list(_SPECIAL_TOKENS), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() > vocab_size:
        raise ConfigError(
            f"tokenizer: vocab_size: {vocab_size} has no room for all words of the text; "
            "raise it, or choose kind: bpe"
        )
    return tokenizer


def _train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    smallest = len(_SPECIAL_TOKENS) + len(_BYTES)
    if vocab_size < smallest:
        raise ConfigError(
            f"tokenizer: vocab_size: {vocab_size} is too small for bpe; "
            f"bytes and special tokens alone need {smallest}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=_BYTES,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
