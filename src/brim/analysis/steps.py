"""Moments of `taken`, `best`, regrets and rewards of single steps, and fits of Theorem 1's laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from brim.analysis.results import Fit
from brim.analysis.sampling import Estimate, Resamples, Samples, pooled_variance
from brim.metrics.base import Array

# Fewer tokens give no variance worth a point.
MIN_TOKENS = 32

DISTANCES = (1, 2, 3, 4, 6, 8, 12, 16)


class Steps:
    """Numbers of each step, in float64 on the CPU."""

    def __init__(self, samples: Samples) -> None:
        values = samples.rollout.values
        assert values is not None
        self.samples = samples
        self.mask = samples.rollout.mask.cpu()
        self.lengths = self.mask.sum(dim=1)
        self.positions = torch.arange(self.mask.shape[1]).expand_as(self.mask)
        self.taken = torch.where(self.mask, values.q_taken.cpu().double(), 0.0)
        self.best = torch.where(self.mask, values.q_max.cpu().double(), 0.0)
        self.regret = self.best - self.taken
        following = torch.nn.functional.pad(self.best[:, 1:], (0, 1))
        self.reward = self.taken - following

    def moments(
        self, values: torch.Tensor, groups: torch.Tensor, num_groups: int
    ) -> tuple[Array, Array, Array]:
        """Count, sum and sum of squares of the tokens of each prompt and group, (P, groups)."""
        prompts = self._prompts()[:, None].expand_as(groups)
        cells = (prompts * num_groups + groups)[self.mask]
        kept, size = values[self.mask], self.samples.num_prompts * num_groups

        def add(weights: torch.Tensor) -> Array:
            sums = torch.bincount(cells, weights, minlength=size)
            table: Array = sums.reshape(-1, num_groups).numpy()
            return table

        return add(torch.ones_like(kept)), add(kept), add(kept.square())

    def _prompts(self) -> torch.Tensor:
        """The number of each row's prompt."""
        size = self.samples.num_prompts * self.samples.num_generations
        return torch.arange(len(self.mask)) % size // self.samples.num_generations

    def constants(self, resamples: Resamples) -> dict[str, Estimate]:
        """Variances over all tokens."""
        nothing = torch.zeros_like(self.positions)
        names = ("taken", "best", "regret", "reward")
        values = {
            name: pooled_variance(
                resamples.counts,
                *(part[:, 0] for part in self.moments(getattr(self, name), nothing, 1)),
            )
            for name in names
        }
        # Var(best - taken) = Var best + Var taken - 2 Cov.
        covariance = (values["taken"] + values["best"] - values["regret"]) / 2
        values["law"] = values["taken"] + values["best"]
        with np.errstate(invalid="ignore", divide="ignore"):
            values["pair"] = covariance / np.sqrt(values["taken"] * values["best"])
        kept = {f"var_{name}": resamples.interval(values[name]) for name in names}
        return kept | {
            "law_constant": resamples.interval(values["law"]),
            "correlation_taken_best": resamples.interval(values["pair"]),
        }

    def correlations(self, resamples: Resamples, longest: int) -> list[dict[str, Any]]:
        """Of rewards and regrets of the same completion at some distances."""
        found = []
        for distance in DISTANCES:
            both = self.mask[:, distance:]
            if distance >= longest or int(both.sum()) < MIN_TOKENS:
                break
            row: dict[str, Any] = {"distance": distance, "tokens": int(both.sum())}
            for name in ("reward", "regret"):
                values = getattr(self, name)
                row[name] = self._correlation(values, distance, both, resamples)
            found.append(row)
        return found

    def _correlation(
        self, values: torch.Tensor, distance: int, both: torch.Tensor, resamples: Resamples
    ) -> Estimate:
        early = torch.where(both, values[:, :-distance], 0.0)
        late = torch.where(both, values[:, distance:], 0.0)
        parts = (both.double(), early, late, early.square(), late.square(), early * late)
        sums = [self.samples.by_prompt(part.sum(dim=1)).sum(axis=1) for part in parts]

        def correlation(counts: Array) -> Array:
            number, x, y, xx, yy, xy = (counts @ part for part in sums)
            x, y = x / number, y / number
            result: Array = (xy / number - x * y) / np.sqrt(
                (xx / number - x**2) * (yy / number - y**2)
            )
            return result

        return resamples.estimate(correlation)

    def by_position(self, longest: int) -> list[dict[str, Any]]:
        """Mean and variance of taken and regret at each position that enough tokens have."""
        rows = []
        ones = np.ones(self.samples.num_prompts)
        columns = {
            name: [ones @ part for part in self.moments(values, self.positions, longest)]
            for name, values in (("regret", self.regret), ("taken", self.taken))
        }
        for position in range(longest):
            tokens = int(columns["regret"][0][position])
            if tokens < MIN_TOKENS:
                break
            row: dict[str, Any] = {"position": position + 1, "tokens": tokens}
            for name, (_, sums, squares) in columns.items():
                mean = float(sums[position]) / tokens
                row[f"mean_{name}"] = mean
                row[f"var_{name}"] = float(squares[position]) / tokens - mean**2
            rows.append(row)
        return rows


def fit_laws(
    k: int,
    moments: tuple[Array, Array, Array],
    exact: tuple[Array, Array, Array],
    left: npt.NDArray[np.integer[Any]],
    kept: npt.NDArray[np.bool_],
    resamples: Resamples,
) -> Fit:
    """Weighted least squares of the variances by remaining length, in all resamples at once."""
    left = left[kept]
    blocks = (left - 1) // k
    counts = resamples.counts
    with np.errstate(invalid="ignore", divide="ignore"):
        tokens = counts @ moments[0][:, kept]
        # A length that a resample has not got counts nothing there.
        own = np.nan_to_num(pooled_variance(counts, *(part[:, kept] for part in moments)))
        full = np.nan_to_num(pooled_variance(counts, *(part[:, kept] for part in exact)))

        def total(values: Array) -> Array:
            result: Array = (tokens * values).sum(axis=1)
            return result

        number = total(np.ones_like(own))
        mean_m, mean_v = total(blocks + 0 * own) / number, total(own) / number
        spread = total((blocks - mean_m[:, None]) ** 2)
        b = total((blocks - mean_m[:, None]) * own) / spread
        a = mean_v - b * mean_m
        c = total((blocks + 1) * own) / total((blocks + 1) ** 2 + 0 * own)
        around = total((own - mean_v[:, None]) ** 2)
        law = 1 - total((own - c[:, None] * (blocks + 1)) ** 2) / around
        line = a[:, None] + b[:, None] * blocks
        refined = 1 - total((own - line) ** 2) / around
        growth = total(own) / total(full)
        predicted = total(blocks + 1 + 0 * own) / total(left + 0 * own)
        return Fit(
            k, *(resamples.interval(x) for x in (c, law, a, b, refined)),
            *(resamples.interval(x) for x in (growth, predicted, growth / predicted)),
        )  # fmt: skip
