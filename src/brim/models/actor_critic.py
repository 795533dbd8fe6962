"""A student with a value head: PPO's critic, and what `anchored` learns of the regrets to come."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from brim.models.features import Comparison, Features
from brim.models.language_model import LanguageModel
from brim.models.settings import SOFTMAX, Distribution
from brim.types import Rollout, TokenStatistics


class ActorCritic(nn.Module):
    """A student with a critic: a linear head on hidden states, which begins at 0.

    Args:
        student: the policy; its weights are shared with this module, not copied.
        trunk: whose hidden states the critic reads: the student's own, whose weights learn from the
            critic's loss too (`shared`) or do not (`detached`), or those of a copy of it
            (`separate`).
        unit: the head's output is multiplied by it; about the largest absolute return.
    """

    def __init__(
        self,
        student: LanguageModel,
        *,
        trunk: Literal["shared", "separate", "detached"],
        unit: float = 1.0,
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
        self.detached, self.unit = trunk == "detached", unit

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
        read = features if self.critic is None else self.critic.features(rollout)
        return replace(tokens, state_values=self._values(read))

    def values(self, rollout: Rollout) -> Tensor:
        """Return the value of each state alone, (B, T), float32; 0 where the mask is False."""
        return self._values(
            (self.student if self.critic is None else self.critic).features(rollout)
        )

    def _values(self, features: Features) -> Tensor:
        hidden = features.hidden.detach() if self.detached else features.hidden
        with torch.autocast(hidden.device.type, enabled=False):
            values = self.value_head(hidden.float()).squeeze(-1) * self.unit
        return features.scatter(values)
