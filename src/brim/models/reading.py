"""What a model makes of a rollout before its output head, and what the head then says."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from brim.models.head import (
    SOFTMAX,
    Centering,
    Distribution,
    OutputHead,
    action_statistics,
    gradient_norms,
    token_statistics,
)
from brim.models.pairs import RowFunction, pair_statistics
from brim.types import ActionValues, TokenStatistics


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a policy's logits are compared with, token by token, and how.

    Attributes:
        function: such as those of `brim.divergences`; called on a chunk of tokens at a time.
        features: (N, d) of the other model, for the same N tokens.
        head: the other model's head.
        arguments: (N, …) each, what else the function takes of a token.
    """

    function: RowFunction
    features: Tensor
    head: OutputHead
    arguments: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """Features of the N tokens of a rollout, N the places where its mask is True.

    Logits are made of them a chunk at a time: (B, T, V) is never held.

    Attributes:
        features: (N, d), those that predict each token.
        head: turns them into logits.
        token_ids: (N,) int64, the tokens that were written.
        mask: (B, T) bool, where they are.
        after: (B, d) features of the state behind each row's last token, if they were asked for.
        truncated: (B,) bool, the rows in which something would have followed.
    """

    features: Tensor
    head: OutputHead
    token_ids: Tensor
    mask: Tensor
    after: Tensor | None = None
    truncated: Tensor | None = None

    def to(self, device: torch.device | str) -> Reading:
        """The same on `device`, with the head's weight; itself where it is there already."""
        if self.mask.device == torch.device(device):
            return self
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return replace(self, **moved)

    def token_statistics(
        self,
        *,
        distribution: Distribution = SOFTMAX,
        comparison: Comparison | None = None,
        chunk_tokens: int | None = None,
    ) -> TokenStatistics:
        """Log-probabilities, entropies and what is compared, under the distribution."""
        head = self.head.under(distribution)
        if comparison is None:
            logprobs, entropy = token_statistics(
                self.features, head, self.token_ids, chunk_tokens=chunk_tokens
            )
            return TokenStatistics(self.scatter(logprobs), self.scatter(entropy))
        values = pair_statistics(
            self.features,
            head,
            self.token_ids,
            comparison.features,
            comparison.head,
            comparison.function,
            comparison.arguments,
            chunk_tokens=chunk_tokens,
        )
        return TokenStatistics(*(self.scatter(value) for value in values))

    def gradient_norms(self, *, distribution: Distribution = SOFTMAX) -> Tensor:
        """Squared norm of each token's gradient in the output layer's weight, (B, T)."""
        head = self.head.under(distribution)
        return self.scatter(gradient_norms(self.features, head, self.token_ids))

    def comparison(
        self, function: RowFunction, *arguments: Tensor, temperature: float = 1.0
    ) -> Comparison:
        """This model's logits, divided by `temperature`, as what a policy is compared with.

        Args:
            function: called as `function(logits, these_logits, *arguments)` on n of the N tokens.
            arguments: (B, T) each, what else the function takes of a token.
            temperature: of this model.
        """
        tokens = tuple(argument[self.mask] for argument in arguments)
        head = self.head.at_temperature(temperature)
        return Comparison(function, self.features, head, tokens)

    def action_values(self, centering: Centering = "none") -> ActionValues:
        """The logits as Q-values, without gradient; see `LanguageModel.action_values`."""
        values = action_statistics(self.features, self.head, self.token_ids, centering=centering)
        taken, best, logprobs = (self.scatter(value) for value in values)
        following = None
        if self.after is not None and self.truncated is not None:
            nothing = self.token_ids.new_zeros(len(self.after))  # no action was taken there
            _, following, _ = action_statistics(self.after, self.head, nothing, centering=centering)
            following.masked_fill_(~self.truncated, 0)
        return ActionValues(taken, best, logprobs, following)

    def scatter(self, values: Tensor) -> Tensor:
        """(N,) values as (B, T), 0 where the mask is False."""
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values)
