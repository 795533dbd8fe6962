"""Models from scratch, built from a few lines of description."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import torch
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from brim.config.loading import Config
from brim.config.messages import explain
from brim.config.yaml import Document
from brim.errors import ConfigError, DataError, ModelError
from brim.models.language_model import LanguageModel
from brim.seeding import derive_seed


class _Description(Config):
    """What every family can be told."""

    model_class: ClassVar[type[PreTrainedModel]]

    d_model: int = Field(ge=1)
    """Width of the hidden states."""
    layers: int = Field(ge=1)
    """Layers, of the encoder where there is one."""
    heads: int = Field(ge=1)
    """Attention heads, each of d_model / heads dimensions."""
    d_ff: int | None = Field(None, ge=1)
    """Width of the feed-forward layers; null for 4 d_model."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout; llama and qwen2 have it on their attention weights only."""
    tied: bool = True
    """Whether the output head is the input embedding; false for t5 and mt5."""

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.d_model % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide d_model ({self.d_model})")
        return self

    @property
    def width(self) -> int:
        """Of the feed-forward layers."""
        return self.d_ff or 4 * self.d_model

    @abstractmethod
    def config(self, common: Mapping[str, Any]) -> PreTrainedConfig:
        """The same in the words of transformers; `common` is what every family calls alike."""


class _T5(_Description):
    model_class = T5ForConditionalGeneration
    config_class: ClassVar[type[PreTrainedConfig]] = T5Config

    family: Literal["t5"]

    decoder_layers: int | None = Field(None, ge=1)
    """Layers of the decoder; null for as many as the encoder has."""
    feed_forward: Literal["relu", "gated-gelu"] = "relu"
    """T5's feed-forward layers, or those of T5-v1.1."""
    tied: bool = False

    def config(self, common: Mapping[str, Any]) -> PreTrainedConfig:
        return self.config_class(
            d_model=self.d_model,
            d_kv=self.d_model // self.heads,
            d_ff=self.width,
            num_layers=self.layers,
            num_decoder_layers=self.decoder_layers or self.layers,
            num_heads=self.heads,
            dropout_rate=self.dropout,
            feed_forward_proj=self.feed_forward,
            decoder_start_token_id=common["pad_token_id"],
            **common,
        )


class _MT5(_T5):
    model_class = MT5ForConditionalGeneration
    config_class = MT5Config

    family: Literal["mt5"]  # type: ignore[assignment]

    feed_forward: Literal["relu", "gated-gelu"] = "gated-gelu"


class _GPT2(_Description):
    model_class = GPT2LMHeadModel

    family: Literal["gpt2"]

    max_positions: int = Field(1024, ge=1)
    """Longest prompt and completion together, in tokens."""

    def config(self, common: Mapping[str, Any]) -> PreTrainedConfig:
        return GPT2Config(
            n_embd=self.d_model,
            n_layer=self.layers,
            n_head=self.heads,
            n_inner=self.width,
            n_positions=self.max_positions,
            resid_pdrop=self.dropout,
            embd_pdrop=self.dropout,
            attn_pdrop=self.dropout,
            initializer_range=self.d_model**-0.5,
            **common,
        )


class _Llama(_Description):
    model_class = LlamaForCausalLM
    config_class: ClassVar[type[PreTrainedConfig]] = LlamaConfig

    family: Literal["llama"]

    kv_heads: int | None = Field(None, ge=1)
    """Heads of keys and values, each shared by several queries; null for as many as `heads`."""

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.heads % (self.kv_heads or 1):
            raise ValueError(f"kv_heads ({self.kv_heads}) must divide heads ({self.heads})")
        if self.d_model // self.heads % 2:
            raise ValueError("d_model / heads must be even, for positions rotate pairs")
        return self

    def config(self, common: Mapping[str, Any]) -> PreTrainedConfig:
        return self.config_class(
            hidden_size=self.d_model,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads or self.heads,
            intermediate_size=self.width,
            attention_dropout=self.dropout,
            initializer_range=self.d_model**-0.5,
            **common,
        )


class _Qwen2(_Llama):
    model_class = Qwen2ForCausalLM
    config_class = Qwen2Config

    family: Literal["qwen2"]  # type: ignore[assignment]


Description = Annotated[_T5 | _MT5 | _GPT2 | _Llama | _Qwen2, Field(discriminator="family")]
"""What a model from scratch is described by."""
_DESCRIPTION: TypeAdapter[_Description] = TypeAdapter(Description)


def check_description(description: dict[str, Any]) -> dict[str, Any]:
    """The description as it is, where `build_model` takes it.

    Raises:
        ValidationError: an unknown family or key, or a value that cannot be used.
    """
    _DESCRIPTION.validate_python(description, strict=True)
    return description


def build_model(
    description: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> LanguageModel:
    """A model with random weights, such as `{family: t5, d_model: 128, layers: 2, heads: 4}`.

    Every family takes `d_model`, `layers`, `heads`, `d_ff` (by default 4 d_model), `dropout` (0.1)
    and `tied` (true; false for t5 and mt5). t5 and mt5 also take `decoder_layers` (as many as
    `layers`) and `feed_forward` (`relu`; `gated-gelu` for mt5), gpt2 takes `max_positions` (1,024),
    llama and qwen2 take `kv_heads` (as many as `heads`). llama and qwen2 have dropout on their
    attention weights only. A tied t5 is the first T5, which scales what its head reads.

    Untied and decoder-only models start with logits of variance 1, a loss near `ln V + 0.5`.

    Args:
        description: keys as above.
        tokenizer: gives the rows of the embedding and the special tokens; it is copied.
        seed: of the weights, drawn from a stream of their own.

    Raises:
        ConfigError: an unknown family or key, or a value that cannot be used.
        ModelError: the tokenizer lacks a special token that the family needs.
    """
    plan = _parse(description)
    if tokenizer.pad_token_id is None and isinstance(plan, _T5):
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
    """What `build_model` makes, on torch's current default device, for counting its weights.

    Raises:
        ConfigError: an unknown family or key, or a value that cannot be used.
    """
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    return _build(_parse(description), vocab_size=vocab_size, **special)


def _build(plan: _Description, **vocabulary: int | None) -> PreTrainedModel:
    model = plan.model_class(plan.config({**vocabulary, "tie_word_embeddings": plan.tied}))
    if isinstance(plan, _T5):
        _set_head(model, tied=plan.tied)
    return model


class _Arguments(Config):
    """Of `build_model`: a key for errors to begin with."""

    description: Description


def _parse(description: Mapping[str, Any]) -> _Description:
    data = {"description": dict(description)}
    try:
        return _Arguments.model_validate(data, strict=True).description
    except ValidationError as error:
        document = Document(data, {(): "build_model"})
        raise ConfigError(explain(_Arguments, document, error)) from None


def _set_head(model: PreTrainedModel, *, tied: bool) -> None:
    """Give a T5 or mT5 the head it was described with, for their configs know only tied ones."""
    head = model.get_output_embeddings()
    if not tied:
        head.weight = nn.Parameter(torch.empty_like(head.weight))
    if not getattr(model.config, "scale_decoder_outputs", False):
        nn.init.normal_(head.weight, std=model.config.d_model**-0.5)


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
