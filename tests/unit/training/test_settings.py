"""Settings that no run can use: refused as a file is read, by every command, with file and line."""

import sys
from pathlib import Path

import pytest

import brim.cli
from brim.config.loading import load_config
from brim.errors import ConfigError
from brim.recipes import find_recipe
from brim.training.loop_settings import OptimConfig, SupervisedConfig
from brim.training.settings import RunConfig

HEAD = "extends: cmudict/brim\n"
FILES = "task: {name: files, train: x.jsonl, metrics: [bleu]}\n"

REFUSED = [
    ("optim:\n  lr: .inf", "recipe.yaml:3: optim.lr: Infinity must be a finite number"),
    ("optim:\n  weight_decay: .inf", "recipe.yaml:3: optim.weight_decay: "),
    ("optim: {betas: [0.9, .nan]}", "recipe.yaml:2: optim.betas.1: "),
    ("decoding:\n  temperature: .inf", "recipe.yaml:3: decoding.temperature: "),
    ("trainer:\n  num_epochs: 1e999\n  max_steps: null", "recipe.yaml:3: trainer.num_epochs: "),
    ("task:\n  name: files\n  train: x\n  metrics: []", "recipe.yaml:5: task.metrics: [] must "),
    ("task:\n  name: gsm8k\n  metrics: []", "recipe.yaml:4: task.metrics: [] must "),
    (
        FILES + "evaluation:\n  metric: rouge1",
        "recipe.yaml:4: evaluation.metric: rouge1 is not measured on this task; choose one of "
        "bleu, return, regret_per_token, expected_return, expected_regret_per_token",
    ),
    (
        FILES + "evaluation: {returns: false,\n  metric: regret_per_token}",
        "recipe.yaml:4: evaluation.metric: regret_per_token needs evaluation.returns=true",
    ),
    (
        FILES + "evaluation: {expected_returns: false,\n  metric: expected_regret_per_token}",
        "recipe.yaml:4: evaluation.metric: expected_regret_per_token needs "
        "evaluation.expected_returns=true",
    ),
    (
        FILES + "evaluation: {returns: false,\n  metric: return}",
        "recipe.yaml:4: evaluation.metric: return needs evaluation.returns=true",
    ),
    ("task:\n  name: files\n  train: null", "recipe.yaml:4: task.train: "),
    ("task:\n  name: files\n  test: x.jsonl", "recipe.yaml:2: task.train: "),
    (
        "teacher:\n  build:\n    d_modle: 64",
        "recipe.yaml:4: teacher.build.d_modle: unknown key; did you mean teacher.build.d_model?",
    ),
    (
        "student:\n  build: {kv_heads: 2}",
        "recipe.yaml:3: student.build.kv_heads: unknown key; it belongs to student.build.family "
        "llama or qwen2",
    ),
    (
        "student:\n  build: {\n    family: qwen}",
        'recipe.yaml:4: student.build.family: "qwen" is not one of t5, mt5, gpt2, llama, qwen2; '
        "did you mean qwen2?",
    ),
    ("student:\n  build:\n    heads: 5", ": student.build: heads (5) must divide d_model (48)"),
    ("teacher:\n  build:\n    dropout: .nan", "recipe.yaml:4: teacher.build.dropout: "),
    ("optim:\n  optimizer: adamw_8bit\ntrainer: {sharding: fsdp}", "recipe.yaml:3: optim.optimi"),
    ("teacher: {\n  sharding: fsdp,\n  device: cpu}", "recipe.yaml:4: teacher.device: "),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_settings_that_no_run_can_use_have_file_and_line(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(HEAD + text + "\n")
    with pytest.raises(ConfigError) as caught:
        load_config(RunConfig, Path("recipe.yaml"), search=find_recipe)
    said = str(caught.value)
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize("command", ["plan", "train"])
@pytest.mark.parametrize("text", ["optim:\n  lr: .inf", "task:\n  name: files\n  train: null"])
def test_plan_and_train_refuse_alike(tmp_path, monkeypatch, capsys, command, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(brim.cli, "prepare_process", lambda: None)
    Path("recipe.yaml").write_text(HEAD + text + "\n")
    monkeypatch.setattr(sys, "argv", ["brim", command, "recipe.yaml"])
    with pytest.raises(SystemExit) as exit:
        brim.cli.main()
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("brim: recipe.yaml:")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.lr=.inf"], "optim.lr=.inf: "),
        (["evaluation.metric=rouge1"], "evaluation.metric=rouge1: rouge1 is not measured"),
        (["teacher.build.d_modle=3"], "teacher.build.d_modle=3: unknown key; did you mean"),
    ],
)
def test_on_the_command_line_the_override_is_named(overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_config(RunConfig, find_recipe("cmudict/brim"), overrides, search=find_recipe)
    assert str(caught.value).startswith(f"command line: {message}")


def test_what_an_override_contradicts_is_named_with_its_file():
    with pytest.raises(ConfigError) as caught:
        load_config(
            RunConfig, find_recipe("cmudict/brim"), ["evaluation.expected_returns=false"],
            search=find_recipe,
        )  # fmt: skip
    place, _, problem = str(caught.value).partition(": evaluation.metric: ")
    assert place.endswith("_methods.yaml:8")
    assert "needs evaluation.expected_returns=true" in problem


def test_a_stage_keeps_its_rate_whatever_else_is_said_of_its_optimizer():
    trainer = {"max_steps": 9}
    assert SupervisedConfig(trainer=trainer, optim={"warmup_steps": 5}).optim.lr == 1e-3
    assert SupervisedConfig(trainer=trainer).optim.lr == 1e-3
    # What is hashed of a stage is what it was.
    assert list(SupervisedConfig(trainer=trainer).describe()["optim"]) == list(
        OptimConfig().model_dump()
    )


@pytest.mark.parametrize("place", ["student.predistill.", "teacher.train.", ""])
def test_each_process_needs_a_prompt_in_each_stage(place):
    recipe = find_recipe("cmudict/brim")
    config = load_config(RunConfig, recipe, [f"{place}trainer.rollout_batch_size=2"])
    config.check_processes(2)
    with pytest.raises(ConfigError, match=rf"^{place}trainer.rollout_batch_size: 2 prompts .* 4"):
        config.check_processes(4)
