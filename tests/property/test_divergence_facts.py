"""What must hold of divergences, whatever the logits."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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

DIVERGENCES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "jensen_shannon_0.1": lambda s, t: jensen_shannon(s, t, 0.1),
    "teacher_to_mixture": lambda s, t: teacher_to_mixture(s, t, 0.3),
    "student_to_mixture": lambda s, t: student_to_mixture(s, t, 0.3),
    "total_variation": total_variation,
}
FUNCTIONS = {**DIVERGENCES, "expected_value": expected_value}
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)

NO_TOKEN = -1e30


@st.composite
def pairs(draw, limit=30.0):
    """Student's and teacher's logits, (V,) float64 each."""
    size = draw(st.integers(1, 8))
    logits = st.lists(st.floats(-limit, limit, width=32), min_size=size, max_size=size)
    return tuple(torch.tensor(draw(logits), dtype=torch.float64) for _ in range(2))


betas = st.floats(0.01, 0.99)


def random_logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, *shape, dtype=torch.float64, generator=generator)


def gradients(function, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student, teacher = (t.detach().clone().requires_grad_() for t in (student, teacher))
    function(student, teacher).sum().backward()
    return student.grad, teacher.grad


# What a divergence is


@every_divergence
@given(pairs())
def test_divergences_are_0_between_equals_and_never_negative(divergence, pair):
    student, teacher = pair
    assert float(divergence(student, student)) == pytest.approx(0, abs=1e-12)
    assert float(divergence(student, teacher)) >= -1e-12


@every_divergence
def test_divergences_tell_different_distributions_apart(divergence):
    student, teacher = random_logits(50, 6)
    assert (divergence(student, teacher) > 1e-3).all()


@every_divergence
@given(pairs(), st.floats(-50, 50), st.floats(-50, 50))
def test_logit_offsets_change_nothing(divergence, pair, one, other):
    student, teacher = pair
    torch.testing.assert_close(
        divergence(student + one, teacher + other), divergence(student, teacher), atol=1e-9, rtol=0
    )


# Bounds


@given(pairs(), betas)
def test_bounds_of_mixtures(pair, beta):
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert float(jensen_shannon(*pair, beta)) <= entropy + 1e-12
    assert float(jensen_shannon(*pair)) <= math.log(2) + 1e-12
    assert float(teacher_to_mixture(*pair, beta)) <= -math.log(beta) + 1e-12
    assert float(student_to_mixture(*pair, beta)) <= -math.log(1 - beta) + 1e-12


@given(pairs())
def test_total_variation_is_at_most_1_and_obeys_pinsker(pair):
    distance = float(total_variation(*pair))
    assert distance <= 1 + 1e-12
    for divergence in (forward_kl, reverse_kl):
        assert distance <= math.sqrt(max(float(divergence(*pair)), 0) / 2) + 1e-6


# Symmetries and limits


@given(pairs(), betas)
def test_swapping_the_roles(pair, beta):
    student, teacher = pair

    def assert_close(one, other):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)

    assert_close(jensen_shannon(student, teacher), jensen_shannon(teacher, student))
    assert_close(total_variation(student, teacher), total_variation(teacher, student))
    assert_close(forward_kl(student, teacher), reverse_kl(teacher, student))
    assert_close(jensen_shannon(student, teacher, beta), jensen_shannon(teacher, student, 1 - beta))
    assert_close(
        teacher_to_mixture(student, teacher, beta), student_to_mixture(teacher, student, 1 - beta)
    )


@given(pairs(), betas)
def test_the_halves_make_the_whole(pair, beta):
    halves = beta * teacher_to_mixture(*pair, beta) + (1 - beta) * student_to_mixture(*pair, beta)
    torch.testing.assert_close(halves, jensen_shannon(*pair, beta), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("limit", "scaled"),
    [
        (forward_kl, lambda pair, beta: jensen_shannon(*pair, beta) / beta),
        (reverse_kl, lambda pair, beta: jensen_shannon(*pair, 1 - beta) / beta),
    ],
    ids=["forward", "reverse"],
)
def test_at_its_ends_jensen_shannon_is_a_kl_divergence(limit, scaled):
    pair = random_logits(20, 5, seed=1, scale=1.0)
    gaps = [scaled(pair, beta) - limit(*pair) for beta in (1e-3, 1e-4, 1e-5)]
    for before, after in pairwise(gaps):
        # The gap is of first order in beta.
        torch.testing.assert_close(after / before, torch.full_like(after, 0.1), rtol=0.1, atol=0)
    assert (gaps[-1].abs() < 1e-3).all()


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, 1.5, math.nan])
@pytest.mark.parametrize("function", [jensen_shannon, teacher_to_mixture, student_to_mixture])
def test_mixtures_of_one_distribution_are_refused(function, beta):
    with pytest.raises(ValueError, match="beta must be between 0 and 1"):
        function(*random_logits(3), beta)


# Gradients


@every_function
def test_gradients_pass_finite_differences(function):
    student, teacher = (t.clone().requires_grad_() for t in random_logits(3, 5, scale=2.0))
    assert torch.autograd.gradcheck(function, (student, teacher))


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_gradients_of_kl_are_those_of_the_textbook(scale):
    student, teacher = random_logits(40, 7, scale=scale).float()
    q, p = student.softmax(-1), teacher.softmax(-1)
    torch.testing.assert_close(
        gradients(forward_kl, student, teacher)[0], q - p, rtol=1e-4, atol=1e-6
    )
    score = student.log_softmax(-1) - teacher.log_softmax(-1)
    torch.testing.assert_close(
        gradients(reverse_kl, student, teacher)[0],
        q * (score - (q * score).sum(-1, keepdim=True)),
        rtol=1e-4,
        atol=1e-6 * scale,
    )


@every_divergence
def test_between_equals_nothing_pulls(divergence):
    student, _ = random_logits(20, 6)
    for gradient in gradients(divergence, student, student):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@given(pairs())
def test_expected_values_are_means_over_actions_and_so_are_their_gradients(pair):
    """Of the score function: E[value_a ∇ log π(a)], every action weighed by its probability."""
    student, values = pair
    probabilities = student.softmax(-1)
    expected = math.fsum((probabilities * values).tolist())
    assert float(expected_value(student, values)) == pytest.approx(expected, rel=1e-9, abs=1e-9)

    logits = student.clone().requires_grad_()
    (probabilities * values * logits.log_softmax(-1)).sum().backward()
    torch.testing.assert_close(
        gradients(expected_value, student, values)[0], logits.grad, rtol=1e-9, atol=1e-9
    )


# Rows without a token, peaks, precision


@every_function
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [1.0, 0.7])
def test_rows_without_a_token_add_exactly_nothing(function, dtype, ratio):
    # A temperature divides the stand-in for minus infinity too, perhaps of one model only.
    student, teacher = random_logits(10, 6).to(dtype)
    padding = torch.full((10, 3), NO_TOKEN, dtype=dtype)
    padded = torch.cat([student, padding], -1), torch.cat([teacher, padding / ratio], -1)
    torch.testing.assert_close(function(*padded), function(student, teacher))
    for wide, own in zip(
        gradients(function, *padded), gradients(function, student, teacher), strict=True
    ):
        torch.testing.assert_close(wide[:, :6], own)
        assert torch.equal(wide[:, 6:], torch.zeros_like(padding))


@every_function
def test_a_vocabulary_of_one_token_has_nothing_to_learn(function):
    student = torch.tensor([[3.0, NO_TOKEN]])
    teacher = torch.tensor([[-2.0, NO_TOKEN]])
    expected = -2 if function is expected_value else 0
    assert function(student, teacher).item() == pytest.approx(expected, abs=1e-7)
    torch.testing.assert_close(
        gradients(function, student, teacher)[0], torch.zeros_like(student), rtol=0, atol=1e-7
    )


@every_function
@pytest.mark.parametrize("gap", [50.0, 1e4])
def test_opposite_peaks_stay_finite_in_float32(function, gap):
    student = torch.tensor([0.0, gap, 0.0, NO_TOKEN])
    teacher = torch.tensor([gap, 0.0, 0.0, NO_TOKEN])
    expected = {
        forward_kl: gap,
        reverse_kl: gap,
        jensen_shannon: math.log(2),
        total_variation: 1.0,
        expected_value: 0.0,
    }
    value = float(function(student, teacher))
    assert value == pytest.approx(expected.get(function, value), abs=1e-6)
    assert math.isfinite(value)
    assert all(gradient.isfinite().all() for gradient in gradients(function, student, teacher))


@every_function
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(function, dtype):
    student, teacher = random_logits(4, 6).to(dtype)
    result = function(student, teacher)
    assert result.dtype == torch.float32
    assert torch.equal(result, function(student.float(), teacher.float()))


@every_function
def test_float32_is_accurate_over_a_large_vocabulary(function):
    student, teacher = random_logits(3, 50_000, scale=2.0)
    torch.testing.assert_close(
        function(student.float(), teacher.float()).double(),
        function(student, teacher),
        rtol=1e-5,
        atol=1e-6,
    )


@every_function
def test_leading_axes_are_kept_and_shapes_must_match(function):
    student, teacher = random_logits(2, 3, 4)
    result = function(student, teacher)
    assert result.shape == (2, 3)
    torch.testing.assert_close(result[1, 2], function(student[1, 2], teacher[1, 2]))
    # (3, 4) would broadcast, and compare every row of the batch with one of them.
    for wrong in (teacher[..., :3], teacher[0], teacher[..., :1]):
        with pytest.raises(ValueError, match=r"shapes \(2, 3, 4\) and "):
            function(student, wrong)
