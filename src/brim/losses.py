"""Losses as sums over tokens; dividing is the caller's, who alone knows the whole batch.

A mean over a micro-batch would weigh the tokens of short micro-batches more. Divide by the number
of tokens of the rollout batch, one explicit number.

What is constant in a loss (advantages, the policy that wrote, targets) is detached inside, so that
no caller can forget.
"""

import torch
from torch import Tensor

from brim.masking import check_shapes, masked_sum, zero_padding

# A ratio past e^88 overflows in float32; past e^44 its square does, in the norm of the gradient.
# e^20 = 5e8 is as good as infinite.
MAX_LOG_RATIO = 20.0


def log_ratios(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """`log π(a_t|s_t) - log π_old(a_t|s_t)`, at most `MAX_LOG_RATIO`.

    The bound changes the value and leaves the gradient, so that a token that has become far too
    likely can still be pushed down.

    Args:
        logprobs: (B, T) float, of the policy that is improved, differentiable.
        old_logprobs: (B, T) float, of the policy that wrote.
        mask: (B, T) bool.

    Returns:
        (B, T), float32 or better; 0 where the mask is False.

    Raises:
        ValueError: shapes differ, or the mask is not bool.
    """
    check_shapes(mask, logprobs=logprobs, old_logprobs=old_logprobs)
    new = zero_padding(logprobs, mask)
    differences = new - zero_padding(old_logprobs.detach(), mask)
    bound = MAX_LOG_RATIO + (new - new.detach())
    return torch.where(differences > MAX_LOG_RATIO, bound, differences)


def importance_weights(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, *, max_weight: float | None = None
) -> Tensor:
    """Probability of each token now over that when it was written, `π(a_t|s_t) / π_old(a_t|s_t)`.

    Args:
        logprobs: (B, T) float, of the policy that is improved.
        old_logprobs: (B, T) float, of the policy that wrote.
        mask: (B, T) bool.
        max_weight: larger weights are cut to it; None for `exp(MAX_LOG_RATIO)`.

    Returns:
        (B, T), float32 or better, detached; 0 where the mask is False.

    Raises:
        ValueError: shapes differ, the mask is not bool, or `max_weight` is not positive.
    """
    if max_weight is not None and not max_weight > 0:
        raise ValueError(f"max_weight must be positive or None, got {max_weight!r}")
    ratios = log_ratios(logprobs.detach(), old_logprobs, mask).exp()
    if max_weight is not None:
        ratios = ratios.clamp(max=max_weight)
    return zero_padding(ratios, mask)


def policy_gradient_loss(
    logprobs: Tensor, advantages: Tensor, mask: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Surrogate whose gradient is the negated policy gradient (Eqs 4 and 8), summed over tokens.

        loss = - Σ_t weights[t] · advantages[t] · log π(a_t | s_t)

    Args:
        logprobs: (B, T) float, `log π(a_t | s_t)`, differentiable.
        advantages: (B, T) float, the return of each token minus its baseline.
        mask: (B, T) bool.
        weights: (B, T) float, `importance_weights` where another policy wrote; None for 1.

    Returns:
        Scalar, float32 or better.

    Raises:
        ValueError: shapes differ, or the mask is not bool.
    """
    check_shapes(mask, logprobs=logprobs, advantages=advantages)
    # All factors are cleaned: a gradient is the other factors times the incoming zero.
    credit = zero_padding(advantages.detach(), mask)
    if weights is not None:
        check_shapes(mask, weights=weights)
        credit = credit * zero_padding(weights.detach(), mask)
    return -(credit * zero_padding(logprobs, mask)).sum()


def clipped_surrogate_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_range: float,
) -> Tensor:
    """Clipped surrogate of PPO (Schulman et al. 2017, Eq 7), negated and summed over tokens.

        loss = - Σ_t min(ρ[t] A[t], clip(ρ[t], 1-ε, 1+ε) A[t]),   ρ[t] = π(a_t|s_t) / π_old(a_t|s_t)

    At ρ = 1 its gradient is that of `policy_gradient_loss`. A token whose ρ is past the bound that
    its advantage pushes it to has none. ρ is at most `exp(MAX_LOG_RATIO)`.

    Args:
        logprobs: (B, T) float, `log π(a_t | s_t)`, differentiable.
        old_logprobs: (B, T) float, of the policy that wrote.
        advantages: (B, T) float, A.
        mask: (B, T) bool.
        clip_range: ε.

    Returns:
        Scalar, float32 or better.

    Raises:
        ValueError: shapes differ, the mask is not bool, or `clip_range` is not positive.
    """
    check_shapes(mask, advantages=advantages)
    _check_clip_range(clip_range)
    credit = zero_padding(advantages.detach(), mask)
    ratios = log_ratios(logprobs, old_logprobs, mask).exp()
    clipped = ratios.clamp(1 - clip_range, 1 + clip_range)
    return -torch.minimum(ratios * credit, clipped * credit).sum()


def value_loss(
    values: Tensor,
    old_values: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    clip_range: float | None,
) -> Tensor:
    """Squared error of a critic, summed over tokens; clipped as in PPO implementations.

        loss = ½ Σ_t max((V[t] - R[t])², (clip(V[t], V_old[t]-c, V_old[t]+c) - R[t])²)

    A value that has come nearer to its target than the clipped one has no gradient.

    Args:
        values: (B, T) float, V, differentiable.
        old_values: (B, T) float, V_old, what the critic said when the text was written.
        targets: (B, T) float, R.
        mask: (B, T) bool.
        clip_range: c; None for `½ Σ_t (V[t] - R[t])²`.

    Returns:
        Scalar, float32 or better.

    Raises:
        ValueError: shapes differ, the mask is not bool, or `clip_range` is not positive.
    """
    check_shapes(mask, values=values, old_values=old_values, targets=targets)
    values, targets = zero_padding(values, mask), zero_padding(targets.detach(), mask)
    errors = (values - targets).square()
    if clip_range is not None:
        _check_clip_range(clip_range)
        old = zero_padding(old_values.detach(), mask)
        clipped = values.clamp(old - clip_range, old + clip_range)
        errors = torch.maximum(errors, (clipped - targets).square())
    return errors.sum() / 2


def _check_clip_range(clip_range: float) -> None:
    if not clip_range > 0:
        raise ValueError(f"clip_range must be positive, got {clip_range!r}")


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
