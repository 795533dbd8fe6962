import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from brim.models.decoding import Decoding, choose_tokens, row_uniforms

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.5, -1.0, -3.0, -torch.inf])


def distribution(
    logits: list[float], temperature: float, top_k: int | None, top_p: float | None
) -> list[float]:
    """The exact probabilities, worked out token by token."""
    weights = [math.exp(value / temperature) for value in logits]
    if top_k is not None:
        kth = sorted(weights, reverse=True)[min(top_k, len(weights)) - 1]
        weights = [w if w >= kth else 0.0 for w in weights]
    probabilities = [w / sum(weights) for w in weights]
    if top_p is not None:
        mass = 0.0
        for token in sorted(range(len(weights)), key=lambda i: -probabilities[i]):
            if mass >= top_p:
                weights[token] = 0.0
            mass += probabilities[token]
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, None, None),
        (0.5, None, None),
        (2.0, None, None),
        (1.0, 2, None),
        (1.0, 3, None),  # the third and fourth tokens tie: both stay
        (1.0, 100, None),
        (1.0, None, 0.6),
        (1.0, None, 0.05),
        (1.0, None, 1.0),
        (1.5, 5, 0.9),
    ],
)
def test_sampling_follows_the_exact_distribution(
    temperature: float, top_k: int | None, top_p: float | None
) -> None:
    draws = 20_000
    decoding = Decoding(
        max_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p, strategy="sampling"
    )
    uniforms = row_uniforms(range(draws), 1)[:, 0]
    tokens = choose_tokens(LOGITS.repeat(draws, 1), uniforms, decoding)
    counts = torch.bincount(tokens, minlength=len(LOGITS)).double()
    expected = torch.tensor(distribution(LOGITS.tolist(), temperature, top_k, top_p)) * draws
    possible = expected > 0
    assert counts[~possible].sum() == 0
    if possible.sum() > 1:
        observed, exact = counts[possible].tolist(), expected[possible].tolist()
        assert stats.chisquare(observed, exact, sum_check=False).pvalue > 1e-3


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
@pytest.mark.parametrize("size", [6, 1000, 50_000])
def test_a_token_of_probability_zero_is_never_drawn(uniform: float, size: int) -> None:
    logits = torch.randn(4, size, generator=torch.Generator().manual_seed(0))
    logits[:, 0] = logits[:, -1] = logits[0, size // 2 :] = logits[1, 2:4] = -torch.inf
    chosen = choose_tokens(logits.clone(), torch.full((4,), uniform), Decoding(max_tokens=1))
    assert logits.gather(1, chosen[:, None]).isfinite().all()


def test_the_ends_of_the_unit_interval_give_the_first_and_the_last_possible_token() -> None:
    logits = torch.zeros(2, 5)
    logits[:, [0, 4]] = -torch.inf
    uniforms = torch.tensor([0.0, 1 - 2**-24])
    assert choose_tokens(logits, uniforms, Decoding(max_tokens=1)).tolist() == [1, 3]


def test_logits_that_are_not_finite_stay_in_the_vocabulary() -> None:
    logits = torch.full((3, 5), torch.nan)
    for strategy in ("sampling", "greedy"):
        decoding = Decoding(max_tokens=1, strategy=strategy)
        tokens = choose_tokens(logits.clone(), torch.rand(3, generator=torch.Generator()), decoding)
        assert ((tokens >= 0) & (tokens < 5)).all()


def test_a_row_depends_on_its_seed_alone() -> None:
    seeds = [5, 2**63 - 1, 0, 17]
    state = torch.get_rng_state()
    uniforms = row_uniforms(seeds, 40)
    assert torch.equal(torch.get_rng_state(), state)
    assert ((uniforms >= 0) & (uniforms < 1)).all()
    torch.rand(3)
    assert torch.equal(row_uniforms(seeds[::-1], 40), uniforms.flip(0))
    assert torch.equal(row_uniforms(seeds[1:2], 7), uniforms[1:2, :7])
    assert len({tuple(row.tolist()) for row in uniforms}) == len(seeds)


def test_neighbouring_seeds_give_independent_streams() -> None:
    uniforms = row_uniforms(range(4000), 8)
    assert stats.kstest(uniforms[:, 0].numpy(), "uniform").pvalue > 1e-3
    neighbours = torch.corrcoef(torch.stack([uniforms[:-1, 0], uniforms[1:, 0]]))[0, 1]
    steps = torch.corrcoef(uniforms.t())
    assert abs(neighbours) < 4 / math.sqrt(4000)
    assert (steps - torch.eye(8)).abs().max() < 4.5 / math.sqrt(4000)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"strategy": "beam"},
        {"temperature": 0.0},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"batch_tokens": 0},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Decoding(**({"max_tokens": 4} | wrong))


def test_greedy_takes_the_maximum_whatever_the_sampling_settings() -> None:
    logits: Tensor = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    decoding = Decoding(max_tokens=1, strategy="greedy", temperature=3.0, top_k=2, top_p=0.1)
    assert torch.equal(choose_tokens(logits.clone(), torch.zeros(6), decoding), logits.argmax(1))
