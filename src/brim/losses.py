"""Losses as sums over tokens; dividing is the caller's, who alone knows the whole batch.

A mean over a micro-batch would weigh the tokens of short micro-batches more. Divide by the number
of tokens of the rollout batch, one explicit number.
"""

from torch import Tensor

from brim.masking import check_shapes, masked_sum, zero_padding


def policy_gradient_loss(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Surrogate whose gradient is the negated policy gradient (Eqs 4 and 8), summed over tokens.

        loss = - Σ_t advantages[t] · log π(a_t | s_t)

    The advantages are constants here: they are detached inside, so that no caller can forget.

    Args:
        logprobs: (B, T) float, `log π(a_t | s_t)`, differentiable.
        advantages: (B, T) float, the return of each token minus its baseline.
        mask: (B, T) bool.

    Returns:
        Scalar, float32 or better.

    Raises:
        ValueError: shapes differ, or the mask is not bool.
    """
    check_shapes(mask, logprobs=logprobs, advantages=advantages)
    # Both factors are cleaned: a gradient is the other factor times the incoming zero.
    weights = zero_padding(advantages.detach(), mask)
    return -(weights * zero_padding(logprobs, mask)).sum()


def cross_entropy(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of the tokens, `- Σ_t log π(a_t | s_t)`, summed over tokens.

    Args:
        logprobs: (B, T) float, of the target tokens, differentiable.
        mask: (B, T) bool.

    Returns:
        Scalar, float32 or better.

    Raises:
        ValueError: shapes differ, or the mask is not bool.
    """
    check_shapes(mask, logprobs=logprobs)
    return -masked_sum(logprobs, mask)
