"""What a model makes of a rollout before its output head, and what the head makes of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from brim.models.head import (
    OutputHead,
    action_statistics,
    chunk_logits,
    compared_statistics,
    compute_dtype,
    gradient_norms,
    token_statistics,
)
from brim.models.settings import SOFTMAX, Centering, Distribution
from brim.types import ActionValues, TokenStatistics


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a policy's logits are compared with, token by token, and how.

    Attributes:
        function: such as those of `brim.divergences`; called on a chunk of tokens at a time.
        hidden: (N, d) of the other model, for the same N tokens.
        head: the other model's head.
        arguments: (N, …) each, what else the function takes of a token.
    """

    function: RowFunction
    hidden: Tensor
    head: OutputHead
    arguments: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class Features:
    """Features of the N tokens of a rollout, N the places where its mask is True.

    Logits are made of them a chunk at a time: (B, T, V) is never held.

    Attributes:
        hidden: (N, d), the hidden states that predict each token.
        head: turns them into logits.
        token_ids: (N,) int64, the tokens that were written.
        mask: (B, T) bool, where they are.
        after: (B, d) the same of the state behind each row's last token, if they were asked for.
        truncated: (B,) bool, the rows in which something would have followed.
    """

    hidden: Tensor
    head: OutputHead
    token_ids: Tensor
    mask: Tensor
    after: Tensor | None = None
    truncated: Tensor | None = None

    def to(self, device: torch.device | str) -> Features:
        """The same on `device`, with the head's weight; itself where it is there already."""
        if self.mask.device == self.head.weight.device == torch.device(device):
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
                self.hidden, head, self.token_ids, chunk_tokens=chunk_tokens
            )
            return TokenStatistics(self.scatter(logprobs), self.scatter(entropy))
        values = pair_statistics(
            self.hidden,
            head,
            self.token_ids,
            comparison,
            chunk_tokens=chunk_tokens,
        )
        return TokenStatistics(*(self.scatter(value) for value in values))

    def gradient_norms(self, *, distribution: Distribution = SOFTMAX) -> Tensor:
        """Squared norm of each token's gradient in the output layer's weight, (B, T)."""
        head = self.head.under(distribution)
        return self.scatter(gradient_norms(self.hidden, head, self.token_ids))

    def comparison(
        self, function: RowFunction, *arguments: Tensor, temperature: float = 1.0
    ) -> Comparison:
        """This model's logits, divided by `temperature`, as what a policy is compared with.

        The function is called as `function(logits, these_logits, *arguments)` on n of the N tokens;
        each of the arguments is (B, T).
        """
        tokens = tuple(argument[self.mask] for argument in arguments)
        head = self.head.at_temperature(temperature)
        return Comparison(function, self.hidden, head, tokens)

    def action_values(self, centering: Centering = "none") -> ActionValues:
        """The logits as Q-values, without gradient; see `LanguageModel.action_values`."""
        values = action_statistics(self.hidden, self.head, self.token_ids, centering=centering)
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

    def padded_hidden(self) -> Tensor:
        """The hidden states as (B, T, d), 0 where the mask is False."""
        found = self.hidden.new_zeros(*self.mask.shape, self.hidden.shape[1])
        found[self.mask] = self.hidden
        return found


RowFunction = Callable[..., Tensor]
"""Of a policy's and another model's logits, (n, V) each, to one number a row, (n,).

Those of `brim.divergences` are meant. It must not change its arguments, and may be called again for
the gradient. Where the policy's distribution is cut, the logits outside are `EXCLUDED`.
"""

# The logits of a chunk and all that is made of them take at most this much. At a vocabulary of
# 152,000 that is 32 tokens: with half of them the head's weight is read too often, and twice as
# many are no faster.
PAIR_BYTES = 224 * 2**20

# (n, V) float32 buffers that exist at once: the logits of both heads, and what the hungriest of our
# functions, the Jensen-Shannon divergence, makes of them for its gradient.
BUFFERS = 12


def pair_statistics(
    hidden: Tensor,
    head: OutputHead,
    targets: Tensor,
    comparison: Comparison,
    *,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Token statistics of a policy, and a function of its logits and another model's.

    Args:
        hidden: (N, d) features of the positions that predict the targets.
        head: the policy's output head; gradients reach its weight and bias.
        targets: (N,) int64 token ids below `head.num_rows`.
        comparison: with the other model, of the same vocabulary, at the same positions.
        chunk_tokens: tokens a chunk; by default what fits `PAIR_BYTES`.

    Returns:
        `log softmax(logits)[target]`, the entropy (detached), and the function's values, (N,)
        float32 each. The first and the last are differentiable once, with respect to the policy
        only.

    Raises:
        ValueError: the function does not give one number a row.
    """
    other = comparison.head
    dtype = compute_dtype(other.weight)
    features = other.scaled(comparison.hidden.detach()).to(dtype)
    weight = other.weight.detach()[: other.num_rows].to(dtype)
    bias = None if other.bias is None else other.bias.detach()

    def compare(rows: slice, logits: Tensor) -> Tensor:
        other_logits = chunk_logits(features[rows], weight, bias)
        with torch.autocast(logits.device.type, enabled=False):
            arguments = (argument[rows] for argument in comparison.arguments)
            values = comparison.function(logits, other_logits, *arguments)
        if values.shape != logits.shape[:1]:
            raise ValueError(
                "a comparison must give one number a row, "
                f"got {tuple(values.shape)} of {tuple(logits.shape)} logits"
            )
        return values.float()

    if chunk_tokens is None:
        chunk_tokens = max(1, PAIR_BYTES // (BUFFERS * 4 * head.num_rows))
    logprobs, entropy, compared = compared_statistics(hidden, head, targets, compare, chunk_tokens)
    assert compared is not None
    return logprobs, entropy, compared
