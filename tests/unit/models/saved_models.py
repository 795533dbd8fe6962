"""Small models of every kind that is saved: loaded, cut by layers, built here."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny import tiny
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models
from tokenizers import trainers as token_trainers
from transformers import (
    GPT2Tokenizer,
    LlamaTokenizer,
    MarianTokenizer,
    NllbTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    RobertaTokenizer,
    T5Tokenizer,
)

from brim.examples import Example
from brim.models import (
    Decoding,
    LanguageModel,
    build_model,
    keep_layers,
    load_model,
    train_tokenizer,
)

CORPUS = [
    "the cat sat on the mat and 12 dogs ran 345 miles",
    "a man, a plan; the canal! don't you see the café",
] * 3
PROMPTS = [
    "the cat sat", "a man", "12 dogs ran", "don't", "the mat", "and the", "a plan", "café",
    "the canal !", "on", "miles", "plan;", "you see", "ran", "345 miles", "dogs", "sat on", "the",
    "the man", "see the cat",
]  # fmt: skip
TEXTS = [
    "", " ", "  the  cat ", "the cat sat", "12345", "3.14 and 1,000", "-7 + 12 = 5", "½ cup",
    "café", "cafe\u0301", "e\u0301\u0323", "naïve", "İstanbul", "ﬁne", "\uff21\uff42", "\U0001d54f",
    "don't", "DON'T",
    "the\ncat", "the\r\ncat", "\n\nthe", "  \n  ", "the\tcat", "the\u00a0cat", "the\u3000cat",
    "a\u200db", "👩\u200d👩\u200d👧", "🙂 the", "日本語のテキスト", "한국어", "שלום עולם", "مرحبا",
    "\u202ethe", "\ufeffthe", "a\u0000b", "</s>", "<pad> <unk>", "the</s>cat", "<s>",
    "<|endoftext|>", "<|im_end|> the", "<extra_id_0> cat", "<mask>", "<sep>the", "…", "—the",
    " .", "a" * 60, "<<2+3=5>>", "{the}~^", "<0x41>", "▁the", "Ġthe",
]  # fmt: skip

Vocabulary = tuple[dict[str, int], list[tuple[str, str]]]


@functools.cache
def _bytes(*special: str) -> Vocabulary:
    """A byte-level vocabulary and its merges, after the special tokens."""
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return _merges(tokenizer, special, alphabet)


@functools.cache
def _spaces(*special: str) -> Vocabulary:
    """Merges over words marked with ▁, and a token for each byte, after the special tokens."""
    tokenizer = Tokenizer(token_models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return _merges(tokenizer, (*special, *(f"<0x{byte:02X}>" for byte in range(256))), [])


def _merges(tokenizer: Tokenizer, special: tuple[str, ...], alphabet: list[str]) -> Vocabulary:
    trainer = token_trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


@functools.cache
def _unigrams(*special: str) -> list[tuple[str, float]]:
    tokenizer = Tokenizer(token_models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = token_trainers.UnigramTrainer(
        vocab_size=120, special_tokens=list(special), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return [tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"]]


def t5_tokenizer() -> PreTrainedTokenizerBase:
    sentinels = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(10))]
    return T5Tokenizer(vocab=_unigrams("<pad>", "</s>", "<unk>") + sentinels, extra_ids=10)


def bart_tokenizer() -> PreTrainedTokenizerBase:
    vocabulary, merges = _bytes("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    return RobertaTokenizer(vocab=vocabulary, merges=merges)


def gpt2_tokenizer() -> PreTrainedTokenizerBase:
    vocabulary, merges = _bytes("<|endoftext|>")
    return GPT2Tokenizer(vocab=vocabulary, merges=merges)


def qwen2_tokenizer() -> PreTrainedTokenizerBase:
    vocabulary, merges = _bytes("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
    )


def llama_tokenizer(*, add_eos_token: bool = False) -> PreTrainedTokenizerBase:
    vocabulary, merges = _spaces("<unk>", "<s>", "</s>")
    return LlamaTokenizer(
        vocab=vocabulary, merges=merges, add_bos_token=True, add_eos_token=add_eos_token
    )


def nllb_tokenizer() -> PreTrainedTokenizerBase:
    vocabulary, merges = _spaces("<s>", "<pad>", "</s>", "<unk>")
    return NllbTokenizer(vocab=vocabulary, merges=merges, src_lang="deu_Latn", tgt_lang="eng_Latn")


def marian_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Of SentencePiece files, one for each language, and one vocabulary."""
    import sentencepiece

    (folder / "corpus.txt").write_text("\n".join(CORPUS), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "pieces"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=3,
    )
    file = str(folder / "pieces.model")
    pieces = sentencepiece.SentencePieceProcessor(model_file=file)
    words = ["</s>", "<unk>", *map(pieces.id_to_piece, range(pieces.get_piece_size())), "<pad>"]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    return MarianTokenizer(
        source_spm=file,
        target_spm=file,
        vocab=str(folder / "vocab.json"),
        source_lang="en",
        target_lang="de",
    )


def other_rules(
    splitter: pre_tokenizers.PreTokenizer, *special: str, **names: Any
) -> PreTrainedTokenizerBase:
    """GPT-2's vocabulary behind another split of the text."""
    vocabulary, merges = _bytes("<|endoftext|>")
    backend = Tokenizer(token_models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )


def single_digits() -> pre_tokenizers.PreTokenizer:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def fitted(family: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A tiny model whose special tokens are the tokenizer's, with eight more rows than tokens."""
    model = tiny(family, num_rows=max(tokenizer.get_vocab().values()) + 9)
    start = {"bart": tokenizer.eos_token_id}.get(family, tokenizer.pad_token_id)
    for settings in (model.config, model.generation_config):
        settings.pad_token_id = tokenizer.pad_token_id
        settings.bos_token_id = tokenizer.bos_token_id
        settings.eos_token_id = tokenizer.eos_token_id
        if model.config.is_encoder_decoder:
            settings.decoder_start_token_id = start
    return model.eval()


def published(
    folder: Path, family: str, tokenizer: PreTrainedTokenizerBase, *, declared: str | None = None
) -> LanguageModel:
    """A model saved by another program, perhaps naming another class of tokenizer, loaded."""
    fitted(family, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if declared is not None:
        edit(folder / "tokenizer_config.json", tokenizer_class=declared)
    return load_model(folder)


def edit(file: Path, **settings: Any) -> None:
    """Change settings of a JSON file."""
    old = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**old, **settings}), encoding="utf-8")


def cut(model: LanguageModel, **choice: int) -> LanguageModel:
    return keep_layers(model, layers=1, **choice)


def again(folder: Path, model: LanguageModel) -> LanguageModel:
    """The model saved, loaded and cut once more."""
    model.save(folder / "again")
    return cut(load_model(folder / "again"))


def built(kind: str, family: str, **keys: Any) -> LanguageModel:
    """What brim builds, with weights that differ enough for varied text."""
    description = {"family": family, "d_model": 16, "layers": 2, "heads": 2, **keys}
    tokenizer = train_tokenizer(CORPUS, kind=kind, vocab_size=300)
    model = build_model(description, tokenizer, seed=1)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn_init = torch.empty_like(parameter).normal_(std=0.4, generator=generator)
            parameter.data.copy_(nn_init)
    return model


def with_rope(**rope: Any) -> LanguageModel:
    """A Llama whose heads turn at another speed than the usual one."""
    tokenizer = llama_tokenizer()
    model = fitted("llama", tokenizer)
    model.config.rope_parameters = {**model.config.rope_parameters, **rope}
    again = type(model)(model.config)  # which computes its frequencies at construction
    again.load_state_dict(model.state_dict())
    for layer in again.model.layers:  # attention that depends on where tokens are
        layer.self_attn.q_proj.weight.data *= 6
    again.generation_config = model.generation_config
    return LanguageModel(again.eval(), tokenizer)


def two_ends(folder: Path) -> LanguageModel:
    """A model whose tokenizer names one end and whose generation settings another, both written."""
    model = published(folder, "gpt2", gpt2_tokenizer())
    batch = model.encode([Example(id="1", prompt=PROMPTS[0])], max_tokens=None)
    ids = model.generate(batch, Decoding(strategy="greedy", max_tokens=8)).completion_ids[0]
    early, late = list(dict.fromkeys(ids.tolist()[2:]))[:2]
    edit(folder / "tokenizer_config.json", eos_token=model.tokenizer.convert_ids_to_tokens(late))
    edit(folder / "generation_config.json", eos_token_id=early)
    return load_model(folder)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

MODELS: dict[str, Callable[[Path], LanguageModel]] = {
    "t5": lambda p: published(p, "t5", t5_tokenizer()),
    "t5, cut": lambda p: cut(published(p, "t5", t5_tokenizer())),
    "flan-t5": lambda p: published(p, "t5_v1_1", t5_tokenizer()),
    "flan-t5, cut": lambda p: cut(published(p, "t5_v1_1", t5_tokenizer())),
    "mt5": lambda p: published(p, "mt5", t5_tokenizer()),
    "mt5, cut": lambda p: cut(published(p, "mt5", t5_tokenizer())),
    "mt5, cut twice": lambda p: again(
        p, cut(published(p, "mt5", t5_tokenizer()), decoder_layers=2)
    ),
    "bart": lambda p: published(p, "bart", bart_tokenizer()),
    "bart, cut": lambda p: cut(published(p, "bart", bart_tokenizer())),
    "bart, languages": lambda p: published(p, "bart", nllb_tokenizer()),
    "marian": lambda p: published(p, "marian", marian_tokenizer(p)),
    "marian, cut": lambda p: cut(published(p, "marian", marian_tokenizer(p))),
    "gpt2": lambda p: published(p, "gpt2", gpt2_tokenizer()),
    "gpt2, cut": lambda p: cut(published(p, "gpt2", gpt2_tokenizer())),
    "gpt2, two ends": two_ends,
    "gpt2, other rules": lambda p: published(
        p, "gpt2", other_rules(single_digits()), declared="GPT2Tokenizer"
    ),
    "gpt2, space in front": lambda p: published(
        p, "gpt2", other_rules(pre_tokenizers.ByteLevel(add_prefix_space=True))
    ),
    "gpt2, more tokens": lambda p: published(
        p,
        "gpt2",
        other_rules(single_digits(), "<sep>", "<mask>", "<s>",
                    extra_special_tokens=["<sep>"], image_token="<s>"),
    ),
    "llama": lambda p: published(p, "llama", llama_tokenizer()),
    "llama, cut": lambda p: cut(published(p, "llama", llama_tokenizer())),
    "llama, appended end": lambda p: published(p, "llama", llama_tokenizer(add_eos_token=True)),
    "llama, base": lambda p: with_rope(rope_theta=50.0),
    "llama, scaled": lambda p: with_rope(**LLAMA3),
    "phi": lambda p: published(p, "phi", gpt2_tokenizer()),
    "qwen2": lambda p: published(p, "qwen2", qwen2_tokenizer()),
    "qwen2, cut": lambda p: cut(published(p, "qwen2", qwen2_tokenizer())),
    "qwen2, other rules": lambda p: published(
        p, "qwen2", other_rules(single_digits()), declared="Qwen2Tokenizer"
    ),
    "built t5": lambda p: built("bpe", "t5"),
    "built t5, deep encoder": lambda p: built("bpe", "t5", decoder_layers=1),
    "built t5, tied": lambda p: built("word", "t5", tied=True),
    "built t5, gated": lambda p: built("word", "t5", feed_forward="gated-gelu"),
    "built mt5": lambda p: built("word", "mt5"),
    "built mt5, tied": lambda p: built("bpe", "mt5", tied=True),
    "built gpt2": lambda p: built("bpe", "gpt2"),
    "built gpt2, untied": lambda p: built("word", "gpt2", tied=False),
    "built llama": lambda p: built("bpe", "llama"),
    "built llama, untied": lambda p: built("word", "llama", tied=False),
    "built qwen2": lambda p: built("bpe", "qwen2"),
    "built qwen2, untied": lambda p: built("word", "qwen2", tied=False),
    "built qwen2, cut": lambda p: cut(built("bpe", "qwen2")),
}  # fmt: skip
