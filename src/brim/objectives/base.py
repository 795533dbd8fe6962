"""What a method is: who writes the text, and what credit each token gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from brim.models import Decoding, LanguageModel
from brim.types import Batch, LossOutput, Rollout, TokenStatistics


class Policy(Protocol):
    """The student as the loss sees it: the `LanguageModel`, or what DDP or autocast made of it."""

    def __call__(self, rollout: Rollout, *, temperature: float = 1.0) -> TokenStatistics:
        """Log-probabilities of the tokens under `softmax(logits / temperature)`, and entropies."""


class Objective(Protocol):
    """One method of distillation.

    The trainer calls `collect` once a step for the whole rollout batch of this process and `loss`
    once a micro-batch. All state lives in the weights: an objective is a pure description.
    """

    @property
    def needs_teacher(self) -> bool:
        """Whether `collect` asks the teacher; if not, the trainer gives it teacher outputs."""

    @property
    def decoding(self) -> Decoding:
        """How completions are written, and the token limits of prompts and targets."""

    def collect(
        self, batch: Batch, student: LanguageModel, teacher: LanguageModel | None
    ) -> tuple[Rollout, Mapping[str, Tensor]]:
        """Completions with the credit of each token, without gradients.

        Returns:
            The rollout, and sums over its rows and tokens that `describe` makes into metrics.
            The trainer adds them over processes.
        """

    def loss(self, policy: Policy, rollout: Rollout) -> LossOutput:
        """The loss of one micro-batch, summed over its tokens."""

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Metrics of the whole rollout batch from the sums of all its parts."""
