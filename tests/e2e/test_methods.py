"""Every method with each of its important settings: trained, stopped, resumed, handed on."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from pairs import LLAMA, T5
from safetensors.torch import load_file
from test_train import rows
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from brim.errors import ConfigError
from brim.objectives import OBJECTIVES
from brim.runs.train import train

MODELS = {"t5": T5, "llama": LLAMA}

# Settings of the objective, and a metric that shows that they count.
CASES = {
    "seqkd": ("{name: seqkd}", "rollout/length"),
    "kl": ("{name: kl}", "policy/divergence_on_targets"),
    "kl_on_data": ("{name: kl, targets: data}", "policy/divergence_on_targets"),
    "rkl": ("{name: rkl}", "policy/divergence_on_student"),
    "js": ("{name: js}", "rollout/by_student"),
    "js_both_terms": ("{name: js, terms: both, beta: 0.1}", "rollout/by_student"),
    "tvd": ("{name: tvd}", "rollout/by_student"),
    "llmr": ("{name: llmr}", "rollout/var_advantage"),
    "min_variance": ("{name: llmr, baseline: min_variance}", "rollout/var_advantage"),
    "mean": ("{name: llmr, baseline: mean}", "rollout/var_advantage"),
    "brim": ("{name: brim, k: 2}", "rollout/bias"),
    "time_mean": ("{name: brim, baseline: time_mean}", "rollout/var_advantage"),
    "leave_one_out": (
        "{name: brim, baseline: leave_one_out, num_generations: 3}",
        "rollout/var_advantage",
    ),
    "no_tail": ("{name: brim, k: 3, tail: none}", "rollout/bias"),
    "immediate_expected": ("{name: brim, immediate: expected}", "policy/kl_to_teacher"),
    "policy_centring": ("{name: brim, q_centering: policy}", "rollout/return_k"),
    "reused": ("{name: brim, rollout_reuse: 2}", "policy/effective_sample_size"),
    "stale": (
        "{name: brim, sync_every: 2, reward: {metric: rougeL}}",
        "policy/effective_sample_size",
    ),
    "anchored": ("{name: anchored}", "anchored/explained_variance"),
    "anchored_learned": (
        "{name: anchored, remaining_regret: learned, per_token: false}",
        "anchored/remaining_loss",
    ),
    "task_reward": (
        "{name: anchored, reward: {metric: chrf, weight: 2.0}}",
        "rollout/task_reward",
    ),
    "ppo_llmr": ("{name: ppo_llmr, num_epochs: 2, num_minibatches: 2}", "ppo/value_loss"),
    "ppo_separate": (
        "{name: ppo_llmr, critic: separate, kl_coefficient: 0.1, num_epochs: 1}",
        "ppo/kl_to_start",
    ),
    "ppo_anchored": ("{name: ppo_llmr, critic: anchored, num_epochs: 2}", "ppo/td_error"),
    "ppo_brim": (
        "{name: ppo_brim, num_epochs: 2, num_minibatches: 2, kl_coefficient: 0.1}",
        "ppo/approx_kl",
    ),
    "ppo_brim_group": (
        "{name: ppo_brim, num_epochs: 1, num_minibatches: 3, num_generations: 3}",
        "ppo/approx_kl",
    ),
}
FAST = (
    "trainer.max_steps=3", "trainer.evaluate_every=3", "trainer.save_every=2", "optim.lr=1e-2",
    "task.max_train_examples=48", "task.max_validation_examples=4", "task.max_test_examples=4",
    "evaluation.expected_returns=false", "evaluation.num_resamples=100",
)  # fmt: skip

RUNS = [(case, model) for model in MODELS for case in CASES]
each_run = pytest.mark.parametrize(("case", "model"), RUNS)


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> dict[str, Path]:
    return {model: tmp_path_factory.mktemp(f"stages_{model}") for model in MODELS}


@pytest.fixture(scope="module")
def begin(make_config, stages):
    """`begin(case, model, out)` trains in `out` from where it was left."""

    def run(case: str, model: str, out: Path, **options: str) -> Path:
        config = make_config(MODELS[model], f"objective={CASES[case][0]}", *FAST)
        train(config, out, stages_dir=stages[model], **options)
        return out

    return run


@pytest.fixture(scope="module")
def finished(begin, tmp_path_factory):
    """`finished(case, model)` is an uninterrupted run."""
    runs: dict[tuple[str, str], Path] = {}

    def run(case: str, model: str) -> Path:
        if (case, model) not in runs:
            out = tmp_path_factory.mktemp("finished") / "run"
            runs[case, model] = begin(case, model, out)
        return runs[case, model]

    return run


def files(run: Path) -> dict[str, str]:
    """The hash of each file of the last checkpoint, but for the digests of clock times."""
    manifest = json.loads((run / "checkpoints" / "step-3" / "manifest.json").read_text())
    found = {name: facts["sha256"] for name, facts in manifest["files"].items()}
    del found["logs.json"]
    return found


def predistilled(run: Path, stages_dir: Path) -> dict[str, torch.Tensor]:
    stage = json.loads((run / "manifest.json").read_text())["stages"]["predistill"]
    return load_file(stages_dir / stage / "best" / "model.safetensors")


def test_every_method_is_here():
    named = {settings.split(",")[0].strip("{}").split()[1] for settings, _ in CASES.values()}
    assert named == set(OBJECTIVES)


@each_run
def test_each_step_updates(case, model, finished, stages):
    run = finished(case, model)
    lines = rows(run / "metrics.jsonl")
    steps = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert all(isinstance(value, (int, float)) for line in lines for value in line.values())
    assert all(line["optim/skipped"] == 0 and line["optim/grad_norm"] > 0 for line in steps)
    assert all(CASES[case][1] in line for line in steps)
    before = predistilled(run, stages[model])
    after = load_file(run / "checkpoints" / "step-3" / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


@each_run
def test_a_resumed_run_reaches_the_same_bits(case, model, finished, begin, tmp_path):
    run, cut = finished(case, model), tmp_path / "cut"
    # As a power cut after step 2 leaves it, the logs being ahead.
    later = shutil.ignore_patterns("step-3", "predictions", "results.json")
    shutil.copytree(run, cut, ignore=later)
    torch.manual_seed(123)  # whatever other code drew in between
    begin(case, model, cut, resume="must")
    # Weights and optimizer; where there are, critic, sums of K, and the copy that writes.
    assert files(cut) == files(run)
    for name in ("metrics.jsonl", "samples.jsonl", "predictions/test.jsonl"):
        assert (cut / name).read_bytes() == (run / name).read_bytes()


def test_a_reward_that_the_data_cannot_give_is_refused_before_training(make_config, tmp_path):
    reward = "objective={name: llmr, reward: {metric: answer_accuracy}}"
    with pytest.raises(ConfigError, match="answer_accuracy finds no answer"):
        train(make_config(T5, reward), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@each_run
def test_the_student_comes_out_alone(case, model, finished, stages):
    run = finished(case, model)
    checkpoint = run / "checkpoints" / "step-3"
    before = predistilled(run, stages[model])
    reader = {"t5": AutoModelForSeq2SeqLM, "llama": AutoModelForCausalLM}[model]
    for folder in (run / "best", checkpoint):
        assert load_file(folder / "model.safetensors").keys() == before.keys()
        _, info = reader.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values())
    critic = checkpoint / "objective.safetensors"
    assert critic.exists() == (case in ("ppo_llmr", "ppo_separate", "anchored_learned"))
    assert (checkpoint / "writer").exists() == (case == "stale")
