"""Baselines and advantages: what a return becomes before it weighs a token's log-probability."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from brim.masking import check_mask, check_shapes, masked_sum, promote, zero_padding


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


def min_variance_baseline(
    returns: Tensor,
    mask: Tensor,
    squared_norms: Tensor,
    *,
    total: Callable[[Tensor], Tensor] = lambda partial: partial,
) -> Tensor:
    """The scalar that leaves the tokens' gradients the least variance.

        b = E[‖∇ log π(a_t | s_t)‖² G_t] / E[‖∇ log π(a_t | s_t)‖²]

    over the tokens of the whole rollout batch (see `mean_baseline`). It minimizes
    E[‖∇ log π‖² (G - b)²], which is all of the variance that b can change as far as the gradients
    of a completion's different tokens are orthogonal.

    Args:
        returns: (B, T) float.
        mask: (B, T) bool.
        squared_norms: (B, T) float, `‖∇ log π(a_t | s_t)‖²`, of all parameters or of some.
        total: see `mean_baseline`.

    Returns:
        Scalar, float32 or better; 0 if every norm is, as any scalar does then.

    Raises:
        ValueError: shapes differ, or the mask is not bool.
    """
    check_shapes(mask, returns=returns, squared_norms=squared_norms)
    weights = zero_padding(squared_norms, mask)
    sums = torch.stack([(weights * zero_padding(returns, mask)).sum(), weights.sum()])
    weighted, weight = total(sums)
    # Not `weight > 0`: NaN must come out as NaN, so that it is noticed.
    return torch.where(weight == 0, 0.0, weighted / weight)


def time_mean_baseline(
    returns: Tensor,
    mask: Tensor,
    *,
    num_steps: int,
    total: Callable[[Tensor], Tensor] = lambda partial: partial,
) -> Tensor:
    """Mean return of the other rows at the same step.

        b[i, t] = mean of returns[j, t] over the rows j ≠ i with mask[j, t]

    A row's own return is left out, so that the expected gradient stays exactly what it is: a
    baseline may not depend on the action that it is a baseline for.

    Args:
        returns: (B, T) float.
        mask: (B, T) bool.
        num_steps: width ≥ T that all processes pad their sums to.
        total: see `mean_baseline`; the other rows are those of all processes.

    Returns:
        (B, T), float32 or better; 0 where no other row has a token.

    Raises:
        ValueError: shapes differ, the mask is not bool, or `num_steps` is below T.
    """
    check_shapes(mask, returns=returns)
    length = mask.shape[1]
    if num_steps < length:
        raise ValueError(f"num_steps must be at least T = {length}, got {num_steps}")
    own = torch.stack([zero_padding(returns, mask), mask.to(promote(returns).dtype)])
    sums = total(F.pad(own.sum(1), (0, num_steps - length)))[:, None, :length]
    return _mean_of_others(*(sums - own))


def leave_one_out_baseline(returns: Tensor, mask: Tensor, *, group_size: int) -> Tensor:
    """Mean return over the tokens of the other completions of the same prompt.

    As in RLOO (Ahmadian et al. 2024), with a mean over tokens, whose returns differ here.

    Args:
        returns: (B, T) float; rows `i * group_size … (i + 1) * group_size - 1` are a group.
        mask: (B, T) bool.
        group_size: completions of a prompt, at least 2.

    Returns:
        (B, 1), float32 or better; 0 where the other rows have no token.

    Raises:
        ValueError: shapes differ, the mask is not bool, `group_size` is below 2, or B is not a
            multiple of it.
    """
    check_shapes(mask, returns=returns)
    num_rows = len(mask)
    if group_size < 2:
        raise ValueError(f"group_size must be at least 2, got {group_size}")
    if num_rows % group_size:
        raise ValueError(f"group_size {group_size} does not divide the {num_rows} rows")
    token_sums = masked_sum(returns, mask, dim=1)
    own = torch.stack([token_sums, mask.sum(1).to(token_sums.dtype)])
    own = own.reshape(2, num_rows // group_size, group_size)
    return _mean_of_others(*(own.sum(2, keepdim=True) - own)).reshape(num_rows, 1)


def _mean_of_others(value_sums: Tensor, counts: Tensor) -> Tensor:
    return torch.where(counts == 0, 0.0, value_sums / counts)


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    discount: float = 1.0,
    lambda_: float = 0.95,
) -> Tensor:
    """Generalized advantage estimation (Schulman et al. 2016).

        δ[t] = rewards[t] + γ values[t+1] - values[t]
        A[t] = δ[t] + γλ A[t+1]

    with values[t] = A[t] = 0 beyond the end. λ = 0 is δ; λ = 1 is the discounted return minus the
    value. Regression targets of the values are `A + values`.

    Args:
        rewards: (B, T) float.
        values: (B, T) float, what a critic expects of the state before each action.
        mask: (B, T) bool, True from the first token to the last.
        discount: γ in [0, 1].
        lambda_: λ in [0, 1].

    Returns:
        (B, T), float32 or better, 0 where the mask is False.

    Raises:
        ValueError: shapes differ, a dtype does not fit, the mask has holes, or `discount` or
            `lambda_` is out of its range.
    """
    check_mask(mask, rewards=rewards, values=values)
    for name, number in (("discount", discount), ("lambda_", lambda_)):
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {number!r}")
    values = zero_padding(values, mask)
    errors = zero_padding(rewards, mask) + discount * F.pad(values[:, 1:], (0, 1)) - values
    advantages = [torch.zeros_like(errors[:, 0])]
    for error in reversed(errors.unbind(1)):
        advantages.append(error + discount * lambda_ * advantages[-1])
    return torch.stack(advantages[:0:-1], dim=1)


def normalize(
    advantages: Tensor,
    mask: Tensor,
    *,
    total: Callable[[Tensor], Tensor] = lambda partial: partial,
    eps: float = 1e-8,
) -> Tensor:
    """Advantages less their mean, divided by their standard deviation.

    Both are over the tokens of the whole rollout batch (see `mean_baseline`); the variance is the
    mean of the squares, not divided by one token less.

    Args:
        advantages: (B, T) float.
        mask: (B, T) bool.
        total: see `mean_baseline`.
        eps: added to the standard deviation.

    Returns:
        (B, T), float32 or better; 0 where the mask is False, and all 0 if the advantages are equal.

    Raises:
        ValueError: shapes differ, or the mask is not bool.
    """
    mean = mean_baseline(advantages, mask, total=total)
    centered = zero_padding(promote(advantages) - mean, mask)
    sums = torch.stack([centered.sum(), centered.square().sum(), mask.sum().to(centered.dtype)])
    rest, squares, num_tokens = total(sums)
    # The first mean is rounded, and the division would blow up what it missed: the mean of the
    # differences is that, and exact where the advantages are equal.
    rest = rest / num_tokens
    deviation = (squares / num_tokens - rest.square()).clamp(min=0).sqrt()
    return zero_padding((centered - rest) / (deviation + eps), mask)
