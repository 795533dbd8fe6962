"""A student of adapters: each stage trains its own, and what comes out is an ordinary model."""

import pytest
from pairs import GPT2, LLAMA, T5, stopping
from test_train import assert_same_run, weights

from brim.errors import ModelError
from brim.models import load_model
from brim.runs.train import train
from brim.training.trainer import Interrupted

pytest.importorskip("peft")


@pytest.mark.parametrize("model", [T5, GPT2, LLAMA], ids=["t5", "gpt2", "llama"])
def test_stopped_in_both_stages_and_resumed_to_the_same_bits(make_config, tmp_path, model):
    config = make_config(model, "student.lora={r: 4, dropout: 0.1}", "optim.lr=1e-2")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, whole)
    stops = 0
    with stopping(2):
        while not (parts / "results.json").exists():
            try:
                train(config, parts)
            except Interrupted:
                stops += 1
    assert stops == 3  # teacher, pre-distillation, objective
    assert_same_run(whole, parts)
    assert any("lora_A" in name for name in weights(parts))
    predistilled = next((whole / "stages").glob("predistill-*")) / "best"
    for best in (predistilled, whole / "best"):
        assert not (best / "adapters.safetensors").exists()
        assert "lora" not in "".join(load_model(best).model.state_dict())


def test_an_unknown_layer_is_refused_before_any_training(make_config, tmp_path):
    config = make_config(LLAMA, "student.lora={target_modules: [nope]}")
    with pytest.raises(ModelError, match="nope"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "stages").exists()
