"""Rows of different lengths in groups of similar ones, so that little of the work is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def length_buckets(
    prompt_lengths: Sequence[int],
    completion_lengths: Sequence[int],
    max_tokens: int,
    *,
    overhead: int | None = None,
) -> list[list[int]]:
    """Groups of rows that pass a model together.

    A group of n rows costs `n · (longest prompt + longest completion)` tokens, padding included,
    and `overhead` on top. Of all ways to cut the rows, ordered by length, this is the cheapest. A
    group has at most `max_tokens`, padding included, but a row that is longer is alone. `overhead`
    is by default a 32nd of that, which is taken for what keeps the device busy.

    Returns:
        The rows of each group, the longest first: where memory does not suffice, it shows at once.
    """
    if overhead is None:
        overhead = max(1, max_tokens // 32)
    prompts, completions = np.asarray(prompt_lengths), np.asarray(completion_lengths)
    order = np.lexsort((prompts, prompts + completions))
    prompts, completions = prompts[order], completions[order]
    # Dynamic programming: best[j] is the cost of the first j rows, start[j] where their last group
    # begins.
    best, start = np.zeros(len(order) + 1), np.zeros(len(order) + 1, dtype=int)
    for end in range(1, len(order) + 1):
        longest = prompts[end - 1] + completions[end - 1]
        first = max(0, end - max(1, max_tokens // longest)) if longest else 0
        rows = np.arange(1, end - first + 1)
        widths = _running_maximum(prompts[first:end]) + _running_maximum(completions[first:end])
        tokens = rows * widths
        costs = best[end - rows] + tokens + overhead
        costs[1:][tokens[1:] > max_tokens] = np.inf
        choice = int(costs.argmin())
        best[end], start[end] = costs[choice], end - rows[choice]
    groups = []
    end = len(order)
    while end > 0:
        groups.append(order[start[end] : end].tolist())
        end = start[end]
    return groups


def _running_maximum(lengths: np.ndarray) -> np.ndarray:
    """Maximum of the last 1, 2, … entries."""
    return np.maximum.accumulate(lengths[::-1])
