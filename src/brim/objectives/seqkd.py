"""SeqKD (Kim & Rush 2016): maximum likelihood on text that the teacher wrote.

The same objective on a data set's own targets is ordinary supervised training; that is how a
teacher is made from scratch or fine-tuned.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from brim.losses import cross_entropy
from brim.models import LanguageModel, Teacher
from brim.objectives.base import Objective, Policy, length_metrics, length_sums
from brim.types import Batch, LossOutput, Rollout


class SeqKD(Objective):
    """Cross-entropy on the target of each example: its tokens where a teacher wrote them."""

    def collect(
        self, batch: Batch, student: LanguageModel, teacher: Teacher | None
    ) -> tuple[Rollout, Mapping[str, Tensor]]:
        """Return the targets as a rollout; nothing is sampled and no teacher is asked."""
        rollout = student.encode_targets(batch, max_tokens=self.decoding.max_tokens)
        return rollout, length_sums(rollout)

    def loss(self, policy: Policy, rollout: Rollout, teacher: Teacher | None = None) -> LossOutput:
        """Return `−Σ_t log π(a_t | s_t)` over the targets' tokens."""
        tokens = policy(rollout)
        return LossOutput(
            loss=cross_entropy(tokens.logprobs, rollout.mask),
            sums={"policy/entropy": tokens.entropy.sum()},
        )

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return length and truncation of the targets."""
        return length_metrics(sums)
