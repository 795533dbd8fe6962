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
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from brim.models import set_dropout
from brim.models.backbone import (
    PreallocatedLayer,
    cache_name,
    decoder_cache,
    encoder_decoder_cache,
    expand_rows,
)
from brim.plan.models import ModelShape, Size

# What autocast makes in its type.
_PRODUCTS = (F.linear, torch.matmul, torch.addmm, F.scaled_dot_product_attention)


_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
# Torch's formulas, and those of its CPU kernel for attention, which it lacks: two products, and
# four backward. The scores that the kernel makes again do not count, as in plain attention.
_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    getattr(torch.ops.aten, _ATTENTION): lambda q, k, *_, **__: 4 * q.numel() * k.shape[-2],
    getattr(torch.ops.aten, f"{_ATTENTION}_backward"): lambda _, q, k, *__, **___: (
        8 * q.numel() * k.shape[-2]
    ),
}


class CostCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count what is done while it is on: bytes of tensors that are alive, and operations.

    Args:
        known: tensors that were there before, and do not count.

    Attributes:
        now, peak: bytes of the tensors that were made and are not freed; the most at once.
        operations: of products of matrices and of attention, by the formulas of torch's
            `FlopCounterMode`, whose own hooks would keep tensors alive.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.operations = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if formula := _FORMULAS.get(func._overloadpacket):
            self.operations += formula(*args, **kwargs, out_val=out)
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


class Cost(NamedTuple):
    """What a pass takes beside weights, gradients and the output head.

    Attributes:
        kept: bytes after the forward pass, when the output head works.
        peak: the most bytes at once. After the forward pass the backward pass only frees; with
            gradient checkpointing it passes layers again, and counts.
        operations: floating-point operations of all of it.
    """

    kept: int
    peak: int
    operations: int


@lru_cache(maxsize=256)
def pass_cost(
    shape: ModelShape,
    size: Size,
    *,
    gradient: bool = False,
    dropout: float | None = None,
    autocast: torch.dtype | None = None,
    checkpointing: bool = False,
) -> Cost:
    """Return what a pass over padded rows takes; with `gradient`, and its backward pass.

    `dropout` is that in training, None for what the model's config says; `autocast` the type of
    matrix products.
    """
    model, again = shape.model, gradient and checkpointing
    if again or (gradient and dropout is not None):
        model = copy.deepcopy(model)
        if dropout is not None:
            set_dropout(model, dropout)
    if again:
        contexts = {"context_fn": lambda: (nullcontext(), AsOnDevice(autocast))}
        model.activation_checkpointing_enable({"use_reentrant": False, **contexts})
    model.train(gradient)
    trained = [p for p in model.parameters() if p.requires_grad and gradient]
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    known = [*model.parameters(), *model.buffers(), *(p.grad for p in trained)]
    with torch.set_grad_enabled(gradient), CostCounter(known) as live:
        with AsOnDevice(autocast):
            hidden = _read(replace(shape, model=model), size)
        kept, peak = live.now, live.peak
        if gradient:
            torch.autograd.backward([hidden], [torch.empty_like(hidden)])
    for parameter in trained:
        parameter.grad = None  # the model is a plan's only one of its kind
    return Cost(kept, live.peak if again else peak, live.operations)


@lru_cache(maxsize=256)
def writing_cost(
    shape: ModelShape,
    size: Size,
    *,
    num_prompts: int | None = None,
    autocast: torch.dtype | None = None,
) -> Cost:
    """Return what a batch that is written token by token takes, with its cache.

    Passed are the prompts, of which each is read once, the first token behind them and the last
    one, when the cache is full. The operations of the tokens between grow evenly, with the keys
    that each of them meets.
    """
    model = shape.model
    model.eval()
    live = CostCounter([*model.parameters(), *model.buffers()])
    num_steps = size.num_tokens - 1
    with torch.no_grad(), AsOnDevice(autocast):
        with live:
            layers, step = _start(shape, size, num_prompts or size.rows)
        counts = [live.operations]
        for number in sorted({1, num_steps} if num_steps else ()):
            for layer in layers if number > 1 else ():
                if isinstance(layer, PreallocatedLayer):  # room that is there already
                    rows, heads, _, width = layer.keys.shape
                    states = layer.keys.new_empty(rows, heads, num_steps - 2, width)
                    layer.update(states, states)
            with live:
                step(number)
            counts.append(live.operations)
    prompts, *steps = (after - before for before, after in pairwise([0, *counts]))
    between = num_steps * (steps[0] + steps[-1]) // 2 if steps else 0
    return Cost(live.now, live.peak, prompts + between)


# The passes of `brim.models.backbone`, with masks that need no look at numbers.


def _read(shape: ModelShape, size: Size) -> Tensor:
    """Hidden states of whole rows."""
    model, rows, prompt = shape.model, size.rows, size.num_prompt_tokens
    if shape.is_encoder_decoder:
        return _decode(model, rows, size.num_tokens, prompt, encoded=_encode(model, rows, prompt))
    length = prompt + size.num_tokens - 1
    return _decode(model, rows, length, length)


def _start(
    shape: ModelShape, size: Size, num_prompts: int
) -> tuple[list[Any], Callable[[int], Tensor]]:
    """Read the prompts: the layers of the cache that grow, and what reads a token, from 1."""
    model, rows, prompt = shape.model, size.rows, size.num_prompt_tokens
    several = num_prompts < rows
    if not shape.is_encoder_decoder:
        cache = decoder_cache(model.config, prompt + size.num_tokens - 1)
        _decode(model, num_prompts, prompt, prompt, cache=cache)
        if several:
            expand_rows(cache, _ids(1, rows)[0])
        return cache.layers, lambda number: _decode(model, rows, 1, prompt + number, cache=cache)
    encoded = _encode(model, num_prompts, prompt)
    encoded = encoded[_ids(1, rows)[0]] if several else encoded
    both = encoder_decoder_cache(model.get_decoder().config, size.num_tokens)

    def read(number: int) -> Tensor:
        return _decode(model, rows, 1, prompt, encoded=encoded, cache=both)

    read(0)
    return both.self_attention_cache.layers, read


def _encode(model: Any, rows: int, length: int) -> Tensor:
    mask = _mask(rows, length, length)
    hidden: Tensor = model.get_encoder()(
        input_ids=_ids(rows, length), attention_mask=mask
    ).last_hidden_state
    return hidden


def _decode(
    model: Any,
    rows: int,
    num_queries: int,
    num_keys: int,
    *,
    encoded: Tensor | None = None,
    cache: Any = None,
) -> Tensor:
    mask: dict[str, Any] = {"attention_mask": _mask(rows, num_queries, num_keys)}
    if encoded is not None:
        mask = {"encoder_attention_mask": mask["attention_mask"], "encoder_hidden_states": encoded}
    decoder = model.get_decoder()
    kept = {cache_name(decoder): cache, "use_cache": cache is not None}
    hidden: Tensor = decoder(input_ids=_ids(rows, num_queries), **kept, **mask).last_hidden_state
    return hidden


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
    attend = getattr(torch.ops.aten, _ATTENTION)
    output: Tensor = attend(query, key, value, 0.0, causal, attn_mask=mask)[0]
    return output
