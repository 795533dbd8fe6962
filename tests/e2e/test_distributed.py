"""Two processes see the same batches and reach the same losses as one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pairs import GPT2, T5
from test_train import rows

ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true",
}  # fmt: skip

# Dropout masks are drawn by process, so only without them can the losses be equal.
NO_DROPOUT = ("teacher.build.dropout=0.0", "student.build.dropout=0.0", "trainer.max_steps=8",
              "trainer.save_every=4", "objective.baseline=mean")  # fmt: skip


def launch(num_processes: int, *arguments: object) -> None:
    command = [sys.executable, "-m", "brim"]
    if num_processes > 1:
        port = 29500 + os.getpid() % 2000
        # `--multi_gpu` is accelerate's word for "a process each"; the variable keeps them on CPU
        # (`--cpu` alone starts one process whatever their number).
        command = [
            sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
            "--num_machines", "1", "--num_processes", str(num_processes),
            "--mixed_precision", "no", "--dynamo_backend", "no",
            "--main_process_port", str(port), "--module", "brim",
        ]  # fmt: skip
    command += map(str, arguments)
    result = subprocess.run(command, env=ENVIRONMENT, text=True, capture_output=True, timeout=400)
    assert result.returncode == 0, result.stderr


def numbers(run: Path) -> list[dict[str, float]]:
    keys = ("train/loss", "optim/grad_norm", "rollout/return", "rollout/length", "eval/return")
    return [{key: row[key] for key in keys if key in row} for row in rows(run / "metrics.jsonl")]


@pytest.mark.parametrize("model", [T5, GPT2], ids=["t5", "gpt2"])
def test_two_processes_equal_one(write_recipe, tmp_path, model):
    recipe = write_recipe(model)
    for count in (1, 2):
        launch(count, "train", recipe, *NO_DROPOUT, "--out", tmp_path / str(count), "-q")
        manifest = json.loads((tmp_path / str(count) / "manifest.json").read_text())
        assert manifest["num_processes"] == count
    one, two = numbers(tmp_path / "1"), numbers(tmp_path / "2")
    assert len(one) == len(two) == 13
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    for name in ("predictions/test.jsonl",):
        ids = [[row["id"] for row in rows(tmp_path / run / name)] for run in "12"]
        assert ids[0] == ids[1]
    results = [json.loads((tmp_path / run / "results.json").read_text())["test"] for run in "12"]
    assert results[0]["scores"]["return"]["value"] == pytest.approx(
        results[1]["scores"]["return"]["value"], rel=1e-3, abs=1e-3
    )
