"""Two processes see the same batches and reach the same losses as one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pairs import GPT2, T5
from test_train import rows

from brim.config import load_config
from brim.process import leave_processes
from brim.runs import train
from brim.settings import RunConfig

ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true",
}  # fmt: skip

# Dropout masks are drawn by process, so only without them can the losses be equal.
NO_DROPOUT = ("teacher.build.dropout=0.0", "student.build.dropout=0.0", "trainer.max_steps=8",
              "trainer.save_every=4")  # fmt: skip
MEAN = "objective.baseline=mean"

MODELS = {"t5": T5, "gpt2": GPT2}
OBJECTIVES = {
    "time_mean_and_k_auto": "{name: brim, k: auto, baseline: time_mean}",
    # Two rows a minibatch: of some a process has none.
    "ppo_llmr": "{name: ppo_llmr, num_epochs: 2, num_minibatches: 4}",
    "js": "{name: js}",
    "ppo_brim": "{name: ppo_brim, num_epochs: 2, num_minibatches: 2, kl_coefficient: 0.1}",
    "separate_critic": "{name: ppo_llmr, critic: separate, num_epochs: 1, target_kl: 0.01}",
    "min_variance_and_old_rollouts": "{name: llmr, baseline: min_variance, sync_every: 2}",
    "leave_one_out": "{name: brim, baseline: leave_one_out, num_generations: 2, rollout_reuse: 2}",
    "brim_plus": "{name: brim, phase: average, immediate: expected, baseline: time_mean}",
}


def launch(num_processes: int, *arguments: object, program: tuple = ("--module", "brim")) -> None:
    command = [sys.executable, "-m", "brim"]
    if num_processes > 1:
        port = 29500 + os.getpid() % 2000
        # `--multi_gpu` is accelerate's word for "a process each"; the variable keeps them on CPU
        # (`--cpu` alone starts one process whatever their number).
        command = [
            sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
            "--num_machines", "1", "--num_processes", str(num_processes),
            "--mixed_precision", "no", "--dynamo_backend", "no",
            "--main_process_port", str(port), *program,
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
        launch(count, "train", recipe, *NO_DROPOUT, MEAN, "--out", tmp_path / str(count), "-q")
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


def run_all(folder: Path, name: str) -> None:
    """Each objective on each model, with the recipes and the stages of the folder."""
    for model in MODELS:
        for case, settings in OBJECTIVES.items():
            overrides = [*NO_DROPOUT, f"objective={settings}"]
            config = load_config(RunConfig, folder / f"{model}.yaml", overrides)
            train(config, folder / name / f"{case}-{model}", stages_dir=folder / "stages")


@pytest.fixture(scope="module")
def compared(write_recipe, tmp_path_factory) -> Path:
    """A folder with the runs of one process in `one` and of two in `two`."""
    folder = tmp_path_factory.mktemp("compared")
    for model, description in MODELS.items():
        shutil.copy(write_recipe(description), folder / f"{model}.yaml")
    run_all(folder, "one")
    # Processes start slowly, so once for all runs.
    launch(2, folder, "two", program=(__file__,))
    return folder


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("case", OBJECTIVES)
def test_methods_on_two_processes_equal_one(compared, case, model):
    one, two = (compared / name / f"{case}-{model}" for name in ("one", "two"))
    for run, count in ((one, 1), (two, 2)):
        assert json.loads((run / "manifest.json").read_text())["num_processes"] == count
    lines = [rows(run / "metrics.jsonl") for run in (one, two)]
    assert len(lines[0]) == len(lines[1]) == 13
    for ours, theirs in zip(*lines, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=3e-5)


if __name__ == "__main__":
    run_all(Path(sys.argv[1]), sys.argv[2])
    leave_processes()
