"""Hidden states of a model, whole sequences at once or one token at a time.

The only place that knows encoder-decoder from decoder-only. Both kinds offer the same three things:
`prompt_side` (where prompts are padded), `hidden` (the features that predict each completion token)
and `start` (a cached state that decoding advances). The output head is applied elsewhere.
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel


class DecodingState(Protocol):
    """The cache of a batch that is being decoded.

    Attributes:
        hidden: (B, d), features that predict the next token.
    """

    hidden: Tensor

    def step(self, tokens: Tensor) -> None:
        """Append `tokens` (B,) and move `hidden` to them."""

    def select(self, rows: Tensor) -> None:
        """Keep only these rows (n,) of the batch."""


class Backbone(Protocol):
    """A model without its head."""

    prompt_side: str

    def hidden(
        self, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, num_positions: int
    ) -> Tensor:
        """Features that predict completion tokens 0 … num_positions - 1.

        Args:
            prompt_ids: (B, S), padded on `prompt_side`.
            prompt_mask: (B, S) bool.
            completion_ids: (B, T) right-padded, T ≥ num_positions - 1.
            num_positions: P ≤ T + 1; position T is the state after the last token.

        Returns:
            (B, P, d).
        """

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor, max_tokens: int) -> DecodingState:
        """Read the prompts, ready to predict the first of at most `max_tokens` tokens."""


def make_backbone(model: PreTrainedModel, start_token_id: int | None) -> Backbone:
    """The backbone of `model`; encoder-decoders open each completion with `start_token_id`."""
    if model.config.is_encoder_decoder:
        assert start_token_id is not None
        return EncoderDecoder(model, start_token_id)
    return DecoderOnly(model)


class EncoderDecoder:
    """T5, BART, Marian and their kin."""

    prompt_side = "right"

    def __init__(self, model: PreTrainedModel, start_token_id: int) -> None:
        self.model, self.start_token_id = model, start_token_id

    def hidden(
        self, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, num_positions: int
    ) -> Tensor:
        encoded, mask = self.encode(prompt_ids, prompt_mask)
        first = self.first_tokens(prompt_ids)
        inputs = torch.cat([first, completion_ids[:, : num_positions - 1]], dim=1)
        # Padding needs no mask on the decoder's side: it lies on the right, where causal attention
        # never looks.
        return self.decode(inputs, encoded, mask, use_cache=False)

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor, max_tokens: int) -> DecodingState:
        del max_tokens
        return _EncoderDecoderState(self, prompt_ids, prompt_mask)

    def first_tokens(self, prompt_ids: Tensor) -> Tensor:
        """(B, 1) of the token that opens every completion."""
        return prompt_ids.new_full((len(prompt_ids), 1), self.start_token_id)

    def encode(self, prompt_ids: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encoder output (B, S, d) and the mask to attend to it with."""
        mask = None if bool(prompt_mask.all()) else prompt_mask.long()
        encoder = self.model.get_encoder()
        return encoder(input_ids=prompt_ids, attention_mask=mask).last_hidden_state, mask

    def decode(self, inputs: Tensor, encoded: Tensor, mask: Tensor | None, **cache: Any) -> Tensor:
        """Decoder output (B, P, d)."""
        output = self.model.get_decoder()(
            input_ids=inputs, encoder_hidden_states=encoded, encoder_attention_mask=mask, **cache
        )
        return output.last_hidden_state  # type: ignore[no-any-return]


class _EncoderDecoderState:
    def __init__(self, backbone: EncoderDecoder, prompt_ids: Tensor, prompt_mask: Tensor) -> None:
        config = backbone.model.config
        self._backbone = backbone
        self._cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
        self._encoded, self._mask = backbone.encode(prompt_ids, prompt_mask)
        self._advance(backbone.first_tokens(prompt_ids))

    def step(self, tokens: Tensor) -> None:
        self._advance(tokens[:, None])

    def _advance(self, inputs: Tensor) -> None:
        decoded = self._backbone.decode(
            inputs, self._encoded, self._mask, past_key_values=self._cache, use_cache=True
        )
        self.hidden = decoded[:, -1]

    def select(self, rows: Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._encoded = self._encoded[rows]
        self._mask = None if self._mask is None else self._mask[rows]
        self.hidden = self.hidden[rows]


class DecoderOnly:
    """Llama, Qwen2, GPT-2 and their kin."""

    prompt_side = "left"

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        parameters = inspect.signature(model.get_decoder().forward).parameters
        self._takes_positions = "position_ids" in parameters

    def hidden(
        self, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, num_positions: int
    ) -> Tensor:
        inputs = torch.cat([prompt_ids, completion_ids[:, : num_positions - 1]], dim=1)
        mask = None
        if not bool(prompt_mask.all()):
            mask = torch.ones_like(inputs, dtype=torch.bool)
            mask[:, : prompt_mask.shape[1]] = prompt_mask
        return self.decode(inputs, mask, use_cache=False)[:, prompt_ids.shape[1] - 1 :]

    def start(self, prompt_ids: Tensor, prompt_mask: Tensor, max_tokens: int) -> DecodingState:
        return _DecoderOnlyState(self, prompt_ids, prompt_mask, max_tokens)

    def decode(self, inputs: Tensor, mask: Tensor | None, **cache: Any) -> Tensor:
        """Output (B, P, d) for `inputs` (B, P), the last P of the positions of `mask` (B, L).

        A mask of None says that nothing is padded; positions then need no word either.
        """
        if mask is not None and self._takes_positions:
            positions = (mask.cumsum(dim=1) - 1).clamp_min_(0)
            cache["position_ids"] = positions[:, -inputs.shape[1] :]
        output = self.model.get_decoder()(input_ids=inputs, attention_mask=mask, **cache)
        return output.last_hidden_state  # type: ignore[no-any-return]


class _DecoderOnlyState:
    def __init__(
        self, backbone: DecoderOnly, prompt_ids: Tensor, prompt_mask: Tensor, max_tokens: int
    ) -> None:
        self._backbone = backbone
        self._cache = DynamicCache(config=backbone.model.config)
        self._length = prompt_ids.shape[1]
        self._mask = None
        if not bool(prompt_mask.all()):
            room = prompt_mask.new_ones(len(prompt_mask), max_tokens)
            self._mask = torch.cat([prompt_mask, room], dim=1)
        self._advance(prompt_ids)

    def step(self, tokens: Tensor) -> None:
        self._length += 1
        self._advance(tokens[:, None])

    def _advance(self, inputs: Tensor) -> None:
        mask = None if self._mask is None else self._mask[:, : self._length]
        decoded = self._backbone.decode(inputs, mask, past_key_values=self._cache, use_cache=True)
        self.hidden = decoded[:, -1]

    def select(self, rows: Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask = None if self._mask is None else self._mask[rows]
        self.hidden = self.hidden[rows]
