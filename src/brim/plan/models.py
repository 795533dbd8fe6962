"""Models without their weights: on the meta device, where tensors have shapes and no numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from brim.models import Quantization
from brim.models.adapters import linear_layers
from brim.models.layers import layers_of

# Cross-attention of T5, and of BART and Marian: its keys and values are made of the prompt.
_CROSS_ATTENTION = {"EncDecAttention", "encoder_attn"}
_KEYS_AND_VALUES = {"k", "v", "k_proj", "v_proj"}


@dataclass(frozen=True)
class Size:
    """Prompts with a completion each, all as long as they may be."""

    rows: int
    num_prompt_tokens: int
    num_tokens: int

    def at_most(self, rows: int) -> Size:
        """No more than so many of them."""
        return self if self.rows <= rows else replace(self, rows=rows)


@dataclass(frozen=True)
class Products:
    """Weights that tokens are multiplied by, each two operations.

    Attributes:
        encoder: by each token of a prompt, in the encoder.
        cross: by each token of a prompt, for the decoder's cross-attention.
        decoder: by each token of the decoder: of completions, or of prompts and completions.
    """

    encoder: int
    cross: int
    decoder: int


@dataclass(frozen=True)
class ModelShape:
    """The shapes of one model, and how its weights are kept.

    Attributes:
        name: what the settings call it.
        model: on the meta device, its weights of the types that they are loaded in; if adapters
            are trained, it has them.
        quantization: how the weights of its linear layers are kept, if not as they are.
    """

    name: str
    model: PreTrainedModel
    quantization: Quantization | None = None

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether prompts are read by an encoder."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def max_positions(self) -> int | None:
        """Longest sequence; None where positions are relative."""
        limit: int | None = getattr(self.model.config, "max_position_embeddings", None)
        return limit

    @property
    def head(self) -> torch.Tensor:
        """The weight (V, d) of the output head."""
        return _weight(self.model.get_output_embeddings())

    @cached_property
    def num_parameters(self) -> int:
        """Of the model, shared ones counted once, without adapters."""
        return sum(p.numel() for p in self._parameters(adapters=False))

    @cached_property
    def num_adapters(self) -> int:
        """Of the adapters."""
        return sum(p.numel() for p in self._parameters(adapters=True))

    @cached_property
    def num_trainable(self) -> int:
        """That training changes."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @cached_property
    def trainable_bytes(self) -> int:
        """Of the parameters that training changes; gradients take as much, moments twice."""
        return sum(p.nbytes for p in self.model.parameters() if p.requires_grad)

    @cached_property
    def moment_bytes_8bit(self) -> int:
        """Of both moments in 8 bits, with a float32 scale for each 256 values.

        Tensors of fewer than 4,096 values keep theirs in float32.
        """
        counts = [p.numel() for p in self.model.parameters() if p.requires_grad]
        moments: int = sum(n + 4 * -(-n // 256) if n >= 4096 else 4 * n for n in counts)
        return 2 * moments

    def layer_bytes(self, *, trainable: bool = False) -> int:
        """Of the weights of the largest layer, all of them or those that are trained."""
        return max(_bytes(layer.parameters(), trainable) for layer in self._layers)

    def outside_bytes(self, *, trainable: bool = False) -> int:
        """The same of what is in no layer: embeddings, output head, last norms."""
        inside = {id(p) for layer in self._layers for p in layer.parameters()}
        return _bytes((p for p in self.model.parameters() if id(p) not in inside), trainable)

    @cached_property
    def adapter_bytes(self) -> int:
        """Of the adapters."""
        return sum(p.nbytes for p in self._parameters(adapters=True))

    @cached_property
    def stored_bytes(self) -> int:
        """Of the weights in a file, adapters merged."""
        return sum(p.nbytes for p in self._parameters(adapters=False))

    @cached_property
    def weight_bytes(self) -> int:
        """Of the weights in memory, adapters included."""
        return self.stored_bytes + self.adapter_bytes - self._saved_bytes()

    @cached_property
    def num_layers(self) -> dict[str, int]:
        """Layers of each stack."""
        return {name: len(layers_of(stack)) for name, stack in stacks_of(self.model).items()}

    @property
    def _layers(self) -> list[nn.Module]:
        return [layer for stack in stacks_of(self.model).values() for layer in layers_of(stack)]

    @property
    def query_width(self) -> int:
        """Heads times their dimensions."""
        return _num_heads(self.model.config) * _head_width(self.model.config)

    @property
    def key_width(self) -> int:
        """The same of keys; less than of queries where heads share them."""
        config = self.model.config
        heads: int = getattr(config, "num_key_value_heads", None) or _num_heads(config)
        return heads * _head_width(config)

    def products(self, *, trainable: bool = False) -> Products:
        """Weights that tokens are multiplied by, all of them or those that are trained."""
        counts = {"encoder": 0, "cross": 0, "decoder": 0}
        for stack, module in stacks_of(self.model).items():
            for name, layer in linear_layers(module):
                parts = set(name.split("."))
                cross = parts & _CROSS_ATTENTION and parts & _KEYS_AND_VALUES
                weight = _weight(layer)
                if weight.requires_grad or not trainable:
                    counts["cross" if cross else stack] += weight.numel()
        return Products(**counts)

    def cache_bytes(self, size: Size, *, itemsize: int | None = None) -> int:
        """Of keys and values when the last token is written.

        That one is never read; an encoder-decoder reads one before the first.
        """
        length = size.num_prompt_tokens + size.num_tokens - (not self.is_encoder_decoder)
        width = 2 * self.num_layers["decoder"] * self.key_width
        return size.rows * length * width * (itemsize or self.model.dtype.itemsize)

    def _parameters(self, *, adapters: bool) -> Iterator[nn.Parameter]:
        for name, parameter in self.model.named_parameters():
            if (".lora_" in name) == adapters:
                yield parameter

    def _saved_bytes(self) -> int:
        """What quantisation saves; it leaves the output head alone."""
        if self.quantization is None:
            return 0
        kept: set[str] = set()
        if self.quantization.backend == "bitsandbytes":  # and layers that are always float32
            kept = set(self.model._keep_in_fp32_modules or ())
        weights = [
            _weight(layer)
            for stack in stacks_of(self.model).values()
            for name, layer in linear_layers(stack)
            if isinstance(layer, nn.Linear) and not kept & set(name.split("."))
        ]
        return sum(w.nbytes - _quantized_bytes(w, self.quantization) for w in weights)


def stacks_of(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Encoder and decoder, or the decoder alone; the output head is in none of them."""
    encoder = {"encoder": model.get_encoder()} if model.config.is_encoder_decoder else {}
    return {**encoder, "decoder": model.get_decoder()}


def _quantized_bytes(weight: torch.Tensor, quantization: Quantization) -> int:
    """Of a linear layer's weight (out, in), with the scales that belong to it."""
    rows, count = weight.shape[0], weight.numel()
    match quantization.backend, quantization.bits:
        case "bitsandbytes", 8:  # a float32 a row
            return count + 4 * rows
        case "bitsandbytes", 4:  # a float32 for each 64 weights, and the code book of 16
            return -(-count // 2) + 4 * -(-count // 64) + 4 * 16
        case "torchao", 8:  # a scale a row in the type of the weights, and a zero point
            return count + (weight.element_size() + 1) * rows
        case _:  # scale and zero point for each 128 weights of a row
            return count // 2 + 2 * weight.element_size() * rows * -(-weight.shape[1] // 128)


def _bytes(parameters: Iterable[nn.Parameter], trainable: bool) -> int:
    return sum(p.nbytes for p in parameters if p.requires_grad or not trainable)


def _weight(layer: nn.Module) -> torch.Tensor:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _num_heads(config: PreTrainedConfig) -> int:
    heads: int = config.num_attention_heads
    return heads


def _head_width(config: PreTrainedConfig) -> int:
    width: int = getattr(config, "head_dim", None) or config.hidden_size // _num_heads(config)
    return width
