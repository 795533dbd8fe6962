"""Steps of several tokens: collapsed, and spread again."""

import torch

from brim.objectives.steps import Steps
from brim.types import ActionValues, Segments


def values(index: torch.Tensor | None) -> ActionValues:
    numbers = torch.arange(8.0).reshape(2, 4)
    segments = None
    if index is not None:
        counts = torch.zeros(2, dtype=torch.long)
        segments = Segments(index, counts, counts)
    return ActionValues(numbers, numbers, numbers, segments=segments)


def test_without_segments_nothing_is_touched():
    q, mask = values(None), torch.ones(2, 4) > 0
    steps = Steps(q, mask)
    assert steps.mask is mask
    assert steps.lengths.tolist() == [[1] * 4] * 2
    assert all(f(q.q_max) is q.q_max for f in (steps.first, steps.last, steps.spread))


def test_first_last_and_spread():
    index = torch.tensor([[0, 0, 1, 9], [0, 1, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]) > 0
    q = values(index)
    steps = Steps(q, mask)
    assert steps.mask.tolist() == [[True, True, False, False], [True, True, False, False]]
    assert steps.lengths.tolist() == [[2, 1, 0, 0], [1, 3, 0, 0]]
    assert steps.first(q.q_max).tolist() == [[0, 2, 0, 0], [4, 5, 0, 0]]
    assert steps.last(q.q_max).tolist() == [[1, 2, 0, 0], [4, 7, 0, 0]]
    assert steps.spread(steps.last(q.q_max)).tolist() == [[1, 1, 2, 0], [4, 7, 7, 7]]


def test_rows_without_tokens_have_no_steps():
    steps = Steps(values(torch.zeros(2, 4, dtype=torch.long)), torch.zeros(2, 4) > 0)
    assert not steps.mask.any()
    assert not steps.spread(steps.last(torch.ones(2, 4))).any()
