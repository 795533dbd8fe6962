"""Two processes that hold a part of the weights each reach what two whole copies reach."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from pairs import stopping
from safetensors.torch import load_file
from test_train import assert_same_run, rows, weights
from two_processes import by_two, run_script

from brim.config.loading import load_config
from brim.errors import RunError
from brim.models import hash_tensors, load_model
from brim.runs.train import train
from brim.training.settings import RunConfig
from brim.training.trainer import Interrupted
from brim.training.updates import Updater

MODELS = {
    "t5": "{family: t5, d_model: 32, d_ff: 64, layers: 2, heads: 2, dropout: 0.1}",  # untied
    "qwen2": "{family: qwen2, d_model: 32, d_ff: 64, layers: 2, heads: 2, tied: true}",
}
COMMON = (
    # With seed 0 a uniform number of ppo_brim lies at the border of two tokens, and the last bit of
    # a sum decides which one is written.
    "seed=1",
    "teacher.build.dropout=0.0", "student.build.dropout=0.0", "trainer.save_every=2",
    "trainer.evaluate_every=4", "evaluation.expected_returns=false", "evaluation.num_resamples=100",
    "task.max_train_examples=48", "task.max_validation_examples=7", "task.max_test_examples=7",
    "teacher.batch_tokens=60",  # several passes for each batch, and not equally many
    # Adam divides a gradient by itself, be it a rounding error (as of a key's bias); eps bounds it.
    "optim.eps=1e-5",
)  # fmt: skip
WAYS = {
    "whole": (),
    "fsdp": ("trainer.sharding=fsdp",),
    "both": ("trainer.sharding=fsdp", "teacher.sharding=fsdp"),
    "offload": ("teacher.sharding=offload",),
    "checkpointed": ("trainer.sharding=fsdp", "trainer.gradient_checkpointing=true"),
    "stages": ("teacher.train.trainer.sharding=fsdp", "student.predistill.trainer.sharding=fsdp"),
}
BRIM = "{name: brim, baseline: mean}"
STEPS = 4
# Model, objective, and the ways to share out besides `whole`.
RUNS = {
    "brim-t5": ("t5", BRIM, ("fsdp", "both", "checkpointed")),
    "brim-qwen2": ("qwen2", BRIM, ("fsdp", "stages")),
    "seqkd": ("t5", "{name: seqkd}", ("both",)),
    "js": ("t5", "{name: js}", ("both", "offload")),  # some batches a process writes none of
    "old_rollouts": ("t5", "{name: llmr, baseline: min_variance, sync_every: 2}", ("both",)),
    "expected": ("t5", "{name: brim, immediate: expected, q_centering: policy}", ("both",)),
    "learned": ("t5", "{name: anchored, remaining_regret: learned, per_token: false}", ("both",)),
    "ppo_llmr": ("t5", "{name: ppo_llmr, num_epochs: 1, num_minibatches: 4}", ("both",)),
    "separate_critic": ("t5", "{name: ppo_llmr, critic: separate, num_epochs: 1}", ("both",)),
    "ppo_brim": ("t5", "{name: ppo_brim, num_epochs: 1, kl_coefficient: 0.1}", ("both",)),
}
COMPARED = [(run, way) for run, (*_, ways) in RUNS.items() for way in ways]


def config_of(folder: Path, run: str, way: str) -> RunConfig:
    model, objective, _ = RUNS[run]
    overrides = [*COMMON, f"trainer.max_steps={STEPS}", f"objective={objective}", *WAYS[way]]
    if run == "seqkd":  # there is one example to evaluate on, for two processes
        overrides.append("evaluation.max_validation_examples=1")
    return load_config(RunConfig, folder / f"{model}.yaml", overrides)


def stages_of(folder: Path, way: str) -> Path:
    return folder / ("sharded_stages" if way == "stages" else "stages")


def run_all(folder: Path) -> None:
    """All the runs, each process noting its share of what it trains."""
    shares = {}
    prepare = Updater.__post_init__

    def prepared(self):
        prepare(self)
        held, all_of_them = 0, 0
        for weight in self.module.parameters():
            held += getattr(weight, "to_local", lambda weight=weight: weight)().numel()
            all_of_them += weight.numel()
        shares[name] = held / all_of_them

    Updater.__post_init__ = prepared
    for run, (*_, ways) in RUNS.items():
        for way in ("whole", *ways):
            name = f"{run}-{way}"
            train(config_of(folder, run, way), folder / name, stages_dir=stages_of(folder, way))
    Updater.__post_init__ = prepare
    (folder / f"shares-{os.environ['RANK']}.json").write_text(json.dumps(shares))


def stop_and_resume(folder: Path, run: str, step: int) -> None:
    """A run that stops after a step, a copy of it, and how it goes on."""
    restore = Updater.restore
    config, stages = config_of(folder, run, "both"), stages_of(folder, "both")
    main = os.environ["RANK"] == "0"

    def restored(self, path, load):
        restore(self, path, load)
        held = self.weights()
        if main:
            head = hash_tensors({"head": held["lm_head.weight"]})
            (folder / f"{run}-restored_head").write_text(head)

    with stopping(step), pytest.raises(Interrupted):
        train(config, folder / f"{run}-resumed", stages_dir=stages)
    Updater.restore = restored
    if main:
        shutil.copytree(folder / f"{run}-resumed", folder / f"{run}-stopped")
    torch.manual_seed(123)  # whatever other code drew in between
    train(config, folder / f"{run}-resumed", stages_dir=stages)
    Updater.restore = restore


@pytest.fixture(scope="module")
def sharded(write_recipe, tmp_path_factory) -> Path:
    """A folder with a run of each kind, all made by two processes."""
    folder = tmp_path_factory.mktemp("sharded")
    for model, description in MODELS.items():
        shutil.copy(write_recipe(description), folder / f"{model}.yaml")
    run_script(__file__, folder)
    return folder


def head_of(file: Path) -> torch.Tensor:
    return load_file(file)["lm_head.weight"]


def assert_alike(one: Path, other: Path) -> None:
    """The same logs and the same weights, but for rounding."""
    lines = [rows(folder / "metrics.jsonl") for folder in (one, other)]
    for ours, theirs in zip(*lines, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("run", "way"), COMPARED)
def test_parts_learn_what_whole_copies_learn(sharded, run, way):
    one, other = (sharded / f"{run}-{name}" for name in ("whole", way))
    assert_alike(one, other)
    names = [sorted(p.relative_to(f).as_posix() for p in f.rglob("*")) for f in (one, other)]
    assert names[0] == names[1]


def test_a_process_holds_its_part_and_no_more(sharded):
    for rank in range(2):
        shares = json.loads((sharded / f"shares-{rank}.json").read_text())
        for name, share in shares.items():
            if name.endswith(("fsdp", "both")):
                assert share == pytest.approx(0.5, abs=0.01)
            elif name.endswith(("whole", "offload")):
                assert share == 1


@pytest.mark.parametrize("run", ["brim-t5", "separate_critic"])
def test_a_resumed_run_reaches_the_same_bits(sharded, run):
    assert_same_run(sharded / f"{run}-both", sharded / f"{run}-resumed")


def test_the_untied_head_survives(sharded):
    stopped = sharded / "brim-t5-stopped"
    stored = head_of(stopped / "checkpoints" / "step-3" / "model.safetensors")
    assert (sharded / "brim-t5-restored_head").read_text() == hash_tensors({"head": stored})
    best = load_model(sharded / "brim-t5-both" / "best").model
    head, embedding = best.get_output_embeddings(), best.get_input_embeddings()
    file = sharded / "brim-t5-both" / "best" / "model.safetensors"
    assert hash_tensors({"head": head.weight}) == hash_tensors({"head": head_of(file)})
    assert not torch.equal(head.weight, embedding.weight)


def test_one_process_goes_on_with_what_two_held_in_parts(sharded, tmp_path):
    run, stages = tmp_path / "run", stages_of(sharded, "both")
    shutil.copytree(sharded / "brim-t5-stopped", run)
    config = config_of(sharded, "brim-t5", "both")
    with pytest.raises(RunError, match="--other-processes"):
        train(config, run, stages_dir=stages)
    train(config, run, stages_dir=stages, other_processes=True)
    assert_alike(run, sharded / "brim-t5-both")


def work(folder: Path) -> None:
    """What each of two processes does."""
    run_all(folder)
    stop_and_resume(folder, "brim-t5", 3)
    stop_and_resume(folder, "separate_critic", 1)


if __name__ == "__main__":
    by_two(lambda: work(Path(sys.argv[1])))
