"""How much memory a pass takes beside the weights: the model's own code, run on shapes alone.

On the meta device every operation makes tensors of the right size that hold nothing. Adding up
those that are alive at once gives what the real pass needs, the tensors that autograd keeps
included, for any family of models and without a formula for each.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from brim.models import set_dropout
from brim.models.cache import (
    PreallocatedLayer,
    decoder_cache,
    encoder_decoder_cache,
    expand_rows,
)
from brim.plan.models import ModelShape, Size

# What autocast makes in its type.
_PRODUCTS = (F.linear, torch.matmul, torch.addmm, F.scaled_dot_product_attention)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the tensors that are made while it is on, and takes away those that are freed.

    Args:
        known: tensors that were there before, and do not count.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self.now += size
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


class AsOnDevice(TorchFunctionMode):
    """What the meta device leaves out: autocast, and attention that keeps no scores.

    Attention is fused where torch's CPU kernel is: without dropout, and without a gradient for the
    mask (T5's position bias has one). Elsewhere the scores are counted. The one question that a
    model asks of numbers, whether texts are packed into one row, is answered as for any of ours.

    Args:
        autocast: the type of matrix products; None for that of their inputs.
    """

    def __init__(self, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.autocast = autocast

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.__bool__ and args[0].is_meta:
            return True  # that positions ascend all along
        if func in _PRODUCTS and self.autocast is not None:
            args = tuple(_cast(value, self.autocast) for value in args)
            kwargs = {name: _cast(value, self.autocast) for name, value in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            mask = kwargs.get("attn_mask")
            if not kwargs.get("dropout_p") and not (mask is not None and mask.requires_grad):
                query, key, value = args[:3]
                return _fused_attention(query, key, value, mask, kwargs.get("is_causal", False))
        return func(*args, **kwargs)


@lru_cache(maxsize=256)
def pass_bytes(
    shape: ModelShape,
    size: Size,
    *,
    gradient: bool = False,
    dropout: float | None = None,
    autocast: torch.dtype | None = None,
    checkpointing: bool = False,
) -> tuple[int, int]:
    """Bytes of a pass over padded rows; weights, gradients and the output head apart.

    Args:
        shape: the model.
        size: of the rows that are passed at once.
        gradient: whether a backward pass follows, for which tensors are kept.
        dropout: of the model in training; None for what its config says.
        autocast: the type of matrix products under autocast.
        checkpointing: whether the backward pass makes each layer's activations again.

    Returns:
        What is left after the forward pass, when the output head works; and the peak. That is of
        the forward pass, after which the backward pass only frees; with gradient checkpointing of
        both, for then layers are passed again backwards.
    """
    model = shape.model
    if gradient and (dropout is not None or checkpointing):
        model = copy.deepcopy(model)
        if dropout is not None:
            set_dropout(model, dropout)
    again = gradient and checkpointing
    if again:
        contexts = {"context_fn": lambda: (nullcontext(), AsOnDevice(autocast))}
        model.activation_checkpointing_enable({"use_reentrant": False, **contexts})
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
    model.train(gradient)
    run = _encode_and_decode if shape.is_encoder_decoder else _decode
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    live = LiveBytes([*model.parameters(), *model.buffers(), *gradients])
    with torch.set_grad_enabled(gradient), live:
        with AsOnDevice(autocast):
            hidden = run(model, size)
        kept = live.now
        if again:
            torch.autograd.backward([hidden], [torch.empty_like(hidden)])
    return kept, live.peak


def peak_bytes(shape: ModelShape, size: Size, **how: Any) -> int:
    """Peak of a pass; see `pass_bytes`."""
    return pass_bytes(shape, size, **how)[1]


@lru_cache(maxsize=256)
def writing_bytes(
    shape: ModelShape,
    size: Size,
    *,
    num_prompts: int | None = None,
    autocast: torch.dtype | None = None,
) -> int:
    """Peak of a batch that is written token by token, with its cache; weights and head apart.

    That of reading the prompts, or that of the last token, when the cache is full.

    Args:
        shape: the model.
        size: of the rows that are written at once.
        num_prompts: that the rows continue, each of which is read once; None for as many as rows.
        autocast: the type of matrix products under autocast.
    """
    model = shape.model
    model.eval()
    start = _start_encoder_decoder if shape.is_encoder_decoder else _start_decoder
    live = LiveBytes([*model.parameters(), *model.buffers()])
    with torch.no_grad(), AsOnDevice(autocast):
        with live:
            layers, step = start(model, size, num_prompts or size.rows)
        if size.num_tokens > 1:
            for layer in layers:
                if isinstance(layer, PreallocatedLayer):  # room that is there already
                    rows, heads, _, width = layer.keys.shape
                    states = layer.keys.new_empty(rows, heads, size.num_tokens - 2, width)
                    layer.update(states, states)
            with live:
                step()
    return live.peak


# The passes of `brim.models.backbone`, with masks that need no look at numbers.


def _decode(model: Any, size: Size) -> Tensor:
    length = size.num_prompt_tokens + size.num_tokens - 1
    hidden: Tensor = model.get_decoder()(
        input_ids=_ids(size.rows, length),
        attention_mask=_mask(size.rows, length, length),
        use_cache=False,
    ).last_hidden_state
    return hidden


def _encode_and_decode(model: Any, size: Size) -> Tensor:
    rows, prompt = size.rows, size.num_prompt_tokens
    encoded = model.get_encoder()(
        input_ids=_ids(rows, prompt), attention_mask=_mask(rows, prompt, prompt)
    ).last_hidden_state
    hidden: Tensor = model.get_decoder()(
        input_ids=_ids(rows, size.num_tokens),
        encoder_hidden_states=encoded,
        encoder_attention_mask=_mask(rows, size.num_tokens, prompt),
        use_cache=False,
    ).last_hidden_state
    return hidden


# Both read the prompts. They return the layers of the cache that grow, and what reads one token.


def _start_decoder(model: Any, size: Size, num_prompts: int) -> tuple[list[Any], Callable[[], Any]]:
    prompt, length = size.num_prompt_tokens, size.num_prompt_tokens + size.num_tokens - 1
    cache = decoder_cache(model.config, length)

    def read(rows: int, num_queries: int, num_keys: int) -> None:
        model.get_decoder()(
            input_ids=_ids(rows, num_queries),
            attention_mask=_mask(rows, num_queries, num_keys),
            past_key_values=cache,
            use_cache=True,
        )

    read(num_prompts, prompt, prompt)
    if num_prompts < size.rows:
        expand_rows(cache, _ids(1, size.rows)[0])
    return cache.layers, lambda: read(size.rows, 1, length)


def _start_encoder_decoder(
    model: Any, size: Size, num_prompts: int
) -> tuple[list[Any], Callable[[], Any]]:
    rows, prompt = size.rows, size.num_prompt_tokens
    encoded = model.get_encoder()(
        input_ids=_ids(num_prompts, prompt), attention_mask=_mask(num_prompts, prompt, prompt)
    ).last_hidden_state
    if num_prompts < rows:
        encoded = encoded[_ids(1, rows)[0]]
    cache = encoder_decoder_cache(model.get_decoder().config, size.num_tokens)

    def read() -> None:
        model.get_decoder()(
            input_ids=_ids(rows, 1),
            encoder_hidden_states=encoded,
            encoder_attention_mask=_mask(rows, 1, prompt),
            past_key_values=cache,
            use_cache=True,
        )

    read()
    return cache.self_attention_cache.layers, read


def _ids(rows: int, length: int) -> Tensor:
    return torch.empty(rows, length, dtype=torch.long, device="meta")


def _mask(rows: int, num_queries: int, num_keys: int) -> Tensor:
    return torch.empty(rows, 1, num_queries, num_keys, dtype=torch.bool, device="meta")


def _cast(value: Any, dtype: torch.dtype) -> Any:
    real = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if real else value


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    if mask is not None:
        mask = mask.to(query.dtype)
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output: Tensor = attend(query, key, value, 0.0, causal, attn_mask=mask)[0]
    return output
