"""What is shown of a training: the return or what stands for it, length, evaluations, no loss."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from makers import policy_gradient, seqkd

from brim.models import Decoding
from brim.runs.watched import Watched
from brim.support.progress import Meter
from brim.training.callbacks import CallbackState
from brim.training.loop_settings import LoopConfig
from brim.training.pace import Pace

DECODING = Decoding(max_tokens=4)
LOSS = {"train/loss": 12.3456, "rollout/length": 7.25}


def watched(objective=None, metric: str = "exact_match") -> tuple[Watched, Meter]:
    meter = Meter("brim", 100)
    pace = Pace(LoopConfig(max_steps=100), 100)
    return Watched(meter, metric, objective or policy_gradient(DECODING), pace), meter


def state(step: int, best: tuple[int | None, float | None] = (None, None), **seen):
    return CallbackState(Path("run"), step, 100, *best, **seen)


def scores(value: float, metric: str = "exact_match"):
    return {metric: SimpleNamespace(value=value)}


@pytest.mark.parametrize(
    ("objective", "logged", "expected"),
    [
        (policy_gradient(DECODING), {"rollout/return": -3.456}, "return -3.46, length 7.2"),
        (
            policy_gradient(DECODING),  # of any objective that logs no return
            {"policy/divergence": 0.12345},
            "divergence 0.1235 per token, length 7.2",
        ),
        (seqkd(DECODING), {}, "cross-entropy 12.346 per token, length 7.2"),
        (policy_gradient(DECODING), {}, "length 7.2"),
    ],
    ids=["return", "divergence", "cross-entropy", "neither"],
)
def test_each_method_shows_the_number_that_means_something(objective, logged, expected):
    shown, meter = watched(objective)
    shown.on_step(state(3, metrics={**LOSS, **logged}))
    assert meter.note == expected
    assert meter.done == 3


def test_the_last_evaluation_stands_beside_the_best():
    shown, meter = watched()
    shown.on_evaluate(state(0, (0, 20.0), scores=scores(20.0)))
    assert meter.note == "exact match 20.0 at step 0 (best)"
    shown.on_step(state(5, (0, 20.0), metrics={**LOSS, "rollout/return": 1.0}))
    shown.on_evaluate(state(10, (0, 20.0), scores=scores(12.0)))
    assert meter.note == (
        "return 1.00, length 7.2; exact match 12.0 at step 10 (best 20.0 at step 0)"
    )


def test_a_resumed_training_knows_the_best_before_it_evaluates():
    shown, meter = watched(metric="expected_return")
    shown.on_step(state(41, (25, -1.234), metrics=LOSS))
    assert meter.note == "length 7.2; expected return: best -1.23 at step 25"
    assert meter.done == 41


def test_an_evaluation_under_way_is_seen():
    shown, meter = watched()
    advance = shown.evaluating(1500)
    advance(500)
    advance(500)
    assert meter.note == "evaluating 1,000 of 1,500 examples"
    assert meter.done == 0
