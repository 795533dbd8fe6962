"""Baselines: what is subtracted from a return before it weighs a token's log-probability."""

from torch import Tensor

from brim.masking import check_shapes, masked_mean


def mean_baseline(returns: Tensor, mask: Tensor) -> Tensor:
    """Mean return over the tokens of the rollout batch.

    One number for the whole batch: call it on all rows that share an update, not on a piece of
    them, or the size of the pieces changes the gradient.

    Args:
        returns: (B, T) float.
        mask: (B, T) bool.

    Returns:
        Scalar, float32 or better; NaN if no token counts.

    Raises:
        ValueError: shapes differ, or the mask is not bool.
    """
    check_shapes(mask, returns=returns)
    return masked_mean(returns, mask)
