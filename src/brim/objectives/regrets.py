"""Regrets: those that a completion still has before it, and their means over other completions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from brim.advantages import time_mean_baseline
from brim.objectives.credit import sum_over_processes
from brim.returns import rewards_to_go


def regrets_to_come(regrets: Tensor, mask: Tensor) -> Tensor:
    """Return `Σ_{i ≥ t} d_i`, (B, T), 0 where the mask is False.

    Args:
        regrets: (B, T), of each token, or of each state as it is expected there.
        mask: (B, T) bool.
    """
    return -rewards_to_go(-regrets, torch.zeros_like(regrets), mask)


def mean_per_token(regrets: Tensor, lengths: Tensor) -> Tensor:
    """Return `ρ = Σ d / Σ length`, (B, 1), over other completions than the row's own.

    The gradient of `E[Σ_t d_t] / E[length]` is that of `E[Σ_t (d_t − ρ)]` over the mean length, ρ
    being the ratio itself, held fixed.

    Args:
        regrets: (B, T), of each step; 0 where there is none.
        lengths: (B, T), the tokens of each step.
    """
    own = torch.stack([regrets.sum(1), lengths.sum(1).to(regrets.dtype)])
    found, count = sum_over_processes(own.sum(1))[:, None] - own
    return torch.where(count > 0, found / count.clamp(min=1), 0.0)[:, None]


def mean_of_others(
    to_come: Tensor, mask: Tensor, *, max_tokens: int, num_generations: int = 1
) -> Tensor:
    """Return the mean regrets to come, of each step and of the one behind the last.

    Args:
        to_come: (B, T), the regrets of each completion from a step on, its own included.
        mask: (B, T) bool.
        max_tokens: the longest completion that any process can have.
        num_generations: completions of each prompt, in adjacent rows.

    Returns:
        (B, T + 1), of other completions than the row's own, so that it does not depend on the row's
        actions: of the prompt's others where there are, else of all others; 0 where no other has a
        token.
    """
    to_come, mask = F.pad(to_come, (0, 1)), F.pad(mask, (0, 1))
    found = time_mean_baseline(to_come, mask, num_steps=max_tokens + 1, total=sum_over_processes)
    if num_generations == 1:
        return found
    own = torch.stack([to_come, mask.to(to_come.dtype)])
    own = own.reshape(2, -1, num_generations, own.shape[2])
    others, count = (own.sum(2, keepdim=True) - own).flatten(1, 2)
    return torch.where(count > 0, others / count, found)
