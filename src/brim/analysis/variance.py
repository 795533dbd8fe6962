"""Variance and bias of returns and of the gradients that they make, for each K or λ.

`analyze_variance` has P prompts, and of each student M rollouts a prompt, written as the run's
decoding says and scored by the teacher once: all K and λ come of the same two numbers a token. What
is measured is defined in `results.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from brim.analysis.choice import choose
from brim.analysis.estimators import (
    KS,
    Estimator,
    describe_objective,
    own_tail,
    plan_of,
    weigh,
)
from brim.analysis.gradients import (
    PREFIXES,
    PromptGradients,
    Weights,
    gradient_moments,
    measure_gradients,
)
from brim.analysis.results import Row, StudentVariance, VarianceAnalysis
from brim.analysis.sampling import Estimate, Resamples, Samples, pooled_variance, token_divergences
from brim.analysis.subjects import Analysis, AnalyzedModel, Opened, check_ks
from brim.errors import ConfigError
from brim.metrics.base import Array
from brim.models import LanguageModel
from brim.objectives.anchored import Anchored
from brim.objectives.method import is_llmr
from brim.tasks import Split

# Of the first token's Ĝ.
FIRSTS = ("variance_first", "bias_first")


def analyze_variance(
    opened: Opened,
    students: Sequence[AnalyzedModel],
    *,
    ks: Sequence[int] | None = None,
    split: Split = "validation",
    num_prompts: int = 64,
    num_samples: int = 16,
    seed: int = 0,
    num_dimensions: int = 512,
) -> VarianceAnalysis:
    """Measure each student.

    Args:
        opened: a run (`open_run`) or a recipe (`open_recipe`).
        students: `find_students`.
        ks: the K to compare, `KS` by default; 1 is always among them. Of anchored runs `LAMBDAS`
            and the run's own λ are compared instead.
        split: where the prompts are from.
        num_prompts: P, at least 2; a smaller split is taken whole.
        num_samples: M, a multiple of twice the objective's `num_generations`.
        seed: of prompts, rollouts, sketch and intervals.
        num_dimensions: D of the sketch: the square of a norm is off by a factor whose standard
            deviation is at most √(2/D), the same for all K.

    Raises:
        BrimError: a student does not fit the teacher, or the numbers do not go together.
    """
    run = opened.run
    setup = Analysis.plan(
        opened, split=split, num_prompts=num_prompts, num_samples=num_samples, seed=seed
    )
    objective = setup.objective
    if ks is not None and isinstance(objective, Anchored):
        raise ConfigError("k: the objective `anchored` has none; leave it out, λ are compared")
    plan = plan_of(objective, check_ks(KS if ks is None else ks))
    minibatches = run.config.objective.updates.num_minibatches
    batch_prompts = max(1, run.config.trainer.rollout_batch_size // minibatches)
    measured = tuple(
        describe_student(
            model,
            samples,
            plan,
            *_measure(setup, model, student, samples, plan, num_dimensions),
            setup.resamples,
            own_tail=own_tail(objective),
            batch_prompts=batch_prompts,
        )
        for model, student, samples in setup.sample(students)
    )
    return VarianceAnalysis(
        **setup.facts(),
        batch_prompts=batch_prompts,
        objective=describe_objective(objective),
        decoding=objective.decoding.describe(),
        num_dimensions=num_dimensions,
        students=measured,
    )


def _measure(
    setup: Analysis,
    model: AnalyzedModel,
    student: LanguageModel,
    samples: Samples,
    plan: Sequence[Estimator],
    num_dimensions: int,
) -> tuple[list[Weights], PromptGradients, dict[str, Array]]:
    """Weights and gradients of each estimator, and the divergences from the teacher."""
    run, teacher = setup.opened.run, setup.opened.teacher()
    weights = [weigh(samples, each.of(setup.objective), student) for each in plan]
    divergences = token_divergences(samples, student, teacher)
    with run.reporter.meter(f"{model.label}: gradients", samples.num_prompts) as meter:
        gradients = measure_gradients(
            samples,
            weights,
            setup.objective,
            student,
            teacher,
            output_layer=output_layer(student),
            num_dimensions=num_dimensions,
            seed=setup.seed,
            batch_tokens=run.config.trainer.micro_batch_tokens,
            advance=meter.advance,
        )
    return weights, gradients, divergences


def output_layer(student: LanguageModel) -> list[torch.nn.Parameter]:
    """The parameters of the output head."""
    return list(student.model.get_output_embeddings().parameters())


def describe_student(
    model: AnalyzedModel,
    samples: Samples,
    plan: Sequence[Estimator],
    weights: Sequence[Weights],
    gradients: PromptGradients,
    divergences: Mapping[str, Array],
    resamples: Resamples,
    *,
    own_tail: str,
    batch_prompts: int,
) -> StudentVariance:
    """Numbers with intervals, of what was measured.

    Args:
        model: the student.
        samples: its rollouts.
        plan: the estimators, K = 1 or λ = 1 first.
        weights: of each estimator.
        gradients: of each estimator.
        divergences: sums by prompt, of `token_divergences`.
        resamples: of the prompts.
        own_tail: the tail that K is recommended for.
        batch_prompts: B.
    """
    lengths = samples.by_prompt(samples.rollout.lengths)
    exact = samples.by_prompt(weights[0].returns[:, 0])
    knob = plan[0].knob
    firsts = _describe_firsts(samples, weights, exact, resamples) if knob == "k" else []
    moments = {
        part: gradient_moments(gradients, part, resamples.counts) for part in gradients.sketches
    }
    rows = []
    for i, (estimator, own) in enumerate(zip(plan, weights, strict=True)):
        numbers = _describe_weights(samples, own, resamples)
        if knob == "k":
            numbers |= _describe_returns(samples, own, weights[0], lengths.sum(axis=1), resamples)
            numbers |= {name: resamples.mean(firsts[i][name]) for name in FIRSTS}
        for part, found in moments.items():
            described = found[i].describe(resamples, batch_prompts)
            numbers |= {f"{PREFIXES[part]}{name}": value for name, value in described.items()}
        value, tail = estimator.value, estimator.tail
        llmr = i > 0 and is_llmr(int(value), lengths.ravel().tolist(), tail=tail)
        rows.append(Row(value, tail, float((lengths > value).mean()), llmr, numbers))
    own_rows = [i for i, row in enumerate(rows) if i == 0 or row.tail == own_tail]
    chosen_of = [i for i in own_rows if not rows[i].llmr]
    return StudentVariance(
        label=model.label,
        path=None if model.path is None else str(model.path),
        longest=int(lengths.max()),
        numbers=_describe_rollouts(samples, lengths, exact, divergences, resamples),
        rows=tuple(rows),
        choice=choose(
            [plan[i].value for i in chosen_of],
            [moments["scaled"][i] for i in chosen_of],
            resamples,
            num_prompts=batch_prompts,
            knob=knob,
            note=_note([rows[i] for i in own_rows], int(lengths.max())),
        ),
        prompts=_prompts(samples, lengths, firsts),
    )


def _prompts(
    samples: Samples, lengths: Array, firsts: Sequence[Mapping[str, Array]]
) -> tuple[dict[str, Any], ...]:
    examples = samples.rollout.batch.examples[:: samples.num_generations]
    return tuple(
        {
            "id": examples[i].id,
            "length": float(lengths[i].mean()),
            **{
                name: [float(row[name][i]) for row in firsts]
                for first in firsts[:1]
                for name in first
            },
        }
        for i in range(samples.num_prompts)
    )


def _describe_rollouts(
    samples: Samples,
    lengths: Array,
    exact: Array,
    divergences: Mapping[str, Array],
    resamples: Resamples,
) -> dict[str, Estimate]:
    truncated = samples.by_prompt(samples.rollout.truncated)
    return {
        "length": resamples.mean(lengths.mean(axis=1)),
        "truncated": resamples.mean(truncated.mean(axis=1)),
        "return": resamples.mean(exact.mean(axis=1)),
        **{n: resamples.ratio(sums, lengths.sum(axis=1)) for n, sums in divergences.items()},
    }


def _describe_firsts(
    samples: Samples, weights: Sequence[Weights], exact: Array, resamples: Resamples
) -> list[dict[str, Array]]:
    rollouts = Resamples.draw(
        samples.num_samples,
        num_resamples=len(resamples.counts) - 1,
        confidence=resamples.confidence,
    )
    firsts = (samples.by_prompt(own.returns[:, 0]) for own in weights)
    return [_describe_prompts(first, exact, rollouts) for first in firsts]


def _describe_prompts(first: Array, exact: Array, rollouts: Resamples) -> dict[str, Array]:
    """Variance and bias of each prompt, (P,), of (P, M) returns; intervals over its rollouts."""
    number = first.shape[1]
    centered = first - first.mean(axis=1, keepdims=True)
    means, squares = (rollouts.counts @ part.T / number for part in (centered, centered**2))
    values = {
        "variance_first": (squares - means**2) * number / (number - 1),
        "bias_first": rollouts.counts @ (first - exact).T / number,
    }
    return {
        f"{name}{end}": row
        for name, value in values.items()
        for end, row in zip(("", "_low", "_high"), rollouts.intervals(value), strict=True)
    }


def _note(rows: Sequence[Row], longest: int) -> str:
    """Which K are no choice, or have no effect."""
    left_out = ", ".join(f"{row.value:g}" for row in rows if row.llmr)
    if left_out:
        return f" Left out, for most completions are no longer and so LLMR: K = {left_out}."
    if rows[-1].tail != "none" or rows[-1].value < longest:
        return ""
    return (
        f" No completion is longer than {longest} tokens: K ≥ {longest} is the token's own q alone."
    )


def _sums(samples: Samples, values: torch.Tensor) -> Array:
    """Sums over the tokens of each prompt, (P,), of (B, T) values."""
    result: Array = samples.by_prompt(values.double().sum(dim=1)).sum(axis=1)
    return result


def _describe_returns(
    samples: Samples, own: Weights, exact: Weights, tokens: Array, resamples: Resamples
) -> dict[str, Estimate]:
    """Moments of Ĝ over all tokens."""
    bias = torch.where(samples.rollout.mask, own.returns - exact.returns, 0.0)
    squares = _sums(samples, own.returns.double().square())
    returns = _sums(samples, own.returns)
    return {
        "variance_tokens": resamples.estimate(
            lambda counts: pooled_variance(counts, tokens, returns, squares)
        ),
        "bias_tokens": resamples.ratio(_sums(samples, bias), tokens),
    }


def _describe_weights(samples: Samples, own: Weights, resamples: Resamples) -> dict[str, Estimate]:
    """Moments of the weights over the tokens that are learned from."""
    weight = torch.where(own.mask, own.advantages, 0.0).double()
    learned, weights, squared = (
        _sums(samples, values) for values in (own.mask, weight, weight.square())
    )
    return {
        "mean_weight": resamples.ratio(weights, learned),
        "variance_weight": resamples.estimate(
            lambda counts: pooled_variance(counts, learned, weights, squared)
        ),
    }
