"""The passes that a step of a method makes through its models: what `brim plan` counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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

    def in_words(self) -> str:
        """Return what a step does."""
        share = "" if self.written == 1 else f" {self.written:.0%} of the text"
        counts = {
            f"student writes{share}": int(self.written > 0),
            "teacher reads": self.teacher_reads + self.compared,
            "student reads": self.student_reads,
            "a copy of its start reads": self.copy_reads,
            "student learns": self.updates,
        }
        return ", ".join(f"{what} {n} times" if n > 1 else what for what, n in counts.items() if n)
