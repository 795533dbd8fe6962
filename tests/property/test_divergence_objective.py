"""Token-level losses against divergences of whole texts, on an MDP that can be enumerated.

Teacher and student are tables of logits; `Table` hands them to the objective as models: the
features of a state are its one-hot vector and the output head is the table.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mdp import NUM_WORDS, PrefixMDP
from torch import Tensor
from torch.nn.functional import one_hot

from brim.examples import Example
from brim.losses import cross_entropy
from brim.models import SOFTMAX, Decoding, Features
from brim.models.head import OutputHead
from brim.objectives import make_objective
from brim.objectives.divergence_settings import JSConfig, KLConfig, RKLConfig, TVDConfig
from brim.types import Batch, Rollout

HORIZON = 3
seeds = st.integers(0, 10**6)
few = settings(max_examples=20)


class Table:
    """A table of logits (num_states, 3) in the place of a language model."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits.float().requires_grad_()

    def evaluating(self):
        return torch.no_grad()

    def features(self, rollout: Rollout) -> Features:
        states = torch.zeros_like(rollout.completion_ids)
        for t in range(1, states.shape[1]):
            states[:, t] = NUM_WORDS * states[:, t - 1] + 1 + rollout.completion_ids[:, t - 1]
        mask = rollout.mask
        features = one_hot(states[mask], len(self.logits)).float()
        head = OutputHead(self.logits.t(), None, self.logits.shape[1])
        return Features(features, head, rollout.completion_ids[mask], mask)

    def __call__(self, rollout: Rollout, *, distribution=SOFTMAX, comparison=None):
        return self.features(rollout).token_statistics(
            distribution=distribution, comparison=comparison
        )


class Texts:
    """Every completion there is, with its probability under both models."""

    def __init__(self, seed: int) -> None:
        mdp = PrefixMDP(HORIZON, seed)
        self.all = mdp.all_trajectories()
        self.teacher, self.student = Table(mdp.teacher), Table(mdp.student)
        self.p, self.q = (
            self.all.probabilities(table.logits.detach().double())
            for table in (self.teacher, self.student)
        )

    def rollout(self, row: int, *, by_student: bool) -> Rollout:
        ones = torch.ones(1, 1, dtype=torch.long)
        return Rollout(
            Batch((Example("0", ""),), ones, ones.bool(), (0,)),
            self.all.actions[row : row + 1],
            self.all.mask[row : row + 1],
            torch.zeros(1, dtype=torch.bool),
            by_student=torch.tensor([by_student]),
        )

    def losses(self, config, *, by_student: bool) -> Tensor:
        """The objective's loss of each text, (N,) float64, differentiable."""
        objective = make_objective(config, Decoding(max_tokens=HORIZON))
        rows = range(len(self.all.mask))
        rollouts = [self.rollout(row, by_student=by_student) for row in rows]
        outputs = [objective.loss(self.student, part, self.teacher) for part in rollouts]
        return torch.stack([out.loss for out in outputs]).double()

    def expected(self, config) -> Tensor:
        """The loss as it is in the mean over who writes and what is written."""
        share = config.student_fraction
        total = self.p.new_zeros(())
        if share < 1:
            total = total + (1 - share) * (self.p * self.losses(config, by_student=False)).sum()
        if share > 0:
            total = total + share * (self.q * self.losses(config, by_student=True)).sum()
        return total

    def gradient(self, loss: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(loss, self.student.logits, retain_graph=True)
        return gradient


def kl(p: Tensor, q: Tensor) -> float:
    return float((p * (p / q).log()).sum())


@few
@given(seeds)
def test_kl_on_the_teachers_text_is_that_of_whole_texts(seed):
    texts = Texts(seed)
    assert texts.expected(KLConfig()).item() == pytest.approx(kl(texts.p, texts.q), rel=1e-4)


@few
@given(seeds)
def test_kl_on_the_teachers_text_has_the_gradient_of_cross_entropy(seed):
    """SeqKD on sampled text estimates it; the exact next-token distribution is less noisy."""
    texts = Texts(seed)
    entropies = [
        cross_entropy(texts.student(rollout).logprobs, rollout.mask)
        for rollout in (texts.rollout(row, by_student=False) for row in range(len(texts.p)))
    ]
    by_samples = texts.gradient((texts.p * torch.stack(entropies).double()).sum())
    gradient = texts.gradient(texts.expected(KLConfig()))
    torch.testing.assert_close(gradient, by_samples, rtol=1e-4, atol=1e-5)


@few
@given(seeds)
def test_rkl_on_the_students_text_is_that_of_whole_texts(seed):
    texts = Texts(seed)
    assert texts.expected(RKLConfig()).item() == pytest.approx(kl(texts.q, texts.p), rel=1e-4)


@few
@given(seeds)
def test_rkl_leaves_out_the_part_of_the_gradient_that_goes_through_sampling(seed):
    texts = Texts(seed)
    losses = texts.losses(RKLConfig(), by_student=True)
    logprobs = (texts.all.logprobs(texts.student.logits) * texts.all.mask).sum(1).double()
    through_sampling = texts.gradient((texts.q * losses.detach() * logprobs).sum())
    q = texts.all.probabilities(texts.student.logits).double()
    whole = texts.gradient((q * (q / texts.p).log()).sum())
    gradient = texts.gradient(texts.expected(RKLConfig()))
    torch.testing.assert_close(gradient + through_sampling, whole, rtol=1e-3, atol=1e-4)


@few
@given(seeds, st.floats(0.05, 0.95))
def test_js_is_never_below_that_of_whole_texts(seed, beta):
    """Its mixture is one of next tokens, not of texts. With these settings it is f-distill's."""
    texts = Texts(seed)
    mixture = beta * texts.p + (1 - beta) * texts.q
    of_texts = beta * kl(texts.p, mixture) + (1 - beta) * kl(texts.q, mixture)
    config = JSConfig(beta=beta, student_fraction=1 - beta)
    assert texts.expected(config).item() >= of_texts - 1e-5


@few
@given(seeds)
def test_tvd_is_never_below_that_of_whole_texts(seed):
    texts = Texts(seed)
    of_texts = float((texts.p - texts.q).abs().sum() / 2)
    assert texts.expected(TVDConfig()).item() >= of_texts - 1e-5


@few
@given(seeds, st.booleans())
def test_the_kls_are_the_ends_of_gkds_divergence(seed, by_student):
    texts = Texts(seed)
    for table in (texts.teacher, texts.student):  # so that no token is a thousand times as likely
        table.logits = table.logits.detach().clamp(-1, 1).requires_grad_()
    near = 1e-3
    for config, beta in ((KLConfig(), near), (RKLConfig(), 1 - near)):
        divided = texts.losses(JSConfig(beta=beta, terms="both"), by_student=by_student) / near
        exact = texts.losses(config, by_student=by_student)
        torch.testing.assert_close(divided, exact, rtol=0.02, atol=0.002)


@few
@given(seeds, st.floats(0.1, 10))
def test_a_temperature_divides_both_models_logits(seed, temperature):
    texts, divided = Texts(seed), Texts(seed)
    for table in (divided.teacher, divided.student):
        table.logits = (table.logits / temperature).detach().requires_grad_()
    for config in (KLConfig(), RKLConfig(), TVDConfig(), JSConfig()):
        for by_student in (False, True):
            warm = config.model_copy(update={"temperature": temperature})
            torch.testing.assert_close(
                texts.losses(warm, by_student=by_student),
                divided.losses(config, by_student=by_student),
                rtol=1e-4,
                atol=1e-5,
            )
