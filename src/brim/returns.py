"""Rewards and returns that a teacher's logits induce: Eqs 2, 4, 6 and 7, and Algorithm 1.

A teacher's logits are action values q. Of each step t of a completion with actions 1 … n only two
numbers are needed, whatever the vocabulary: `q_taken[t] = q(s_t, a_t)` and
`q_max[t] = max_a q(s_t, a)`, with `q_max[t] = 0` for t > n, as nothing follows the end.

All tensors are (B, T), one completion a row, and `mask` is True on its first n positions. Values
elsewhere are ignored, NaN and infinities included; results are 0 there. Half precision is computed
and returned as float32, float64 as float64.
"""

import numbers
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from brim.masking import check_mask, promote, zero_padding


def induced_rewards(q_taken: Tensor, q_max: Tensor, mask: Tensor) -> Tensor:
    """Reward of each action by the inverted Bellman optimality equation (Eq 2).

        r[t] = q_taken[t] - q_max[t+1],   t = 1 … n

    The last reward is r[n] = q_taken[n].

    Args:
        q_taken: (B, T) float, `q(s_t, a_t)`.
        q_max: (B, T) float, `max_a q(s_t, a)`.
        mask: (B, T) bool, True from the first token to the last.

    Returns:
        (B, T), float32 or better, 0 where the mask is False.

    Raises:
        ValueError: shapes differ, a dtype does not fit, or the mask has holes.
    """
    check_mask(mask, q_taken=q_taken, q_max=q_max)
    return _rewards(q_taken, q_max, mask, k=1)


def rewards_to_go(q_taken: Tensor, q_max: Tensor, mask: Tensor) -> Tensor:
    """Return of each step: the rewards from it to the end (G_t of Eqs 4 and 10; LLMR).

        G[t] = Σ_{i=t…n} r[i] = q_taken[t] - Σ_{i=t+1…n} (q_max[i] - q_taken[i]),   t = 1 … n

    Where the completion takes the teacher's best action from t+1 on, G[t] = q_taken[t].

    Arguments, result and errors are those of `induced_rewards`.
    """
    return _strided_reverse_cumsum(induced_rewards(q_taken, q_max, mask), stride=1)


def block_returns(
    q_taken: Tensor,
    q_max: Tensor,
    mask: Tensor,
    *,
    k: int,
    tail: Literal["one_step", "none"] = "one_step",
    reward_range: float | None = None,
) -> Tensor:
    """K-step return of each step: one induced reward for each block of K actions (BRIM).

        Ĝ[t] = q_taken[t] - q_max[t+K] + Ĝ[t+K],   t = 1 … n-K
        Ĝ[t] = q_taken[t] - q_max[t+1] + Ĝ[t+1],   t = n-K+1 … n   (tail = "one_step": Algorithm 1)
        Ĝ[t] = q_taken[t],                        t = n-K+1 … n   (tail = "none": Eq 7)

    with Ĝ[t] = 0 for t > n. K = 1 is `rewards_to_go`. Ĝ counts only some of the regrets
    `q_max[i] - q_taken[i]` after t, so it is never below G. With the one-step tail K ≥ n is
    `rewards_to_go` again, so on short completions a larger K does not always mean fewer terms;
    without a tail it does, up to Ĝ[t] = q_taken[t] for K ≥ n.

    Args:
        q_taken: (B, T) float, `q(s_t, a_t)`.
        q_max: (B, T) float, `max_a q(s_t, a)`.
        mask: (B, T) bool, True from the first token to the last.
        k: the paper's K ≥ 1, actions in a block.
        tail: how the last K steps are rewarded.
        reward_range: clip each reward, `q_taken[t] - q_max[t+K]` or one-step, to
            [-reward_range, reward_range] before the sum.

    Returns:
        (B, T), float32 or better, 0 where the mask is False.

    Raises:
        ValueError: shapes differ, a dtype does not fit, the mask has holes, or `k`, `tail` or
            `reward_range` is out of its range.
    """
    check_mask(mask, q_taken=q_taken, q_max=q_max)
    if not isinstance(k, numbers.Integral) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k must be an integer of at least 1, got {k!r}")
    if tail not in ("one_step", "none"):
        raise ValueError(f"tail must be 'one_step' or 'none', got {tail!r}")
    if reward_range is not None and not reward_range > 0:
        raise ValueError(f"reward_range must be positive or None, got {reward_range!r}")

    k = min(k, mask.shape[1])
    rewards = _rewards(q_taken, q_max, mask, k, tail, reward_range)
    return _strided_reverse_cumsum(rewards, stride=k)


def _rewards(
    q_taken: Tensor,
    q_max: Tensor,
    mask: Tensor,
    k: int,
    tail: Literal["one_step", "none"] = "none",
    reward_range: float | None = None,
) -> Tensor:
    """What the sum with stride k adds up: (B, T), 0 where the mask is False.

    For t ≤ n-k it is the induced reward of k actions, `q_taken[t] - q_max[t+k]` (Eq 6). For the
    last k steps, where each such sum ends, it is `q_taken[t]`, or with the one-step tail G[t].
    """
    q_taken, q_max = promote(q_taken), promote(q_max)
    blocks = zero_padding(q_taken[:, :-k] - q_max[:, k:], mask[:, k:])

    # The last k steps of each row, or all of a shorter one, are a completion of their own.
    num_steps = mask.sum(dim=1, keepdim=True, dtype=torch.int32)
    steps = (num_steps - k).clamp(min=0) + torch.arange(k, device=mask.device)
    inside = steps < num_steps
    ends = zero_padding(q_taken.gather(1, steps), inside)
    if tail == "one_step":
        ends = ends - F.pad(zero_padding(q_max.gather(1, steps), inside)[:, 1:], (0, 1))
    if reward_range is not None:
        blocks = blocks.clamp(-reward_range, reward_range)
        ends = ends.clamp(-reward_range, reward_range)
    if tail == "one_step":
        ends = _strided_reverse_cumsum(ends, stride=1)
    return F.pad(blocks, (0, k)).scatter_(1, steps, ends)


def _strided_reverse_cumsum(values: Tensor, stride: int) -> Tensor:
    """`y[t] = values[t] + y[t+stride]`, 0 beyond the end: (B, T) -> (B, T)."""
    num_rows, length = values.shape
    if length % stride:
        values = F.pad(values, (0, -length % stride))
    sums = values.flip(1).reshape(num_rows, values.shape[1] // stride, stride).cumsum(1)
    return sums.flatten(1).flip(1)[:, :length]
