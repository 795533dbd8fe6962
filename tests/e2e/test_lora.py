"""A student of adapters: each stage trains its own, and what comes out is an ordinary model."""

from pathlib import Path

import pytest
import torch
from pairs import GPT2, LLAMA, T5
from safetensors.torch import load_file

from brim.errors import ModelError
from brim.models import load_model
from brim.runs.train import train
from brim.training.trainer import Interrupted, Trainer

pytest.importorskip("peft")


def newest_weights(run: Path) -> dict[str, torch.Tensor]:
    steps = (run / "checkpoints").iterdir()
    newest = max(steps, key=lambda path: int(path.name.removeprefix("step-")))
    merged, adapters = (load_file(newest / f"{n}.safetensors") for n in ("model", "adapters"))
    return merged | adapters


@pytest.mark.parametrize("model", [T5, GPT2, LLAMA], ids=["t5", "gpt2", "llama"])
def test_stopped_in_both_stages_and_resumed_to_the_same_bits(
    make_config, tmp_path, monkeypatch, model
):
    config = make_config(model, "student.lora={r: 4, dropout: 0.1}", "optim.lr=1e-2")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, whole)
    original = Trainer._train_step

    def stopping(trainer):
        original(trainer)
        trainer.stop_requested = trainer.state.step == 2

    monkeypatch.setattr(Trainer, "_train_step", stopping)
    stops = 0
    while not (parts / "results.json").exists():
        try:
            train(config, parts)
        except Interrupted:
            stops += 1
    assert stops == 3  # teacher, pre-distillation, objective
    ours, theirs = newest_weights(whole), newest_weights(parts)
    assert ours.keys() == theirs.keys()
    assert any("lora_A" in name for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name in ("metrics.jsonl", "samples.jsonl", "predictions/test.jsonl"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    predistilled = next((whole / "stages").glob("predistill-*")) / "best"
    for best in (predistilled, whole / "best"):
        assert not (best / "adapters.safetensors").exists()
        assert "lora" not in "".join(load_model(best).model.state_dict())


def test_an_unknown_layer_is_refused_before_any_training(make_config, tmp_path):
    config = make_config(LLAMA, "student.lora={target_modules: [nope]}")
    with pytest.raises(ModelError, match="nope"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "stages").exists()
