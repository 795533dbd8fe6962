"""What the trainer, a run and a plan ask of every method. No torch is imported here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from brim.config.loading import Config


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
        compared: how often the loss has all of the teacher's logits: of what is kept where it has
            read before, else by a pass each.
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
    def kept(self) -> bool:
        """Whether what the teacher has read is kept for the loss."""
        return self.teacher_reads > 0 and self.compared > 0

    @property
    def num_trained(self) -> int:
        """Models that are trained: the student, and a critic of its own."""
        return 1 + (self.critic == "separate")

    def in_words(self) -> str:
        """Return what a step does."""
        share = "" if self.written == 1 else f" {self.written:.0%} of the text"
        counts = {
            f"student writes{share}": int(self.written > 0),
            "teacher reads": self.teacher_reads or self.compared,
            "student reads": self.student_reads,
            "a copy of its start reads": self.copy_reads,
            "student learns": self.updates,
        }
        return ", ".join(f"{what} {n} times" if n > 1 else what for what, n in counts.items() if n)


@dataclass(frozen=True, slots=True)
class Updates:
    """How often one rollout batch is used, and how old the behavior policy may be.

    Attributes:
        num_epochs: passes over a rollout batch.
        num_minibatches: updates a pass; the rows are shuffled where there are several.
        sync_every: steps between copies of the student into the behavior policy, which writes the
            rollouts; at 1 it is the student itself.
    """

    num_epochs: int = 1
    num_minibatches: int = 1
    sync_every: int = 1

    @property
    def on_policy(self) -> bool:
        """Whether every update is of the behavior policy itself."""
        return self.num_epochs * self.num_minibatches * self.sync_every == 1


class MethodConfig(Config):
    """What the trainer and a run ask of every method's settings."""

    if TYPE_CHECKING:
        name: str  # each method has a Literal of its own

    @property
    def updates(self) -> Updates:
        """How often a rollout batch is used."""
        return Updates()

    @property
    def compares_policies(self) -> bool:
        """Whether the loss compares the policy with the behavior policy, token by token.

        Its updates then run without dropout, or the two would differ before the first update.
        """
        return not self.updates.on_policy

    @property
    def needed_targets(self) -> Literal["teacher", "data"] | None:
        """Whose completions the examples must carry as references; None for no completions."""
        return None

    @property
    def whole_distribution(self) -> str | None:
        """The setting that needs all of the teacher's logits; None where two numbers a token do."""
        return None

    def passes(self) -> Passes:
        """Return the passes of a step: here, the student learns from text that there is."""
        return Passes()


def is_llmr(k: int, lengths: Sequence[float], *, tail: str = "one_step") -> bool:
    """Return whether blocks of K steps give LLMR's returns to most completions.

    With the one-step tail a completion of at most K tokens has no block but the tail (Algorithm 1).

    Args:
        k: steps in a block; K = 1 is LLMR of every completion.
        lengths: tokens of each completion, or their mean alone.
        tail: `one_step` or `none`.
    """
    short = sum(length <= k for length in lengths)
    return k == 1 or (tail == "one_step" and 2 * short > len(lengths))
