from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from operands import SmallestOperands
from rounding import assert_rounding
from test_head import (
    CASES,
    CUTS,
    HOLES,
    LARGEST,
    ROWS,
    TERMS,
    USED,
    N,
    kept,
    make,
    naive_logits,
)
from tiny import encoded, tiny_language_model
from torch import Tensor

from brim.divergences import (
    expected_value,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    student_to_mixture,
    teacher_to_mixture,
    total_variation,
)
from brim.models import Decoding, Distribution
from brim.models.features import BUFFERS, PAIR_BYTES, Comparison, pair_statistics
from brim.models.head import EXCLUDED, OutputHead, token_statistics
from brim.plan.peaks import CostCounter


def compared_pair(
    hidden: Tensor,
    head: OutputHead,
    targets: Tensor,
    other_hidden: Tensor,
    other_head: OutputHead,
    function: Callable[..., Tensor],
    arguments: Sequence[Tensor] = (),
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    comparison = Comparison(function, other_hidden, other_head, tuple(arguments))
    return pair_statistics(hidden, head, targets, comparison, **options)


def halves(student: Tensor, teacher: Tensor, by_student: Tensor) -> Tensor:
    """Two functions of two kinds of rows, each called on its own."""
    values = student.new_empty(len(student))
    for rows, function in ((by_student, student_to_mixture), (~by_student, teacher_to_mixture)):
        values = values.masked_scatter(rows, function(student[rows], teacher[rows]))
    return values


FUNCTIONS = [
    forward_kl,
    reverse_kl,
    partial(jensen_shannon, beta=0.3),
    teacher_to_mixture,
    student_to_mixture,
    total_variation,
    expected_value,
]


def name_of(function) -> str:
    return getattr(function, "func", function).__name__


each_function = pytest.mark.parametrize("function", FUNCTIONS, ids=name_of)
PLAIN: dict[str, Any] = {"bias": False, "holes": False, "scale": 1.0}
WIDTH = 5  # of the other model


def make_other(case: dict[str, Any], peak: float = 1.0) -> tuple[Tensor, OutputHead]:
    """Features and head of another model, of another size, with the same rows without a token."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(N, WIDTH, generator=generator).requires_grad_()
    weight = (peak * torch.randn(ROWS + 3, WIDTH, generator=generator)).requires_grad_()
    bias = None
    if case["holes"]:
        bias = torch.zeros(USED)
        bias[HOLES] = EXCLUDED
    return hidden, OutputHead(weight, bias, USED, 0.7)


@each_function
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk_tokens", [None, 7])
def test_values_and_gradients_equal_those_of_full_logits(function, case, chunk_tokens):
    hidden, head, targets = make(**case)
    other_hidden, other_head = make_other(case)
    head, other_head = head.at_temperature(2.0), other_head.at_temperature(0.8)
    leaves = [t for t in (hidden, head.weight, head.bias) if t is not None]
    logprobs, entropy, compared = compared_pair(
        hidden, head, targets, other_hidden, other_head, function, chunk_tokens=chunk_tokens
    )
    up, down = torch.linspace(-1, 1, N), torch.linspace(1, -1, N).square()
    gradients = torch.autograd.grad((up * logprobs + down * compared).sum(), leaves)

    logits = naive_logits(hidden, head)
    expected = function(logits, naive_logits(other_hidden, other_head))
    log_softmax = logits.log_softmax(1)
    expected_logprobs = log_softmax.gather(1, targets[:, None]).squeeze(1)
    total = (up * expected_logprobs + down * expected).sum()
    expected_gradients = torch.autograd.grad(total, leaves)
    near = {"terms": TERMS, "size": LARGEST * case.get("peak", 1.0)}
    assert logprobs.dtype == entropy.dtype == compared.dtype == torch.float32
    assert not entropy.requires_grad
    assert_rounding(compared, expected, **near)
    assert_rounding(logprobs, expected_logprobs, **near)
    assert_rounding(entropy, -(log_softmax.exp() * log_softmax).sum(1), **near)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        assert_rounding(gradient, reference, **near)


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_cut_policy_expects_the_values_of_what_it_keeps(cut, case):
    hidden, head, targets = make(**case)
    other_hidden, other_head = make_other(case)
    leaves = [t for t in (hidden, head.weight, head.bias) if t is not None]
    distribution = Distribution(0.8, **cut)
    policy = (hidden, head.under(distribution), targets)
    logprobs, _, compared = compared_pair(
        *policy, other_hidden, other_head, expected_value, chunk_tokens=7
    )
    up, down = torch.linspace(-1, 1, N), torch.linspace(1, -1, N).square()
    gradients = torch.autograd.grad((up * logprobs + down * compared).sum(), leaves)

    logits = naive_logits(hidden, head) / 0.8
    stay = kept(logits, targets, distribution.top_k, distribution.top_p)
    log_softmax = logits.masked_fill(~stay, -torch.inf).log_softmax(1)
    values = naive_logits(other_hidden, other_head).detach()
    expected = (log_softmax.exp() * values).sum(1)
    taken = log_softmax.gather(1, targets[:, None]).squeeze(1)
    expected_gradients = torch.autograd.grad((up * taken + down * expected).sum(), leaves)
    near = {"terms": TERMS, "size": LARGEST * case.get("peak", 1.0)}
    assert_rounding(compared, expected, **near)
    assert_rounding(logprobs, taken, **near)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        assert_rounding(gradient, reference, **near)


@each_function
def test_nothing_flows_into_the_other_model(function):
    case = {"bias": True, "holes": True, "scale": 1.0}
    hidden, head, targets = make(**case)
    other_hidden, other_head = make_other(case)
    _, _, compared = compared_pair(hidden, head, targets, other_hidden, other_head, function)
    compared.sum().backward()
    assert other_hidden.grad is None
    assert other_head.weight.grad is None
    assert head.weight.grad is not None
    excluded = [*range(USED, ROWS), *HOLES]
    assert (head.weight.grad[excluded] == 0).all()
    used = [i for i in range(ROWS) if i not in excluded]
    assert (head.weight.grad[used] != 0).any(dim=1).all()


@pytest.mark.parametrize("function", FUNCTIONS[:-1], ids=name_of)
def test_a_policy_that_is_its_teacher_has_nothing_to_learn(function):
    hidden, head, targets = make(**PLAIN)
    _, _, compared = compared_pair(hidden, head, targets, hidden, head, function)
    compared.sum().backward()
    assert hidden.grad is not None
    assert compared.abs().max() < 1e-6
    assert hidden.grad.abs().max() < 1e-5


def test_what_is_not_asked_for_is_not_computed():
    hidden, head, targets = make(**PLAIN)
    other = make_other(PLAIN)
    calls = []

    def counted(student: Tensor, teacher: Tensor) -> Tensor:
        calls.append(len(student))
        return forward_kl(student, teacher)

    logprobs, _, compared = compared_pair(hidden, head, targets, *other, counted, chunk_tokens=N)
    (alone,) = torch.autograd.grad(logprobs.sum(), hidden, retain_graph=True)
    assert calls == [N]
    (plain,) = torch.autograd.grad(token_statistics(hidden, head, targets)[0].sum(), hidden)
    assert_rounding(alone, plain)
    torch.autograd.grad(compared.sum(), hidden)
    assert calls == [N, N]


def test_arguments_follow_their_tokens_through_the_chunks():
    hidden, head, targets = make(**PLAIN)
    other_hidden, other_head = make_other(PLAIN)
    by_student = torch.arange(N) % 3 == 0
    pair = (hidden, head, targets, other_hidden, other_head)
    values = {}
    for function in (student_to_mixture, teacher_to_mixture):
        compared = compared_pair(*pair, function)[2]
        values[function] = (compared, torch.autograd.grad(compared.sum(), hidden)[0])
    both = compared_pair(*pair, halves, [by_student], chunk_tokens=4)[2]
    (gradient,) = torch.autograd.grad(both.sum(), hidden)
    for rows, function in ((by_student, student_to_mixture), (~by_student, teacher_to_mixture)):
        assert_rounding(both[rows], values[function][0][rows])
        assert_rounding(gradient[rows], values[function][1][rows])


def test_a_function_that_does_not_keep_the_rows_apart_is_refused():
    hidden, head, targets = make(**PLAIN)

    def mean(student: Tensor, teacher: Tensor) -> Tensor:
        return forward_kl(student, teacher).mean()

    with pytest.raises(ValueError, match="one number a row"):
        compared_pair(hidden, head, targets, *make_other(PLAIN), mean)


@pytest.mark.parametrize("function", FUNCTIONS[:-1], ids=name_of)
def test_no_denormal_numbers_enter_the_products(function):
    hidden, head, targets = make(**PLAIN, peak=12.0)
    other_hidden, other_head = make_other(PLAIN, peak=15.0)
    logits, other_logits = (
        naive_logits(*model).detach().float()
        for model in ((hidden, head), (other_hidden, other_head))
    )
    leaf = logits.requires_grad_()
    (plain,) = torch.autograd.grad(function(leaf, other_logits).sum(), leaf)
    assert ((plain != 0) & (plain.abs() < 1e-37)).any(), "the case must be peaked enough"
    _, _, compared = compared_pair(hidden, head, targets, other_hidden, other_head, function)
    with SmallestOperands() as operands:
        compared.sum().backward()
    assert operands.seen
    assert min(operands.seen) > torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", FUNCTIONS[:-1], ids=name_of)
def test_pairs_in_low_precision(function, stored):
    hidden, head, targets = make(**PLAIN)
    other_hidden, other_head = make_other(PLAIN)
    weight = head.weight.detach().to(stored).requires_grad_()
    low = OutputHead(weight, None, USED)
    with torch.autocast("cpu", torch.bfloat16):
        _, _, compared = compared_pair(hidden, low, targets, other_hidden, other_head, function)
    reference = function(naive_logits(hidden, head), naive_logits(other_hidden, other_head))
    assert compared.dtype == torch.float32
    torch.testing.assert_close(compared.double(), reference, rtol=0.02, atol=0.02)
    exact = torch.autograd.grad(reference.sum(), head.weight)[0]
    (gradient,) = torch.autograd.grad(compared.sum(), weight)
    assert gradient.dtype == stored
    torch.testing.assert_close(gradient.float(), exact, rtol=0.05, atol=0.03)


def test_a_pair_without_tokens():
    hidden, head, targets = make(**PLAIN)
    other_hidden, other_head = make_other(PLAIN)
    results = compared_pair(hidden[:0], head, targets[:0], other_hidden[:0], other_head, forward_kl)
    (results[0].sum() + results[2].sum()).backward()
    assert {tuple(result.shape) for result in results} == {(0,)}
    assert head.weight.grad is not None
    assert (head.weight.grad == 0).all()


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_policy_is_compared_with_a_teacher_along_its_tokens(family):
    student = tiny_language_model(family).eval()
    teacher = tiny_language_model(family, spread=0.7)
    rollout = student.generate(encoded(student), Decoding(max_tokens=7))
    with teacher.evaluating():
        features = teacher.features(rollout)
    weights = rollout.mask * torch.linspace(1, 2, rollout.mask.shape[1])
    comparison = features.comparison(
        lambda q, p, weight: weight * reverse_kl(q, p), weights, temperature=0.5
    )
    compared = student(rollout, distribution=Distribution(2.0), comparison=comparison).compared
    own = student.features(rollout)
    logits = own.head.logits(own.hidden) / 2.0
    teacher_logits = features.head.logits(features.hidden) / 0.5
    expected = own.scatter(reverse_kl(logits, teacher_logits)) * weights
    assert_rounding(compared, expected)
    assert compared[rollout.mask].min() > 0
    plain = student(rollout, distribution=Distribution(2.0))
    together = student(rollout, distribution=Distribution(2.0), comparison=comparison)
    assert_rounding(together.logprobs, plain.logprobs)
    assert_rounding(together.entropy, plain.entropy)


def measure(
    function: Callable[..., Tensor], arguments: list[Tensor], num_tokens: int, num_rows: int, **how
) -> tuple[int, int]:
    """Peak of a forward and a backward pass, and the bytes of the head's gradient and its copy."""
    generator = torch.Generator().manual_seed(0)
    width = 4
    hidden = torch.randn(num_tokens, width, generator=generator).requires_grad_()
    weight = torch.randn(num_rows, width, generator=generator).requires_grad_()
    other_hidden = torch.randn(num_tokens, width, generator=generator)
    other_weight = torch.randn(num_rows, width, generator=generator)
    targets = torch.randint(num_rows, (num_tokens,), generator=generator)
    head, other_head = (OutputHead(w, None, num_rows) for w in (weight, other_weight))
    with CostCounter((hidden, weight, other_hidden, other_weight, targets, *arguments)) as memory:
        logprobs, _, compared = compared_pair(
            hidden, head, targets, other_hidden, other_head, function, arguments, **how
        )
        (logprobs.sum() + compared.sum()).backward()
    return memory.peak, 2 * 4 * num_rows * width


def test_memory_of_a_pair_is_bounded_at_a_vocabulary_of_152_000():
    num_tokens, num_rows = 64, 152_000
    peak, parameters = measure(jensen_shannon, [], num_tokens, num_rows)
    assert PAIR_BYTES / 2 < peak < PAIR_BYTES + parameters
    assert peak < 7 * 4 * num_tokens * num_rows  # it is 11 such buffers without chunks


@pytest.mark.parametrize("function", [*FUNCTIONS, halves], ids=name_of)
def test_the_buffers_of_a_chunk_are_counted(function):
    arguments = [torch.arange(8) % 2 == 0] if function is halves else []
    peak, parameters = measure(function, arguments, 8, 20_000, chunk_tokens=8)
    assert peak < BUFFERS * 4 * 8 * 20_000 + parameters
