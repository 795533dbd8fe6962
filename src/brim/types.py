"""The words of the library: what flows from a data file to a weight update.

Read in order, after the `Example` of `brim.examples`: a `Batch` holds encoded prompts; a `Rollout`
holds completions of a batch, whoever wrote them; `ActionValues` is all that is needed of a teacher;
a `LossOutput` is what an objective hands to the trainer.

Shapes: B rows, S prompt tokens, T completion tokens, V vocabulary. A mask is True where a token
counts. Everything is frozen; a changed copy is made with `dataclasses.replace`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from brim.examples import Example
from brim.seeding import derive_seed
from brim.support.bucketing import length_buckets

_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True)
class Batch:
    """Encoded prompts: left-padded for decoder-only models, right-padded for encoders.

    Attributes:
        examples: the B rows of data, in order; one object in several places is one prompt that
            several completions continue.
        prompt_ids: (B, S) int64.
        prompt_mask: (B, S) bool.
        seeds: B seeds, one a row: a row's sampled completion depends on its own seed and on
            nothing else of the batch.
        num_truncated_prompts: how many prompts were cut at the token limit.
    """

    examples: tuple[Example, ...]
    prompt_ids: Tensor
    prompt_mask: Tensor
    seeds: tuple[int, ...]
    num_truncated_prompts: int = 0

    def __len__(self) -> int:
        return len(self.examples)

    def select(self, rows: Sequence[int]) -> Batch:
        """The batch of these rows, in this order (padding is kept)."""
        index = torch.as_tensor(rows, dtype=torch.long, device=self.prompt_ids.device)
        return Batch(
            examples=tuple(self.examples[i] for i in rows),
            prompt_ids=self.prompt_ids[index],
            prompt_mask=self.prompt_mask[index],
            seeds=tuple(self.seeds[i] for i in rows),
        )

    def repeat(self, times: int) -> Batch:
        """Each row `times` times, adjacent: the first has its own seed, the others new ones."""
        if times == 1:
            return self
        return Batch(
            examples=tuple(example for example in self.examples for _ in range(times)),
            prompt_ids=self.prompt_ids.repeat_interleave(times, dim=0),
            prompt_mask=self.prompt_mask.repeat_interleave(times, dim=0),
            seeds=tuple(
                derive_seed(seed, "generation", i) if i else seed
                for seed in self.seeds
                for i in range(times)
            ),
            num_truncated_prompts=self.num_truncated_prompts,
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        return replace(
            self, prompt_ids=self.prompt_ids.to(device), prompt_mask=self.prompt_mask.to(device)
        )


@dataclass(frozen=True, slots=True)
class Segments:
    """Steps of a completion that are several tokens long, for its teacher reads other tokens.

    Attributes:
        index: (B, T) int64, the number of each token's segment, from 0 on without holes.
        teacher_tokens: (B,) int64, tokens that the teacher read of the text.
        unspelled: (B,) int64, those among them that stand for what it cannot spell.
    """

    index: Tensor
    teacher_tokens: Tensor
    unspelled: Tensor


@dataclass(frozen=True, slots=True)
class ActionValues:
    """All that is needed of a teacher along a completion; `(B, T, V)` logits are never kept.

    Attributes:
        q_taken: (B, T) float32, `q(s_t, a_t)` of the token that was written.
        q_max: (B, T) float32, `max_a q(s_t, a)` over the rows of the head that have a token.
        logprobs: (B, T) float32, the teacher's log-probability of the token that was written.
        bootstrap: (B,) float32 or None, `max_a q` of the state after the last token where the
            completion was cut at the length limit, 0 where it ended.
        segments: where a step is a segment of several tokens; None where each token is a step. All
            tokens of a segment have its `q_max`; its regret, and the teacher's log-probability of
            its text, are those of its last token, and those of the others are 0.
        hidden: (B, T, d) of the teacher, of which its head makes the logits of each token; kept
            where the loss compares with all of them, so that it need not read again.
    """

    q_taken: Tensor
    q_max: Tensor
    logprobs: Tensor
    bootstrap: Tensor | None = None
    segments: Segments | None = None
    hidden: Tensor | None = None

    def to(self, device: torch.device | str) -> ActionValues:
        """The same values with their tensors on `device`."""
        moved: ActionValues = _change_tensors(self, lambda tensor: tensor.to(device))
        return moved


@dataclass(frozen=True, slots=True)
class Rollout:
    """Completions of a batch of prompts, right-padded, and what is known of each token.

    Attributes:
        batch: the prompts (B rows).
        completion_ids: (B, T) int64; the EOS token, where written, is the last action.
        mask: (B, T) bool, True from the first token to the last, without holes.
        truncated: (B,) bool, True where the completion met the length limit before an EOS.
        values: the teacher's view of the tokens, once it was asked.
        returns: (B, T) float32, the K-step return of each token, before clipping and baselines.
        advantages: (B, T) float32, the weight of each token in the policy gradient.
        logprobs: (B, T) float32, of the policy that wrote, where updates need to compare with it.
        state_values: (B, T) float32, what a critic expected of each state.
        value_targets: (B, T) float32, what the critic should have expected.
        end_values: (B, T) float32, what ending the text at a token would save: the regrets that are
            expected from the next state on.
        task_scores: (B,) float32, what the task's metric says of each text, unweighted; None where
            it is no reward.
        by_student: (B,) bool, True where the student wrote; None where one writer wrote all.
    """

    batch: Batch
    completion_ids: Tensor
    mask: Tensor
    truncated: Tensor
    values: ActionValues | None = None
    returns: Tensor | None = None
    advantages: Tensor | None = None
    logprobs: Tensor | None = None
    state_values: Tensor | None = None
    value_targets: Tensor | None = None
    end_values: Tensor | None = None
    task_scores: Tensor | None = None
    by_student: Tensor | None = None

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def num_tokens(self) -> int:
        """Tokens that count, over the whole rollout."""
        return int(self.mask.sum())

    @property
    def lengths(self) -> Tensor:
        """(B,) int64, tokens of each completion, EOS included."""
        return self.mask.sum(dim=1)

    def select(self, rows: Sequence[int]) -> Rollout:
        """The rollout of these rows, in this order."""
        index = torch.as_tensor(rows, dtype=torch.long, device=self.mask.device)
        chosen: Rollout = _change_tensors(self, lambda tensor: tensor[index])
        return replace(chosen, batch=self.batch.select(rows))

    def to(self, device: torch.device | str) -> Rollout:
        """The same rollout with its tensors on `device`."""
        moved: Rollout = _change_tensors(self, lambda tensor: tensor.to(device))
        return replace(moved, batch=self.batch.to(device))

    def buckets(self, max_tokens: int) -> list[list[int]]:
        """The rows, grouped by length; a group has at most `max_tokens`, padding included."""
        prompts = self.batch.prompt_mask.sum(dim=1)
        return length_buckets(prompts.tolist(), self.lengths.tolist(), max_tokens)

    def map(self, function: Callable[[Rollout], _Record], max_tokens: int) -> _Record:
        """What `function` makes of each row, asked for a bucket of rows at a time.

        Args:
            function: from a rollout of n rows to a tensor (n, …), or a dataclass of such.
            max_tokens: of a bucket, padding included.
        """
        groups = self.buckets(max_tokens)
        if len(groups) == 1:
            return function(self)
        return join([function(self.select(rows)) for rows in groups], groups)


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """What a policy says about the tokens of a rollout, from one chunked pass over its head.

    Attributes:
        logprobs: (B, T) float32, `log π(a_t | s_t)`, differentiable; 0 where the mask is False.
        entropy: (B, T) float32 of `π(· | s_t)`, detached; 0 where the mask is False.
        compared: (B, T) float32, differentiable, what a `Comparison` with the teacher gave; None
            where there was none.
        state_values: (B, T) float32, differentiable, a critic's expectation of each state; None
            of a policy without one.
    """

    logprobs: Tensor
    entropy: Tensor
    compared: Tensor | None = None
    state_values: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LossOutput:
    """What an objective hands to the trainer for one micro-batch.

    Attributes:
        loss: scalar, *summed* over tokens: the trainer divides by the tokens of the whole
            rollout batch, one explicit number, never a mean of micro-batch means.
        sums: detached scalars summed over the micro-batch's tokens, logged as per-token means.
    """

    loss: Tensor
    sums: Mapping[str, Tensor]


def _change_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A dataclass with each of its tensors changed, those of the teacher's values too."""
    changes: dict[str, Any] = {}
    for field in fields(value):
        item = getattr(value, field.name)
        if isinstance(item, Tensor):
            changes[field.name] = change(item)
        elif isinstance(item, ActionValues | Segments):
            changes[field.name] = _change_tensors(item, change)
    return replace(value, **changes)


def join(parts: Sequence[_Record], groups: Sequence[Sequence[int]]) -> _Record:
    """Return what was made of groups of rows as one, in the order of the rows.

    Args:
        parts: tensors (n, …) of n rows, or dataclasses of such.
        groups: the numbers of the rows of each part; together each number from 0 once.
    """
    joined: _Record = _concatenate(
        parts, torch.tensor([i for rows in groups for i in rows]).argsort()
    )
    return joined


def merge(
    batch: Batch, parts: Sequence[tuple[Sequence[int], Rollout]], pad_token_id: int
) -> Rollout:
    """Return one rollout of completions that were written apart.

    Args:
        batch: all prompts.
        parts: the numbers of some rows, and their completions; together each row once.
        pad_token_id: of what lies behind a completion.
    """
    width = max(part.mask.shape[1] for _, part in parts)
    mask = batch.prompt_mask.new_zeros(len(batch), width)
    ids = batch.prompt_ids.new_full((len(batch), width), pad_token_id)
    truncated = batch.prompt_mask.new_zeros(len(batch))
    for rows, part in parts:
        index, columns = list(rows), slice(part.mask.shape[1])
        mask[index, columns], ids[index, columns] = part.mask, part.completion_ids
        truncated[index] = part.truncated
    return Rollout(batch, ids, mask, truncated)


def _concatenate(parts: Sequence[Any], order: Tensor) -> Any:
    """Tensors, or dataclasses of tensors, one after the other, and their rows in `order`."""
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        joined = torch.cat(list(parts))
        return joined[order.to(joined.device)]
    names = [field.name for field in fields(first)]
    return type(first)(
        **{name: _concatenate([getattr(part, name) for part in parts], order) for name in names}
    )
