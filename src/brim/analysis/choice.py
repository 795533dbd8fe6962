"""Which K, or λ, to use: the one whose batch gradient points best, if it can be told.

Training's optimizer hardly sees the size of a gradient (Adam divides by it, and its norm is
clipped), so the plain mean squared error would favor a large K merely for shrinking the gradient.
What counts is the direction. With g a batch's gradient and g_1 that of K = 1, or of λ = 1, which
have no bias, the score is

    ⟨E g, E g_1⟩ / √(‖E g‖² + tr Var g)

which is the norm of E g_1 times the root-mean-square cosine of g with it; its greatest value is the
least mean squared error after the best rescaling, min_c E‖c g - E g_1‖² = ‖E g_1‖² - score². Bias
lowers the numerator, variance raises the denominator. What a bias adds to all actions of a state
alike is a baseline and no bias of E g. (g is the gradient with its tensors scaled as
Adam would, `gradients.PromptGradients`: else the tensor with the largest gradient decides alone.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from brim.analysis.gradients import GradientMoments
from brim.analysis.sampling import Resamples
from brim.metrics.base import Array

# Batches so many times as large: as if so many steps' gradients were averaged.
FACTORS = (1, 4, 16, 64)


SYMBOLS = {"k": "K", "lambda": "λ"}


@dataclass(frozen=True)
class Recommendation:
    """A recommended K or λ.

    Attributes:
        knob: which setting, `k` or `lambda`.
        value: the one to use; None where the measurement is too noisy to say.
        best: the value with the highest score, decided or not.
        not_told_apart: others whose score is not below the best one's beyond the interval of the
            difference over prompts.
        shares: by value, the share of the resamples in which it is best.
        variance_ratios: by value, tr Var of its gradient over that of 1.
        by_mse: the value with the least plain mean squared error, for comparison.
        by_batch: by number of prompts in a batch, the value with the highest score: variance
            averages out over many steps and bias does not.
        text: why, in a sentence or two.
    """

    knob: str
    value: float | None
    best: float
    not_told_apart: tuple[float, ...]
    shares: Mapping[float, float]
    variance_ratios: Mapping[float, float]
    by_mse: float
    by_batch: Mapping[int, float]
    text: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, whose keys are texts; the value is called as the setting is."""
        plain = asdict(self)
        for name in ("shares", "variance_ratios", "by_batch"):
            plain[name] = {f"{key:g}": value for key, value in plain[name].items()}
        return {plain.pop("knob"): plain.pop("value"), **plain}


def choose(
    values: Sequence[float],
    moments: Sequence[GradientMoments],
    resamples: Resamples,
    *,
    num_prompts: int,
    knob: str = "k",
    note: str = "",
) -> Recommendation:
    """The value whose batch gradient is nearest in direction to that of 1 in the mean.

    K = 1 and λ = 1 have no bias. So another value is recommended only if it differs from 1; 1 is,
    if it has the highest score; and nothing is, if E g_1 itself does not differ from zero, by its
    norm or by its product with the best one's E g.

    Args:
        values: of K or λ, from 1 on with ever more bias: of equal scores the first wins.
        moments: of each value.
        resamples: of the prompts; the same that the moments were computed with.
        num_prompts: B, prompts of a rollout batch.
        knob: `k` or `lambda`.
        note: what else is to be known, at the end of the text.

    Raises:
        ValueError: `values` does not begin with 1.
    """
    if values[0] != 1:
        raise ValueError(f"values must begin with 1, got {list(values)}")
    scores = _scores(moments, num_prompts)
    best = _best(scores)
    winner = values[int(best[0])]
    with np.errstate(invalid="ignore"):  # scores of minus infinity do not differ
        lows = [resamples.interval(scores[int(best[0])] - other).low for other in scores]
    near = tuple(v for v, low in zip(values, lows, strict=True) if v != winner and not low > 0)
    # ⟨E g, E g_1⟩ > 0 with a g of less noise shows too that E g_1 is not zero.
    seen = any(resamples.interval(moments[i].product).low > 0 for i in {0, int(best[0])})
    decided = seen and (winner == 1 or 1 not in near)
    shares = {value: float((best[1:] == i).mean()) for i, value in enumerate(values)}
    errors = [float(moment.error(num_prompts)[0]) for moment in moments]
    sizes = [num_prompts * factor for factor in FACTORS]
    by_batch = {size: values[int(_best(_scores(moments, size)[:, :1])[0])] for size in sizes}
    variances = [max(float(moment.variance[0]), 0.0) for moment in moments]
    ratios = {v: x / max(variances[0], 1e-300) for v, x in zip(values, variances, strict=True)}
    found = Recommendation(
        knob=knob,
        value=winner if decided else None,
        best=winner,
        not_told_apart=near,
        shares=shares,
        variance_ratios=ratios,
        by_mse=values[int(np.argmin(errors))],
        by_batch=by_batch,
        text="",
    )
    return replace(found, text=_explain(found, seen) + note)


def _scores(moments: Sequence[GradientMoments], num_prompts: float) -> Array:
    """(values, 1 + R); minus infinity where a gradient is zero and points nowhere."""
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = np.stack([moment.score(num_prompts) for moment in moments])
    return np.where(np.isnan(scores), -math.inf, scores)


def _best(scores: Array) -> Array:
    """Index of the highest score of each column, the first of (nearly) equal ones."""
    top = scores.max(axis=0)
    best: Array = (scores >= top - 1e-9 * np.abs(top)).argmax(axis=0)
    return best


def _explain(found: Recommendation, seen: bool) -> str:
    """Why, in words; `seen` is whether E g_1 differs from zero."""
    best, near, sizes = found.best, found.not_told_apart, list(found.by_batch)
    batch, symbol = sizes[0], SYMBOLS[found.knob]
    if not seen:
        text = (
            f"Cannot say: the mean gradient of {symbol} = 1 does not differ from zero at this "
            "size; give more prompts or samples."
        )
    elif found.value == 1:
        text = (
            f"{symbol} = 1: no other {symbol} points a batch of {batch} prompts better, and it "
            "has no bias."
        )
    elif found.value is not None:
        text = (
            f"{symbol} = {best:g}: its gradient of a batch of {batch} prompts is nearest in "
            f"direction to the mean gradient of {symbol} = 1; what it saves in variance outweighs "
            "its bias."
        )
    else:
        text = (
            f"Cannot tell them apart: {symbol} = {best:g} has the highest score for a batch of "
            f"{batch} prompts ({found.shares[best]:.0%} of resamples), but is not beyond the noise "
            f"better than {symbol} = 1, which has no bias; give more prompts or samples."
        )
    if near and found.value is not None:
        text += (
            f" No different within the interval: {symbol} = {', '.join(f'{x:g}' for x in near)}."
        )
    changes = [
        f"{symbol} = {found.by_batch[size]:g} from {size} prompts on"
        for smaller, size in pairwise(sizes)
        if found.by_batch[size] != found.by_batch[smaller]
    ]
    if seen and changes:
        text += f" For larger batches, or many steps averaged: {', '.join(changes)}."
    told = ", ".join(
        f"{ratio:.2f} at {symbol} = {value:g}"
        for value, ratio in found.variance_ratios.items()
        if value != 1
    )
    if told:
        text += f" The gradient's variance is, in units of that of {symbol} = 1, {told}."
    return text
