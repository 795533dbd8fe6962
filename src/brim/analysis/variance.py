"""Variance and bias of K-step returns and of the gradients that they make, for each K.

`analyze_variance` has P prompts, and of each student M rollouts a prompt, written as the run's
decoding says and judged by the teacher once: all K come of the same two numbers a token. What is
measured is defined in `results.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
from brim.analysis.subjects import Opened, Study, Subject, check_ks
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
    students: Sequence[Subject],
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
    study = Study.plan(
        opened, split=split, num_prompts=num_prompts, num_samples=num_samples, seed=seed
    )
    objective, trainer = study.objective, run.config.trainer
    plan = _estimators(objective, check_ks(ks))
    minibatches = run.config.objective.updates.num_minibatches
    batch_prompts = max(1, trainer.rollout_batch_size // minibatches)
    measured = []
    for subject, student, samples in study.sample(students):
        weights = [weigh(samples, estimator.of(objective), student) for estimator in plan]
        divergences = token_divergences(samples, student, opened.teacher())
        with run.reporter.meter(f"{subject.label}: gradients", len(study.examples)) as meter:
            gradients = measure_gradients(
                samples,
                weights,
                objective,
                student,
                opened.teacher(),
                output_layer=output_layer(student),
                num_dimensions=num_dimensions,
                seed=seed,
                batch_tokens=trainer.micro_batch_tokens,
                advance=meter.advance,
            )
        measured.append(
            describe_student(
                subject,
                samples,
                plan,
                weights,
                gradients,
                divergences,
                study.resamples,
                own_tail=own_tail(objective),
                batch_prompts=batch_prompts,
            )
        )
    chosen = objective.settings
    settings = {
        "name": run.config.objective.name,
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
        **study.facts(),
        batch_prompts=batch_prompts,
        objective=settings,
        decoding=objective.decoding.describe(),
        num_dimensions=num_dimensions,
        students=tuple(measured),
    )


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
    subject: Subject,
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
        subject: the student.
        samples: its rollouts.
        plan: the estimators, K = 1 first.
        weights: of each estimator.
        gradients: of each estimator.
        divergences: sums by prompt, of `token_divergences`.
        resamples: of the prompts.
        own_tail: the tail that K is recommended for.
        batch_prompts: B.
    """
    rollout = samples.rollout
    lengths = samples.by_prompt(rollout.lengths)
    tokens = lengths.sum(axis=1)
    exact = samples.by_prompt(weights[0].returns[:, 0])
    numbers = {
        "length": resamples.mean(lengths.mean(axis=1)),
        "truncated": resamples.mean(samples.by_prompt(rollout.truncated).mean(axis=1)),
        "return": resamples.mean(exact.mean(axis=1)),
        **{name: resamples.ratio(sums, tokens) for name, sums in divergences.items()},
    }
    moments = {
        part: gradient_moments(gradients, part, resamples.counts) for part in gradients.sketches
    }
    rollouts = Resamples.draw(
        samples.num_samples,
        num_resamples=len(resamples.counts) - 1,
        confidence=resamples.confidence,
    )
    rows, firsts = [], []
    for number, (estimator, own) in enumerate(zip(plan, weights, strict=True)):
        first = samples.by_prompt(own.returns[:, 0])
        firsts.append(_describe_prompts(first, exact, rollouts))
        measured = _describe_returns(samples, own, weights[0], tokens, resamples)
        measured["variance_first"] = resamples.mean(firsts[-1]["variance_first"])
        measured["bias_first"] = resamples.mean(firsts[-1]["bias_first"])
        for part, found in moments.items():
            described = found[number].describe(resamples, batch_prompts)
            measured |= {f"{PREFIXES[part]}{name}": value for name, value in described.items()}
        active = float((lengths > estimator.k).mean())
        rows.append(Row(estimator.k, estimator.tail, active, measured))
    chosen = [i for i, e in enumerate(plan) if e.k == 1 or e.tail == own_tail]
    longest = int(lengths.max())
    return StudentVariance(
        label=subject.label,
        path=None if subject.path is None else str(subject.path),
        longest=longest,
        numbers=numbers,
        rows=tuple(rows),
        choice=choose_k(
            [plan[i].k for i in chosen],
            [moments["scaled"][i] for i in chosen],
            resamples,
            num_prompts=batch_prompts,
            note=_beyond(plan, own_tail, longest),
        ),
        prompts=tuple(
            {
                "id": rollout.batch.examples[i * samples.num_generations].id,
                "length": float(lengths[i].mean()),
                **{name: [float(found[name][i]) for found in firsts] for name in firsts[0]},
            }
            for i in range(samples.num_prompts)
        ),
    )


def _describe_prompts(first: Array, exact: Array, rollouts: Resamples) -> dict[str, Array]:
    """Variance and bias of each prompt, (P,), of (P, M) returns; intervals over its rollouts."""
    number = first.shape[1]
    centred = first - first.mean(axis=1, keepdims=True)
    means, squares = (rollouts.counts @ part.T / number for part in (centred, centred**2))
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
    learnt, weights, weights_squared = sums(own.mask), sums(weight), sums(weight.square())
    returns = sums(own.returns)
    return {
        "variance_tokens": resamples.estimate(
            lambda counts: pooled_variance(counts, tokens, returns, squares)
        ),
        "bias_tokens": resamples.ratio(sums(bias), tokens),
        "mean_weight": resamples.ratio(weights, learnt),
        "variance_weight": resamples.estimate(
            lambda counts: pooled_variance(counts, learnt, weights, weights_squared)
        ),
    }
