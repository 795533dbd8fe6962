"""The parts of the loop that are plain functions."""

import collections

import pytest
import torch

from brim.seeding import batch_positions, derive_seed, example_index
from brim.training.loop_settings import LoopConfig, OptimConfig
from brim.training.optimizer import count_steps, learning_rate


def epoch(number: int, size: int, seed: int = 0) -> list[int]:
    return [example_index(p, size, seed) for p in range(number * size, (number + 1) * size)]


def test_each_example_comes_once_an_epoch_in_a_new_order():
    first, second = epoch(0, 50), epoch(1, 50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first != epoch(0, 50, seed=1)


def test_steps_tile_the_stream():
    positions = [p for step in range(4) for p in batch_positions(step, 7)]
    assert positions == list(range(28))


def test_seeds_differ_by_every_key():
    seeds = [
        derive_seed(seed, stream, step, row)
        for seed in range(3) for stream in ("rollout", "dropout") for step in range(10)
        for row in range(10)
    ]  # fmt: skip
    assert max(collections.Counter(seeds).values()) == 1
    assert derive_seed(1, "a", 23) != derive_seed(1, "a", 2, 3)
    assert derive_seed(1, "1") != derive_seed(1, 1)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_learning_rate():
    constant = OptimConfig(lr=1.0, warmup_steps=4)
    assert [learning_rate(constant, step, 10) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    for schedule in ("linear", "cosine"):
        optim = OptimConfig(lr=1.0, warmup_steps=2, schedule=schedule)
        rates = [learning_rate(optim, step, 12) for step in range(13)]
        assert rates[2] == 1.0
        assert rates[7] == pytest.approx(0.5)
        assert rates[12] == pytest.approx(0.0)
        assert rates[2:] == sorted(rates[2:], reverse=True)


def test_epochs_are_rounded_up_to_whole_steps():
    assert count_steps(LoopConfig(num_epochs=2, rollout_batch_size=8), 21) == 6
    assert count_steps(LoopConfig(max_steps=5), 21) == 5
    for tenths in range(1, 60):  # in binary 1.1 · 100 is more than 110
        settings = LoopConfig(num_epochs=tenths / 10, rollout_batch_size=10)
        assert count_steps(settings, 100) == tenths


def test_global_generator_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    epoch(0, 1000)
    assert torch.equal(torch.get_rng_state(), before)
