"""What each method asks of its models in one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from brim.objectives import ObjectiveConfig
from brim.objectives.settings import (
    BRIMConfig,
    JSConfig,
    KLConfig,
    LLMRConfig,
    PPOBRIMConfig,
    PPOLLMRConfig,
    RKLConfig,
    TVDConfig,
)


@dataclass(frozen=True)
class ByPhase:
    """A count of one step, by what happens in it.

    Attributes:
        rollout: the student writes.
        teacher: the teacher reads.
        student: the student, or a copy of it, reads without gradient.
        update: forward and backward passes.
    """

    rollout: int
    teacher: int
    student: int
    update: int

    @property
    def total(self) -> int:
        """Of all phases."""
        return self.rollout + self.teacher + self.student + self.update


@dataclass(frozen=True)
class Passes:
    """How often a step goes through a model, each time over all of its completions.

    Attributes:
        generations: completions of a prompt.
        written: the share of the completions that the student writes.
        teacher_reads: passes of the teacher over them before the update.
        student_reads: passes of the student without gradient.
        copy_reads: passes of the copy of the student at the start.
        updates: passes of the student with gradient.
        compared: passes of the teacher beside these, for its logits.
        minibatches: equal parts of the completions, with an update for each.
        copies: frozen copies of the student: the start, or an older one that writes.
        writers: those among them that write, which checkpoints hold too.
        critic: whose hidden states a value head reads: the student's, or those of a copy that is
            trained too.
    """

    generations: int = 1
    written: float = 0.0
    teacher_reads: int = 0
    student_reads: int = 0
    copy_reads: int = 0
    updates: int = 1
    compared: int = 0
    minibatches: int = 1
    copies: int = 0
    writers: int = 0
    critic: Literal["shared", "separate"] | None = None


def passes_of(objective: ObjectiveConfig) -> Passes:
    """What a method with these settings asks for."""
    match objective:
        case LLMRConfig() | BRIMConfig():
            updates, stale = objective.rollout_reuse, objective.sync_every > 1
            reads = (
                objective.baseline == "min_variance",
                objective.q_centering == "policy",
                stale or updates > 1,
            )
            return Passes(
                generations=objective.num_generations,
                written=1.0,
                teacher_reads=1,
                student_reads=sum(reads),
                updates=updates,
                compared=updates if objective.immediate == "expected" else 0,
                copies=int(stale),
                writers=int(stale),
            )
        case PPOLLMRConfig() | PPOBRIMConfig():
            charged = int(objective.kl_coefficient > 0)
            return Passes(
                generations=objective.num_generations,
                written=1.0,
                teacher_reads=1,
                student_reads=1 + (objective.q_centering == "policy"),
                copy_reads=charged,
                updates=objective.num_epochs,
                minibatches=objective.num_minibatches,
                copies=charged,
                critic=objective.critic if isinstance(objective, PPOLLMRConfig) else None,
            )
        case KLConfig() | RKLConfig() | JSConfig() | TVDConfig():
            return Passes(written=objective.student_fraction, compared=1)
        case _:
            return Passes()
