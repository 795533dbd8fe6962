"""Baselines: what is subtracted from a return before it weighs a token's log-probability."""

from collections.abc import Callable

import torch
from torch import Tensor

from brim.masking import check_shapes, masked_sum


def mean_baseline(
    returns: Tensor,
    mask: Tensor,
    *,
    total: Callable[[Tensor], Tensor] = lambda partial: partial,
) -> Tensor:
    """Mean return over the tokens of the rollout batch.

    One number for the whole batch: call it on all rows that share an update, not on a piece of
    them, or the size of the pieces changes the gradient.

    Args:
        returns: (B, T) float.
        mask: (B, T) bool.
        total: adds a tensor up over the processes that share the batch; by default there is one.

    Returns:
        Scalar, float32 or better; NaN if no token counts.

    Raises:
        ValueError: shapes differ, or the mask is not bool.
    """
    check_shapes(mask, returns=returns)
    token_sum = masked_sum(returns, mask)
    token_sum, num_tokens = total(torch.stack([token_sum, mask.sum().to(token_sum.dtype)]))
    mean: Tensor = token_sum / num_tokens
    return mean
