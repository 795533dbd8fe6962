import math

import numpy as np
import pytest
import torch

from brim.objectives.method import is_llmr
from brim.returns import block_returns, induced_rewards, rewards_to_go

# Regrets 1, 2, 4, 8, 16: a sum of them tells which steps were counted.
TAKEN = torch.zeros(1, 5)
BEST = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]])
MASK = torch.ones(1, 5, dtype=torch.bool)


def test_rewards_and_returns_by_hand():
    assert induced_rewards(TAKEN, BEST, MASK).tolist() == [[-2, -4, -8, -16, 0]]
    assert rewards_to_go(TAKEN, BEST, MASK).tolist() == [[-30, -28, -24, -16, 0]]


@pytest.mark.parametrize(
    ("k", "tail", "expected"),
    [
        (2, "one_step", [-4 - 16, -8 - 16, -16, -16, 0]),
        (3, "one_step", [-8 - 16, -16, -8 - 16, -16, 0]),
        (2, "none", [-4 - 16, -8, -16, 0, 0]),
        (3, "none", [-8, -16, 0, 0, 0]),
    ],
)
def test_block_returns_by_hand(k, tail, expected):
    assert block_returns(TAKEN, BEST, MASK, k=k, tail=tail).tolist() == [expected]


def test_rewards_are_clipped_before_the_sum():
    clipped = block_returns(TAKEN, BEST, MASK, k=2, reward_range=10.0)
    assert clipped.tolist() == [[-4 - 10, -8 - 10, -10, -10, 0]]


@pytest.mark.parametrize("k", [0, -1, 2.0, 1.5, True, "2", None])
def test_block_lengths_that_are_none_are_refused(k):
    with pytest.raises(ValueError, match="k must be an integer of at least 1"):
        block_returns(TAKEN, BEST, MASK, k=k)


@pytest.mark.parametrize("lengths", [[1, 2, 3], [3, 3, 5, 8], [4, 4, 4], [8, 8, 1]], ids=str)
def test_k_is_llmr_where_most_completions_have_its_returns(lengths):
    mask = torch.arange(8) < torch.tensor(lengths)[:, None]
    taken, best = torch.arange(-8.0, 0).expand(mask.shape), torch.zeros(mask.shape)
    exact = rewards_to_go(taken, best, mask)
    for k in range(1, 10):
        same = (block_returns(taken, best, mask, k=k) == exact).all(dim=1)
        assert is_llmr(k, lengths) == (2 * int(same.sum()) > len(lengths))
        assert is_llmr(k, lengths, tail="none") == (k == 1)


def test_numpy_integers_are_block_lengths():
    assert torch.equal(
        block_returns(TAKEN, BEST, MASK, k=np.int64(2)), block_returns(TAKEN, BEST, MASK, k=2)
    )


@pytest.mark.parametrize("reward_range", [0.0, -1.0, math.nan])
def test_ranges_that_are_none_are_refused(reward_range):
    with pytest.raises(ValueError, match="reward_range must be positive"):
        block_returns(TAKEN, BEST, MASK, k=2, reward_range=reward_range)


def test_unknown_tails_are_refused():
    with pytest.raises(ValueError, match="tail must be 'one_step' or 'none', got 'average'"):
        block_returns(TAKEN, BEST, MASK, k=2, tail="average")


@pytest.mark.parametrize(
    "function",
    [
        induced_rewards,
        rewards_to_go,
        lambda *args: block_returns(*args, k=2),
    ],
)
@pytest.mark.parametrize(
    ("taken", "best", "mask", "message"),
    [
        (TAKEN, BEST[:, :4], MASK, r"q_max must have the mask's shape \(1, 5\), got \(1, 4\)"),
        (TAKEN[0], BEST, MASK, r"q_taken must have the mask's shape"),
        (TAKEN.int(), BEST, MASK, "q_taken must be a float tensor"),
        (TAKEN, BEST, MASK.float(), "mask must be bool"),
        (TAKEN, BEST, MASK.logical_xor(torch.arange(5) == 2), "row 0 turns .* position 3"),
        (TAKEN, BEST, torch.arange(5)[None] > 0, "row 0 turns .* position 1"),
    ],
)
def test_wrong_tensors_are_refused_by_name(function, taken, best, mask, message):
    with pytest.raises(ValueError, match=message):
        function(taken, best, mask)


def test_a_batch_without_rows_has_no_returns():
    empty = torch.zeros(0, 5)
    assert block_returns(empty, empty, empty.bool(), k=2).shape == (0, 5)


def test_arguments_are_left_alone():
    taken, best = TAKEN.clone(), BEST.clone()
    block_returns(taken, best, MASK, k=2)
    rewards_to_go(taken, best, MASK)
    assert torch.equal(taken, TAKEN)
    assert torch.equal(best, BEST)
