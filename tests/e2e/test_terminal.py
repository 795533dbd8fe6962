"""What a user sees of a real run: in a log, with -q, and at Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from pairs import QWEN2

from brim.support.seals import checkpoints_in, find_damage

# A command whose steps are as loud as libraries can be; then they sleep, as those of a large model.
LOUD = """
import logging, sys, time, warnings
from brim.training.trainer import Trainer
original = Trainer._train_step

def train_step(self):
    from huggingface_hub.utils import tqdm as hub_tqdm
    from transformers.utils.logging import get_logger, tqdm
    import datasets
    warnings.warn("a warning of Python")
    for name in ("transformers", "datasets", "huggingface_hub", "torch", "another.package"):
        logging.getLogger(f"{name}.part").warning(f"a warning of {name}")
    get_logger("transformers.models").warning("a warning by its own logger")
    for bar in (hub_tqdm, tqdm, datasets.utils.tqdm):
        list(bar(range(3), desc="a bar"))
    original(self)
    if self.state.step == SLEEPS:
        time.sleep(600)

Trainer._train_step = train_step
from brim.cli import main
main()
"""
SHORT = (
    "teacher.train.trainer.max_steps=1",
    "student.predistill=null",
    "trainer.max_steps=3",
    "tracking.backends=[tensorboard]",
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}


def start(*arguments: object, sleeps: int = -1) -> subprocess.Popen:
    code = LOUD.replace("SLEEPS", str(sleeps))
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def logged(write_recipe, tmp_path_factory):
    """A run whose standard error is no terminal: the run, what it printed, what it said."""
    run = tmp_path_factory.mktemp("logged") / "run"
    process = start("train", write_recipe(QWEN2), *SHORT, "--out", run)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return run, stdout, stderr


def test_a_log_says_what_was_loaded_from_where(logged, numerals):
    _, _, stderr = logged
    lines = stderr.splitlines()
    for split, rows in (("train", 160), ("validation", 16), ("test", 23)):
        source = f"{split} data of files, {numerals}/{split}.jsonl"
        assert any(line.startswith(f"{source}: {rows} rows") for line in lines), stderr
    for role in ("teacher", "student"):
        said = rf"{role} of random weights: Qwen2ForCausalLM, [\d,]+ parameters, float32 on \w+"
        assert re.search(said, stderr)
    assert "teacher's tokenizer of the training data: " in stderr


def test_a_log_has_return_length_and_evaluation_and_neither_loss_nor_control_characters(logged):
    _, _, stderr = logged
    line = next(line for line in stderr.splitlines() if line.startswith("brim: 3/3 in "))
    assert re.search(
        r"done  return -?\d+\.\d\d, length \d+\.\d; exact match \d+\.\d at step \d \(best", line
    )
    assert "loss" not in line
    assert "cross-entropy" in next(x for x in stderr.splitlines() if x.startswith("teacher: 1/1"))
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", stderr)
    assert "a bar" not in stderr


def test_libraries_are_heard_once_without_q(logged):
    _, _, stderr = logged
    assert "a warning of Python" in stderr
    assert stderr.count("a warning of another.package") == 1


def test_the_end_is_one_narrow_table_without_signatures(logged):
    run, stdout, _ = logged
    tables, _, rest = stdout.partition("texts: 5 of the 23 examples")
    assert max(map(len, tables.splitlines())) <= 80
    assert [line.split()[0] for line in tables.splitlines() if line[:3] in ("tea", "stu")][:2] == [
        "teacher", "student",
    ]  # fmt: skip
    assert "version:" not in stdout
    assert str(run / "best") in rest


def test_a_run_is_one_folder_of_tensorboard(logged):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run, _, _ = logged
    assert {path.parent for path in run.parent.rglob("events.*")} == {run / "tensorboard"}
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {"train/loss", "eval/exact_match", "teacher/train/loss"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    assert [event.step for event in events.Scalars("teacher/train/loss")] == [1]


def test_q_silences_libraries_too(write_recipe, tmp_path):
    process = start("train", write_recipe(QWEN2), *SHORT, "--out", tmp_path / "run", "-q")
    assert process.communicate(timeout=300) == ("", "")
    assert process.returncode == 0
    assert (tmp_path / "run" / "results.json").exists()


def test_q_does_not_silence_errors(write_recipe, tmp_path, brim_says):
    code, stdout, stderr = brim_says(
        "train", write_recipe(QWEN2), "task.train=nowhere.jsonl", "--out", tmp_path / "run", "-q"
    )
    assert (code, stdout) == (2, "")
    assert "nowhere.jsonl" in stderr


def test_the_first_ctrl_c_announces_the_second_which_stops_at_once(write_recipe, tmp_path):
    run = tmp_path / "run"
    process = start("train", write_recipe(QWEN2), *SHORT, "--out", run, sleeps=2)
    wait_for(lambda: (run / "metrics.jsonl").exists() and 1 in checkpoints_in(run / "checkpoints")
             and '"step": 2' in (run / "metrics.jsonl").read_text(), process)  # fmt: skip
    process.send_signal(signal.SIGINT)
    announced = next(line for line in process.stderr if "Ctrl-C" in line)
    assert announced == (
        "saving after this step; press Ctrl-C again to stop at once (work since step 1 is lost)\n"
    )
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == (
        "brim: stopped at once; the same command goes on from step 1"
    )
    assert "Traceback" not in stderr
    checkpoints = checkpoints_in(run / "checkpoints")
    assert [*checkpoints] == [1]
    assert find_damage(checkpoints[1]) is None
