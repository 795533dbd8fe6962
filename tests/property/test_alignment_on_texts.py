"""What a teacher of other tokens makes of all texts there are: exact gradients of their return."""

import pytest
import torch
from makers import anchored, policy_gradient, ppo_brim, ppo_llmr
from texts import (
    THEIRS,
    TextStudent,
    TextTeacher,
    aligned,
    certain_places,
    finished_places,
)

from brim.advantages import gae
from brim.models import Decoding
from brim.models.alignment import read_text
from brim.objectives.credit import score
from brim.returns import induced_rewards, rewards_to_go
from brim.types import Rollout

HORIZON = 4
STUDENT, TEACHER = TextStudent(HORIZON), TextTeacher()
EVERYTHING = STUDENT.everything
DECODING = Decoding(max_tokens=HORIZON)
UNCLIPPED = {"clip": {"range": None}}
near = {"rtol": 0, "atol": 1e-10}


def own_reading() -> Rollout:
    """Every text as the teacher's own completion."""
    texts = STUDENT.decode(EVERYTHING)
    ids = [r.ids for r in read_text(TEACHER.encoder, texts, (~EVERYTHING.truncated).tolist())]
    return TEACHER.encoder.rollout(TEACHER.encode(texts), ids, 99, EVERYTHING.truncated.tolist())


def returns_of_texts() -> torch.Tensor:
    """(N,) `q(b_1) − Σ_{j>1} d_j`, by the teacher's tokens alone."""
    read = own_reading()
    values = TEACHER.action_values(read)
    return rewards_to_go(values.q_taken, values.q_max, read.mask)[:, 0]


def exact_gradient() -> torch.Tensor:
    expected = STUDENT.probabilities() @ returns_of_texts()
    return torch.autograd.grad(expected, STUDENT.table)[0]


def gradient_of(weights: torch.Tensor) -> torch.Tensor:
    """(states, 4), of Σ over texts of their probability times Σ_t weight_t log π(a_t | s_t)."""
    logprobs = STUDENT.features(EVERYTHING).token_statistics().logprobs
    weighted = STUDENT.probabilities().detach() @ (weights.double() * logprobs).sum(1)
    return torch.autograd.grad(weighted, STUDENT.table)[0]


def weights(objective, boundaries=certain_places) -> torch.Tensor:
    q = score(
        aligned(TEACHER, STUDENT, boundaries), EVERYTHING, STUDENT, objective.settings, DECODING
    )
    return objective.assign_credit(EVERYTHING, q)[0].advantages


def cosine(one, other):
    return torch.cosine_similarity(one.flatten(), other.flatten(), dim=0)


@pytest.mark.parametrize("centering", ["none", "mean", "max", "logsumexp"])
def test_llmr_follows_the_return_of_the_text(centering):
    found = weights(policy_gradient(DECODING, q_centering=centering, **UNCLIPPED))
    torch.testing.assert_close(gradient_of(found), exact_gradient(), **near)


def test_places_of_the_finished_text_are_the_trap():
    objective = policy_gradient(DECODING, q_centering="none", **UNCLIPPED)
    found = gradient_of(weights(objective, finished_places))
    exact = exact_gradient()
    assert (found - exact).norm() > 0.01 * exact.norm()


def test_the_whole_text_as_one_segment_is_exact_too():
    objective = policy_gradient(DECODING, q_centering="none", **UNCLIPPED)
    found = weights(objective, lambda text: [])
    torch.testing.assert_close(gradient_of(found), exact_gradient(), **near)
    mine = weights(objective)
    spread = [(STUDENT.probabilities().detach() @ w.square().sum(1)).item() for w in (mine, found)]
    assert spread[0] != spread[1]


def test_anchored_follows_it_without_decay():
    objective = anchored(
        DECODING, **{"lambda": 1.0}, immediate="sampled", expected_regrets=False,
        remaining_regret="none", **UNCLIPPED,
    )  # fmt: skip
    torch.testing.assert_close(gradient_of(weights(objective)), exact_gradient(), **near)


def test_anchored_runs_over_segments():
    settings = {"immediate": "sampled", "expected_regrets": False, **UNCLIPPED}
    objective = anchored(DECODING, remaining_regret="none", **{"lambda": 0.7}, **settings)
    q = aligned(TEACHER, STUDENT).action_values(EVERYTHING)
    found = objective.assign_credit(EVERYTHING, q)[0].advantages
    for row, ids in enumerate(q.segments.index.tolist()):
        length = int(EVERYTHING.lengths[row])
        regrets = torch.zeros(1, ids[length - 1] + 1, dtype=torch.float64)
        for t in range(length):
            regrets[0, ids[t]] += (q.q_max - q.q_taken)[row, t]
        own = gae(-regrets, torch.zeros_like(regrets), torch.ones_like(regrets) > 0, lambda_=0.7)
        for t in range(length):
            torch.testing.assert_close(found[row, t], own[0, ids[t]], **near)


def test_rewards_of_ppo_add_up_to_the_return_of_the_text():
    q = aligned(TEACHER, STUDENT).action_values(EVERYTHING)
    rewards = induced_rewards(q.q_taken, q.q_max, EVERYTHING.mask)
    torch.testing.assert_close(rewards.sum(1), returns_of_texts(), **near)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(gradient_of(to_go), exact_gradient(), **near)


def test_ppo_has_an_advantage_for_every_token():
    plain = {"normalize_advantages": False, "q_centering": "none", "num_epochs": 1, **UNCLIPPED}
    blocks = ppo_brim(DECODING, **plain)
    blocks.prepare(STUDENT)
    q = aligned(TEACHER, STUDENT).action_values(EVERYTHING)
    found = blocks.assign_credit(EVERYTHING, q, STUDENT)[0].advantages
    torch.testing.assert_close(gradient_of(found), exact_gradient(), **near)
    anchor = ppo_llmr(DECODING, critic="anchored", gae_lambda=1.0, normalize_advantages=False)
    anchor.prepare(STUDENT)
    found = anchor.assign_credit(EVERYTHING, q, STUDENT)[0].advantages
    assert bool(found[EVERYTHING.mask].isfinite().all())


def test_a_step_of_k_is_a_segment():
    q = aligned(TEACHER, STUDENT).action_values(EVERYTHING)
    objective = policy_gradient(DECODING, k=2, q_centering="none", tail="none", **UNCLIPPED)
    found = objective.assign_credit(EVERYTHING, q)[0]
    index, last = q.segments.index, EVERYTHING.lengths - 1
    same = EVERYTHING.mask[:, 1:] & (index[:, 1:] == index[:, :-1])
    assert bool(same.any())
    assert torch.equal(found.advantages[:, 1:][same], found.advantages[:, :-1][same])
    final = index.gather(1, last[:, None]) - index < 2
    # Without a tail the last two segments count for themselves alone.
    regrets = torch.zeros_like(q.q_max).scatter_add(1, index, q.q_max - q.q_taken)
    own = q.q_max - regrets.gather(1, index)
    counted = final & EVERYTHING.mask
    torch.testing.assert_close(found.advantages[counted], own[counted], **near)


def test_regrets_are_shared_out_without_rest():
    read = own_reading()
    values, q = TEACHER.action_values(read), aligned(TEACHER, STUDENT).action_values(EVERYTHING)
    regrets = ((values.q_max - values.q_taken) * read.mask).sum(1)
    torch.testing.assert_close((q.q_max - q.q_taken).sum(1), regrets, **near)
    torch.testing.assert_close(q.logprobs.sum(1), (values.logprobs * read.mask).sum(1), **near)
    assert torch.equal(q.segments.teacher_tokens, read.lengths)


def test_a_segment_is_open_by_what_was_written_before_the_token():
    # Texts that begin alike have alike segments, up to and with the token in which they differ.
    q = aligned(TEACHER, STUDENT).action_values(EVERYTHING)
    known = {}
    for row, ids in enumerate(EVERYTHING.completion_ids.tolist()):
        for t in range(int(EVERYTHING.lengths[row])):
            opened = (tuple(q.segments.index[row, : t + 1].tolist()), float(q.q_max[row, t]))
            assert known.setdefault(tuple(ids[:t]), opened) == opened


def test_teacher_and_student_spell_differently():
    texts = set(STUDENT.decode(EVERYTHING))
    counts = {len(reading.ids) for reading in read_text(TEACHER.encoder, ["ab", "aba"], [True] * 2)}
    assert THEIRS[3] == "ba"
    assert {"abab", "ba", ""} <= texts
    assert counts == {3}
