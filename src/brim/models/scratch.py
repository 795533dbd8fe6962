"""Models from scratch, built from a few lines of description."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, get_args

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from brim.config.loading import Config, make_config
from brim.errors import ConfigError, DataError, ModelError
from brim.models.language_model import LanguageModel
from brim.models.settings import (
    Description,
    GPT2Description,
    LlamaDescription,
    T5Description,
    TokenizerKind,
)
from brim.seeding import derive_seed


def _t5(plan: T5Description, common: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "d_model": plan.d_model,
        "d_kv": plan.d_model // plan.heads,
        "d_ff": plan.width,
        "num_layers": plan.layers,
        "num_decoder_layers": plan.decoder_layers or plan.layers,
        "num_heads": plan.heads,
        "dropout_rate": plan.dropout,
        "feed_forward_proj": plan.feed_forward,
        "decoder_start_token_id": common["pad_token_id"],
    }


def _gpt2(plan: GPT2Description, common: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "n_embd": plan.d_model,
        "n_layer": plan.layers,
        "n_head": plan.heads,
        "n_inner": plan.width,
        "n_positions": plan.max_positions,
        "resid_pdrop": plan.dropout,
        "embd_pdrop": plan.dropout,
        "attn_pdrop": plan.dropout,
        "initializer_range": plan.d_model**-0.5,
    }


def _llama(plan: LlamaDescription, common: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": plan.d_model,
        "num_hidden_layers": plan.layers,
        "num_attention_heads": plan.heads,
        "num_key_value_heads": plan.kv_heads or plan.heads,
        "intermediate_size": plan.width,
        "attention_dropout": plan.dropout,
        "initializer_range": plan.d_model**-0.5,
    }


# Of each family the classes of transformers, and a description in their words.
_FAMILIES: dict[str, tuple[Any, Any, Callable[..., dict[str, Any]]]] = {
    "t5": (T5ForConditionalGeneration, T5Config, _t5),
    "mt5": (MT5ForConditionalGeneration, MT5Config, _t5),
    "gpt2": (GPT2LMHeadModel, GPT2Config, _gpt2),
    "llama": (LlamaForCausalLM, LlamaConfig, _llama),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, _llama),
}


def build_model(
    description: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> LanguageModel:
    """A model with random weights, such as `{family: t5, d_model: 128, layers: 2, heads: 4}`.

    A tied t5 is the first T5, which scales what its head reads. Untied and decoder-only models
    start with logits of variance 1, a loss near `ln V + 0.5`. Weights are drawn from a stream of
    their own. The tokenizer, which is copied, gives the rows of the embedding and the special
    tokens.

    Raises:
        ConfigError: an unknown family or key, or a value that cannot be used.
        ModelError: the tokenizer lacks a special token that the family needs.
    """
    plan = _parse(description)
    if tokenizer.pad_token_id is None and isinstance(plan, T5Description):
        raise ModelError(f"{plan.family}: the decoder starts with the padding token; set pad_token")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "weights"))
        model = _build(
            plan,
            vocab_size=max(tokenizer.get_vocab().values()) + 1,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    return LanguageModel(model.eval(), copy.deepcopy(tokenizer))


def build_without_tokenizer(description: Mapping[str, Any], *, vocab_size: int) -> PreTrainedModel:
    """What `build_model` makes, on torch's current default device, for counting its weights."""
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    return _build(_parse(description), vocab_size=vocab_size, **special)


def _build(plan: Any, **vocabulary: int | None) -> PreTrainedModel:
    model_class, config_class, describe = _FAMILIES[plan.family]
    common = {**vocabulary, "tie_word_embeddings": plan.tied}
    model: PreTrainedModel = model_class(config_class(**describe(plan, common), **common))
    if isinstance(plan, T5Description):
        _set_head(model, tied=plan.tied)
    return model


class _Arguments(Config):
    """Of `build_model`: a key for errors to begin with."""

    description: Description


def _parse(description: Mapping[str, Any]) -> Any:
    data = {"description": dict(description)}
    return make_config(_Arguments, data, "build_model").description


def _set_head(model: PreTrainedModel, *, tied: bool) -> None:
    """Give a T5 or mT5 the head it was described with, for their configs know only tied ones."""
    head = model.get_output_embeddings()
    if not tied:
        head.weight = nn.Parameter(torch.empty_like(head.weight))
    if not getattr(model.config, "scale_decoder_outputs", False):
        nn.init.normal_(head.weight, std=model.config.d_model**-0.5)


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
    Special tokens count in `vocab_size`; little text gives fewer. Texts are read once.

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
