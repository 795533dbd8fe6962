"""Which checkpoint the trainer keeps as the best, by scores that are given to it."""

import logging

import pytest
import torch
from enumerable import DECODING, make_trainer, pair
from makers import seqkd

from brim.metrics import Score
from brim.models import load_model
from brim.training.callbacks import Callback, Callbacks
from brim.training.evaluation import Evaluation

STEPS = 6


class KilledError(BaseException):
    pass


def trainer_of(directory, scores, *, higher_is_better=True, killed_at=None):
    """A trainer whose evaluations, every other step, give these scores; saves every third step."""
    trainer, _ = make_trainer(seqkd(DECODING), *pair(), directory, steps=STEPS, rows=4)

    def evaluate(model):
        value = scores[trainer.state.step]
        score = Score("J", value, value, value, 0.95, "given", higher_is_better, 2)
        return Evaluation({"J": score}, [], 0)

    class Killing(Callback):
        def on_evaluate(self, state):
            if state.step == killed_at:
                raise KilledError

    trainer.evaluate = evaluate
    intervals = {"evaluate_every": 2, "save_every": 3}
    trainer.settings = trainer.settings.model_copy(update=intervals)
    trainer.callbacks = Callbacks(Killing())
    return trainer


def weights(path):
    return load_model(path).model.state_dict()


@pytest.mark.parametrize(
    ("scores", "higher_is_better", "best"),
    [
        ({0: 0.0, 2: 0.0, 4: 0.0, 6: 0.0}, True, 6),
        ({0: 0.0, 2: 5.0, 4: 5.0, 6: 1.0}, True, 4),
        ({0: 9.0, 2: 7.0, 4: 7.0, 6: 8.0}, False, 4),
        ({0: 9.0, 2: 7.0, 4: 8.0, 6: 7.5}, False, 2),
    ],
)
def test_the_later_of_equal_scores_is_the_best_also_after_a_stop(
    tmp_path, caplog, scores, higher_is_better, best
):
    whole = trainer_of(tmp_path / "whole", scores, higher_is_better=higher_is_better)
    with caplog.at_level(logging.WARNING):
        assert whole.train().best_step == best
    assert "best/" not in caplog.text
    expected = weights(tmp_path / "whole" / "best")
    if best == STEPS:
        final = weights(tmp_path / "whole" / "checkpoints" / f"step-{STEPS}")
        assert all(torch.equal(expected[name], final[name]) for name in expected)
    # KilledError after best/ was written and before the checkpoint that knows of it.
    for killed_at in (2, 4):
        directory = tmp_path / f"killed-{killed_at}"
        with pytest.raises(KilledError):
            trainer_of(
                directory, scores, higher_is_better=higher_is_better, killed_at=killed_at
            ).train()
        again = trainer_of(directory, scores, higher_is_better=higher_is_better)
        assert again.train() == whole.state
        found = weights(directory / "best")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_training_that_never_helped_is_a_warning(tmp_path, caplog):
    trainer = trainer_of(tmp_path, {0: 3.0, 2: 1.0, 4: 2.0, 6: 2.5})
    with caplog.at_level(logging.WARNING):
        assert trainer.train().best_step == 0
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path}: best/ is the model of step 0, before training: J was worse at every "
        "evaluation up to step 6; train longer, or change optim.lr"
    )
