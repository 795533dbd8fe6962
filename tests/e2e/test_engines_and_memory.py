"""Runs with another engine, checkpointed layers and 8-bit moments."""

import sys

import pytest
import torch
from pairs import GPT2, QWEN2, T5, stopping
from safetensors.torch import load_file
from test_train import assert_same_run

from brim.errors import ConfigError, ModelError
from brim.models import modes as checkpointing
from brim.runs.train import train
from brim.training.trainer import Interrupted

SETTINGS = (
    "decoding.engine=generate",
    "trainer.gradient_checkpointing=true",
    "optim.optimizer=adamw_8bit",
    "student.predistill.trainer.gradient_checkpointing=true",
)


@pytest.mark.parametrize(("model", "method"), [(T5, "brim"), (GPT2, "ppo_llmr"), (QWEN2, "brim")])
def test_a_run_goes_on_to_the_same_bits(make_config, tmp_path, model, method):
    pytest.importorskip("bitsandbytes")
    objective = "{name: brim, k: 2}" if method == "brim" else "{name: ppo_llmr, critic: separate}"
    config = make_config(model, *SETTINGS, f"objective={objective}")
    stages = tmp_path / "stages"
    train(config, tmp_path / "whole", stages_dir=stages)
    with stopping(3), pytest.raises(Interrupted):
        train(config, tmp_path / "run", stages_dir=stages)
    torch.manual_seed(123)
    train(config, tmp_path / "run", stages_dir=stages, resume="must")
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    state = load_file(tmp_path / "run/checkpoints/step-6/optimizer.safetensors")
    assert torch.uint8 in {value.dtype for value in state.values()}


def test_what_cannot_be_is_met_before_any_training(make_config, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="this is an encoder-decoder"):
        train(make_config(T5, "decoding.engine=vllm"), tmp_path / "vllm")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelError, match="needs the package vllm"):
        train(make_config(QWEN2, "decoding.engine=vllm"), tmp_path / "vllm2")
    monkeypatch.setattr(checkpointing, "_layers", lambda module: [])
    ppo = ("trainer.gradient_checkpointing=true", "objective={name: ppo_brim}")
    with pytest.raises(ModelError, match="does not support it without dropout"):
        train(make_config(T5, *ppo), tmp_path / "ppo")
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match="needs the package bitsandbytes"):
        train(make_config(T5, "optim.optimizer=adamw_8bit"), tmp_path / "bits")
    for name in ("vllm", "vllm2", "ppo", "bits"):
        assert not (tmp_path / name / "stages").exists()
