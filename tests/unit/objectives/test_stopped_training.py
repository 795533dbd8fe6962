"""Where a training that was killed or stopped goes on, and what is in its `best/` then."""

import json
import logging
from pathlib import Path

import pytest
from enumerable import DECODING, make_trainer, pair
from makers import policy_gradient

from brim.metrics import Score
from brim.runs.evaluate import training_facts
from brim.support.seals import find_damage
from brim.training.callbacks import Callbacks
from brim.training.checkpoints import KEPT, latest_state
from brim.training.evaluation import Evaluation
from brim.training.resuming import Interrupted, foreign_best

STEPS = 8
BEFORE = {0: 1.0, 2: 2.0, 5: 5.0, 6: 6.0}  # of an evaluation after each step; 0 where not named
ELSEWHERE = dict.fromkeys(range(5, STEPS + 1), 1.5)  # on other hardware


class Killing:
    """Kills the training in a step, before that is evaluated."""

    def __init__(self, at: int | None) -> None:
        self.at = at

    def on_step(self, state) -> None:
        if state.step == self.at:
            raise KeyboardInterrupt


def trainer_of(directory, scores, *callbacks, killed_at=None, keep=1):
    trainer, _ = make_trainer(policy_gradient(DECODING, k=2), *pair(), directory, steps=STEPS)
    changes = {"evaluate_every": 1, "save_every": 4, "keep_checkpoints": keep}
    trainer.settings = trainer.settings.model_copy(update=changes)
    trainer.__post_init__()
    trainer.callbacks = Callbacks(Killing(killed_at), *callbacks)

    def evaluate(model):
        value = scores.get(trainer.state.step, 0.0)
        return Evaluation({"J": Score("J", value, value, value, 0.95, "exact", True, 2)}, [], 0)

    trainer.evaluate = evaluate
    return trainer


def best_step(directory):
    return json.loads((directory / "best" / "manifest.json").read_text())["step"]


def names(directory):
    return sorted(path.name for path in directory.iterdir() if not path.name.endswith(".jsonl"))


def assert_whole(directory, step):
    """The training has ended, `best/` is that of the step, and a restart changes nothing."""
    for _ in range(2):
        assert latest_state(directory / "checkpoints")["best_step"] == step == best_step(directory)
        assert find_damage(directory / "best") is None
        assert foreign_best(directory / "best", latest_state(directory / "checkpoints")) is None
        assert names(directory) == ["best", "checkpoints"]
        assert trainer_of(directory, {}).train().best_step == step


@pytest.mark.parametrize("kills", [1, 2])
def test_a_best_that_ran_ahead_of_the_checkpoint_is_put_back(tmp_path, caplog, kills):
    for _ in range(kills):
        with pytest.raises(KeyboardInterrupt):
            trainer_of(tmp_path, BEFORE, killed_at=7).train()
        assert best_step(tmp_path) == 6
        assert names(tmp_path) == [KEPT, "best", "checkpoints"]
    with caplog.at_level(logging.WARNING):
        trainer_of(tmp_path, BEFORE | ELSEWHERE).train()
    assert "best: is of a step after step-4; made again from" in caplog.text
    assert_whole(tmp_path, 2)


def test_where_the_steps_come_again_alike_the_best_does(tmp_path):
    trainer_of(tmp_path / "whole", BEFORE).train()
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path / "killed", BEFORE, killed_at=7).train()
    trainer_of(tmp_path / "killed", BEFORE).train()
    whole, killed = ((tmp_path / name / "best").iterdir() for name in ("whole", "killed"))
    assert {p.name: p.read_bytes() for p in whole} == {p.name: p.read_bytes() for p in killed}
    assert_whole(tmp_path / "killed", 6)


@pytest.mark.parametrize("renamed", range(3))
def test_a_kill_at_any_moment_of_the_replacement_leaves_a_best_to_put_back(
    tmp_path, monkeypatch, renamed
):
    """The renames of step 5 are `best/` out of its place, then the new one into it."""
    rename, left = Path.rename, [None]

    def killed(self, target):
        if left[0] == 0 and ".best." in f"{self}{target}":
            raise KeyboardInterrupt
        if left[0] is not None:
            left[0] -= 1
        return rename(self, target)

    class Arming:
        def on_step(self, state):
            left[0] = renamed if state.step == 5 else left[0]

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path, BEFORE, Arming(), killed_at=6).train()
    left[0] = None
    trainer_of(tmp_path, BEFORE | ELSEWHERE).train()
    assert_whole(tmp_path, 2)


def test_without_what_was_kept_the_checkpoint_of_its_step_makes_the_best_again(tmp_path):
    scores = BEFORE | {4: 2.5}
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path, scores, killed_at=6).train()
    (tmp_path / KEPT).rename(tmp_path.with_name("away"))  # an older version kept none
    trainer_of(tmp_path, scores | ELSEWHERE).train()
    assert_whole(tmp_path, 4)


def test_an_evaluation_between_kill_and_resume_says_of_which_step_the_weights_are(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path, BEFORE, killed_at=7).train()
    facts = training_facts(tmp_path)
    assert (facts["steps"], facts["best_step"]) == (4, 6)


def test_a_stop_while_the_last_step_is_saved_is_not_lost(tmp_path):
    class Stopping:
        def on_save(self, state):
            trainer.stop_requested = state.step == STEPS

    trainer = trainer_of(tmp_path, BEFORE, Stopping())
    with pytest.raises(Interrupted, match=f"stopped after step {STEPS}, which is saved"):
        trainer.train()
    assert trainer_of(tmp_path, BEFORE).train().step == STEPS
