"""Which passes a method makes through its models in one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from brim.objectives import ObjectiveConfig


@dataclass(frozen=True)
class ByPhase:
    """A count of one step, of operations or of bytes that a device sends, by what happens in it.

    Attributes:
        rollout: the student writes.
        teacher: the teacher reads.
        student: the student, or a copy of it, reads without gradient.
        update: forward and backward passes; of bytes, gradients too.
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

    @property
    def num_trained(self) -> int:
        """Models that are trained: the student, and a critic of its own."""
        return 1 + (self.critic == "separate")


def _divergence(settings: Any) -> Passes:
    return Passes(written=settings.student_fraction, compared=1)


def _policy_gradient(settings: Any) -> Passes:
    updates, stale = settings.rollout_reuse, int(settings.sync_every > 1)
    once_more = (settings.baseline == "min_variance", settings.q_centering == "policy")
    return Passes(
        generations=settings.num_generations,
        written=1.0,
        teacher_reads=1,
        student_reads=sum(once_more) + (stale or updates > 1),
        updates=updates,
        compared=updates if settings.immediate == "expected" else 0,
        copies=stale,
        writers=stale,
    )


def _anchored(settings: Any) -> Passes:
    return Passes(
        generations=settings.num_generations,
        written=1.0,
        teacher_reads=1,
        student_reads=int(settings.expected_regrets),
        compared=int(settings.immediate == "expected"),
    )


def _ppo(settings: Any) -> Passes:
    charged = int(settings.kl_coefficient > 0)
    return Passes(
        generations=settings.num_generations,
        written=1.0,
        teacher_reads=1,
        student_reads=1 + (settings.q_centering == "policy"),
        copy_reads=charged,
        updates=settings.num_epochs,
        minibatches=settings.num_minibatches,
        copies=charged,
        critic=getattr(settings, "critic", None),
    )


PASSES: Mapping[str, Callable[[Any], Passes]] = {
    "seqkd": lambda settings: Passes(),
    **dict.fromkeys(("kl", "rkl", "js", "tvd"), _divergence),
    **dict.fromkeys(("llmr", "brim"), _policy_gradient),
    "anchored": _anchored,
    **dict.fromkeys(("ppo_llmr", "ppo_brim"), _ppo),
}


def passes_of(objective: ObjectiveConfig) -> Passes:
    """Return the passes of a method with these settings."""
    return PASSES[objective.name](objective)
