"""Our numbers are scipy's and TRL's."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr, softmax

from brim.divergences import (
    forward_kl,
    jensen_shannon,
    reverse_kl,
    student_to_mixture,
    teacher_to_mixture,
    total_variation,
)

# `GKDTrainer.generalized_jsd_loss` of trl 1.16.0 (torch 2.13.0, CPU) for the logits below, a row at
# a time. Made once, with `pip install --no-deps --target SOMEWHERE trl==1.16.0`, by
#
#     from trl.experimental.gkd import GKDTrainer
#     for beta in (0.0, 0.1, 0.5, 0.9, 1.0):
#         print(beta, [
#             GKDTrainer.generalized_jsd_loss(
#                 s[None, None], t[None, None], beta=beta, reduction="sum"
#             ).item()
#             for s, t in zip(*trl_logits())
#         ])
#
# Its beta = 0 is the forward KL and its beta = 1 the reverse KL.
TRL = {
    0.0: [3.240050412440733, 2.2764489102372, 2.4612482457575835, 4.0591363169881705],
    0.1: [0.234532573698065, 0.1809634921746788, 0.11654483377818507, 0.1992590862885303],
    0.5: [0.5868047250188371, 0.44104905689864243, 0.28074284615326034, 0.40191707723660053],
    0.9: [0.28830813454935134, 0.18984882296879757, 0.13997885195098803, 0.1497206540914075],
    1.0: [7.013463488968138, 3.0606691871787115, 3.5851093168599677, 1.8335116678439798],
}


def trl_logits() -> torch.Tensor:
    """Student's and teacher's logits, (2, 4, 7)."""
    generator = torch.Generator().manual_seed(13649)
    return 3 * torch.randn(2, 4, 7, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("beta", TRL)
def test_generalised_jensen_shannon_is_trls(beta):
    student, teacher = trl_logits()
    if beta in (0, 1):
        ours = (forward_kl, reverse_kl)[int(beta)](student, teacher)
    else:
        ours = jensen_shannon(student, teacher, beta)
    assert ours.tolist() == pytest.approx(TRL[beta], rel=1e-12)


@pytest.fixture(params=[1.0, 8.0], ids=["flat", "peaked"])
def pair(request):
    rng = np.random.default_rng(310)
    student, teacher = request.param * rng.standard_normal((2, 100, 11))
    tensors = torch.tensor(student), torch.tensor(teacher)
    return tensors, softmax(student, axis=-1), softmax(teacher, axis=-1)


def assert_equal(ours, theirs):
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9, atol=1e-12)


def test_kl_is_scipys(pair):
    logits, q, p = pair
    assert_equal(forward_kl(*logits), rel_entr(p, q).sum(-1))
    assert_equal(reverse_kl(*logits), rel_entr(q, p).sum(-1))


def test_jensen_shannon_is_the_square_of_scipys_distance(pair):
    logits, q, p = pair
    assert_equal(jensen_shannon(*logits), jensenshannon(p, q, axis=-1) ** 2)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_divergences_to_the_mixture_are_scipys(pair, beta):
    logits, q, p = pair
    mixture = beta * p + (1 - beta) * q
    assert_equal(teacher_to_mixture(*logits, beta), rel_entr(p, mixture).sum(-1))
    assert_equal(student_to_mixture(*logits, beta), rel_entr(q, mixture).sum(-1))


def test_total_variation_is_the_largest_difference_of_an_events_probability(pair):
    logits, q, p = pair
    event = p > q
    assert_equal(total_variation(*logits), np.where(event, p, 0).sum(-1) - (q * event).sum(-1))
