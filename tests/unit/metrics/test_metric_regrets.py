"""Returns of cut texts and regret per token: on them the length of a text has no say."""

import numpy as np
import pytest
import torch

from brim.metrics import Score
from brim.metrics.regrets import (
    common_length,
    length_common_to,
    mean_regrets,
    regret_and_length,
    regret_behind,
    with_cut_returns,
)
from brim.returns import rewards_to_go


def score(value: float, **details: float) -> Score:
    return Score("x", value, None, None, 0.95, "s", True, 3, details)


@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_a_cut_return_is_the_return_of_the_cut_text(length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q_taken = torch.randn(6, 7, generator=generator, dtype=torch.float64)
    q_max = q_taken + torch.rand(6, 7, generator=generator, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([1, 2, 4, 5, 7, 7])[:, None]
    whole = rewards_to_go(q_taken, q_max, mask)[:, 0]
    expected = rewards_to_go(q_taken, q_max, mask & (torch.arange(7) < length))[:, 0]
    for row in range(6):
        regrets = (q_max - q_taken)[row][mask[row]].tolist()
        found = whole[row] + regret_behind([regrets], length)
        assert float(found) == pytest.approx(float(expected[row]))


def test_an_example_is_the_mean_of_its_texts() -> None:
    texts = [[0.5, 0.0, 0.25], [1.0]]
    assert regret_and_length(texts) == (0.875, 2.0)
    assert regret_behind(texts, 1) == 0.125
    assert mean_regrets([texts, [[2.0, 2.0]]]) == [1.375, 1.0, 0.0625]
    assert mean_regrets([]) == []


def test_shortening_wins_a_return_and_nothing_else() -> None:
    """Half of each text, with the same regrets up to there."""
    regrets = np.random.default_rng(0).uniform(size=(20, 8))
    sides = []
    for cut in (regrets, regrets[:, :4]):
        facts = {"mean_regrets": {"return": mean_regrets([[row] for row in cut.tolist()])}}
        value = 9 - cut.sum(axis=1).mean()
        sides.append(({"return": score(value), "length": score(0, median=cut.shape[1])}, facts))
    assert length_common_to([[side] for side in sides]) == 4
    long, short = (with_cut_returns(*side, 4) for side in sides)
    assert short["return"].value > long["return"].value + 1
    assert short["cut_return"].value == pytest.approx(long["cut_return"].value, abs=1e-5)
    assert short["cut_return"].value == short["return"].value
    assert list(long) == ["return", "cut_return", "length"]
    assert long["cut_return"].name == "return, first 4 tokens"


def test_what_is_older_is_left_as_it_was() -> None:
    old = {"return": score(1.0), "length": score(7.0)}
    assert length_common_to([[(old, {})]]) is None
    assert with_cut_returns(old, {}, None) == with_cut_returns(old, {}, 3) == old
    new = {"return": score(2.0), "length": score(7.0, median=3.5)}
    facts = {"mean_regrets": {"return": [1.0] * 5}}
    assert length_common_to([[(old, {})], [(new, facts)]]) == 3
    assert with_cut_returns(new, facts, 3)["cut_return"].value == 4.0
    assert with_cut_returns(new, facts, None) == new
    assert common_length([0.0, 5.0]) == 1


def test_one_seed_that_collapsed_does_not_cut_all_systems() -> None:
    facts = {"mean_regrets": {"return": [0.5]}}
    seeds = [({"length": score(0, median=median)}, facts) for median in (9.0, 1.0, 8.0)]
    assert length_common_to([seeds, seeds[:1]]) == 8
