"""Two output heads side by side, a chunk of tokens at a time.

As in `head.py`, logits of all tokens at once are never held: the forward pass leaves a few numbers
a token, and the backward pass makes each chunk's logits of both models again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from brim.models.head import OutputHead, chunk_logits, compared_statistics, compute_dtype

RowFunction = Callable[..., Tensor]
"""Of a policy's and another model's logits, (n, V) each, to one number a row, (n,).

Those of `brim.divergences` are meant. It must not change its arguments, and may be called again for
the gradient. Where the policy's distribution is cut, the logits outside are `EXCLUDED`.
"""

# The logits of a chunk and all that is made of them take at most this much. At a vocabulary of
# 152,000 that is 32 tokens: with half of them the head's weight is read too often, and twice as
# many are no faster.
PAIR_BYTES = 224 * 2**20

# (n, V) float32 buffers that exist at once: the logits of both heads, and what the hungriest of our
# functions, the Jensen-Shannon divergence, makes of them for its gradient.
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
    """Token statistics of a policy, and a function of its logits and another model's.

    Args:
        hidden: (N, d) features of the positions that predict the targets.
        head: the policy's output head; gradients reach its weight and bias.
        targets: (N,) int64 token ids below `head.num_rows`.
        other_hidden: (N, d') the other model's features of the same positions.
        other_head: the other model's output head, of the same vocabulary.
        function: called as `function(logits, other_logits, *arguments)` on n of the N tokens.
        arguments: (N, …) each, what else the function takes of a token.
        chunk_tokens: tokens a chunk; by default what fits `PAIR_BYTES`.

    Returns:
        `log softmax(logits)[target]`, the entropy (detached), and the function's values, (N,)
        float32 each. The first and the last are differentiable once, with respect to the policy
        only.

    Raises:
        ValueError: the function does not give one number a row.
    """
    dtype = compute_dtype(other_head.weight)
    features = other_head.scaled(other_hidden.detach()).to(dtype)
    weight = other_head.weight.detach()[: other_head.num_rows].to(dtype)
    bias = None if other_head.bias is None else other_head.bias.detach()

    def compare(rows: slice, logits: Tensor) -> Tensor:
        other_logits = chunk_logits(features[rows], weight, bias)
        with torch.autocast(logits.device.type, enabled=False):
            values = function(logits, other_logits, *(argument[rows] for argument in arguments))
        if values.shape != logits.shape[:1]:
            raise ValueError(
                "a comparison must give one number a row, "
                f"got {tuple(values.shape)} of {tuple(logits.shape)} logits"
            )
        return values.float()

    if chunk_tokens is None:
        chunk_tokens = max(1, PAIR_BYTES // (BUFFERS * 4 * head.num_rows))
    logprobs, entropy, compared = compared_statistics(hidden, head, targets, compare, chunk_tokens)
    assert compared is not None
    return logprobs, entropy, compared
