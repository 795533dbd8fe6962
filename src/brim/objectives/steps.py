"""Steps of a completion: its tokens, or the segments of tokens that its teacher can tell apart."""

from __future__ import annotations

import torch
from torch import Tensor

from brim.masking import zero_padding
from brim.types import ActionValues


class Steps:
    """Between what tokens have, (B, T), and what steps have, (B, T) too, right-padded like tokens.

    Where the values have no segments, every token is a step and nothing is changed.

    Args:
        values: the teacher's, along a rollout.
        mask: (B, T) bool, of the tokens.

    Attributes:
        mask: (B, T) bool, of the steps.
        lengths: (B, T) int64, the tokens of each step; 0 where there is none.
    """

    def __init__(self, values: ActionValues, mask: Tensor) -> None:
        self._tokens = self.mask = mask
        self.lengths = mask.long()
        self._index: Tensor | None = None
        if values.segments is None:
            return
        places = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
        self._index = torch.where(mask, values.segments.index, 0)
        none = torch.full_like(self._index, -1)
        found = torch.where(mask, places, -1)
        last = none.scatter_reduce(1, self._index, found, "amax")
        self.mask = last >= 0
        self.lengths = torch.zeros_like(self._index).scatter_add(1, self._index, mask.long())
        # The tokens of a segment are adjacent, so that one begins behind the end of another.
        before = torch.cat([none[:, :1], last[:, :-1]], 1)
        self._first, self._last = (before + 1).clamp(max=mask.shape[1] - 1), last.clamp(min=0)

    def first(self, tokens: Tensor) -> Tensor:
        """Return what the first token of each step has; 0 where there is no step."""
        return tokens if self._index is None else self._gather(tokens, self._first)

    def last(self, tokens: Tensor) -> Tensor:
        """Return what the last token of each step has; 0 where there is no step."""
        return tokens if self._index is None else self._gather(tokens, self._last)

    def spread(self, steps: Tensor) -> Tensor:
        """Return what each token's step has; 0 where there is no token."""
        if self._index is None:
            return steps
        return zero_padding(steps.gather(1, self._index), self._tokens)

    def _gather(self, tokens: Tensor, places: Tensor) -> Tensor:
        return zero_padding(tokens.gather(1, places), self.mask)
