"""`brim sweep` on real runs: the bits of runs by hand, failures, stops, points, Ray."""

import importlib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from pairs import T5
from test_train import assert_same_run, rows

import brim.cli.sweep  # noqa: F401
from brim.cli import app
from brim.cli.app import running
from brim.config.loading import load_config
from brim.errors import BrimError, ConfigError
from brim.recipes import find_recipe
from brim.runs.train import train
from brim.support.files import read_json
from brim.training.settings import RunConfig

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
BRIM = "from brim.cli import main; main()"

SWEEP = """\
seeds: [3, 4]
settings: {teacher.seed: 0}
systems:
  brim: {recipe: numerals.yaml, grid: {objective.k: [2]}}
  lost: {recipe: numerals.yaml, settings: {task.train: nowhere.jsonl}}
"""


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", BRIM, "sweep", *map(str, arguments)],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def here(capsys):
    """`here(arguments...)` is exit code, output and errors of `brim sweep` in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = app(["sweep", *map(str, arguments)], standalone_mode=False)
        return code or 0, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def file(write_recipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    recipe = yaml.safe_load(write_recipe(T5).read_text())
    recipe["task"] |= {"max_train_examples": 48, "max_test_examples": 7}
    recipe["evaluation"] |= {"num_resamples": 100}
    (folder / "numerals.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "mine.yaml").write_text(SWEEP)
    return folder / "mine.yaml"


def test_a_sweep_makes_the_runs_that_its_commands_make(file, tmp_path, here):
    out = tmp_path / "out"
    # The threads of this process, which trains one of them again.
    options = ["--jobs", 2, "--threads-per-job", torch.get_num_threads(), "--retry", 0]
    code, stdout, stderr = here(file, "--out", out, *options)
    assert code == 1, stderr
    assert stdout.splitlines()[:2] == ["2 done, 2 failed", "stages: 3 done"]
    assert "brim-k=2/seed=3: exact match " in stderr
    assert "lost/seed=4: failed with exit code 2; the end of" in stderr
    assert "nowhere.jsonl" in stderr  # the end of the log
    assert not (out / "lost").exists() or not list(out.glob("lost/*/config.yaml"))
    # One teacher, a pre-distilled student for each seed.
    assert len(list(out.glob("stages/teacher-*"))) == 1
    assert len(list(out.glob("stages/predistill-*"))) == 2
    tested = [read_json(path) for path in out.glob("stages/*/results.json")]
    assert [results.keys() for results in tested] == [{"test"}] * 3

    code, commands, _ = here(file, "--out", tmp_path / "hand", "--only", "brim*", "--dry-run")
    head, *lines = commands.splitlines()
    assert (code, head, len(lines)) == (0, "# 2 runs, 0 of them done", 3)
    assert (
        lines.pop() == "# then each teacher and each student that runs begin with is tested, once"
    )
    recipe, *words = shlex.split(lines[1])[2:]
    overrides, (_, run, _, stages) = words[:-4], words[-4:]
    config = load_config(RunConfig, find_recipe(recipe), overrides)
    with running():
        train(config, Path(run), stages_dir=Path(stages))
    assert_same_run(Path(run), out / "brim-k=2/seed=4")

    before = {path: path.stat().st_mtime_ns for path in out.glob("brim*/**/*")}
    code, stdout, _ = here(out / "sweep.yaml", "--out", out, "--only", "brim-k=2")
    assert (code, stdout.splitlines()[:2]) == (0, ["2 done", "stages: 3 done"])
    assert {path: path.stat().st_mtime_ns for path in out.glob("brim*/**/*")} == before
    code, stdout, _ = here(file, "--out", out, "--status")
    assert [line.split()[2] for line in stdout.splitlines()[:4]] == ["done", "failed"] * 2


def test_ctrl_c_and_on_again_in_another_process(file, tmp_path, here):
    long = tmp_path / "long.yaml"
    recipe = file.with_name("numerals.yaml")
    long.write_text(
        f"settings: {{trainer.max_steps: 40}}\nsystems: {{llmr: {{recipe: {recipe}}}}}\n"
    )
    out = tmp_path / "out"
    run = out / "llmr" / "seed=0"
    process = start(long, "--out", out, "--jobs", 1)
    end = time.monotonic() + 240
    while not (run / "metrics.jsonl").exists() or not rows(run / "metrics.jsonl"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command goes on" in stderr
    assert "stopped after step" in (out / "logs/llmr-seed=0.log").read_text()
    saved = len([row for row in rows(run / "metrics.jsonl") if "train/loss" in row])
    assert 0 < saved < 40

    # As a task of SLURM would.
    assert "#SBATCH --array=1\n" in here(long, "--out", out, "--sbatch")[1]
    code, stdout, _ = here(out / "sweep.yaml", "--out", out, "--point", 1)
    assert code == 0
    assert stdout.startswith("llmr/seed=0: exact match ")
    steps = [row["step"] for row in rows(run / "metrics.jsonl") if "train/loss" in row]
    assert steps == list(range(1, 41))
    with pytest.raises(ConfigError, match="all runs are done"):
        here(out / "sweep.yaml", "--out", out, "--sbatch")


BAD = {
    "no file": (["nowhere.yaml"], "nowhere.yaml: no such file"),
    "no point of the name": (["FILE", "--only", "brin*"], "the systems are brim-k=2, lost"),
    "no such point": (["FILE", "--point", "5"], "the sweep has 4 points"),
    "a part of a GPU": (["FILE", "--sbatch", "--gpus-per-job", "0.5"], "whole GPUs"),
    "two at once": (["FILE", "--status", "--dry-run"], "--status and --dry-run do not go together"),
    "GPUs of this machine": (["FILE", "--gpus-per-job", "1"], "for --ray and --sbatch"),
    "threads of Ray": (["FILE", "--ray", "local", "--threads-per-job", "1"], "--cpus-per-job"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, file, tmp_path, here):
    arguments, expected = BAD[name]
    words = [str(file) if word == "FILE" else word for word in arguments]
    with pytest.raises(BrimError) as error:
        here(*words, "--out", tmp_path / "out")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "out").rglob("seed=*")) == []


@pytest.fixture
def ray_ends():
    yield
    importlib.import_module("ray").shutdown()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_the_same_file_on_a_local_ray(file, tmp_path, here, ray_ends):
    out = tmp_path / "out"
    code, stdout, stderr = here(file, "--out", out, "--ray", "local", "--retry", 0, "--only", "*=3")
    assert code == 1, stderr
    assert stdout.splitlines()[:3] == [
        "1 done, 1 failed", "stages: 2 done", "failed: lost/seed=3",
    ]  # fmt: skip
    assert "nowhere.jsonl" in stderr
    assert json.loads((out / "brim-k=2/seed=3/results.json").read_text())["test"]
