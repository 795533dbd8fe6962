"""Two processes see the same batches and reach the same losses as one."""

import collections
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pairs import GPT2, T5, stopping
from test_train import rows
from two_processes import ENVIRONMENT, by_two, free_port, run_script
from typer.testing import CliRunner

from brim.cli import app
from brim.config.loading import load_config
from brim.errors import RunError
from brim.runs.train import train
from brim.training import trainer
from brim.training.settings import RunConfig
from brim.training.trainer import Interrupted, Trainer

# Dropout masks are drawn by process, so only without them can the losses be equal.
NO_DROPOUT = ("teacher.build.dropout=0.0", "student.build.dropout=0.0")
SHORT = (*NO_DROPOUT, "trainer.max_steps=8", "trainer.save_every=4")
# One epoch: 4 batches of 8 out of 32 examples.
EPOCH = (
    *NO_DROPOUT, "trainer.max_steps=4", "trainer.save_every=2", "trainer.evaluate_every=4",
    "task.max_train_examples=32", "task.max_validation_examples=7", "task.max_test_examples=7",
    "evaluation.num_resamples=100",
)  # fmt: skip

MODELS = {"t5": T5, "gpt2": GPT2}
OBJECTIVES = {
    "seqkd": "{name: seqkd}",
    "kl": "{name: kl}",
    "rkl": "{name: rkl}",
    "js": "{name: js}",
    "tvd": "{name: tvd}",
    "llmr": "{name: llmr}",
    "mean": "{name: brim, baseline: mean}",
    "time_mean": "{name: brim, baseline: time_mean}",
    "leave_one_out": "{name: brim, baseline: leave_one_out, num_generations: 2, rollout_reuse: 2}",
    "min_variance_and_old_rollouts": "{name: llmr, baseline: min_variance, sync_every: 2}",
    "policy_centring": "{name: brim, q_centering: policy, truncated: drop}",
    "immediate_expected": "{name: brim, immediate: expected, baseline: time_mean}",
    "anchored": "{name: anchored, num_generations: 2, truncated: drop, per_token: true}",
    "learned_regrets": "{name: anchored, remaining_regret: learned, per_token: false}",
    "task_reward": "{name: anchored, reward: {metric: chrf, weight: 2.0}}",
    # Two rows a minibatch: of some a process has none.
    "ppo_llmr": "{name: ppo_llmr, num_epochs: 2, num_minibatches: 4}",
    "anchored_critic": "{name: ppo_llmr, critic: anchored, num_epochs: 1}",
    "separate_critic": "{name: ppo_llmr, critic: separate, num_epochs: 1, target_kl: 0.01}",
    "ppo_brim": "{name: ppo_brim, num_epochs: 2, num_minibatches: 2, kl_coefficient: 0.1}",
}


def launch(*arguments: object) -> None:
    """`brim` by two processes, as accelerate starts them."""
    # `--multi_gpu` is accelerate's word for "a process each"; the variable keeps them on CPU
    # (`--cpu` alone starts one process whatever their number).
    run_script(
        "-m", "accelerate.commands.launch", "--multi_gpu",
        "--num_machines", "1", "--num_processes", "2",
        "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", free_port(), "--module", "brim", *arguments,
    )  # fmt: skip


def numbers(run: Path) -> list[dict[str, float]]:
    keys = ("train/loss", "optim/grad_norm", "rollout/return", "rollout/length", "eval/return")
    return [{key: row[key] for key in keys if key in row} for row in rows(run / "metrics.jsonl")]


# A decoder-only model differs in how it reads, not in what a method adds up.
RUNS = [("t5", case) for case in OBJECTIVES] + [
    ("gpt2", case) for case in ("js", "mean", "min_variance_and_old_rollouts", "ppo_llmr")
]


def config_of(folder: Path, case: str, model: str) -> RunConfig:
    overrides = [*EPOCH, f"objective={OBJECTIVES[case]}"]
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
    with stopping(2, stage="predistill"), pytest.raises(Interrupted):
        train(config_of(folder, "kl", "t5"), folder / "stopped", stages_dir=folder / "unfinished")


@pytest.fixture(scope="module")
def compared(write_recipe, tmp_path_factory) -> Path:
    """A folder with the runs of one process in `one` and of two in `two`."""
    folder = tmp_path_factory.mktemp("compared")
    for model, description in MODELS.items():
        shutil.copy(write_recipe(description), folder / f"{model}.yaml")
    run_all(folder, "one")
    run_script(__file__, folder)
    launch(
        "train", folder / "t5.yaml", *EPOCH, f"objective={OBJECTIVES['mean']}",
        "--out", folder / "own_stages" / "t5", "-q",
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_two_processes_that_train_the_stages_too_equal_one(compared, model):
    one, two = compared / "one" / f"mean-{model}", compared / "own_stages" / model
    for run, count in ((one, 1), (two, 2)):
        assert json.loads((run / "manifest.json").read_text())["num_processes"] == count
    assert len(numbers(one)) == len(numbers(two)) == 6
    for ours, theirs in zip(numbers(one), numbers(two), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    ids = [[row["id"] for row in rows(run / "predictions/test.jsonl")] for run in (one, two)]
    assert ids[0] == ids[1]
    results = [json.loads((run / "results.json").read_text())["test"] for run in (one, two)]
    assert results[0]["scores"]["return"]["value"] == pytest.approx(
        results[1]["scores"]["return"]["value"], rel=1e-3, abs=1e-3
    )


@pytest.mark.parametrize(("model", "case"), RUNS)
def test_methods_on_two_processes_equal_one(compared, model, case):
    one, two = (compared / name / f"{case}-{model}" for name in ("one", "two"))
    for run, count in ((one, 1), (two, 2)):
        assert json.loads((run / "manifest.json").read_text())["num_processes"] == count
    lines = [rows(run / "metrics.jsonl") for run in (one, two)]
    assert len(lines[0]) == len(lines[1]) == 6
    for ours, theirs in zip(*lines, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=3e-5)
        if "train/loss" in ours:
            # A policy gradient adds up terms that cancel: their size is what rounding goes by.
            size = ours.get("rollout/var_advantage", 0) ** 0.5 * ours["policy/entropy"]
            # Adam divides a new head's gradients by their own size, rounding included.
            rounding = 5e-6 if case == "learned_regrets" else 1e-6
            tolerance = rounding * max(1, size, abs(ours["train/loss"]))
            assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=0, abs=tolerance)


def test_each_example_comes_once_an_epoch(compared):
    run = "kl-t5"
    seen = [
        [name for line in rows(compared / f"seen-{run}-{rank}.jsonl") for name in line]
        for rank in range(2)
    ]
    assert [len(part) for part in seen] == [16, 16]
    counts = collections.Counter(seen[0] + seen[1])
    assert len(counts) == 32
    assert set(counts.values()) == {1}


def test_one_process_writes_the_checkpoints(compared):
    run = "kl-t5"
    assert rows(compared / f"saved-{run}-0.jsonl") == [[2], [4]]
    assert not (compared / f"saved-{run}-1.jsonl").exists()
    checkpoints = compared / "two" / run / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-2", "step-4"]


def test_another_number_of_processes_goes_on_where_it_is_asked_for(compared, tmp_path):
    whole, run = compared / "two" / "mean-gpt2", tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "step-4")
    before = (run / "manifest.json").read_bytes()
    config = config_of(compared, "mean", "gpt2")
    with pytest.raises(RunError, match="with 2 processes.* with 1.*--other-processes"):
        train(config, run, stages_dir=compared / "stages")
    assert (run / "manifest.json").read_bytes() == before

    arguments = ["train", compared / "gpt2.yaml", *EPOCH, f"objective={OBJECTIVES['mean']}"]
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


def work(folder: Path) -> None:
    """What each of two processes does."""
    watch(folder)
    run_all(folder, "two")
    train(config_of(folder, "mean", "gpt2"), folder / "own_stages" / "gpt2")
    stop_in_predistill(folder)


if __name__ == "__main__":
    by_two(lambda: work(Path(sys.argv[1])))


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
