"""Variance and bias of K-step returns and of the gradients that they make, for each K.

`analyze_variance` has P prompts, and of each student M rollouts a prompt, written as the run's
decoding says and scored by the teacher once: all K come of the same two numbers a token. What is
measured is defined in `results.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from brim.analysis.choice import choose_k
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
from brim.metrics.base import Array
from brim.models import LanguageModel
from brim.objectives.policy_gradient import PolicyGradient
from brim.objectives.settings import BRIMConfig, PolicyGradientConfig
from brim.tasks import Split

KS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class Estimator:
    """One way to induce returns.

    Attributes:
        k: steps in a block.
        tail: `one_step` (Algorithm 1), `none` (Eq 7), or `average` over the phases.
    """

    k: int
    tail: str

    def of(self, objective: PolicyGradient) -> PolicyGradient:
        """The objective with this K and tail."""
        kept = {
            name: getattr(objective.settings, name) for name in PolicyGradientConfig.model_fields
        }
        blocks = {"phase": "average"} if self.tail == "average" else {"tail": self.tail}
        return PolicyGradient(BRIMConfig(**kept, k=self.k, **blocks), objective.decoding)


def analyze_variance(
    opened: Opened,
    students: Sequence[AnalyzedModel],
    *,
    ks: Sequence[int] = KS,
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
        ks: the K to compare; 1 is always among them.
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
    plan = _estimators(objective, check_ks(ks))
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
    chosen = objective.settings
    settings = {
        "name": chosen.name,
        "q_centering": chosen.q_centering,
        "clip_target": chosen.clip.target,
        "clip_range": chosen.clip.range,
        "truncated": chosen.truncated,
        "baseline": chosen.baseline,
        "immediate": chosen.immediate,
        "num_generations": chosen.num_generations,
        "tail": own_tail(objective),
    }
    return VarianceAnalysis(
        **setup.facts(),
        batch_prompts=batch_prompts,
        objective=settings,
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


def own_tail(objective: PolicyGradient) -> str:
    """The tail of the objective's own returns, as in `Estimator`."""
    return "average" if objective.settings.phase == "average" else objective.settings.tail


def _estimators(objective: PolicyGradient, ks: Sequence[int]) -> list[Estimator]:
    """K = 1, which is the same for every tail, and the others by tail."""
    tails = ["one_step", "none", *(["average"] if own_tail(objective) == "average" else [])]
    larger = sorted(set(ks) - {1})
    return [Estimator(1, "one_step"), *(Estimator(k, tail) for tail in tails for k in larger)]


def output_layer(student: LanguageModel) -> list[torch.nn.Parameter]:
    """The parameters of the output head."""
    return list(student.model.get_output_embeddings().parameters())


def weigh(samples: Samples, objective: PolicyGradient, student: LanguageModel) -> Weights:
    """Returns and weights of all tokens by the objective's own code, a round at a time."""
    parts = []
    for rows in samples.rounds():
        rollout = samples.rollout.select(rows)
        assert rollout.values is not None
        scored, _ = objective.assign_credit(rollout, rollout.values, student)
        assert scored.returns is not None
        assert scored.advantages is not None
        parts.append((scored.returns, scored.advantages, scored.mask))
    return Weights(*(torch.cat(column) for column in zip(*parts, strict=True)))


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
        plan: the estimators, K = 1 first.
        weights: of each estimator.
        gradients: of each estimator.
        divergences: sums by prompt, of `token_divergences`.
        resamples: of the prompts.
        own_tail: the tail that K is recommended for.
        batch_prompts: B.
    """
    lengths = samples.by_prompt(samples.rollout.lengths)
    exact = samples.by_prompt(weights[0].returns[:, 0])
    firsts = _describe_firsts(samples, weights, exact, resamples)
    moments = {
        part: gradient_moments(gradients, part, resamples.counts) for part in gradients.sketches
    }
    rows = []
    for i, (estimator, own) in enumerate(zip(plan, weights, strict=True)):
        numbers = _describe_returns(samples, own, weights[0], lengths.sum(axis=1), resamples)
        for name in ("variance_first", "bias_first"):
            numbers[name] = resamples.mean(firsts[i][name])
        for part, found in moments.items():
            described = found[i].describe(resamples, batch_prompts)
            numbers |= {f"{PREFIXES[part]}{name}": value for name, value in described.items()}
        active = float((lengths > estimator.k).mean())
        rows.append(Row(estimator.k, estimator.tail, active, numbers))
    own_rows = [i for i, e in enumerate(plan) if e.k == 1 or e.tail == own_tail]
    longest = int(lengths.max())
    return StudentVariance(
        label=model.label,
        path=None if model.path is None else str(model.path),
        longest=longest,
        numbers=_describe_rollouts(samples, lengths, exact, divergences, resamples),
        rows=tuple(rows),
        choice=choose_k(
            [plan[i].k for i in own_rows],
            [moments["scaled"][i] for i in own_rows],
            resamples,
            num_prompts=batch_prompts,
            note=_beyond(plan, own_tail, longest),
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
            **{name: [float(found[name][i]) for found in firsts] for name in firsts[0]},
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


def _beyond(plan: Sequence[Estimator], tail: str, longest: int) -> str:
    """What a K means that no completion is longer than, if one of the plan's is."""
    if tail == "average" or max(estimator.k for estimator in plan) < longest:
        return ""
    means = "K = 1" if tail == "one_step" else "the token's own q alone"
    return f" No completion is longer than {longest} tokens: K ≥ {longest} is {means}."


def _describe_returns(
    samples: Samples, own: Weights, exact: Weights, tokens: Array, resamples: Resamples
) -> dict[str, Estimate]:
    """Moments over all tokens."""

    def sums(values: torch.Tensor) -> Array:
        result: Array = samples.by_prompt(values.double().sum(dim=1)).sum(axis=1)
        return result

    mask = samples.rollout.mask
    bias = torch.where(mask, own.returns - exact.returns, 0.0)
    squares = sums(own.returns.double().square())
    weight = torch.where(own.mask, own.advantages, 0.0).double()
    learned, weights, weights_squared = sums(own.mask), sums(weight), sums(weight.square())
    returns = sums(own.returns)
    return {
        "variance_tokens": resamples.estimate(
            lambda counts: pooled_variance(counts, tokens, returns, squares)
        ),
        "bias_tokens": resamples.ratio(sums(bias), tokens),
        "mean_weight": resamples.ratio(weights, learned),
        "variance_weight": resamples.estimate(
            lambda counts: pooled_variance(counts, learned, weights, weights_squared)
        ),
    }
