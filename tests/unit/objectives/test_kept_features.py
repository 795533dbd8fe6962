"""What the teacher read is kept where the loss compares with all of its logits."""

from dataclasses import replace

import pytest
import torch
from enumerable import DECODING, EXAMPLES, build, pair
from makers import anchored, policy_gradient

from brim.models import AveragedTeacher


def averaged(family):
    """A student, and two teachers whose logits are averaged."""
    student, teacher = pair(family)
    other = build(family, 13, sharpness=3.0).requires_grad_(False)
    return student, AveragedTeacher([teacher, other], [2.0, 1.0])


@pytest.mark.parametrize("models", [pair, averaged])
@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize(
    "objective",
    [
        anchored(DECODING),
        policy_gradient(DECODING, k=2, immediate="expected", truncated="bootstrap"),
        policy_gradient(DECODING, immediate="expected", q_centering="policy", rollout_reuse=2),
    ],
    ids=["anchored", "none", "policy"],
)
def test_the_teacher_reads_once_where_the_loss_compares_with_its_logits(
    models, family, objective, monkeypatch
):
    student, teacher = models(family)
    student.batch_tokens = teacher.batch_tokens = 16  # several passes
    reads = []
    hidden = teacher._backbone.hidden
    monkeypatch.setattr(
        teacher._backbone, "hidden", lambda *args: (reads.append(1), hidden(*args))[1]
    )
    batch = student.encode(EXAMPLES * 8, max_tokens=None)
    with torch.no_grad():
        rollout, _ = objective.collect(batch, student, teacher)
    assert rollout.values.hidden.shape == (*rollout.mask.shape, teacher._head().weight.shape[1])
    asked = len(reads)
    assert asked > 1

    def gradient(rollout):
        student.zero_grad()
        for rows in rollout.buckets(24):
            objective.loss(student, rollout.select(rows), teacher).loss.backward()
        return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])

    kept = gradient(rollout)
    assert len(reads) == asked
    again = gradient(replace(rollout, values=replace(rollout.values, hidden=None)))
    assert len(reads) > asked
    torch.testing.assert_close(kept, again, rtol=1e-4, atol=1e-5 * float(again.abs().max()))


def test_nothing_is_kept_for_a_loss_that_does_not_compare():
    student, teacher = pair()
    batch = student.encode(EXAMPLES, max_tokens=None)
    for objective in (
        policy_gradient(DECODING, q_centering="policy"),
        anchored(DECODING, immediate="sampled"),
    ):
        assert objective.collect(batch, student, teacher)[0].values.hidden is None
