"""Two output heads side by side, a chunk of tokens at a time.

As in `head`, logits of all tokens are never held: the forward pass keeps a number a token, and the
backward pass makes each chunk's logits of both models again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from brim.models.head import CHUNK_BYTES, OutputHead, compared_statistics, chunk_logits, compute_dtype

RowFunction = Callable[..., Tensor]
"""Of a policy's and another model's logits, (n, V) each, to one number a row, (n,)."""

BUFFERS = 12


def pair_statistics(
    hidden: Tensor,
    head: OutputHead,
    targets: Tensor,
    other_hidden: Tensor,
    other_head: OutputHead,
    function: RowFunction,
    arguments: Sequence[Tensor] = (),
    *,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """x"""
    dtype = compute_dtype(other_head.weight)
    features = other_head.scaled(other_hidden.detach()).to(dtype)
    weight = other_head.weight.detach()[: other_head.num_rows].to(dtype)
    bias = None if other_head.bias is None else other_head.bias.detach()

    def compare(rows: slice, logits: Tensor) -> Tensor:
        other_logits = chunk_logits(features[rows], weight, bias)
        with torch.autocast(logits.device.type, enabled=False):
            return function(logits, other_logits, *(values[rows] for values in arguments)).float()

    chunk_tokens = chunk_tokens or max(1, 4 * CHUNK_BYTES // (4 * BUFFERS * head.num_rows))
    logprobs, entropy, compared = compared_statistics(hidden, head, targets, compare, chunk_tokens)
    return logprobs, entropy, compared
