"""SeqKD (Kim & Rush 2016): maximum likelihood on text that the teacher wrote.

The same objective on a data set's own targets is ordinary supervised training; that is how a
teacher is made from scratch or fine-tuned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from brim.config.loading import Config
from brim.losses import cross_entropy
from brim.models import Decoding, LanguageModel
from brim.objectives.base import Objective, Policy, length_metrics, length_sums
from brim.types import Batch, LossOutput, Rollout


class SeqKDConfig(Config):
    """Sequence-level distillation: cross-entropy on the teacher's completions."""

    name: Literal["seqkd"] = "seqkd"
    targets: Literal["teacher", "data"] = "teacher"
    """Whose completions are learnt: the teacher's, or the data set's own targets, which is
    ordinary supervised training."""

    def build(self, decoding: Decoding) -> SeqKD:
        """The objective; targets are cut at `decoding.max_tokens`."""
        return SeqKD(decoding, self.targets)


@dataclass(frozen=True)
class SeqKD(Objective):
    """Cross-entropy on the target of each example: its tokens where a teacher wrote them."""

    decoding: Decoding
    targets: Literal["teacher", "data"] = "teacher"

    def collect(
        self, batch: Batch, student: LanguageModel, teacher: LanguageModel | None
    ) -> tuple[Rollout, Mapping[str, Tensor]]:
        """The targets as a rollout; nothing is sampled and no teacher is asked."""
        rollout = student.encode_targets(batch, max_tokens=self.decoding.max_tokens)
        return rollout, length_sums(rollout)

    def loss(
        self, policy: Policy, rollout: Rollout, teacher: LanguageModel | None = None
    ) -> LossOutput:
        """`−Σ_t log π(a_t | s_t)` over the targets' tokens."""
        tokens = policy(rollout)
        return LossOutput(
            loss=cross_entropy(tokens.logprobs, rollout.mask),
            sums={"policy/entropy": tokens.entropy.sum()},
        )

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Length and truncation of the targets."""
        return length_metrics(sums)
