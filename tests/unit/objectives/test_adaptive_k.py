"""K by what is measured: moments by hand, buckets, ties, memory, and the real objective."""

import json
import math

import pytest
import torch
from makers import policy_gradient

from brim.examples import Example
from brim.models import Decoding
from brim.objectives.adaptive_k import NUM_BUCKETS, AdaptiveK, bucket_of
from brim.objectives.settings import AdaptiveKConfig
from brim.returns import block_returns, phase_average_returns
from brim.types import ActionValues, Batch, Rollout


def adaptive_k(candidates=(1, 2, 4, 8, 16), **settings) -> AdaptiveK:
    return AdaptiveK(AdaptiveKConfig(candidates=candidates, **settings))


def mask_of(lengths, width=None):
    return torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]


def constant(rows, noise=0.0):
    """(candidates, B, T) returns that are `rows`, give or take `noise` from token to token."""
    values = torch.tensor(rows, dtype=torch.float64)[:, None, None].repeat(1, 2, 2)
    return values + noise * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])


def random_values(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = mask_of(lengths)
    best = 3 * torch.randn(mask.shape, generator=generator) + 5
    taken = best - 4 * torch.rand(mask.shape, generator=generator)
    return mask, ActionValues(
        taken.masked_fill(~mask, torch.nan),
        best.masked_fill(~mask, torch.nan),
        torch.zeros(()) + taken,
    )


def returns_of(k: AdaptiveK, mask, values):
    return torch.stack(
        [block_returns(values.q_taken, values.q_max, mask, k=c) for c in k.settings.candidates]
    )


# Buckets


def test_a_bucket_ends_before_each_power_of_2():
    lengths = torch.arange(1, 5000)
    expected = [math.floor(math.log2(n)) for n in lengths.tolist()]
    assert bucket_of(lengths).tolist() == expected
    edges = torch.tensor([0, 1, 2, 3, 4, 7, 8, 2**20 - 1, 2**20, 2**23 - 1, 2**23])
    assert bucket_of(edges).tolist() == [0, 0, 1, 1, 2, 2, 3, 19, 20, 22, 23]
    assert int(bucket_of(torch.tensor([2**23])).max()) == NUM_BUCKETS - 1


# The error and its least


def test_the_error_is_variance_and_squared_bias():
    k = adaptive_k((1, 3), num_samples=2.0)
    exact, estimate = [[1.0, 5.0], [0.0, 2.0]], [[2.0, 4.0], [3.0, 3.0]]
    chosen = k.choose(torch.tensor([exact, estimate]), mask_of([2, 2]))
    # Four tokens each: means 2 and 3, mean squares 7.5 and 9.5, biases 0 and 1.
    assert k.errors()[1].tolist() == pytest.approx([3.5 / 2, 0.5 / 2 + 1])
    assert chosen.tolist() == [3, 3]
    assert chosen.dtype == torch.int64
    assert k.errors()[[0, *range(2, NUM_BUCKETS)]].isnan().all()


def test_without_variance_it_is_1_and_without_bias_the_steadiest():
    everything = mask_of([2, 2])
    candidates = (1, 2, 4)
    steady = adaptive_k(candidates)
    assert steady.choose(constant([2.0, 3.0, 4.0]), everything).tolist() == [1, 1]
    noise = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)[:, None, None]
    unbiased = adaptive_k(candidates)
    returns = 5 + noise * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert unbiased.choose(returns, everything).tolist() == [4, 4]


def test_of_equal_errors_the_smallest_k_wins():
    k = adaptive_k((1, 2, 4, 8, 16))
    assert k.choose(constant([3.0] * 5, noise=1.0), mask_of([2, 2])).tolist() == [1, 1]


def test_rounding_makes_no_variance_negative():
    for number in (0.1, 1234.567, -98765.4321, 1e-3):
        k = adaptive_k((1, 2))
        k.choose(torch.full((2, 9, 7), number), mask_of([7] * 9))
        assert (k.errors()[2] >= 0).all()
        assert k.describe()["k/4-7/variance_1"] <= 1e-12 * number**2


@pytest.mark.parametrize("length", range(1, 9))
def test_blocks_that_do_not_fit_are_the_return_itself_and_so_never_chosen(length):
    k = adaptive_k((1, 2, 4, 8, 16))
    mask, values = random_values([length] * 50)
    returns = returns_of(k, mask, values)
    for candidate, row in zip(k.settings.candidates, returns, strict=True):
        assert torch.equal(row, returns[0]) == (candidate >= length or candidate == 1)
    assert int(k.choose(returns, mask).max()) < max(length, 2)


def test_the_more_samples_the_less_bias():
    mask, values = random_values([12, 9, 15] * 20)
    biases, choices = [], []
    for num_samples in (0.01, 0.3, 1.0, 10.0, 1e6):
        k = adaptive_k(num_samples=num_samples)
        choices.append(int(k.choose(returns_of(k, mask, values), mask)[0]))
        biases.append(k.describe()[f"k/8-15/bias_{choices[-1]}"])
    assert biases == sorted(biases, reverse=True)
    assert biases[-1] == 0 < biases[0]
    assert choices[-1] == 1


def test_each_range_of_lengths_has_its_own_k():
    mask, values = random_values([3] * 30 + [13] * 30 + [2] * 10 + [15] * 3)
    together = adaptive_k()
    chosen = together.choose(returns_of(together, mask, values), mask)
    for rows in (range(30), range(30, 60)):
        rows = [*rows, *(range(60, 70) if rows[0] == 0 else range(70, 73))]
        part = ActionValues(*(v[rows] for v in (values.q_taken, values.q_max, values.logprobs)))
        alone = adaptive_k()
        assert torch.equal(
            alone.choose(returns_of(alone, mask[rows], part), mask[rows]), chosen[rows]
        )
    assert len(set(chosen.tolist())) == 2


# Memory


def test_old_sums_fade_where_new_tokens_come_and_stay_where_none_do():
    k = adaptive_k((1, 2), smoothing=0.5)
    returns = torch.tensor([[[2.0, 2.0, 2.0]], [[3.0, 3.0, 3.0]]])
    for length in (2, 2, 1):
        k.choose(returns, mask_of([length], 3))
    # Σ 1, Σ Ĝ, Σ Ĝ², Σ (Ĝ - G) of K = 2: two tokens, of which half is left, and two more.
    assert k.sums[1, 1].tolist() == [3, 9, 27, 3]
    assert k.sums[1, 0].tolist() == [3, 6, 12, 0]
    assert k.sums[0, 1].tolist() == [1, 3, 9, 1]
    assert not k.sums[2:].any()
    forgetful = adaptive_k((1, 2), smoothing=0.0)
    for length in (3, 2):
        forgetful.choose(returns, mask_of([length], 3))
    assert forgetful.sums[1, 0].tolist() == [2, 4, 8, 0]


def test_the_state_is_json_to_the_last_bit():
    k = adaptive_k(smoothing=0.7)
    for seed in range(3):
        mask, values = random_values([5, 11, 2, 1], seed)
        k.choose(returns_of(k, mask, values), mask)
    again = adaptive_k(smoothing=0.7)
    again.load_state_dict(json.loads(json.dumps(k.state_dict())))
    assert torch.equal(again.sums, k.sums)
    assert again.describe() == k.describe()
    mask, values = random_values([6, 12, 3, 1], seed=9)
    returns = returns_of(k, mask, values)
    assert torch.equal(again.choose(returns, mask), k.choose(returns, mask))
    assert torch.equal(again.sums, k.sums)


def test_halves_of_a_batch_that_add_up_choose_as_the_whole():
    mask, values = random_values([5, 11, 2, 1, 6, 12, 4, 1])
    whole = adaptive_k()
    returns = returns_of(whole, mask, values)
    expected = whole.choose(returns, mask)
    halves = (slice(0, 4), slice(4, 8))
    shares = []
    for half in halves:  # what each process would send
        adaptive_k().choose(
            returns[:, half], mask[half], total=lambda sums: shares.append(sums) or sums
        )
    for half in halves:
        k = adaptive_k()
        chosen = k.choose(returns[:, half], mask[half], total=lambda _: shares[0] + shares[1])
        assert torch.equal(chosen, expected[half])
        torch.testing.assert_close(k.sums, whole.sums, rtol=1e-12, atol=0)


def test_one_step_that_is_not_finite_is_not_remembered():
    mask, values = random_values([5, 11, 5, 11])
    k, spared = adaptive_k(), adaptive_k()
    returns = returns_of(k, mask, values)
    for adaptive in (k, spared):
        adaptive.choose(returns, mask)
    broken = returns.clone()
    broken[:, 0, 1] = torch.nan
    k.choose(broken, mask)
    assert k.sums.isfinite().all()
    assert torch.equal(k.sums[2], spared.sums[2])  # lengths 4 to 7, with the broken row
    assert not torch.equal(k.sums[3], spared.sums[3])  # lengths 8 to 15
    # The step is skipped, for its returns are logged; those after it choose as before.
    assert torch.equal(k.choose(returns, mask), spared.choose(returns, mask))


def test_what_is_described():
    k = adaptive_k((1, 2))
    mask, values = random_values([5, 7, 1])
    k.choose(returns_of(k, mask, values), mask)
    names = {"", *(f"/{name}_{c}" for name in ("variance", "bias", "mse") for c in (1, 2))}
    metrics = k.describe()
    assert set(metrics) == {f"k/{lengths}{name}" for lengths in ("1-1", "4-7") for name in names}
    for lengths in ("1-1", "4-7"):
        mse = [metrics[f"k/{lengths}/mse_{c}"] for c in (1, 2)]
        assert metrics[f"k/{lengths}"] == (1, 2)[mse.index(min(mse))]
        assert metrics[f"k/{lengths}/bias_1"] == 0
        assert metrics[f"k/{lengths}/mse_2"] == pytest.approx(
            metrics[f"k/{lengths}/variance_2"] + metrics[f"k/{lengths}/bias_2"] ** 2
        )


# In the objective


def judged(objective, lengths, seed=0):
    mask, values = random_values(lengths, seed)
    rows = len(lengths)
    batch = Batch(
        examples=tuple(Example(f"e{i}", "prompt") for i in range(rows)),
        prompt_ids=torch.ones(rows, 1, dtype=torch.long),
        prompt_mask=torch.ones(rows, 1, dtype=torch.bool),
        seeds=tuple(range(rows)),
    )
    rollout = Rollout(
        batch, torch.ones_like(mask, dtype=torch.long), mask, torch.zeros(rows, dtype=torch.bool)
    )
    return objective.assign_credit(rollout, values)


LENGTHS = [3, 12, 1, 9, 2, 15, 3, 10] * 6


@pytest.mark.parametrize("phase", ["aligned", "average"])
def test_rows_of_different_length_have_the_returns_of_their_own_k(phase):
    objective = policy_gradient(
        Decoding(max_tokens=16), k="auto", adaptive={"candidates": (1, 2, 4)}, phase=phase,
        clip={"range": None},
    )  # fmt: skip
    rollout, sums = judged(objective, LENGTHS)
    metrics = objective.describe({key: float(value) for key, value in sums.items()})
    names = {0: "k/1-1", 1: "k/2-3", 3: "k/8-15"}
    chosen = [int(metrics[names[int(b)]]) for b in bucket_of(rollout.lengths)]
    assert len(set(chosen)) > 1
    function = phase_average_returns if phase == "average" else block_returns
    values = rollout.values
    for row, row_k in enumerate(chosen):
        expected = function(
            values.q_taken[[row]], values.q_max[[row]], rollout.mask[[row]], k=row_k
        )
        torch.testing.assert_close(rollout.returns[[row]], expected, rtol=0, atol=1e-5)
    assert torch.equal(rollout.advantages, rollout.returns)
    assert metrics["k/mean"] == sum(chosen) / len(chosen)


def test_clipped_rewards_follow_the_k_of_the_unclipped_ones():
    plain = policy_gradient(
        Decoding(max_tokens=16), k="auto", adaptive={"candidates": (1, 2, 4)}, clip={"range": None}
    )
    clipped = policy_gradient(
        Decoding(max_tokens=16),
        k="auto",
        adaptive={"candidates": (1, 2, 4)},
        clip={"range": 2.0, "target": "reward"},
    )
    expected, plain_sums = judged(plain, LENGTHS)
    actual, sums = judged(clipped, LENGTHS)
    assert torch.equal(actual.returns, expected.returns)
    assert sums["chosen_k"] == plain_sums["chosen_k"]
    assert sums["clipped"] > 0
    assert torch.equal(clipped.returns.adaptive.sums, plain.returns.adaptive.sums)  # counted once
    values, buckets = actual.values, bucket_of(actual.lengths)
    best = torch.tensor((1, 2, 4))[clipped.returns.adaptive.errors().argmin(1)[buckets]]
    for row, k in enumerate(best.tolist()):
        returns = block_returns(
            values.q_taken[[row]], values.q_max[[row]], actual.mask[[row]], k=k, reward_range=2.0
        )
        assert torch.equal(actual.advantages[[row]], returns)


def test_a_stopped_objective_goes_on_with_what_it_knew():
    def build():
        return policy_gradient(Decoding(max_tokens=16), k="auto")

    whole, first, second = build(), build(), build()
    for seed in range(4):
        expected, _ = judged(whole, LENGTHS, seed)
    for seed in range(2):
        judged(first, LENGTHS, seed)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for seed in range(2, 4):
        actual, _ = judged(second, LENGTHS, seed)
    assert torch.equal(actual.advantages, expected.advantages)
    assert whole.state_dict() == second.state_dict() != first.state_dict()
    fixed = policy_gradient(Decoding(max_tokens=16), k=4)
    assert fixed.state_dict() == {}
    fixed.load_state_dict({})
