"""K chosen by what is measured: the least mean squared error, for each range of lengths.

The teacher's one pass gives the returns of every K. Over the tokens of the completions of similar
length, the variance of Ĝ falls with K and its bias, the mean of Ĝ - G, grows; the chosen K has the
least

    MSE(K) = Var(Ĝ_K) / num_samples + (mean of Ĝ_K - G)²

See docs/methods/adaptive_k.md for what this assumes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from brim.objectives.settings import AdaptiveKConfig

# A completion of n tokens is in bucket floor(log2 n); no model writes 2^24 tokens.
NUM_BUCKETS = 24


class AdaptiveK:
    """Chooses K for each completion from decayed sums over the tokens seen so far.

    Attributes:
        settings: `candidates` ascend from 1, whose return is G itself.
        sums: (NUM_BUCKETS, candidates, 4) float64: tokens, Σ Ĝ, Σ Ĝ², Σ (Ĝ - G).
    """

    def __init__(self, settings: AdaptiveKConfig) -> None:
        self.settings = settings
        shape = (NUM_BUCKETS, len(settings.candidates), 4)
        self.sums = torch.zeros(shape, dtype=torch.float64)

    def choose(
        self,
        returns: Tensor,
        mask: Tensor,
        *,
        total: Callable[[Tensor], Tensor] = lambda partial: partial,
    ) -> Tensor:
        """Return the K of each completion, by this batch and, decayed, those before it.

        Args:
            returns: (candidates, B, T) float, the return of each K; the first is G.
            mask: (B, T) bool.
            total: adds a tensor up over the processes that share the batch.

        Returns:
            (B,) int64 on the mask's device.
        """
        buckets = bucket_of(mask.sum(dim=1)).cpu()
        new = total(_sums_by_bucket(returns.cpu().double(), mask.cpu(), buckets))
        # Returns that are not finite, whose update will be skipped, must not stay in the sums.
        seen = (new[:, :1, :1] > 0) & new.isfinite().all(dim=2).all(dim=1)[:, None, None]
        self.sums = torch.where(seen, self.settings.smoothing * self.sums + new, self.sums)
        best = self.errors().argmin(dim=1)  # the smallest K of equal ones
        return torch.tensor(self.settings.candidates)[best[buckets]].to(mask.device)

    def errors(self) -> Tensor:
        """Return MSE(K), (NUM_BUCKETS, candidates) float64; NaN where nothing was seen."""
        variance, bias = self._moments()
        return variance / self.settings.num_samples + bias**2

    def _moments(self) -> tuple[Tensor, Tensor]:
        tokens, first, second, bias = self.sums.unbind(-1)
        return (second / tokens - (first / tokens) ** 2).clamp_min(0), bias / tokens

    def describe(self) -> dict[str, float]:
        """Return choice, variance, bias and error of each K, by the bucket's lengths."""
        variance, bias = self._moments()
        errors = self.errors()
        metrics: dict[str, float] = {}
        for bucket in self.sums[:, 0, 0].nonzero().squeeze(1).tolist():
            name = f"k/{2**bucket}-{2 ** (bucket + 1) - 1}"
            metrics[name] = float(self.settings.candidates[int(errors[bucket].argmin())])
            for index, k in enumerate(self.settings.candidates):
                metrics[f"{name}/variance_{k}"] = float(variance[bucket, index])
                metrics[f"{name}/bias_{k}"] = float(bias[bucket, index])
                metrics[f"{name}/mse_{k}"] = float(errors[bucket, index])
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, exactly: JSON keeps every bit of a float64."""
        return {"candidates": list(self.settings.candidates), "sums": self.sums.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the sums.

        Raises:
            ValueError: they are of other candidates.
        """
        sums = torch.tensor(state["sums"], dtype=torch.float64)
        if sums.shape != self.sums.shape:
            raise ValueError(f"sums of the shape {tuple(sums.shape)} are of other candidates")
        self.sums = sums


def bucket_of(lengths: Tensor) -> Tensor:
    """Return floor(log2 n) of each length n ≥ 1 (and 0 for 0), exactly."""
    powers = 2 ** torch.arange(1, NUM_BUCKETS, device=lengths.device)
    return (lengths[:, None] >= powers).sum(dim=1)


def _sums_by_bucket(returns: Tensor, mask: Tensor, buckets: Tensor) -> Tensor:
    """(NUM_BUCKETS, candidates, 4) of what `AdaptiveK.sums` holds."""
    returns = returns.where(mask, 0)
    rows = torch.stack(
        [
            mask.sum(dim=1).double().expand(len(returns), -1),
            returns.sum(dim=2),
            returns.square().sum(dim=2),
            (returns - returns[:1]).sum(dim=2),
        ],
        dim=-1,
    )
    by_bucket = rows.new_zeros(NUM_BUCKETS, len(returns), 4)
    return by_bucket.index_add_(0, buckets, rows.transpose(0, 1))
