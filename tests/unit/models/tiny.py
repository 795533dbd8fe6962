"""Tiny random models of every family, and word-level tokenizers that fit them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    MT5Config,
    MT5ForConditionalGeneration,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from brim.examples import Example
from brim.models import Decoding, LanguageModel
from brim.types import Batch, Rollout

PAD, EOS, UNK = 0, 1, 2
NUM_TOKENS = 40
NUM_ROWS = 48  # eight rows of the head have no token

ENCODER_DECODERS = ("t5", "t5_v1_1", "mt5", "bart", "marian")
DECODERS = ("qwen2", "llama", "gpt2", "phi")
FAMILIES = ENCODER_DECODERS + DECODERS
# What a model's own generation settings may hold, and no engine follows.
DISTRACTIONS = {
    "repetition_penalty": 1.7,
    "no_repeat_ngram_size": 2,
    "temperature": 0.3,
    "top_k": 3,
    "top_p": 0.5,
    "num_beams": 3,
    "min_new_tokens": 4,
    "bad_words_ids": [[5, 6]],
    "max_length": 3,
}
LENGTHS = (3, 1, 6, 2, 4)  # words of the prompts


def word_tokenizer(
    num_tokens: int = NUM_TOKENS, *, appends_eos: bool = False, pad: bool = True
) -> PreTrainedTokenizerFast:
    """Tokens `<pad> </s> <unk> w3 w4 …`, split at spaces."""
    words = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(3, num_tokens))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if appends_eos:
        backend.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", EOS)]
        )
    special = {"eos_token": "</s>", "unk_token": "<unk>"} | ({"pad_token": "<pad>"} if pad else {})
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def tiny(family: str, *, num_rows: int = NUM_ROWS, spread: float = 0.4) -> PreTrainedModel:
    """A random model whose logits differ enough for varied text; the same one each time."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = _BUILDERS[family](num_rows)
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.requires_grad:
                nn.init.normal_(parameter, std=spread)
        if hasattr(model, "final_logits_bias"):
            nn.init.normal_(model.final_logits_bias)
        if getattr(model.get_output_embeddings(), "bias", None) is not None:
            nn.init.normal_(model.get_output_embeddings().bias)
    return model


def tiny_language_model(family: str, **options: float) -> LanguageModel:
    model = tiny(family, **options)
    return LanguageModel(model, word_tokenizer(appends_eos=family in ENCODER_DECODERS))


def prompts(lengths: tuple[int, ...] = LENGTHS) -> list[Example]:
    """Examples whose prompts have these numbers of words, all different."""
    words = [" ".join(f"w{3 + (7 * i + j) % 37}" for j in range(n)) for i, n in enumerate(lengths)]
    return [Example(id=str(i), prompt=text) for i, text in enumerate(words)]


def encoded(model: LanguageModel, lengths: tuple[int, ...] = LENGTHS) -> Batch:
    return model.encode(prompts(lengths), max_tokens=None)


def written(
    family: str, max_tokens: int = 6, lengths: tuple[int, ...] = LENGTHS, **options: float
) -> tuple[LanguageModel, Rollout]:
    """A model in evaluation mode, and what it samples."""
    model = tiny_language_model(family, **options).eval()
    return model, model.generate(encoded(model, lengths), Decoding(max_tokens=max_tokens))


def same(one: Rollout, other: Rollout) -> bool:
    names = ("completion_ids", "mask", "truncated")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def _t5(num_rows: int) -> PreTrainedModel:
    return T5ForConditionalGeneration(T5Config(**_t5_sizes(num_rows)))


def _t5_v1_1(num_rows: int) -> PreTrainedModel:
    sizes = _t5_sizes(num_rows)
    config = T5Config(**sizes, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    return _untied(T5ForConditionalGeneration(config))


def _mt5(num_rows: int) -> PreTrainedModel:
    return _untied(MT5ForConditionalGeneration(MT5Config(**_t5_sizes(num_rows))))


def _untied(model: PreTrainedModel) -> PreTrainedModel:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def _t5_sizes(num_rows: int) -> dict[str, int]:
    return {
        "vocab_size": num_rows,
        "d_model": 16,
        "d_kv": 4,
        "d_ff": 24,
        "num_layers": 1,
        "num_decoder_layers": 2,  # deeper than the encoder: the cache must follow the decoder
        "num_heads": 4,
        "decoder_start_token_id": PAD,
    }


def bart_sizes(num_rows: int, **changes: int | None) -> dict[str, int | None]:
    sizes = {f"{stack}_attention_heads": 4 for stack in ("encoder", "decoder")}
    sizes |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 64}
    ids = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": UNK}
    ids |= {"decoder_start_token_id": EOS, "forced_eos_token_id": None}
    own = {"vocab_size": num_rows, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2}
    return {**sizes, **ids, **own, **changes}


def _llama_sizes(num_rows: int) -> dict[str, int | None]:
    return {
        "vocab_size": num_rows,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": None,
    }


_BUILDERS: dict[str, Callable[[int], PreTrainedModel]] = {
    "t5": _t5,
    "t5_v1_1": _t5_v1_1,
    "mt5": _mt5,
    "bart": lambda n: BartForConditionalGeneration(BartConfig(**bart_sizes(n))),
    "marian": lambda n: MarianMTModel(MarianConfig(**bart_sizes(n, decoder_start_token_id=PAD))),
    "qwen2": lambda n: Qwen2ForCausalLM(Qwen2Config(**_llama_sizes(n))),
    "llama": lambda n: LlamaForCausalLM(LlamaConfig(**_llama_sizes(n), tie_word_embeddings=True)),
    "gpt2": lambda n: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=n,
            n_embd=16,
            n_layer=2,
            n_head=4,
            n_positions=64,
            pad_token_id=PAD,
            eos_token_id=EOS,
            bos_token_id=EOS,
        )
    ),
    "phi": lambda n: PhiForCausalLM(PhiConfig(**_llama_sizes(n))),
}


@contextmanager
def one_process(module: nn.Module) -> Iterator[DistributedDataParallel]:
    """The module in DDP, with nobody to exchange anything with."""

    def keep_gradients(state, bucket):
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    # Gloo's threads can deadlock with the interpreter when DDP is freed. A fake group has none.
    dist.init_process_group("fake", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(module)
        wrapped.register_comm_hook(None, keep_gradients)
        yield wrapped
    finally:
        dist.destroy_process_group()
