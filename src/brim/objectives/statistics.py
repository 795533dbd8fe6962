"""What is logged of a rollout, as sums that can be added over micro-batches and processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from brim.returns import induced_rewards, rewards_to_go
from brim.types import Rollout


def total(values: Tensor, power: int = 1) -> Tensor:
    """`Σ values^power` in float64, on the CPU: not every accelerator has float64."""
    return values.detach().cpu().double().pow(power).sum()


def length_sums(rollout: Rollout) -> dict[str, Tensor]:
    """Counts of rows, tokens and completions cut at the length limit."""
    return {
        "rows": torch.tensor(float(len(rollout))),
        "tokens": total(rollout.mask),
        "truncated": total(rollout.truncated),
    }


def length_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Mean completion length in tokens and the share of completions that were cut."""
    return {
        "rollout/length": sums["tokens"] / sums["rows"],
        "rollout/truncated": sums["truncated"] / sums["rows"],
    }


def return_sums(rollout: Rollout) -> dict[str, Tensor]:
    """First and second moments of Ĝ (`rollout.returns`) and of G, whose K is 1, over the tokens.

    Raises:
        ValueError: the rollout has no teacher values or no returns yet.
    """
    values, estimate, mask = rollout.values, rollout.returns, rollout.mask
    if values is None or estimate is None:
        raise ValueError("return_sums needs a rollout with values and returns")
    exact = rewards_to_go(values.taken, values.best, mask)
    reward = total(induced_rewards(values.taken, values.best, mask))
    if values.bootstrap is not None:
        exact = torch.where(mask, exact - values.bootstrap[:, None], 0.0)
        reward = reward - total(values.bootstrap)
    sums = length_sums(rollout)
    for name, tokens in {"estimate": estimate, "exact": exact}.items():
        sums[name] = total(tokens)
        sums[f"{name}_squared"] = total(tokens, power=2)
    sums["reward"] = reward
    sums["return"] = total(exact[:, 0])
    sums["estimated_return"] = total(estimate[:, 0])
    sums["teacher_logprob"] = total(torch.where(mask, values.logprobs, 0.0))
    return sums


def return_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Return, reward, and the variance and bias of the K-step estimate over the batch's tokens."""
    tokens, rows = max(sums["tokens"], 1.0), sums["rows"]

    def variance(name: str) -> float:
        return sums[f"{name}_squared"] / tokens - (sums[name] / tokens) ** 2

    return {
        **length_metrics(sums),
        "rollout/return": sums["return"] / rows,
        "rollout/return_k": sums["estimated_return"] / rows,
        "rollout/reward": sums["reward"] / tokens,
        "rollout/var_return": variance("exact"),
        "rollout/var_return_k": variance("estimate"),
        "rollout/bias": (sums["estimate"] - sums["exact"]) / tokens,
        "rollout/teacher_logprob": sums["teacher_logprob"] / tokens,
    }
