"""Which rows an update sees, on however many processes."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from brim.examples import Example
from brim.objectives.method import Updates
from brim.seeding import minibatch_numbers
from brim.training.loop_settings import LoopConfig
from brim.training.updates import Updater
from brim.types import Batch, Rollout


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (8, 4), (10, 4), (64, 7), (3, 5)])
def test_each_row_is_in_one_minibatch_and_their_sizes_differ_by_1_at_most(rows, count):
    numbers = minibatch_numbers(rows, count, seed=5)
    assert numbers.shape == (rows,)
    sizes = Counter(numbers.tolist())
    assert set(sizes) <= set(range(count))
    assert {sizes[number] for number in range(count)} <= {rows // count, -(-rows // count)}


def test_the_rows_are_drawn_and_the_seed_decides():
    first, again, other = (minibatch_numbers(64, 4, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.tolist() != sorted(first.tolist())
    # Over many seeds each row is in each minibatch equally often: 250 ± 14.
    counts = sum(minibatch_numbers(8, 4, seed) == 0 for seed in range(1000))
    assert np.abs(counts - 250).max() < 60


def make_rollout(prompts: list[int], copies: int) -> Rollout:
    ids = [f"{prompt}.{copy}" for prompt in prompts for copy in range(copies)]
    rows = len(ids)
    batch = Batch(
        tuple(Example(name, "prompt") for name in ids),
        torch.ones(rows, 1, dtype=torch.long),
        torch.ones(rows, 1, dtype=torch.bool),
        tuple(range(rows)),
    )
    mask = torch.ones(rows, 2, dtype=torch.bool)
    return Rollout(batch, torch.ones(rows, 2, dtype=torch.long), mask, ~mask[:, 0])


def minibatches(
    num_prompts: int, copies: int, count: int, *, rank: int = 0, size: int = 1, epoch: int = 0
) -> list[Rollout]:
    """Those of the updater of one process, which is only asked for what it reads."""
    updates = Updates(num_epochs=2, num_minibatches=count)
    updater = SimpleNamespace(
        objective=SimpleNamespace(settings=SimpleNamespace(updates=updates)),
        accelerator=SimpleNamespace(process_index=rank, num_processes=size),
        settings=LoopConfig(max_steps=1, rollout_batch_size=num_prompts),
        seed=19083,
    )
    share = make_rollout(list(range(num_prompts))[rank::size], copies)
    return list(Updater._minibatches(updater, share, 3, epoch))


def names(part: Rollout) -> list[str]:
    """Ids of the rows that count."""
    ids = (example.id for example in part.batch.examples)
    return [name for name, counts in zip(ids, part.mask.any(1).tolist(), strict=True) if counts]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    ("num_prompts", "copies", "count"), [(8, 1, 4), (7, 1, 3), (5, 3, 4), (3, 1, 5), (6, 2, 1)]
)
def test_the_processes_together_hold_the_rows_that_one_would(num_prompts, copies, count, size):
    alone = [sorted(names(part)) for part in minibatches(num_prompts, copies, count)]
    shares = [minibatches(num_prompts, copies, count, rank=rank, size=size) for rank in range(size)]
    assert len(alone) == count
    assert [len(share) for share in shares] == [count] * size  # else one waits for ever
    for number, expected in enumerate(alone):
        together = [name for share in shares for name in names(share[number])]
        assert sorted(together) == expected
    everything = sorted(name for part in alone for name in part)
    assert everything == sorted(f"{p}.{c}" for p in range(num_prompts) for c in range(copies))


def test_a_process_without_a_row_takes_part_with_one_that_does_not_count():
    shares = [minibatches(4, 1, 4, rank=rank, size=2) for rank in range(2)]
    for parts in zip(*shares, strict=True):
        assert sorted(part.num_tokens for part in parts) == [0, 2]
        assert [len(part) for part in parts] == [1, 1]


def test_each_pass_has_an_order_of_its_own():
    orders = [[names(part) for part in minibatches(16, 1, 4, epoch=epoch)] for epoch in (0, 1)]
    assert orders[0] != orders[1]


def test_completions_of_a_prompt_are_drawn_one_by_one():
    parts = [names(part) for part in minibatches(8, 4, 4)]
    prompts = [{name.split(".")[0] for name in part} for part in parts]
    assert any(len(some) > 2 for some in prompts)
    assert [len(part) for part in parts] == [8] * 4


def test_one_minibatch_is_the_rollout_as_it_is():
    (part,) = minibatches(5, 1, 1)
    assert names(part) == [f"{i}.0" for i in range(5)]
