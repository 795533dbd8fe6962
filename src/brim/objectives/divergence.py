"""Divergences between teacher and student, token by token: KL, RKL, JS, TVD, and GKD as a setting.

Sequence-level divergences decompose into a divergence of the two next-token distributions at each
step of a text (Wen et al. 2023, f-distill). Methods differ in the divergence and in whose text it
is. Text is taken as given: no gradient flows through its writing, as in f-distill and in GKD
(Agarwal et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from brim.config.loading import Config
from brim.divergences import (
    forward_kl,
    jensen_shannon,
    reverse_kl,
    student_to_mixture,
    teacher_to_mixture,
    total_variation,
)
from brim.masking import masked_sum
from brim.models import Decoding, Distribution, LanguageModel, RowFunction
from brim.objectives.base import Objective, Policy, length_metrics, length_sums, total
from brim.seeding import derive_seed
from brim.support.timing import timed
from brim.types import Batch, LossOutput, Rollout

Fraction = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="Share of the completions that the student writes, drawn for each prompt; the "
        "others are `targets`. GKD's λ.",
    ),
]


class DivergenceConfig(Config):
    """Settings that the divergences share."""

    student_fraction: Fraction = 0.5
    targets: Literal["teacher", "data"] = "teacher"
    """The completions that the student does not write: the teacher's, or the data set's own
    targets."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits of both models in the divergence, not those of the sampling; the loss is
    not multiplied by its square."""

    @model_validator(mode="after")
    def _somebody_reads_the_targets(self) -> Self:
        if self.student_fraction == 1 and self.targets == "data":
            raise ValueError(
                "targets=data has no effect where the student writes all text; leave it out, or "
                "lower student_fraction"
            )
        return self

    def _build(
        self, decoding: Decoding, divergence: RowFunction, on_student: RowFunction | None = None
    ) -> Divergence:
        return Divergence(
            decoding,
            divergence,
            on_student,
            student_fraction=self.student_fraction,
            targets=None if self.student_fraction == 1 else self.targets,
            temperature=self.temperature,
        )


class KLConfig(DivergenceConfig):
    """Forward KL of the student from the teacher, on the teacher's text."""

    name: Literal["kl"] = "kl"
    student_fraction: Fraction = 0.0

    def build(self, decoding: Decoding) -> Divergence:
        """The objective; the student writes by `decoding`, targets are cut at its `max_tokens`."""
        return self._build(decoding, forward_kl)


class RKLConfig(DivergenceConfig):
    """Reverse KL of the student from the teacher, on the student's own text."""

    name: Literal["rkl"] = "rkl"
    student_fraction: Fraction = 1.0

    def build(self, decoding: Decoding) -> Divergence:
        """The objective; the student writes by `decoding`, targets are cut at its `max_tokens`."""
        return self._build(decoding, reverse_kl)


class JSConfig(DivergenceConfig):
    """Jensen-Shannon divergence, half on the teacher's text and half on the student's."""

    name: Literal["js"] = "js"
    beta: float = Field(0.5, gt=0, lt=1)
    """Weight of the teacher in the mixture m = β p + (1-β) q of teacher p and student q."""
    terms: Literal["own", "both"] = "own"
    """What counts: on a text its writer's term, KL(q ‖ m) on the student's and KL(p ‖ m) on the
    others (`own`, f-distill), or β KL(p ‖ m) + (1-β) KL(q ‖ m) on all of them (`both`, GKD)."""

    def build(self, decoding: Decoding) -> Divergence:
        """The objective; the student writes by `decoding`, targets are cut at its `max_tokens`."""
        if self.terms == "both":
            return self._build(decoding, partial(jensen_shannon, beta=self.beta))
        return self._build(
            decoding,
            partial(teacher_to_mixture, beta=self.beta),
            on_student=partial(student_to_mixture, beta=self.beta),
        )


class TVDConfig(DivergenceConfig):
    """Total variation distance, half on the teacher's text and half on the student's."""

    name: Literal["tvd"] = "tvd"

    def build(self, decoding: Decoding) -> Divergence:
        """The objective; the student writes by `decoding`, targets are cut at its `max_tokens`."""
        return self._build(decoding, total_variation)


@dataclass(frozen=True)
class Divergence(Objective):
    """`Σ_t D(teacher(· | s_t), student(· | s_t))` over the tokens of given texts.

    Attributes:
        decoding: how the student writes, and the limit of targets.
        divergence: D, of the two models' logits (`brim.divergences`).
        on_student: another D for the texts that the student wrote; None for the same.
        student_fraction: probability that the student writes a row.
        targets: whose text the other rows are; None if there are none.
        temperature: divides both models' logits in D.
    """

    decoding: Decoding
    divergence: RowFunction
    on_student: RowFunction | None = None
    student_fraction: float = 0.5
    targets: Literal["teacher", "data"] | None = "teacher"
    temperature: float = 1.0

    def collect(
        self, batch: Batch, student: LanguageModel, teacher: LanguageModel | None
    ) -> tuple[Rollout, Mapping[str, Tensor]]:
        """The student's completions of some rows and the targets of the others."""
        by_student = torch.tensor([self._student_writes(seed) for seed in batch.seeds])
        parts = []
        if rows := by_student.nonzero().flatten().tolist():
            with timed("rollout"):
                parts.append((rows, student.generate(batch.select(rows), self.decoding)))
        if rows := (~by_student).nonzero().flatten().tolist():
            some, limit = batch.select(rows), self.decoding.max_tokens
            parts.append((rows, student.encode_targets(some, max_tokens=limit)))
        by_student = by_student.to(student.device)
        rollout = replace(_merge(batch, parts, student.pad_token_id), by_student=by_student)
        return rollout, {
            **length_sums(rollout),
            "student_rows": total(by_student),
            "student_tokens": total(rollout.mask & by_student[:, None]),
        }

    def _student_writes(self, seed: int) -> bool:
        """Decided by the row's own seed, so neither by its batch nor by the process it is on."""
        uniform = (derive_seed(seed, "writer") >> 10) / 2**53  # in [0, 1), exact in a float
        return uniform < self.student_fraction

    def loss(
        self, policy: Policy, rollout: Rollout, teacher: LanguageModel | None = None
    ) -> LossOutput:
        """`Σ_t D`, with the teacher's logits made here: they are too many to be kept."""
        if teacher is None or rollout.by_student is None:
            raise ValueError("a divergence needs a teacher and a rollout of `collect`")
        own = rollout.by_student[:, None] & rollout.mask
        with teacher.evaluating():
            reading = teacher.read(rollout).to(rollout.mask.device)
        tokens = policy(
            rollout,
            distribution=Distribution(self.temperature),
            comparison=reading.comparison(self._compare, own, temperature=self.temperature),
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
        if self.on_student is None or not own.any():
            return self.divergence(student, teacher)
        if own.all():
            return self.on_student(student, teacher)
        values = student.new_zeros(len(student))
        for rows, function in ((own, self.on_student), (~own, self.divergence)):
            values = values.masked_scatter(rows, function(student[rows], teacher[rows]))
        return values

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Lengths, who wrote, and the divergence on the text of each."""
        metrics = length_metrics(sums)
        metrics["rollout/by_student"] = sums["student_rows"] / sums["rows"]
        own, own_tokens = sums["student_divergence"], sums["student_tokens"]
        others, other_tokens = sums["policy/divergence"] - own, sums["tokens"] - own_tokens
        if own_tokens:
            metrics["policy/divergence_on_student"] = own / own_tokens
        if other_tokens:
            metrics["policy/divergence_on_targets"] = others / other_tokens
        return metrics


def _merge(batch: Batch, parts: Sequence[tuple[list[int], Rollout]], pad_token_id: int) -> Rollout:
    """One rollout of the batch from completions of its rows, each part with their numbers."""
    width = max(part.mask.shape[1] for _, part in parts)
    mask = batch.prompt_mask.new_zeros(len(batch), width)
    ids = batch.prompt_ids.new_full((len(batch), width), pad_token_id)
    truncated = batch.prompt_mask.new_zeros(len(batch))
    for rows, part in parts:
        columns = slice(part.mask.shape[1])
        mask[rows, columns], ids[rows, columns] = part.mask, part.completion_ids
        truncated[rows] = part.truncated
    return Rollout(batch, ids, mask, truncated)
