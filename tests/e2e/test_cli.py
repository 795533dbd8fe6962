"""The command line as a user meets it: exit codes, one-line errors, kills and resumes."""

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
from pairs import GPT2, T5
from safetensors.torch import load_file
from test_train import assert_same_run, rows

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def brim(*arguments: object):
    return subprocess.run(
        [sys.executable, "-m", "brim", *map(str, arguments)],
        env=ENVIRONMENT, text=True, capture_output=True, timeout=300,
    )  # fmt: skip


def test_help_needs_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from brim.cli import app\n"
        "for command in ([], ['train'], ['evaluate'], ['generate'], ['recipes'], ['quickstart']):\n"
        "    result = CliRunner().invoke(app, [*command, '--help'])\n"
        "    assert result.exit_code == 0, result.output\n"
        "    assert len(result.output.splitlines()) <= 40, result.output\n"
        "CliRunner().invoke(app, ['recipes'])\n"
        "assert not {'torch', 'transformers', 'datasets'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=True, timeout=60)


@pytest.fixture
def recipe(write_recipe) -> Path:
    return write_recipe(T5)


LOADED = ["teacher.build=null", "teacher.tokenizer=null", "teacher.train=null"]

BAD = {
    "unknown key": (["RECIPE", "optim.learning_rate=1"], "did you mean optim.lr?"),
    "out of bounds": (["RECIPE", "optim.lr=-1"], "optim.lr"),
    "missing data": (["RECIPE", "task.train=nowhere.jsonl"], "nowhere.jsonl"),
    "wrong column": (["RECIPE", "task.target_column=romans"], "romans"),
    "empty data": (["RECIPE", "task.train=empty.jsonl"], "empty.jsonl"),
    "bad row": (["RECIPE", "task.train=bad.jsonl"], "bad.jsonl:2:"),
    "no such model": (["RECIPE", *LOADED, "teacher.path=nowhere"], "nowhere"),
    "no head": (["RECIPE", *LOADED, "teacher.path=headless"], "head"),
    "no file of that name": (["RECIPE", "task.train=nowhere.bla"], "no such file"),
    "missing test split": (["RECIPE", "task.test=nowhere.jsonl"], "nowhere.jsonl"),
    "unmeasured metric": (["RECIPE", "evaluation.metric=bleu"], "exact_match, ter, return"),
    "bad decay": (["RECIPE", "optim.betas=[0.9, 1.5]"], "optim.betas"),
    "unknown task metric": (["RECIPE", "task.metrics=[belu]"], "bleu"),
    "too many layers": (["RECIPE", "student.build=null", "student.keep_layers=9"], "9"),
    "nothing to charge": (
        ["RECIPE", "objective.truncated=bootstrap", "objective.q_centering=max"],
        "q_centering",
    ),
    "bad description": (["RECIPE", "student.build.d_modle=8"], "student.build"),
    "no such device": (["RECIPE", "teacher.device=gpu"], "teacher.device: 'gpu'"),
    "no number": (["RECIPE", "optim.max_grad_norm=# 1"], "optim.max_grad_norm"),
    "not a run": (["RECIPE", "--out", "notes"], "diary.txt"),
    "below a file": (["RECIPE", "--out", "empty.jsonl/run"], "choose another --out"),
    "nothing to resume": (["RECIPE", "--resume", "must"], "no run to resume"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, recipe, tmp_path, brim_says):
    arguments, expected = BAD[name]
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"number": "1", "roman": "I"}\n{"number": 2}\n')
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    if name == "no head":
        from transformers import T5Config, T5EncoderModel

        config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=16)
        T5EncoderModel(config).save_pretrained(tmp_path / "headless")
    before = sorted(tmp_path.rglob("*"))
    filled = [str(recipe) if word == "RECIPE" else word for word in arguments]
    out = [] if "--out" in filled else ["--out", "out"]
    code, stdout, stderr = brim_says("train", *filled, *out)
    assert (code, stdout) == (2, ""), stderr
    *loaded, line = [line for line in stderr.splitlines() if line.strip()]
    assert line.startswith("brim: ")
    assert expected in line
    assert not any(line.startswith(("brim: ", "Traceback", " ")) for line in loaded), stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_tracker_that_is_not_installed_is_refused_before_any_stage(
    recipe, tmp_path, brim_says, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, _, err = brim_says("train", recipe, "tracking.backends=[wandb]", "--out", "out")
    assert code == 2
    assert err.splitlines()[-1].startswith("brim: tracking.backends: wandb is not installed")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_unwritable_directory(recipe, tmp_path, brim_says):
    tmp_path.chmod(0o500)
    code, _, stderr = brim_says("train", recipe, "--out", tmp_path / "run")
    assert code == 2
    assert "permission" in stderr.lower()


def wait_for_step(process: subprocess.Popen, metrics: Path, step: int) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"ended early: {process.communicate()}")
        # A last line without its end is being written.
        whole = metrics.read_text().rpartition("\n")[0] if metrics.exists() else ""
        found = [json.loads(line) for line in whole.splitlines()]
        if any(row["step"] >= step for row in found if "train/loss" in row):
            return
        time.sleep(0.02)
    raise AssertionError("no progress")


STEPS = "trainer.max_steps=20"


def test_kill_and_resume_reach_the_same_bits(write_recipe, tmp_path, brim_says):
    recipe, stages = write_recipe(GPT2), tmp_path / "stages"
    whole = ("train", recipe, STEPS, "--out", tmp_path / "whole", "--stages", stages)
    code, stdout, stderr = brim_says(*whole)
    assert code == 0, stderr
    assert all(f"student minus {other}" in stdout for other in ("start", "teacher"))
    report, generate, compare = stdout.partition("\nnext\n")[2].splitlines()
    given, _, reader = generate.partition(" | ")
    prompt = shlex.split(given)[-1]
    for command, stdin in ((report, ""), (reader, f"{prompt}\n"), (compare, "")):
        code, said, stderr = brim_says(*shlex.split(command)[1:], stdin=stdin)
        assert (code, bool(said)) == (0, True), f"{command}: {stderr}"

    out = tmp_path / "cut"
    command = ["train", recipe, STEPS, "--out", out, "--stages", stages]
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        process = subprocess.Popen(
            [sys.executable, "-m", "brim", *map(str, command)],
            env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_for_step(process, out / "metrics.jsonl", 4 if number == signal.SIGKILL else 12)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == code
    resumed = brim(*command, "--resume", "must")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "whole", out)


def test_generate_reads_standard_input(recipe, tmp_path, brim_says):
    run = tmp_path / "run"
    assert brim_says("train", recipe, "trainer.max_steps=1", "--out", run, "-q")[0] == 0
    prompts = "write 3 in Roman numerals:\nwrite 9 in Roman numerals:\n"
    code, stdout, stderr = brim_says("generate", run, "--max-tokens", 6, stdin=prompts)
    assert (code, len(stdout.splitlines())) == (0, 2), stderr
    strange = "write 3\\nin Roman\u2028numerals: \\\\n\n"
    _, stdout, _ = brim_says("generate", run, "--max-tokens", 2, stdin=strange)
    assert len(stdout.splitlines()) == 1
    assert "standard input" in brim_says("generate", run, stdin="")[2]
    code, _, stderr = brim_says("generate", run, stdin="\n")
    assert code == 2
    assert "standard input:1" in stderr
    code, _, stderr = brim_says("evaluate", run, "--split", "validation")
    assert code == 0, stderr
    assert "validation" in json.loads((run / "results.json").read_text())


def test_bfloat16_keeps_weights_in_float32(recipe, tmp_path):
    run = tmp_path / "run"
    mixed = ("trainer.precision=bfloat16", "trainer.max_steps=2")
    result = brim("train", recipe, *mixed, "--out", run, "-q")
    assert result.returncode == 0, result.stderr
    weights = load_file(run / "checkpoints" / "step-2" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    steps = [row for row in rows(run / "metrics.jsonl") if "train/loss" in row]
    assert [row["optim/skipped"] for row in steps] == [0, 0]
