"""Which K to use: the one whose batch gradient points best, if it can be told.

Training's optimizer hardly sees the size of a gradient (Adam divides by it, and its norm is
clipped), so the plain mean squared error would favor a large K merely for shrinking the gradient.
What counts is the direction. With g a batch's gradient at K and g_1 that of K = 1, the score is

    ⟨E g, E g_1⟩ / √(‖E g‖² + tr Var g)

which is the norm of E g_1 times the root-mean-square cosine of g with it; its greatest value is the
least mean squared error after the best rescaling, min_c E‖c g - E g_1‖² = ‖E g_1‖² - score². Bias
lowers the numerator, variance raises the denominator. (g is the gradient with its tensors scaled as
Adam would, `gradients.PromptGradients`: else the tensor with the largest gradient decides alone.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from brim.analysis.gradients import GradientMoments
from brim.analysis.sampling import Resamples
from brim.metrics.base import Array

# Batches so many times as large: as if so many steps' gradients were averaged.
FACTORS = (1, 4, 16, 64)


@dataclass(frozen=True)
class RecommendedK:
    """A recommended K.

    Attributes:
        k: the one to use; None where the measurement is too noisy to say.
        best: the K with the highest score, decided or not.
        not_told_apart: other K whose score is not below the best one's beyond the interval of the
            difference over prompts.
        shares: by K, the share of the resamples in which it is best.
        variance_ratios: by K, tr Var of its gradient over that of K = 1.
        by_mse: the K with the least plain mean squared error, for comparison.
        by_batch: by number of prompts in a batch, the K with the highest score: variance averages
            out over many steps and bias does not.
        text: why, in a sentence or two.
    """

    k: int | None
    best: int
    not_told_apart: tuple[int, ...]
    shares: Mapping[int, float]
    variance_ratios: Mapping[int, float]
    by_mse: int
    by_batch: Mapping[int, int]
    text: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, whose keys are texts."""
        plain = asdict(self)
        for name in ("shares", "variance_ratios", "by_batch"):
            plain[name] = {str(key): value for key, value in plain[name].items()}
        return plain


def choose_k(
    ks: Sequence[int],
    moments: Sequence[GradientMoments],
    resamples: Resamples,
    *,
    num_prompts: int,
    note: str = "",
) -> RecommendedK:
    """The K whose batch gradient is nearest in direction to that of K = 1 in the mean.

    K = 1 has no bias. So a larger K is recommended only if it differs from K = 1; K = 1 is,
    if it has the highest score; and nothing is, if E g_1 itself does not differ from zero, by its
    norm or by its product with the best K's E g.

    Args:
        ks: ascending from 1.
        moments: of each K.
        resamples: of the prompts; the same that the moments were computed with.
        num_prompts: B, prompts of a rollout batch.
        note: what else is to be known, at the end of the text.

    Raises:
        ValueError: `ks` does not begin with 1.
    """
    if ks[0] != 1:
        raise ValueError(f"ks must begin with 1, got {list(ks)}")
    scores = _scores(moments, num_prompts)
    best = _best(scores)
    winner = ks[int(best[0])]
    with np.errstate(invalid="ignore"):  # scores of minus infinity do not differ
        lows = [resamples.interval(scores[int(best[0])] - other).low for other in scores]
    near = tuple(k for k, low in zip(ks, lows, strict=True) if k != winner and not low > 0)
    # ⟨E g, E g_1⟩ > 0 with a g of less noise shows too that E g_1 is not zero.
    seen = any(resamples.interval(moments[i].product).low > 0 for i in {0, int(best[0])})
    decided = seen and (winner == 1 or 1 not in near)
    shares = {k: float((best[1:] == i).mean()) for i, k in enumerate(ks)}
    errors = [float(moment.error(num_prompts)[0]) for moment in moments]
    sizes = [num_prompts * factor for factor in FACTORS]
    by_batch = {size: ks[int(_best(_scores(moments, size)[:, :1])[0])] for size in sizes}
    variances = [max(float(moment.variance[0]), 0.0) for moment in moments]
    ratios = {k: v / max(variances[0], 1e-300) for k, v in zip(ks, variances, strict=True)}
    return RecommendedK(
        k=winner if decided else None,
        best=winner,
        not_told_apart=near,
        shares=shares,
        variance_ratios=ratios,
        by_mse=ks[int(np.argmin(errors))],
        by_batch=by_batch,
        text=_explain(winner, near, seen, decided, shares, ratios, by_batch) + note,
    )


def _scores(moments: Sequence[GradientMoments], num_prompts: float) -> Array:
    """(K, 1 + R); minus infinity where a gradient is zero and points nowhere."""
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = np.stack([moment.score(num_prompts) for moment in moments])
    return np.where(np.isnan(scores), -math.inf, scores)


def _best(scores: Array) -> Array:
    """Index of the highest score of each column, the smallest K of (nearly) equal ones."""
    top = scores.max(axis=0)
    best: Array = (scores >= top - 1e-9 * np.abs(top)).argmax(axis=0)
    return best


def _explain(
    best: int,
    near: Sequence[int],
    seen: bool,
    decided: bool,
    shares: Mapping[int, float],
    ratios: Mapping[int, float],
    by_batch: Mapping[int, int],
) -> str:
    batch = next(iter(by_batch))
    others = ", ".join(map(str, near))
    if not seen:
        text = (
            "Cannot say: the mean gradient of K = 1 does not differ from zero at this size; "
            "give more prompts or samples."
        )
    elif decided and best == 1:
        text = f"K = 1: no larger K points a batch of {batch} prompts better, and it has no bias."
    elif decided:
        text = (
            f"K = {best}: its gradient of a batch of {batch} prompts is nearest in direction to "
            "the mean gradient of K = 1; what it saves in variance outweighs its bias."
        )
    else:
        text = (
            f"Cannot tell them apart: K = {best} has the highest score for a batch of {batch} "
            f"prompts ({shares[best]:.0%} of resamples), but is not beyond the noise better than "
            "K = 1, which has no bias; give more prompts or samples."
        )
    if near and decided:
        text += f" No different within the interval: K = {others}."
    sizes = list(by_batch)
    changes = [
        f"K = {by_batch[size]} from {size} prompts on"
        for smaller, size in pairwise(sizes)
        if by_batch[size] != by_batch[smaller]
    ]
    if seen and changes:
        text += f" For larger batches, or many steps averaged: {', '.join(changes)}."
    told = ", ".join(f"{ratio:.2f} at K = {k}" for k, ratio in ratios.items() if k != 1)
    if told:
        text += f" The gradient's variance is, in units of that of K = 1, {told}."
    return text
