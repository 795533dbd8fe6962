import math

import pytest
import torch

from brim.losses import (
    MAX_LOG_RATIO,
    clipped_surrogate_loss,
    cross_entropy,
    importance_weights,
    policy_gradient_loss,
    value_loss,
)

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


def test_weights_multiply_advantages_and_get_no_gradient(logprobs):
    advantages = torch.tensor([[2.0, -1.0, 7.0], [0.5, 7.0, 7.0]])
    weights = logprobs.exp()
    loss = policy_gradient_loss(logprobs, advantages, MASK, weights)
    loss.backward()
    expected = torch.where(MASK, weights.detach() * advantages, 0.0)
    torch.testing.assert_close(logprobs.grad, -expected)
    torch.testing.assert_close(loss, policy_gradient_loss(logprobs, weights * advantages, MASK))


def test_importance_weights_by_hand():
    old = torch.tensor([[0.5, 0.2, math.nan], [0.1, math.nan, 0.1]]).log()
    new = torch.tensor([[0.25, 0.4, 0.1], [0.4, 0.1, math.nan]]).log().requires_grad_()
    weights = importance_weights(new, old, MASK)
    torch.testing.assert_close(weights, torch.tensor([[0.5, 2.0, 0.0], [4.0, 0.0, 0.0]]))
    assert not weights.requires_grad
    cut = importance_weights(new, old, MASK, max_weight=2.5)
    torch.testing.assert_close(cut, torch.tensor([[0.5, 2.0, 0.0], [2.5, 0.0, 0.0]]))


def test_importance_weights_make_another_policys_samples_ones_own(logprobs):
    """One step, three actions: the expectations over both policies are exact sums."""
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(3, 3, 1, dtype=torch.float64, generator=generator)
    student, writer, credit = scores[0].requires_grad_(), scores[1], scores[2]
    every = torch.ones(3, 1, dtype=torch.bool)

    def gradient(probabilities, weights):
        logprobs = student.log_softmax(0)
        loss = policy_gradient_loss(logprobs, probabilities * credit, every, weights)
        return torch.autograd.grad(loss, student)[0]

    weights = importance_weights(student.log_softmax(0), writer.log_softmax(0), every)
    own = gradient(student.softmax(0), None)
    torch.testing.assert_close(gradient(writer.softmax(0), weights), own)
    assert (gradient(writer.softmax(0), None) - own).abs().max() > 0.01


@pytest.mark.parametrize("max_weight", [0.0, -1.0, math.nan])
def test_weight_limits_that_are_none_are_refused(logprobs, max_weight):
    with pytest.raises(ValueError, match="max_weight must be positive"):
        importance_weights(logprobs, logprobs, MASK, max_weight=max_weight)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.1, 2.0, -2.2, -2.2),  # inside
        (1.1, -2.0, 2.2, 2.2),
        (1.5, 2.0, -2.4, 0.0),  # a good action that is already likelier by more than ε
        (0.5, 2.0, -1.0, -1.0),  # a good one that has become rarer
        (0.5, -2.0, 1.6, 0.0),  # a bad one that is already rarer by more than ε
        (1.5, -2.0, 3.0, 3.0),  # a bad one that has become likelier
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, loss, slope):
    """`slope` is the gradient by the log-probability: -ρA, and 0 where it is clipped."""
    old = torch.tensor([[-3.0, math.nan]], dtype=torch.float64)
    new = (old + math.log(ratio)).requires_grad_()
    advantages = torch.tensor([[advantage, math.nan]], dtype=torch.float64)
    mask = torch.tensor([[True, False]])
    actual = clipped_surrogate_loss(new, old, advantages, mask, clip_range=0.2)
    actual.backward()
    assert actual.item() == pytest.approx(loss)
    assert new.grad[0].tolist() == pytest.approx([slope, 0.0])


FAR = math.exp(MAX_LOG_RATIO)


@pytest.mark.parametrize(
    ("new", "old", "advantage", "loss", "slope"),
    [
        (0.0, -100.0, 2.0, -2.4, 0.0),  # e^100 is past float32
        (0.0, -100.0, -2.0, 2 * FAR, 2 * FAR),  # the clip does not bound it: pushed down even so
        (0.0, -100.0, 0.0, 0.0, 0.0),
        (-100.0, 0.0, 2.0, 0.0, 0.0),
        (-100.0, 0.0, -2.0, 1.6, 0.0),
        (0.0, -1e30, 2.0, -2.4, 0.0),
        (0.0, -1e30, -2.0, 2 * FAR, 2 * FAR),
        (-1e30, 0.0, -2.0, 1.6, 0.0),
    ],
)
def test_policies_that_are_far_apart_overflow_nothing(new, old, advantage, loss, slope):
    new = torch.tensor([[new, -1.0]], requires_grad=True)
    old, mask = torch.tensor([[old, -1.0]]), torch.tensor([[True, True]])
    advantages = torch.tensor([[advantage, 3.0]])
    actual = clipped_surrogate_loss(new, old, advantages, mask, clip_range=0.2)
    actual.backward()
    assert actual.item() == pytest.approx(loss - 3, rel=1e-5)
    assert new.grad[0].tolist() == pytest.approx([slope, -3.0], rel=1e-5)
    assert new.grad.square().sum().isfinite()


def test_weights_of_policies_that_are_far_apart_are_finite():
    new, old = torch.tensor([[0.0, -100.0, -1.0]]), torch.tensor([[-100.0, 0.0, -1.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    weights = importance_weights(new, old, mask)
    torch.testing.assert_close(weights, torch.tensor([[FAR, 0.0, 1.0]]))
    assert policy_gradient_loss(new, torch.zeros(1, 3), mask, weights) == 0
    bounded = importance_weights(new, old, mask, max_weight=2.0)
    torch.testing.assert_close(bounded, torch.tensor([[2.0, 0.0, 1.0]]))


def test_at_the_old_policy_the_surrogate_is_the_policy_gradient(logprobs):
    advantages = torch.tensor([[2.0, -1.0, 7.0], [0.5, 7.0, 7.0]])
    # The old log-probabilities are the same tensor: they must be constants all the same.
    surrogate = clipped_surrogate_loss(logprobs, logprobs, advantages, MASK, clip_range=0.2)
    plain = policy_gradient_loss(logprobs, advantages, MASK)
    slopes = [torch.autograd.grad(loss, logprobs)[0] for loss in (surrogate, plain)]
    torch.testing.assert_close(*slopes)
    assert slopes[0].abs().sum() == 3.5


def test_an_unclipped_surrogate_is_the_weighted_policy_gradient(logprobs):
    old = logprobs.detach().flip(0, 1)
    advantages = torch.tensor([[2.0, -1.0, 7.0], [0.5, 7.0, 7.0]])
    surrogate = clipped_surrogate_loss(logprobs, old, advantages, MASK, clip_range=1e9)
    weighted = policy_gradient_loss(
        logprobs, advantages, MASK, importance_weights(logprobs, old, MASK)
    )
    slopes = [torch.autograd.grad(loss, logprobs)[0] for loss in (surrogate, weighted)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize(
    ("value", "target", "loss", "slope"),
    [
        (0.5, 3.0, 2.5**2 / 2, -2.5),  # inside
        (2.0, 3.0, 2.0**2 / 2, 0.0),  # past the bound and nearer the target than it: held there
        (-2.0, -3.0, 2.0**2 / 2, 0.0),
        (2.0, -1.0, 3.0**2 / 2, 3.0),  # past the bound and away from the target: drawn back
        (4.0, 1.5, 2.5**2 / 2, 2.5),  # past the target too
    ],
)
def test_value_loss_by_hand(value, target, loss, slope):
    values = torch.tensor([[value, math.nan]], requires_grad=True)
    old = torch.tensor([[0.0, math.nan]])
    targets = torch.tensor([[target, math.nan]])
    mask = torch.tensor([[True, False]])
    actual = value_loss(values, old, targets, mask, clip_range=1.0)
    actual.backward()
    assert actual.item() == pytest.approx(loss)
    assert values.grad[0].tolist() == pytest.approx([slope, 0.0])

    plain = value_loss(values, old, targets, mask, clip_range=None)
    assert plain.item() == pytest.approx((value - target) ** 2 / 2)


def test_the_clipped_value_loss_is_never_below_the_plain_one():
    generator = torch.Generator().manual_seed(3)
    values, old, targets = torch.randn(3, 200, 1, 1, generator=generator)
    mask = torch.ones(1, 1, dtype=torch.bool)
    losses = [
        [value_loss(*row, mask, clip_range=c).item() for c in (0.3, None, 1e9)]
        for row in zip(values, old, targets, strict=True)
    ]
    assert all(clipped >= plain == wide for clipped, plain, wide in losses)
    assert any(clipped > plain for clipped, plain, _ in losses)


@pytest.mark.parametrize("clip_range", [0.0, -0.2, math.nan])
def test_clip_ranges_that_are_none_are_refused(logprobs, clip_range):
    for loss in (clipped_surrogate_loss, value_loss):
        with pytest.raises(ValueError, match="clip_range must be positive"):
            loss(logprobs, logprobs, logprobs, MASK, clip_range=clip_range)


def test_cross_entropy_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -9.0, -9.0]])
    assert cross_entropy(logprobs, MASK).item() == 6


def test_losses_pass_finite_differences(logprobs):
    generator = torch.Generator().manual_seed(1)
    advantages = torch.randn(2, 3, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda x: policy_gradient_loss(x, advantages, MASK), logprobs)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, MASK), logprobs)
    old = logprobs.detach() + torch.tensor([[0.05, 0.5, 0.0], [-0.5, 0.0, 0.0]])
    for function in (
        lambda x: policy_gradient_loss(x, advantages, MASK, old),
        lambda x: clipped_surrogate_loss(x, old, advantages, MASK, clip_range=0.2),
        lambda x: value_loss(x, old, advantages, MASK, clip_range=0.2),
        lambda x: value_loss(x, old, advantages, MASK, clip_range=None),
    ):
        assert torch.autograd.gradcheck(function, logprobs)


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


FUNCTIONS = {
    "weighted": policy_gradient_loss,
    "surrogate": lambda x, y, m, z: clipped_surrogate_loss(x, z, y, m, clip_range=0.2),
    "value": lambda x, y, m, z: value_loss(x, z, y, m, clip_range=0.2),
    "plain value": lambda x, y, m, z: value_loss(x, z, y, m, clip_range=None),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("filler", [math.nan, math.inf, -math.inf])
def test_what_is_under_the_padding_never_matters(logprobs, function, filler):
    generator = torch.Generator().manual_seed(4)
    others = torch.randn(2, 2, 3, dtype=torch.float64, generator=generator)
    results = []
    for fill in (0.0, filler):
        x, y, z = (torch.where(MASK, t, fill) for t in (logprobs.detach(), *others))
        loss = function(x.requires_grad_(), y, MASK, z)
        loss.backward()
        results.append([loss.detach(), x.grad])
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_only_the_first_argument_gets_a_gradient(logprobs, function):
    others = [logprobs.detach().flip(0).requires_grad_(), logprobs.detach().requires_grad_()]
    function(logprobs, others[0], MASK, others[1]).backward()
    assert logprobs.grad.any()
    assert [other.grad for other in others] == [None, None]


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_half_precision_is_computed_in_float32(logprobs, function):
    half = logprobs.detach().bfloat16()
    arguments = half, half.flip(0), half * 1.5
    actual = function(*arguments[:2], MASK, arguments[2])
    assert actual.dtype == torch.float32
    wide = [tensor.float() for tensor in arguments]
    assert torch.equal(actual, function(*wide[:2], MASK, wide[2]))


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_micro_batches_add_up(logprobs, function):
    advantages = torch.arange(6.0).reshape(2, 3)
    old = logprobs.detach().flip(0)
    whole = function(logprobs, advantages, MASK, old)
    parts = [function(logprobs[[i]], advantages[[i]], MASK[[i]], old[[i]]) for i in range(2)]
    torch.testing.assert_close(whole, sum(parts))


def test_half_precision_is_summed_in_float32():
    logprobs = torch.full((1, 4097), -1.0, dtype=torch.bfloat16)
    mask = torch.ones(1, 4097, dtype=torch.bool)
    assert cross_entropy(logprobs, mask).item() == 4097
    assert policy_gradient_loss(logprobs, -logprobs, mask).item() == 4097


def test_a_per_row_weight_is_refused_rather_than_broadcast(logprobs):
    with pytest.raises(ValueError, match="advantages must have the mask's shape"):
        policy_gradient_loss(logprobs, torch.zeros(2, 1), MASK)
    with pytest.raises(ValueError, match="weights must have the mask's shape"):
        policy_gradient_loss(logprobs, logprobs, MASK, torch.zeros(2, 1))
    with pytest.raises(ValueError, match="old_logprobs must have the mask's shape"):
        importance_weights(logprobs, torch.zeros(2, 1), MASK)
