"""Theorem 1 against measurement: how the variance of returns grows with what is left to write.

Under the theorem's assumption, that steps are independent and alike, a sum of m + 1 rewards has
m + 1 times the variance of one. With ℓ = n - t + 1 tokens left, the return of K-step blocks without
a tail has m = ⌊(ℓ-1)/K⌋ blocks after the first:

    law          Var Ĝ_t = c (m + 1),  c = Var q + Var max q                   (Eqs 19 and 24)
    refined law  Var Ĝ_t = a + b m,    a = Var q,  b = Var q + Var max q

The second counts that nothing follows the end: m + 1 terms of q and m of max q. What the theorem
does not see: `taken` and `best` of a step are two numbers of the same logits. As
Ĝ_t = taken[t] - Σ_j d[t+jK] with d = best - taken ≥ 0, what is added a block is a regret d, and for
independent steps a = Var taken, b = Var d. How far the truth is off is measured three ways: the
constants, the correlation of steps at a distance, and mean and variance by position.

What is measured is defined in `results.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from brim.analysis.estimators import KS
from brim.analysis.results import Fit, StudentTheorem1, Theorem1Analysis
from brim.analysis.sampling import Estimate, Resamples, Samples, pooled_variance
from brim.analysis.steps import MIN_TOKENS, Steps, fit_laws
from brim.analysis.subjects import Analysis, AnalyzedModel, Opened, check_ks
from brim.errors import ConfigError
from brim.returns import block_returns
from brim.tasks import Split

# A correlation below this hardly changes the variance of a sum of the lengths met here.
NEGLIGIBLE = 0.05

# Pairs below which a correlation as small as that is no news.
MIN_PAIRS = 1000


def analyze_theorem1(
    opened: Opened,
    students: Sequence[AnalyzedModel],
    *,
    ks: Sequence[int] | None = None,
    split: Split = "validation",
    num_prompts: int = 64,
    num_samples: int = 16,
    seed: int = 0,
) -> Theorem1Analysis:
    """Measure each student; arguments and errors are those of `analyze_variance`.

    Raises:
        ConfigError: also if there are too few rollouts for any variance.
    """
    setup = Analysis.plan(
        opened, split=split, num_prompts=num_prompts, num_samples=num_samples, seed=seed
    )
    every_k = sorted({1, *check_ks(KS if ks is None else ks)})
    measured = tuple(
        measure_theorem1(model, samples, setup.resamples, every_k)
        for model, _, samples in setup.sample(students)
    )
    return Theorem1Analysis(
        **setup.facts(), q_centering=setup.objective.settings.q_centering, students=measured
    )


def measure_theorem1(
    model: AnalyzedModel, samples: Samples, resamples: Resamples, ks: Sequence[int]
) -> StudentTheorem1:
    """All of it from `taken` and `best` of the samples; `ks` ascends from 1."""
    steps = Steps(samples)
    remaining = torch.where(steps.mask, steps.lengths[:, None] - steps.positions, 0)
    longest = int(steps.lengths.max())
    by_length = {
        k: steps.moments(
            block_returns(steps.taken, steps.best, steps.mask, k=k, tail="none"),
            remaining,
            longest + 1,
        )
        for k in ks
    }
    tokens = by_length[1][0].sum(axis=0)
    kept = tokens >= MIN_TOKENS
    kept[0] = False  # padding
    if not kept.any():
        raise ConfigError(
            f"samples: no number of tokens left occurs {MIN_TOKENS} times; give more prompts or "
            "samples"
        )
    left = np.arange(longest + 1)
    fits = tuple(fit_laws(k, by_length[k], by_length[1], left, kept, resamples) for k in ks)
    variances = {
        k: pooled_variance(np.ones(samples.num_prompts), *(part[:, kept] for part in moments))
        for k, moments in by_length.items()
    }
    lengths = tuple(
        {
            "remaining": int(ell),
            "tokens": int(tokens[ell]),
            "variance": {str(k): float(variances[k][i]) for k in ks},
        }
        for i, ell in enumerate(left[kept])
    )
    constants = steps.constants(resamples)
    correlations = tuple(steps.correlations(resamples, longest))
    return StudentTheorem1(
        label=model.label,
        path=None if model.path is None else str(model.path),
        longest=longest,
        constants=constants,
        fits=fits,
        lengths=lengths,
        correlations=correlations,
        positions=tuple(steps.by_position(longest)),
        verdict=_verdict(constants, fits, correlations, longest),
    )


def _verdict(
    constants: Mapping[str, Estimate],
    fits: Sequence[Fit],
    correlations: Sequence[Mapping[str, Any]],
    longest: int,
) -> str:
    """Whether steps look independent, and what the law gets right."""

    def seen(value: Estimate) -> bool:
        return abs(value.value) > NEGLIGIBLE and (value.low > 0 or value.high < 0)

    off = [row for row in correlations if row["tokens"] >= MIN_PAIRS and seen(row["regret"])]
    pair = constants["correlation_taken_best"]
    tied = seen(pair)
    texts = []
    if off or tied:
        texts.append("The iid assumption does not hold:")
        if tied:
            texts.append(f"taken and best of a step are correlated ({pair.value:.2f});")
        if off:
            told = ", ".join(f"{row['regret'].value:.2f} at {row['distance']}" for row in off)
            texts.append(f"regrets of a completion are correlated at a distance ({told}).")
        else:
            texts.append("regrets at a distance are not visibly correlated.")
    else:
        texts.append("No departure from the iid assumption is visible at this size.")
    first = fits[0]
    if constants["law_constant"].value > 0:
        share = first.c.value / constants["law_constant"].value
        texts.append(
            f"Fitted to G (R² {first.c_r2.value:.2f}) the law's constant is {first.c.value:.3g}, "
            f"{share:.2f} times Var q + Var max q = {constants['law_constant'].value:.3g}."
        )
    told = ", ".join(f"{fit.ratio.value:.2f} (K = {fit.k})" for fit in fits[1:])
    if told:
        texts.append(
            "Var Ĝ / Var G is this many times what the law says "
            f"(1 if it held; above, K saves less): {told}."
        )
    if fits[-1].k >= longest:
        texts.append(
            f"No completion is longer than {longest} tokens: K ≥ {longest} leaves nothing but the "
            "token's own q."
        )
    return " ".join(texts)
