"""The keys and values of a batch that is being decoded, in memory that is taken once.

transformers' growing cache copies all that it holds at every token, and selecting rows copies it
once more. Here a layer writes each token into its place, and a row that has ended is replaced by
the last one of the batch, so that a finished row costs the copy of one other row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, (B, heads, length, d) views of room for `capacity` tokens.

    A capacity of None is what the first call brings.
    """

    def __init__(self, capacity: int | None) -> None:
        super().__init__()
        self._capacity, self._length = capacity, 0
        self._stores: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append P tokens, (B, heads, P, d) each; returns all keys and values so far."""
        start, end = self._length, self._length + key_states.shape[-2]
        if not self._stores:
            self.dtype, self.device = key_states.dtype, key_states.device
            capacity = end if self._capacity is None else self._capacity
            for states in (key_states, value_states):
                shape = (*states.shape[:2], capacity, states.shape[-1])
                self._stores.append(states.new_empty(shape))
            self.is_initialized = True
        for store, states in zip(self._stores, (key_states, value_states), strict=True):
            store[:, :, start:end] = states
        self._length = end
        self._show()
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return self._length

    def expand(self, rows: Tensor) -> None:
        """Make row i of the batch what row `rows[i]` is, (B,) int64."""
        self._stores = [store[rows] for store in self._stores]
        self._show()

    def keep(self, count: int, holes: Tensor, movers: Tensor) -> None:
        """Put the rows `movers` into the rows `holes`, then keep the first `count`."""
        for i, store in enumerate(self._stores):
            store[holes, :, : self._length] = store[movers, :, : self._length]
            self._stores[i] = store[:count]
        self._show()

    def _show(self) -> None:
        self.keys, self.values = (store[:, :, : self._length] for store in self._stores)


def decoder_cache(config: PreTrainedConfig, capacity: int) -> DynamicCache:
    """An empty cache of a decoder for at most `capacity` tokens.

    Room is taken in advance in every layer that keeps all of its tokens. Layers of other kinds,
    such as those that forget what left their window, stay as transformers makes them.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        PreallocatedLayer(capacity) if type(layer) is DynamicLayer else layer
        for layer in cache.layers
    ]
    return cache


def encoder_decoder_cache(config: PreTrainedConfig, capacity: int) -> EncoderDecoderCache:
    """An empty cache of an encoder-decoder for at most `capacity` completion tokens.

    The keys and values of the encoder's output are computed once, by the first step; all of them
    are kept, also where the decoder's own layers forget.
    """
    own, crossed = decoder_cache(config, capacity), DynamicCache()
    crossed.layers = [PreallocatedLayer(None) for _ in own.layers]
    return EncoderDecoderCache(own, crossed)


def expand_rows(cache: Cache, rows: Tensor) -> None:
    """Make row i of the cache what row `rows[i]` is, (B,) int64."""
    for layer in _layers(cache):
        if isinstance(layer, PreallocatedLayer):
            layer.expand(rows)
        else:
            layer.reorder_cache(rows)


def keep_rows(cache: Cache, count: int, holes: Tensor, movers: Tensor) -> None:
    """Put the rows `movers` into the rows `holes`, then keep the first `count`."""
    order = None
    for layer in _layers(cache):
        if isinstance(layer, PreallocatedLayer):
            layer.keep(count, holes, movers)
            continue
        if order is None:
            order = torch.arange(count, device=holes.device)
            order[holes] = movers
        layer.reorder_cache(order)


def _layers(cache: Cache) -> list[Any]:
    if isinstance(cache, EncoderDecoderCache):
        return [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
    return cache.layers  # type: ignore[no-any-return]
