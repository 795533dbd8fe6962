"""Squared gradient norms of the output layer against autograd, token by token."""

import pytest
import torch
from rounding import assert_rounding
from test_head import kept
from tiny import encoded, tiny_language_model, written

from brim.models import SOFTMAX, Decoding, Distribution, LanguageModel
from brim.models.head import EXCLUDED, OutputHead, gradient_norms
from brim.types import Rollout

# Written at the first, a token can lie outside of what the last two keep.
DISTRIBUTIONS = [
    SOFTMAX,
    Distribution(0.5),
    Distribution(3.0),
    Distribution(top_k=3),
    Distribution(0.8, top_k=6, top_p=0.7),
]


def norms_by_autograd(
    model: LanguageModel, rollout: Rollout, distribution: Distribution
) -> torch.Tensor:
    """(B, T): the head's weight is a copy, so that an embedding that shares it stays out."""
    with torch.no_grad():
        features = model.features(rollout)
    head = features.head.at_temperature(distribution.temperature)
    weight = head.weight.detach().double().requires_grad_()
    bias = 0.0 if head.bias is None else head.bias.double()
    norms = []
    for hidden, token in zip(features.hidden.double(), features.token_ids, strict=True):
        logits = (head.scale * hidden) @ weight[: head.num_rows].t() + bias
        outside = ~kept(logits[None], token[None], distribution.top_k, distribution.top_p)[0]
        logits = logits.masked_fill(outside, -torch.inf)
        (gradient,) = torch.autograd.grad(logits.log_softmax(0)[token], weight)
        norms.append(gradient.square().sum())
    return features.scatter(torch.stack(norms)).float()


# t5 scales its features, gpt2 and llama share the head, phi and marian have a bias.
@pytest.mark.parametrize("family", ["t5", "t5_v1_1", "gpt2", "llama", "phi", "marian"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
def test_norms_are_those_of_autograd(family, distribution):
    model, rollout = written(family, spread=0.3)
    norms = model.gradient_norms(rollout, distribution=distribution)
    expected = norms_by_autograd(model, rollout, distribution)
    assert_rounding(norms, expected)
    assert norms.dtype == torch.float32
    assert not norms[~rollout.mask].any()
    assert (norms[rollout.mask] >= 0).all()
    assert norms.max() > 0.01


def test_no_trace_is_left_and_dropout_is_off():
    model = tiny_language_model("t5").train()
    rollout = model.generate(encoded(model), Decoding(max_tokens=4))
    norms = [model.gradient_norms(rollout) for _ in range(2)]
    assert torch.equal(*norms)
    assert not norms[0].requires_grad
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_chunks_and_rows_without_token_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 8, generator=generator)
    weight = torch.randn(50, 8, generator=generator)
    targets = torch.randint(40, (23,), generator=generator)
    bias = torch.zeros(44)
    bias[40:] = EXCLUDED
    whole = gradient_norms(hidden, OutputHead(weight, None, 40), targets)
    torch.testing.assert_close(
        gradient_norms(hidden, OutputHead(weight, bias, 44), targets), whole, rtol=1e-5, atol=1e-5
    )
    monkeypatch.setattr("brim.models.head.CHUNK_BYTES", 4 * 40 * 7)
    torch.testing.assert_close(gradient_norms(hidden, OutputHead(weight, None, 40), targets), whole)


def test_what_is_certain_moves_nothing():
    weight = 50 * torch.eye(4)
    hidden = torch.eye(4)[:2]
    assert not gradient_norms(hidden, OutputHead(weight, None, 4), torch.tensor([0, 1])).any()
    # And the opposite is as wrong as can be: ‖onehot(a) - onehot(b)‖² ‖h‖² = 2.
    surprised = gradient_norms(hidden, OutputHead(weight, None, 4), torch.tensor([1, 0]))
    torch.testing.assert_close(surprised, torch.tensor([2.0, 2.0]))
