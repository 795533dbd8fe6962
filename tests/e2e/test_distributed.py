"""Two processes see the same batches and reach the same losses as one."""

import collections
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pairs import GPT2, T5
from test_train import rows
from typer.testing import CliRunner

from brim import trainer
from brim.cli import app
from brim.config import load_config
from brim.errors import RunError
from brim.process import leave_processes
from brim.runs import train
from brim.settings import RunConfig
from brim.trainer import Interrupted, Trainer

ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true",
}  # fmt: skip

# Dropout masks are drawn by process, so only without them can the losses be equal.
NO_DROPOUT = ("teacher.build.dropout=0.0", "student.build.dropout=0.0")
MEAN = "objective.baseline=mean"
SHORT = (*NO_DROPOUT, "trainer.max_steps=8", "trainer.save_every=4")
# One epoch: 20 batches of 8 out of 160 examples.
LONG = (*NO_DROPOUT, "trainer.max_steps=20", "trainer.save_every=10",
        "trainer.evaluate_every=20")  # fmt: skip

MODELS = {"t5": T5, "gpt2": GPT2}
OBJECTIVES = {
    "seqkd": "{name: seqkd}",
    "kl": "{name: kl}",
    "rkl": "{name: rkl}",
    "js": "{name: js}",
    "tvd": "{name: tvd}",
    "llmr": "{name: llmr}",
    "mean": "{name: brim, baseline: mean}",
    "time_mean_and_k_auto": "{name: brim, k: auto, baseline: time_mean}",
    "leave_one_out": "{name: brim, baseline: leave_one_out, num_generations: 2, rollout_reuse: 2}",
    "min_variance_and_old_rollouts": "{name: llmr, baseline: min_variance, sync_every: 2}",
    "policy_centring": "{name: brim, q_centering: policy, truncated: drop}",
    "brim_plus": "{name: brim, phase: average, immediate: expected, baseline: time_mean}",
    # Two rows a minibatch: of some a process has none.
    "ppo_llmr": "{name: ppo_llmr, num_epochs: 2, num_minibatches: 4}",
    "separate_critic": "{name: ppo_llmr, critic: separate, num_epochs: 1, target_kl: 0.01}",
    "ppo_brim": "{name: ppo_brim, num_epochs: 2, num_minibatches: 2, kl_coefficient: 0.1}",
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
    process = subprocess.Popen(command, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE)
    try:
        _, errors = process.communicate(timeout=400)
    finally:
        process.terminate()  # passed on to the processes of the launch, which may wait for ever
        process.wait()
    assert process.returncode == 0, errors


def numbers(run: Path) -> list[dict[str, float]]:
    keys = ("train/loss", "optim/grad_norm", "rollout/return", "rollout/length", "eval/return")
    return [{key: row[key] for key in keys if key in row} for row in rows(run / "metrics.jsonl")]


@pytest.mark.parametrize("model", [T5, GPT2], ids=["t5", "gpt2"])
def test_two_processes_equal_one(write_recipe, tmp_path, model):
    recipe = write_recipe(model)
    for count in (1, 2):
        launch(count, "train", recipe, *SHORT, MEAN, "--out", tmp_path / str(count), "-q")
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


# A decoder-only model differs in how it reads, not in what a method adds up.
RUNS = [("t5", case) for case in OBJECTIVES] + [
    ("gpt2", case) for case in ("js", "mean", "min_variance_and_old_rollouts", "ppo_llmr")
]


def config_of(folder: Path, case: str, model: str) -> RunConfig:
    overrides = [*LONG, f"objective={OBJECTIVES[case]}"]
    return load_config(RunConfig, folder / f"{model}.yaml", overrides)


def run_all(folder: Path, name: str) -> None:
    """All the runs, with the recipes and the stages of the folder."""
    for model, case in RUNS:
        config = config_of(folder, case, model)
        train(config, folder / name / f"{case}-{model}", stages_dir=folder / "stages")


def watch(folder: Path) -> None:
    """Have each process write down which examples it is given and which checkpoints it writes."""
    batch, save = Trainer._batch, trainer.save_checkpoint

    def note(what: str, run: Path, rank: int, values: list[str]) -> None:
        with (folder / f"{what}-{run.name}-{rank}.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")

    def batched(self, step):
        found = batch(self, step)
        ids = [example.id for example in found.examples]
        note("seen", self.directory, self.accelerator.process_index, ids)
        return found

    def saved(root, step, *args, **kwargs):
        note("saved", root.parent, int(os.environ["RANK"]), [step])
        return save(root, step, *args, **kwargs)

    Trainer._batch, trainer.save_checkpoint = batched, saved


def stop_in_predistill(folder: Path) -> None:
    """Leave a stage of the first model unfinished, in a folder of stages of its own."""
    original = Trainer._train_step

    def stopping(self):
        original(self)
        self.stop_requested = "predistill" in self.directory.name and self.state.step == 2

    Trainer._train_step = stopping
    with pytest.raises(Interrupted):
        train(config_of(folder, "kl", "t5"), folder / "stopped", stages_dir=folder / "unfinished")


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


@pytest.mark.parametrize(("model", "case"), RUNS)
def test_methods_on_two_processes_equal_one(compared, model, case):
    one, two = (compared / name / f"{case}-{model}" for name in ("one", "two"))
    for run, count in ((one, 1), (two, 2)):
        assert json.loads((run / "manifest.json").read_text())["num_processes"] == count
    lines = [rows(run / "metrics.jsonl") for run in (one, two)]
    assert len(lines[0]) == len(lines[1]) == 22
    for ours, theirs in zip(*lines, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=3e-5)
        if "train/loss" in ours:
            # A policy gradient adds up terms that cancel: their size is what rounding goes by.
            size = ours.get("rollout/var_advantage", 0) ** 0.5 * ours["policy/entropy"]
            tolerance = 1e-6 * max(1, size, abs(ours["train/loss"]))
            assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=0, abs=tolerance)


def test_each_example_comes_once_an_epoch(compared):
    run = "kl-t5"
    seen = [
        [name for line in rows(compared / f"seen-{run}-{rank}.jsonl") for name in line]
        for rank in range(2)
    ]
    assert [len(part) for part in seen] == [80, 80]
    counts = collections.Counter(seen[0] + seen[1])
    assert len(counts) == 160
    assert set(counts.values()) == {1}


def test_one_process_writes_the_checkpoints(compared):
    run = "kl-t5"
    assert rows(compared / f"saved-{run}-0.jsonl") == [[10], [20]]
    assert not (compared / f"saved-{run}-1.jsonl").exists()
    checkpoints = compared / "two" / run / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-10", "step-20"]


def test_another_number_of_processes_goes_on_where_it_is_asked_for(compared, tmp_path):
    whole, run = compared / "two" / "mean-gpt2", tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "step-20")
    before = (run / "manifest.json").read_bytes()
    config = config_of(compared, "mean", "gpt2")
    with pytest.raises(RunError, match="with 2 processes.* with 1.*--other-processes"):
        train(config, run, stages_dir=compared / "stages")
    assert (run / "manifest.json").read_bytes() == before

    arguments = ["train", compared / "gpt2.yaml", *LONG, f"objective={OBJECTIVES['mean']}"]
    arguments += ["--out", run, "--stages", compared / "stages", "-q", "--other-processes"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert json.loads((run / "manifest.json").read_text())["num_processes"] == 1
    for ours, theirs in zip(*(rows(r / "metrics.jsonl") for r in (run, whole)), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=3e-5)
    train(config, run, stages_dir=compared / "stages")  # it is one process's now


def test_a_stage_that_other_processes_left_unfinished_is_refused(compared, tmp_path):
    stages = tmp_path / "stages"
    shutil.copytree(compared / "unfinished", stages)
    config = config_of(compared, "kl", "t5")
    with pytest.raises(RunError, match="predistill.*step-2.*--other-processes"):
        train(config, tmp_path / "run", stages_dir=stages)
    train(config, tmp_path / "run", stages_dir=stages, other_processes=True)


if __name__ == "__main__":
    FOLDER, NAME = Path(sys.argv[1]), sys.argv[2]
    watch(FOLDER)
    run_all(FOLDER, NAME)
    stop_in_predistill(FOLDER)
    leave_processes()


@pytest.mark.slow
@pytest.mark.parametrize("use_cpu", [False, True])
def test_torchrun_on_cpu_is_one_run_of_two_processes_or_refused(write_recipe, tmp_path, use_cpu):
    environment = {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}
    if not use_cpu:
        del environment["ACCELERATE_USE_CPU"]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "brim", "train", write_recipe(T5), *SHORT, "--out", tmp_path / "run",
    ]  # fmt: skip
    done = subprocess.run(
        [*map(str, command)], env=environment, capture_output=True, text=True, timeout=400
    )
    if use_cpu:
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / "run" / "manifest.json").read_text())["num_processes"] == 2
    else:
        assert done.returncode != 0
        assert "brim: WORLD_SIZE=2, but accelerate sees one process" in done.stderr
        assert "set ACCELERATE_USE_CPU=true" in done.stderr
        assert not (tmp_path / "run").exists()
