import math

import pytest
import torch

from brim.losses import cross_entropy, policy_gradient_loss

MASK = torch.tensor([[True, True, False], [True, False, False]])


@pytest.fixture
def logprobs():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator).log_softmax(-1)
    return values[..., 0].clone().requires_grad_()


def test_policy_gradient_loss_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -9.0, -9.0]])
    advantages = torch.tensor([[2.0, -1.0, 7.0], [0.5, 7.0, 7.0]])
    assert policy_gradient_loss(logprobs, advantages, MASK).item() == 2 - 2 + 1.5


def test_cross_entropy_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -9.0, -9.0]])
    assert cross_entropy(logprobs, MASK).item() == 6


def test_losses_pass_finite_differences(logprobs):
    generator = torch.Generator().manual_seed(1)
    advantages = torch.randn(2, 3, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda x: policy_gradient_loss(x, advantages, MASK), logprobs)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, MASK), logprobs)


def test_advantages_get_no_gradient(logprobs):
    # As where the student's own log-probabilities enter the weights.
    advantages = logprobs * 2
    policy_gradient_loss(logprobs, advantages, MASK).backward()
    torch.testing.assert_close(logprobs.grad, -torch.where(MASK, advantages.detach(), 0.0))


@pytest.mark.parametrize("filler", [math.nan, math.inf, -math.inf])
def test_padding_reaches_neither_loss_nor_gradient(logprobs, filler):
    advantages = torch.ones(2, 3, dtype=torch.float64)
    dirty = torch.where(MASK, logprobs.detach(), filler).requires_grad_()
    for loss in (
        policy_gradient_loss(dirty, torch.where(MASK, advantages, filler), MASK),
        cross_entropy(dirty, MASK),
    ):
        dirty.grad = None
        loss.backward()
        torch.testing.assert_close(loss.item(), -logprobs[MASK].sum().item())
        assert torch.equal(dirty.grad, -MASK.double())


def test_micro_batches_add_up(logprobs):
    advantages = torch.arange(6.0).reshape(2, 3)
    whole = policy_gradient_loss(logprobs, advantages, MASK)
    parts = [
        policy_gradient_loss(logprobs[i : i + 1], advantages[i : i + 1], MASK[i : i + 1])
        for i in range(2)
    ]
    torch.testing.assert_close(whole, sum(parts))


def test_half_precision_is_summed_in_float32():
    logprobs = torch.full((1, 4097), -1.0, dtype=torch.bfloat16)
    mask = torch.ones(1, 4097, dtype=torch.bool)
    assert cross_entropy(logprobs, mask).item() == 4097
    assert policy_gradient_loss(logprobs, -logprobs, mask).item() == 4097


def test_a_per_row_weight_is_refused_rather_than_broadcast(logprobs):
    with pytest.raises(ValueError, match="advantages must have the mask's shape"):
        policy_gradient_loss(logprobs, torch.zeros(2, 1), MASK)
