"""Divergences between two next-token distributions, from their logits.

`p = softmax(teacher)` and `q = softmax(student)` over the last axis. Both arguments are (..., V)
float; results are (...), float32 or better, in nats, and differentiable with respect to both.

A row of the vocabulary without a token has a logit of -1e30 in both: its probability is exactly 0
and its logarithm finite, so it adds exactly 0, to gradients too. Minus infinity would add NaN.

All of them raise ValueError if the shapes differ, or if `beta` is not between 0 and 1.
"""

import math

import torch
from torch import Tensor

from brim.masking import promote


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """`KL(p ‖ q) = Σ_a p_a (log p_a - log q_a)`: the student should cover the teacher's modes."""
    log_q, log_p = _log_softmax(student, teacher)
    return _kl(log_p, log_q)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """`KL(q ‖ p) = Σ_a q_a (log q_a - log p_a)`: the student should stay within a mode."""
    log_q, log_p = _log_softmax(student, teacher)
    return _kl(log_q, log_p)


def jensen_shannon(student: Tensor, teacher: Tensor, beta: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence (Agarwal et al. 2024, GKD).

        JS_β = β KL(p ‖ m) + (1-β) KL(q ‖ m),   m = β p + (1-β) q,   0 < β < 1

    It is at most the entropy of (β, 1-β), log 2 at β = 0.5. JS_β / β tends to the forward KL as
    β → 0, JS_β / (1-β) to the reverse KL as β → 1: divide where different β are compared.
    """
    log_q, log_p = _log_softmax(student, teacher)
    log_m = _log_mixture(log_q, log_p, beta)
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def teacher_to_mixture(student: Tensor, teacher: Tensor, beta: float = 0.5) -> Tensor:
    """`KL(p ‖ m)` of `jensen_shannon`, which f-distill counts on what the teacher wrote."""
    log_q, log_p = _log_softmax(student, teacher)
    return _kl(log_p, _log_mixture(log_q, log_p, beta))


def student_to_mixture(student: Tensor, teacher: Tensor, beta: float = 0.5) -> Tensor:
    """`KL(q ‖ m)` of `jensen_shannon`, which f-distill counts on what the student wrote."""
    log_q, log_p = _log_softmax(student, teacher)
    return _kl(log_q, _log_mixture(log_q, log_p, beta))


def total_variation(student: Tensor, teacher: Tensor) -> Tensor:
    """`½ Σ_a |p_a - q_a|`, at most 1."""
    log_q, log_p = _log_softmax(student, teacher)
    return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2


def expected_value(student: Tensor, values: Tensor) -> Tensor:
    """`Σ_a q_a values_a`: what the student expects of (..., V) values of its actions."""
    _check_shapes(student, values)
    return (promote(student).softmax(-1) * promote(values)).sum(-1)


def _log_softmax(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    _check_shapes(student, teacher)
    return promote(student).log_softmax(-1), promote(teacher).log_softmax(-1)


def _check_shapes(student: Tensor, other: Tensor) -> None:
    if student.shape != other.shape:
        raise ValueError(
            "student and teacher must score the same tokens and vocabulary, "
            f"got shapes {tuple(student.shape)} and {tuple(other.shape)}"
        )


def _log_mixture(log_q: Tensor, log_p: Tensor, beta: float) -> Tensor:
    """`log(β p + (1-β) q)`."""
    if not 0 < beta < 1:
        raise ValueError(f"beta must be between 0 and 1, both excluded, got {beta!r}")
    return torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)
