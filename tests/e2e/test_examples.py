"""The examples run, and what they print is true."""

import math
import runpy
from importlib import import_module
from pathlib import Path

import pytest

from brim.config.loading import load_config
from brim.objectives import OBJECTIVES
from brim.runs.directory import RunDirectory
from brim.runs.train import train
from brim.sweep import load_sweep, points
from brim.training.settings import RunConfig

EXAMPLES = Path(__file__).parents[2] / "examples"
PARTS = ("", "teacher.train.", "student.predistill.")


def test_brim_loop():
    main = runpy.run_path(str(EXAMPLES / "brim_loop.py"))["main"]
    before, after = main(["--steps", "3", "--teacher-steps", "4"])
    assert math.isfinite(before)
    assert math.isfinite(after)
    assert before != after


def test_custom_objective(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    try:
        before, after = import_module("custom_objective").main(["--steps", "20"])
    finally:
        OBJECTIVES.pop("best_of_n", None)
    assert math.isfinite(before)
    assert after > before


def test_custom_task(tmp_path):
    main = runpy.run_path(str(EXAMPLES / "custom_task.py"))["main"]
    results = main(["--steps", "2", "--out", str(tmp_path / "run")])
    assert {"exact_match", "ter", "return"} <= results["scores"].keys()
    assert "name: backwards\n" in (tmp_path / "run" / "config.yaml").read_text()
    assert main(["--steps", "2", "--out", str(tmp_path / "run")]) == results  # found again


def test_unigram_teacher(tmp_path, monkeypatch):
    """A step of everything: a teacher whose pieces are not the student's."""
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(EXAMPLES / "unigram_teacher.py"))["main"]
    main("unigram_teacher", max_examples=300)
    once = ("max_steps=1", "rollout_batch_size=4", "evaluate_every=1", "save_every=1")
    short = [f"{part}trainer.{each}" for part in PARTS for each in once]
    short += ["task.max_validation_examples=4", "task.max_test_examples=4"]
    short += ["task.max_train_examples=64", "decoding.max_tokens=8", "objective.name=brim"]
    recipe = EXAMPLES / "unigram_teacher.yaml"
    results = train(load_config(RunConfig, recipe, short), tmp_path / "run")
    assert math.isfinite(results["scores"]["return"]["value"])
    row = RunDirectory(tmp_path / "run").log("metrics.jsonl")[1]
    assert 0 <= row["rollout/unspelled"] < 1  # an untrained student writes any bytes
    assert row["rollout/segment_length"] > 0


@pytest.mark.parametrize(("name", "label"), [("translation", "rkl"), ("dates", "anchored_reward")])
def test_gallery(name, label, tmp_path, monkeypatch):
    """One step of everything, on a part of the data."""
    monkeypatch.chdir(EXAMPLES.parent)
    sweep = load_sweep(EXAMPLES / name / "sweep.yaml")
    (point,) = (point for point in points(sweep) if point.label == label)
    short = [f"task.max_{split}_examples=50" for split in ("train", "validation", "test")]
    for stage in ("", "teacher.train.", "student.predistill."):
        short += [f"{stage}trainer.max_steps=1", f"{stage}trainer.evaluate_every=1"]
    config = load_config(RunConfig, EXAMPLES / name / "recipe.yaml", [*point.overrides, *short])
    scores = train(config, tmp_path / "run")["scores"]
    assert {*config.task.metrics, "expected_return", "length"} <= scores.keys()
