"""Hidden states of a model, whole sequences at once or one token at a time.

The only place that knows encoder-decoder from decoder-only. Both kinds offer `prompt_side` (where
prompts are padded), `hidden` and `start` (a cached state that decoding advances).

Keys and values are in memory that is taken once. transformers' growing cache copies all that it
holds at every token, and selecting rows copies it once more. Here a layer writes each token into
its place, and a row that has ended is replaced by the last one of the batch, so that a finished row
costs the copy of one other row.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from brim.errors import ModelError
from brim.types import Batch


@dataclass(frozen=True, slots=True)
class Prompts:
    """P prompts that B completions continue; one that several continue is read once.

    Attributes:
        ids: (P, S) int64, padded on `Backbone.prompt_side`.
        mask: (P, S) bool.
        rows: (B,) int64, the prompt of each completion; None where each has its own.
    """

    ids: Tensor
    mask: Tensor
    rows: Tensor | None = None

    @classmethod
    def of(cls, batch: Batch, side: str) -> Prompts:
        """Return the batch's prompts, each once, without the padding that all of them share."""
        width = int(batch.prompt_mask.sum(dim=1).max())
        columns = slice(-width, None) if side == "left" else slice(width)
        ids, mask = batch.prompt_ids[:, columns], batch.prompt_mask[:, columns]
        numbers: dict[int, int] = {}  # of the distinct examples, in order of appearance
        rows = [numbers.setdefault(id(example), len(numbers)) for example in batch.examples]
        if len(numbers) == len(rows):
            return cls(ids, mask)
        first = [rows.index(number) for number in range(len(numbers))]
        return cls(ids[first], mask[first], torch.tensor(rows, device=ids.device))

    def each(self, values: Tensor) -> Tensor:
        """(P, …) values of the prompts as (B, …), those of each completion's."""
        return values if self.rows is None else values[self.rows]


class DecodingState(ABC):
    """A batch of B rows that is being decoded, with its cache.

    `hidden` (B, d) are the features that predict the next token.
    """

    hidden: Tensor

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    def step(self, tokens: Tensor) -> None:
        """Append `tokens` (B,) and move `hidden` to them."""
        self.hidden = self.advance(tokens[:, None])[:, -1]

    @abstractmethod
    def advance(self, inputs: Tensor) -> Tensor:
        """Append `inputs` (B, P) and return their features (B, P, d)."""

    def keep(self, count: int, holes: Tensor, movers: Tensor) -> None:
        """Put the rows `movers` into the rows `holes`, then keep the first `count`."""
        keep_rows(self.cache, count, holes, movers)


class Backbone(ABC):
    """A model without its head."""

    prompt_side: ClassVar[str]

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.cache_name = cache_name(model.get_decoder())

    @abstractmethod
    def hidden(self, prompts: Prompts, completion_ids: Tensor, num_positions: int) -> Tensor:
        """Hidden states (B, P, d) that predict completion tokens 0 … P - 1.

        `completion_ids` (B, T) are right-padded, and P ≤ T + 1; position T is the state after the
        last token.

        Raises:
            ModelError: the tokens are more than the model has positions for.
        """

    @abstractmethod
    def start(self, prompts: Prompts, max_tokens: int) -> DecodingState:
        """Read the prompts, ready to predict the first of at most `max_tokens` tokens.

        Raises:
            ModelError: the tokens are more than the model has positions for.
        """

    @property
    def num_positions(self) -> int | None:
        """Tokens of the longest sequence that the model was made for; None where any will do."""
        return max_positions(self.model.config)

    def check_length(self, num_tokens: int) -> None:
        """Raise a ModelError for sequences longer than the model was made for."""
        limit = self.num_positions
        if limit is not None and num_tokens > limit:
            most = getattr(self.model.config, "max_position_embeddings", None) or limit
            why = " before longrope changes all of them" if limit < most else ""
            raise ModelError(
                f"a sequence of {num_tokens} tokens exceeds the model's {limit} positions{why}; "
                "lower the limits of prompt and completion (max_prompt_tokens, max_tokens)"
            )


def max_positions(config: PreTrainedConfig) -> int | None:
    """Return the tokens of the longest sequence that a model was made for; None where any will do.

    For longrope that is the original length: beyond it whole batches are scored by other factors
    than the ones by which their first tokens were written.
    """
    limit: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer = [one for one in rope.values() if isinstance(one, dict)]
    originals = [
        one["original_max_position_embeddings"]
        for one in (rope, *by_layer)
        if one.get("rope_type") == "longrope"
    ]
    return min((n for n in (limit, *originals) if n is not None), default=None)


class EncoderDecoder(Backbone):
    """T5, BART, Marian and their kin; `start_ids` open every completion, and are not chosen."""

    prompt_side = "right"

    def __init__(self, model: PreTrainedModel, start_ids: Sequence[int]) -> None:
        super().__init__(model)
        self.start_ids = tuple(start_ids)

    def hidden(self, prompts: Prompts, completion_ids: Tensor, num_positions: int) -> Tensor:
        """See `Backbone.hidden`."""
        self.check_length(self.num_inputs(num_positions))
        encoded, mask = self.encode(prompts)
        inputs = torch.cat([self.first(encoded), completion_ids[:, : num_positions - 1]], dim=1)
        # The decoder's own padding needs no mask: it lies on the right, where causal attention
        # never looks.
        return self.decode(inputs, encoded, mask, use_cache=False)[:, len(self.start_ids) - 1 :]

    def start(self, prompts: Prompts, max_tokens: int) -> DecodingState:
        """See `Backbone.start`."""
        self.check_length(self.num_inputs(max_tokens))
        return _EncoderDecoderState(self, prompts, max_tokens)

    def num_inputs(self, max_tokens: int) -> int:
        """Tokens that the decoder reads to write so many; the last one is never read."""
        return len(self.start_ids) + max_tokens - 1

    def first(self, rows: Tensor) -> Tensor:
        """(B, n) of the tokens that open every completion, for (B, …) of anything."""
        return torch.tensor(self.start_ids, device=rows.device).expand(len(rows), -1)

    def encode(self, prompts: Prompts) -> tuple[Tensor, Tensor | None]:
        """Encoder output (B, S, d) and the mask to attend to it with."""
        self.check_length(prompts.ids.shape[1])
        mask = None if bool(prompts.mask.all()) else prompts.mask.long()
        encoder = self.model.get_encoder()
        encoded = encoder(input_ids=prompts.ids, attention_mask=mask).last_hidden_state
        return prompts.each(encoded), None if mask is None else prompts.each(mask)

    def decode(self, inputs: Tensor, encoded: Tensor, mask: Tensor | None, **cache: Any) -> Tensor:
        """Decoder output (B, P, d)."""
        output = self.model.get_decoder()(
            input_ids=inputs, encoder_hidden_states=encoded, encoder_attention_mask=mask, **cache
        )
        return output.last_hidden_state  # type: ignore[no-any-return]


class _EncoderDecoderState(DecodingState):
    def __init__(self, backbone: EncoderDecoder, prompts: Prompts, max_tokens: int) -> None:
        config = backbone.model.get_decoder().config  # T5's says how deep the decoder is
        super().__init__(encoder_decoder_cache(config, backbone.num_inputs(max_tokens)))
        self._backbone = backbone
        self._encoded, self._mask = backbone.encode(prompts)
        self.hidden = self.advance(backbone.first(self._encoded))[:, -1]

    def advance(self, inputs: Tensor) -> Tensor:
        cache = {self._backbone.cache_name: self.cache, "use_cache": True}
        return self._backbone.decode(inputs, self._encoded, self._mask, **cache)

    def keep(self, count: int, holes: Tensor, movers: Tensor) -> None:
        super().keep(count, holes, movers)
        # The decoder has read the encoder's output; it only looks at the shape from here on.
        self._encoded = self._encoded[:count]
        if self._mask is not None:
            self._mask[holes] = self._mask[movers]
            self._mask = self._mask[:count]


class DecoderOnly(Backbone):
    """Llama, Qwen2, GPT-2 and their kin."""

    prompt_side = "left"

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        parameters = inspect.signature(model.get_decoder().forward).parameters
        self._takes_positions = "position_ids" in parameters

    def hidden(self, prompts: Prompts, completion_ids: Tensor, num_positions: int) -> Tensor:
        """See `Backbone.hidden`."""
        prompt_ids = prompts.each(prompts.ids)
        inputs = torch.cat([prompt_ids, completion_ids[:, : num_positions - 1]], dim=1)
        self.check_length(inputs.shape[1])
        mask = _extend(prompts.each(prompts.mask), num_positions - 1)
        return self.decode(inputs, mask, use_cache=False)[:, prompt_ids.shape[1] - 1 :]

    def start(self, prompts: Prompts, max_tokens: int) -> DecodingState:
        """See `Backbone.start`."""
        self.check_length(prompts.ids.shape[1] + max_tokens - 1)
        return _DecoderOnlyState(self, prompts, max_tokens)

    def decode(self, inputs: Tensor, mask: Tensor | None, **cache: Any) -> Tensor:
        """Output (B, P, d) for `inputs` (B, P), the last P of the L positions of `mask` (B, L).

        A mask of None says that nothing is padded; then positions count from the start.
        """
        if mask is not None and self._takes_positions:
            positions = (mask.cumsum(dim=1) - 1).clamp_min_(0)
            cache["position_ids"] = positions[:, -inputs.shape[1] :]
        output = self.model.get_decoder()(input_ids=inputs, attention_mask=mask, **cache)
        return output.last_hidden_state  # type: ignore[no-any-return]


class _DecoderOnlyState(DecodingState):
    def __init__(self, backbone: DecoderOnly, prompts: Prompts, max_tokens: int) -> None:
        # The last token is written, and never read.
        capacity = prompts.ids.shape[1] + max_tokens - 1
        super().__init__(decoder_cache(backbone.model.config, capacity))
        self._backbone, self._length = backbone, 0
        self._mask = _extend(prompts.mask, max_tokens - 1)
        self.hidden = prompts.each(self.advance(prompts.ids)[:, -1])
        if prompts.rows is not None:
            expand_rows(self.cache, prompts.rows)
            self._mask = None if self._mask is None else self._mask[prompts.rows]

    def advance(self, inputs: Tensor) -> Tensor:
        self._length += inputs.shape[1]
        mask = None if self._mask is None else self._mask[:, : self._length]
        cache = {self._backbone.cache_name: self.cache, "use_cache": True}
        return self._backbone.decode(inputs, mask, **cache)

    def keep(self, count: int, holes: Tensor, movers: Tensor) -> None:
        super().keep(count, holes, movers)
        if self._mask is not None:
            self._mask[holes] = self._mask[movers]
            self._mask = self._mask[:count]


def _extend(prompt_mask: Tensor, num_tokens: int) -> Tensor | None:
    """Mask of prompt and `num_tokens` that follow; None where nothing is padded.

    Padding behind a completion needs no mask: causal attention never looks to the right.
    """
    if bool(prompt_mask.all()):
        return None
    return torch.cat([prompt_mask, prompt_mask.new_ones(len(prompt_mask), num_tokens)], dim=1)


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


def cache_name(decoder: nn.Module) -> str:
    """The argument that takes keys and values of past tokens: transformers 5.24 renamed it."""
    names = inspect.signature(decoder.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


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
