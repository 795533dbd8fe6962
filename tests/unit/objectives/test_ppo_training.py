"""PPO by the real trainer: several updates of each rollout raise the exact expected return."""

import pytest
import torch
from enumerable import (
    DECODING,
    EXAMPLES,
    every_completion,
    expected_return,
    highest_return,
    make_trainer,
    pair,
    probabilities,
)
from makers import ppo_brim, ppo_llmr

OBJECTIVES = {
    "ppo_brim": (ppo_brim, {"k": 2}),
    "ppo_llmr shared": (ppo_llmr, {"clip": {"range": 10.0}}),
    "ppo_llmr separate": (ppo_llmr, {"clip": {"range": 10.0}, "critic": "separate"}),
}


@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_several_updates_of_each_rollout_raise_the_exact_expected_return(name, family, tmp_path):
    student, teacher = pair(family)
    before = expected_return(student, teacher)
    cls, settings = OBJECTIVES[name]
    objective = cls(DECODING, num_epochs=2, num_minibatches=3, **settings)
    trainer, logged = make_trainer(objective, student, teacher, tmp_path)
    trainer.train()
    after = expected_return(student, teacher)
    assert after > before + 0.75 * (highest_return(teacher) - before)
    assert after == trainer.state.best_score
    assert [metrics["optim/updates"] for metrics in logged] == [6] * 10
    assert sum(metrics["ppo/clip_fraction"] for metrics in logged) > 0
    if cls is ppo_llmr:
        assert logged[0]["ppo/explained_variance"] == 0
        assert max(metrics["ppo/explained_variance"] for metrics in logged) > 0.02


def test_a_target_kl_ends_the_updates_of_a_step(tmp_path):
    counts = {}
    for target in (1e6, 1e-3):
        student, teacher = pair()
        objective = ppo_brim(DECODING, num_epochs=3, num_minibatches=2, target_kl=target)
        trainer, logged = make_trainer(objective, student, teacher, tmp_path / str(target), steps=4)
        trainer.train()
        counts[target] = [metrics["optim/updates"] for metrics in logged]
    assert counts[1e6] == [6] * 4
    # The policy of a step's first update is the one that wrote.
    assert all(2 <= count < 6 for count in counts[1e-3])


def test_a_kl_coefficient_keeps_the_student_near_its_start(tmp_path):
    distances = []
    for coefficient in (0.0, 1.0):
        student, teacher = pair()
        rollout = every_completion(student)
        start = probabilities(student, rollout)
        objective = ppo_brim(
            DECODING, k=1, num_epochs=2, num_minibatches=2, kl_coefficient=coefficient
        )
        trainer, logged = make_trainer(
            objective, student, teacher, tmp_path / str(coefficient), steps=6
        )
        trainer.train()
        now = probabilities(student, rollout)
        distances.append(float(now @ (now / start).log()) / len(EXAMPLES))
        assert ("ppo/kl_to_start" in logged[0]) == bool(coefficient)
    assert distances[0] > 1.3 * distances[1]
    assert logged[0]["ppo/kl_to_start"] == pytest.approx(0, abs=1e-6)
    assert logged[-1]["ppo/kl_to_start"] > 0.01


def test_micro_batches_change_rounding_only(tmp_path):
    weights = []
    for size in (8192, 30):
        student, teacher = pair()
        objective = ppo_llmr(DECODING, num_epochs=2, num_minibatches=2, clip={"range": 10.0})
        make_trainer(
            objective, student, teacher, tmp_path / str(size), steps=2, micro_batch_tokens=size
        )[0].train()
        weights.append(torch.cat([p.detach().flatten() for p in objective.module.parameters()]))
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-3)
    assert (weights[0] - weights[1]).norm() < 1e-3 * weights[0].norm()


def test_a_resumed_critic_goes_on_to_the_same_bits(tmp_path):
    def run(directory, *steps):
        student, teacher = pair()
        for last in steps:
            student, teacher = pair()
            objective = ppo_llmr(
                DECODING,
                num_epochs=2,
                num_minibatches=2,
                critic="separate",
                kl_coefficient=0.1,
                clip={"range": 10.0},
            )
            trainer, logged = make_trainer(objective, student, teacher, directory, steps=last)
            trainer.train()
        return trainer.updater.module.state_dict(), logged[-1]

    whole, last = run(tmp_path / "whole", 3)
    resumed, again = run(tmp_path / "resumed", 2, 3)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert last == again
    assert last["ppo/kl_to_start"] > 0  # from the first student, not from the one resumed
