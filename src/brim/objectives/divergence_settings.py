"""What the divergences can be set to. No torch is imported here: recipes are checked without it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from brim.objectives.method import MethodConfig, Passes

Fraction = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="Share of the completions that the student writes, drawn for each prompt; the "
        "others are `targets`. GKD's λ.",
    ),
]


class DivergenceConfig(MethodConfig):
    """Settings that the divergences share."""

    student_fraction: Fraction = 0.5
    targets: Literal["teacher", "data"] = "teacher"
    """The completions that the student does not write: the teacher's, or the data set's own
    targets."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits of both models in the divergence, not those of the sampling; the loss is
    not multiplied by its square."""

    @model_validator(mode="after")
    def _check_targets_used(self) -> Self:
        if self.student_fraction == 1 and self.targets == "data":
            raise ValueError(
                "targets=data has no effect where the student writes all text; leave it out, or "
                "lower student_fraction"
            )
        return self

    @property
    def needed_targets(self) -> Literal["teacher", "data"] | None:
        """Whose completions the others are; None where the student writes all."""
        return None if self.student_fraction == 1 else self.targets

    @property
    def whole_distribution(self) -> str | None:
        """Any divergence of two next-token distributions."""
        return f"name={self.name}"

    def passes(self) -> Passes:
        """Return the passes of a step: the teacher reads beside the student that learns."""
        return Passes(written=self.student_fraction, compared=1)


class KLConfig(DivergenceConfig):
    """Forward KL of the student from the teacher, on the teacher's text."""

    name: Literal["kl"] = "kl"
    student_fraction: Fraction = 0.0


class RKLConfig(DivergenceConfig):
    """Reverse KL of the student from the teacher, on the student's own text."""

    name: Literal["rkl"] = "rkl"
    student_fraction: Fraction = 1.0


class JSConfig(DivergenceConfig):
    """Jensen-Shannon divergence, half on the teacher's text and half on the student's."""

    name: Literal["js"] = "js"
    beta: float = Field(0.5, gt=0, lt=1)
    """Weight of the teacher in the mixture m = β p + (1-β) q of teacher p and student q."""
    terms: Literal["own", "both"] = "own"
    """What counts: on a text its writer's term, KL(q ‖ m) on the student's and KL(p ‖ m) on the
    others (`own`, f-distill), or β KL(p ‖ m) + (1-β) KL(q ‖ m) on all of them (`both`, GKD)."""


class TVDConfig(DivergenceConfig):
    """Total variation distance, half on the teacher's text and half on the student's."""

    name: Literal["tvd"] = "tvd"
