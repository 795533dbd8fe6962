"""Alarms on curves that are made here: each failure raises its own, noise raises none."""

import gzip
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from brim.metrics import Score
from brim.training.monitors import DECAY, ENOUGH, KINDS, Monitors, MonitorState, Reference
from brim.training.updates import text_sums
from brim.types import Batch, Rollout

TEACHER = Reference("the teacher", length=20.0, truncated=0.0, repetition=0.02)
FAILS_AT, STEPS, EVALUATE_EVERY, ROWS = 60, 110, 5, 16
DATA = Path(__file__).parents[2] / "data" / "curves.json.gz"
CURVES = json.loads(gzip.decompress(DATA.read_bytes()))
LASTING_STEPS = math.ceil(math.log(1 - ENOUGH) / math.log(DECAY))  # 1 − DECAYⁿ > ENOUGH
# What each failure makes of a step, by how many steps it has lasted, from 1.
FAILURES = {
    "length": lambda t: {"rollout/length": 20 * 0.95**t},
    "truncated": lambda t: {"rollout/truncated": 0.9},
    "entropy": lambda t: {"policy/entropy": 0.6 * 0.8**t},
    "repetition": lambda t: {"repetition": min(0.03 * t, 0.9)},
    "metric": lambda t: {"metric": 40 - t, "return": 8 + 0.1 * t},
    "kl": lambda t: {"policy/kl_to_teacher": 0.8 + 0.1 * t},
    "variance": lambda t: {"weight_noise": 0.0},
}


def curve(seed, failure=None, *, rows=ROWS):
    """A training that gets better, with the noise of `rows` completions a step; then it fails."""
    generator = np.random.default_rng(seed)
    for step in range(1, STEPS + 1):
        gain = 1 - math.exp(-step / 60)
        noise = generator.normal(size=8) / math.sqrt(rows)
        values = {
            "rollout/length": (24 - 3 * gain) * (1 + 0.6 * noise[0]),  # far off, then nearer
            "rollout/truncated": abs(0.02 + 0.15 * noise[1]),
            "policy/entropy": (0.9 - 0.5 * gain) * (1 + 0.2 * noise[2]),
            "policy/kl_to_teacher": (0.8 - 0.3 * gain) * (1 + 0.6 * noise[3]),
            "repetition": abs(0.02 + 0.1 * noise[4]),
            "weight_noise": 1.0,
            "metric": 20 + 20 * gain + 2 * noise[5] * math.sqrt(rows),
            "return": 5 + 3 * gain + 0.2 * noise[6] * math.sqrt(rows),
            "optim/grad_norm": 1.0,
            "optim/skipped": 0.0,
        }
        if failure is not None and step > FAILS_AT:
            values |= FAILURES[failure](step - FAILS_AT)
        yield step, values


def watch(monitors, steps):
    """The alarms of a training by their steps."""
    alarms = {}
    for step, values in steps:
        weights = 3 + values["weight_noise"] * np.random.default_rng(step).normal(size=50)
        sums = {
            "own_rows": 16.0, "ngrams": 1000.0, "repeated": 1000 * values["repetition"],
            "weights": 50.0, "weight": weights.sum(), "squared_weight": (weights**2).sum(),
        }  # fmt: skip
        logged = monitors.observe(values, sums)
        if step % EVALUATE_EVERY == 0:
            scores = {"bleu": score(values["metric"], 4), "return": score(values["return"], 0.4)}
            logged |= monitors.evaluate(scores)
        alarms |= {key: step for key, value in logged.items() if key.startswith("monitor/")}
        assert all(f"monitor/{text.split()[1][:-1]}" in logged for text in monitors.take())
    return alarms


def score(value, half_width, *, higher_is_better=True):
    ends = value - half_width, value + half_width
    return Score("x", value, *ends, 0.95, "", higher_is_better, 100)


@pytest.mark.parametrize("reference", [TEACHER, None], ids=["teacher", "start"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_failure_raises_its_alarm_within_fifty_steps_and_no_other(kind, reference):
    for seed in range(3):
        alarms = watch(Monitors("warn", reference), curve(seed, kind))
        assert alarms.keys() == {f"monitor/{kind}"}
        assert FAILS_AT < alarms[f"monitor/{kind}"] <= FAILS_AT + 50


@pytest.mark.parametrize("reference", [TEACHER, None], ids=["teacher", "start"])
@pytest.mark.parametrize("seed", range(20))
def test_noise_raises_no_alarm(seed, reference):
    assert watch(Monitors("warn", reference), curve(seed)) == {}
    assert watch(Monitors("warn", reference), curve(seed, rows=4)) == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [5, FAILS_AT + 8, STEPS - 1])
def test_a_resumed_training_has_the_same_alarms_and_none_twice(kind, stop):
    steps = list(curve(0, kind))
    whole, first = Monitors("warn", TEACHER), Monitors("warn", TEACHER)
    expected = watch(whole, steps)
    before = watch(first, steps[:stop])
    kept = json.loads(json.dumps(asdict(first.state)))
    second = Monitors("warn", TEACHER, TypeAdapter(MonitorState).validate_python(kept))
    after = watch(second, steps[stop:])
    assert before | after == expected
    assert not before.keys() & after.keys()
    assert second.state == whole.state


def test_a_sign_has_to_last():
    """One step less than it takes raises nothing, whatever the size; nor does a single outlier."""
    steps = [values for _, values in curve(0)]
    for length in (1, LASTING_STEPS - 1, LASTING_STEPS):
        bad = [{**v, "policy/kl_to_teacher": 1e9} for v in steps[30 : 30 + length]]
        alarms = watch(Monitors("warn"), enumerate([*steps[:30], *bad, *steps[60:]], 1))
        assert alarms == ({"monitor/kl": 30 + length} if length == LASTING_STEPS else {})


def test_nothing_is_watched_of_skipped_steps_of_texts_of_others_and_when_off():
    values, sums = dict(curve(0))[1], {"own_rows": 0.0}
    assert Monitors("off").observe(values, {"own_rows": 1.0}) == {}
    assert Monitors("warn").observe(values, sums) == {}
    assert Monitors("warn").observe({**values, "optim/skipped": 1.0}, {"own_rows": 1.0}) == {}
    alone = {"return": score(1, 1), "length": score(1, 1)}
    assert Monitors("warn").evaluate(alone) == {}
    # Without a metric of the task the return has nothing to part from: not from its own mean.
    monitors = Monitors("warn")
    for value in range(5):
        worse = replace(score(value, 0.1), higher_is_better=False)
        scores = {"return": score(value, 0.1), "regret_per_token": worse, "length": score(1, 1)}
        assert monitors.evaluate(scores) == {}


@pytest.mark.parametrize("name", CURVES)
def test_real_curves(name):
    """Runs of 250 steps of the recipes of cmudict, seed 101; at 3e-3 the student collapses."""
    steps = CURVES[name]["steps"]
    evaluations = {step: scores for step, *scores in CURVES[name]["evaluations"]}
    monitors, alarms = Monitors("warn", replace(TEACHER, length=7.2)), {}
    for step in range(251):
        logged = {}
        if step:
            values = {key: column[step - 1] for key, column in steps.items()}
            values |= {"optim/skipped": 0.0, "optim/grad_norm": 9.0}
            square = values["rollout/var_advantage"]
            sums = {"own_rows": 256, "ngrams": 1, "repeated": 0, "weights": 1, "weight": 0}
            logged |= monitors.observe(values, {**sums, "squared_weight": square})
        if step in evaluations:
            match, value = evaluations[step]  # with the intervals of 500 examples
            logged |= monitors.evaluate({"match": score(match, 3.5), "return": score(value, 0.6)})
        alarms |= dict.fromkeys(logged.keys() - {"rollout/repetition", "rollout/var_weight"}, step)
    assert alarms.keys() == (
        {"monitor/kl", "monitor/length", "monitor/entropy"} if name.endswith("3e-3") else set()
    )
    assert all(alarms[f"monitor/{kind}"] <= 50 for kind in ("kl", "length") if alarms)


def test_an_error_rate_falls_when_it_rises():
    monitors = Monitors("warn")
    for i in range(4):
        scores = {"ter": score(30 + 10 * i, 1, higher_is_better=False), "return": score(i, 0.1)}
        logged = monitors.evaluate(scores)
    assert monitors.state.raised == ["metric"]
    assert logged == {}  # a second time


def rollout(rows, mask=None, **more):
    ids = torch.tensor(rows)
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else torch.tensor(mask)
    batch = Batch((), ids, mask, [])
    return Rollout(batch, ids, mask, torch.zeros(len(ids), dtype=torch.bool), **more)


def test_repeated_ngrams_are_those_that_the_same_text_had_before():
    rows = [[1, 2, 3, 4, 1, 2, 3, 4], [7] * 8, [1, 2, 3, 4, 5, 6, 0, 0]]
    mask = [[True] * 8, [True] * 8, [True] * 6 + [False] * 2]
    texts = rollout(rows, mask, by_student=torch.tensor([True, True, True]))
    sums = text_sums(texts)
    # 1234 comes twice in the first; 7777 five times in the second, of which four are repeats.
    assert (sums["ngrams"], sums["repeated"]) == (5 + 5 + 3, 1 + 4)
    assert sums["own_rows"] == 3
    first = text_sums(replace(texts, by_student=torch.tensor([True, False, False])))
    assert (first["ngrams"], first["repeated"], first["own_rows"]) == (5, 1, 1)
    assert text_sums(replace(texts, by_student=None))["own_rows"] == 0
    short = rollout([[1, 2]], advantages=torch.tensor([[1.0, -2.0]]))
    sums = text_sums(short)
    assert (sums["ngrams"], sums["weight"], sums["squared_weight"]) == (0, -1, 5)
