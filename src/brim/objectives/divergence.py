"""Divergences between teacher and student, token by token: KL, RKL, JS, TVD, and GKD as a setting.

Sequence-level divergences decompose into a divergence of the two next-token distributions at each
step of a text (Wen et al. 2023, f-distill). Methods differ in the divergence and in whose text it
is. Text is taken as given: no gradient flows through its writing, as in f-distill and in GKD
(Agarwal et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from brim.divergences import (
    forward_kl,
    jensen_shannon,
    reverse_kl,
    student_to_mixture,
    teacher_to_mixture,
    total_variation,
)
from brim.masking import masked_sum
from brim.models import Decoding, Distribution, LanguageModel, RowFunction, Teacher, whole
from brim.objectives.base import Objective, Policy, length_metrics, length_sums, total
from brim.objectives.divergence_settings import (
    DivergenceConfig,
    JSConfig,
    KLConfig,
    RKLConfig,
    TVDConfig,
)
from brim.seeding import derive_seed
from brim.support.timing import timed
from brim.types import Batch, LossOutput, Rollout, merge


class Divergence(Objective):
    """`Σ_t D(teacher(· | s_t), student(· | s_t))` over the tokens of given texts."""

    settings: DivergenceConfig

    def __init__(self, settings: DivergenceConfig, decoding: Decoding) -> None:
        super().__init__(settings, decoding)
        self.on_targets, self.on_student = _divergences(settings)

    def collect(
        self, batch: Batch, student: LanguageModel, teacher: Teacher | None
    ) -> tuple[Rollout, Mapping[str, Tensor]]:
        """Return the student's completions of some rows and the targets of the others."""
        share = self.settings.student_fraction
        by_student = torch.tensor([_uniform(seed) < share for seed in batch.seeds])
        parts = []
        if rows := by_student.nonzero().flatten().tolist():
            with timed("rollout"):
                parts.append((rows, student.generate(batch.select(rows), self.decoding)))
        if rows := (~by_student).nonzero().flatten().tolist():
            some, limit = batch.select(rows), self.decoding.max_tokens
            parts.append((rows, student.encode_targets(some, max_tokens=limit)))
        by_student = by_student.to(student.device)
        rollout = replace(merge(batch, parts, student.pad_token_id), by_student=by_student)
        return rollout, {
            **length_sums(rollout),
            "student_rows": total(by_student),
            "student_tokens": total(rollout.mask & by_student[:, None]),
        }

    def loss(self, policy: Policy, rollout: Rollout, teacher: Teacher | None = None) -> LossOutput:
        """Return `Σ_t D`, with the teacher's logits made here: they are too many to be kept."""
        if teacher is None or rollout.by_student is None:
            raise ValueError("a divergence needs a teacher and a rollout of `collect`")
        own, temperature = rollout.by_student[:, None] & rollout.mask, self.settings.temperature
        with teacher.evaluating():
            features = whole(teacher).features(rollout).to(rollout.mask.device)
        tokens = policy(
            rollout,
            distribution=Distribution(temperature),
            comparison=features.comparison(self._compare, own, temperature=temperature),
        )
        assert tokens.compared is not None
        loss = masked_sum(tokens.compared, rollout.mask)
        return LossOutput(
            loss=loss,
            sums={
                "policy/entropy": tokens.entropy.sum(),
                "policy/divergence": loss.detach(),
                "student_divergence": masked_sum(tokens.compared.detach(), own),
            },
        )

    def _compare(self, student: Tensor, teacher: Tensor, own: Tensor) -> Tensor:
        """Each of the two divergences on its rows: (n, V), (n, V), (n,) bool -> (n,)."""
        if self.on_student is self.on_targets or not own.any():
            return self.on_targets(student, teacher)
        if own.all():
            return self.on_student(student, teacher)
        values = student.new_zeros(len(student))
        for rows, function in ((own, self.on_student), (~own, self.on_targets)):
            values = values.masked_scatter(rows, function(student[rows], teacher[rows]))
        return values

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return lengths, the share of the student's texts, and the divergence on either kind."""
        metrics = length_metrics(sums)
        metrics["rollout/by_student"] = sums["student_rows"] / sums["rows"]
        own, own_tokens = sums["student_divergence"], sums["student_tokens"]
        others, other_tokens = sums["policy/divergence"] - own, sums["tokens"] - own_tokens
        if own_tokens:
            metrics["policy/divergence_on_student"] = own / own_tokens
        if other_tokens:
            metrics["policy/divergence_on_targets"] = others / other_tokens
        return metrics


def _divergences(settings: DivergenceConfig) -> tuple[RowFunction, RowFunction]:
    """D on the targets, and on the student's own text."""
    match settings:
        case KLConfig():
            return forward_kl, forward_kl
        case RKLConfig():
            return reverse_kl, reverse_kl
        case TVDConfig():
            return total_variation, total_variation
        case JSConfig(terms="own", beta=beta):
            return partial(teacher_to_mixture, beta=beta), partial(student_to_mixture, beta=beta)
        case JSConfig(beta=beta):
            return (both := partial(jensen_shannon, beta=beta)), both
    raise TypeError(f"{type(settings).__name__} names no divergence")


def _uniform(seed: int) -> float:
    """In [0, 1), by the row's own seed, so neither by its batch nor by its process."""
    return (derive_seed(seed, "writer") >> 10) / 2**53  # exact in a float
