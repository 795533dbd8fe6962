"""A student with a value head, PPO's critic."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from brim.models.features import Comparison
from brim.models.language_model import LanguageModel
from brim.models.settings import SOFTMAX, Distribution
from brim.types import Rollout, TokenStatistics


class ActorCritic(nn.Module):
    """A student with a critic: a linear head on hidden states, which begins at 0.

    Args:
        student: the policy; its weights are shared with this module, not copied.
        trunk: whose hidden states the critic reads: the student's own (`shared`), whose weights
            then learn from the critic's loss too, or those of a copy of it (`separate`).
        unit: the head's output is multiplied by it; about the largest absolute return.
    """

    def __init__(
        self, student: LanguageModel, *, trunk: Literal["shared", "separate"], unit: float = 1.0
    ) -> None:
        super().__init__()
        self.student = student
        self.critic: LanguageModel | None = None
        if trunk == "separate":
            self.critic = student.copy()
            head = self.critic.model.get_output_embeddings()
            if head.weight is not self.critic.model.get_input_embeddings().weight:
                head.requires_grad_(False)  # the critic writes nothing
        num_features = student.model.get_output_embeddings().weight.shape[1]
        self.value_head = nn.Linear(num_features, 1, device=student.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.unit = unit

    def forward(
        self,
        rollout: Rollout,
        *,
        distribution: Distribution = SOFTMAX,
        comparison: Comparison | None = None,
    ) -> TokenStatistics:
        """Return what `LanguageModel.forward` does, and the value of each state."""
        features = self.student.features(rollout)
        tokens = features.token_statistics(distribution=distribution, comparison=comparison)
        hidden = features.hidden
        if self.critic is not None:
            hidden = self.critic.features(rollout).hidden
        with torch.autocast(hidden.device.type, enabled=False):
            values = self.value_head(hidden.float()).squeeze(-1) * self.unit
        return TokenStatistics(
            tokens.logprobs, tokens.entropy, tokens.compared, features.scatter(values)
        )
