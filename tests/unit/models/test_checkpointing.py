"""Gradient checkpointing: the same gradients, fewer bytes kept."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from rounding import assert_rounding
from tiny import FAMILIES, written
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from brim.errors import ModelError
from brim.models import (
    ActorCritic,
    Decoding,
    LanguageModel,
    Lora,
    add_adapters,
    checkpoint_layers,
    load_model,
    set_dropout,
    updating,
)
from brim.types import Rollout


def with_dropout(family: str, dropout: float | None = None) -> tuple[LanguageModel, Rollout]:
    model, rollout = written(family, 8, lengths=(3, 1, 6, 2))
    if dropout is not None:
        set_dropout(model.model, dropout)
    return model, rollout


class Kept:
    """Bytes of the tensors that autograd keeps for the backward pass, each counted once."""

    def __init__(self, module: nn.Module) -> None:
        self.seen = {p.data_ptr() for p in module.parameters()}
        self.bytes = 0

    def add(self, tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in self.seen:
            self.seen.add(tensor.data_ptr())
            self.bytes += tensor.numel() * tensor.element_size()
        return tensor


@contextmanager
def kept_bytes(module: nn.Module) -> Iterator[Kept]:
    kept = Kept(module)
    with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
        yield kept


def gradients(module: nn.Module, rollout: Rollout) -> tuple[dict[str, Tensor], int]:
    """Of a sum of all that the module says, with what was kept for them."""
    module.zero_grad(set_to_none=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        with kept_bytes(module) as kept:
            tokens = module(rollout)
        loss = (tokens.logprobs * torch.linspace(-1, 1, rollout.mask.shape[1])).sum()
        if tokens.state_values is not None:
            loss = loss + tokens.state_values.square().sum()
        torch.rand(9)  # the second pass must not draw from where the first one left
        loss.backward()
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return found, kept.bytes


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Sums over several uses of a weight round, and there are gradients to be wrong."""
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 0.1
    assert_rounding(found, expected)


@pytest.mark.parametrize(("probability", "dropout"), [(0.0, True), (0.3, True), (0.4, False)])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_same_and_less_is_kept(family, probability, dropout):
    model, rollout = with_dropout(family, probability)
    updating(model, dropout=dropout)
    assert any(part.training for part in model.modules()) == dropout
    expected, before = gradients(model, rollout)
    checkpoint_layers(model, dropout=dropout)
    updating(model, dropout=dropout)
    if not dropout:  # evaluation mode, but for what decides on the checkpoints
        modes = {type(part) for part in model.modules() if part.training}
        assert modes
        assert all(issubclass(part, GradientCheckpointingLayer) for part in modes)
    found, after = gradients(model, rollout)
    assert_equal(found, expected)
    assert after < 0.6 * before


def test_layers_that_are_left_out_and_adapters_stay_as_in_evaluation():
    model, rollout = with_dropout("bart", 0.4)
    model.model.model.encoder.layerdrop = model.model.model.decoder.layerdrop = 0.9
    add_adapters(model.model, Lora(dropout=0.5), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    updating(model, dropout=False)
    expected, before = gradients(model, rollout)
    assert all("lora_" in name for name in expected)
    checkpoint_layers(model, dropout=False)
    updating(model, dropout=False)
    found, after = gradients(model, rollout)
    assert_equal(found, expected)
    assert after < before


@pytest.mark.parametrize("trunk", ["shared", "separate"])
def test_a_critic_is_checkpointed_too(trunk):
    student, rollout = with_dropout("t5")
    module = ActorCritic(student, trunk=trunk, unit=10.0)
    nn.init.normal_(module.value_head.weight)
    updating(module, dropout=False)
    expected, before = gradients(module, rollout)
    checkpoint_layers(module, dropout=False)
    updating(module, dropout=False)
    found, after = gradients(module, rollout)
    assert found.keys() == expected.keys()
    assert (trunk == "separate") == any(name.startswith("critic.") for name in found)
    assert_equal(found, expected)
    assert after < 0.6 * before
    layers = [m for m in module.modules() if isinstance(m, GradientCheckpointingLayer)]
    assert all(layer.training for layer in layers)


@pytest.mark.parametrize("dropout", [True, False])
@pytest.mark.parametrize("family", ["t5", "mt5", "gpt2", "llama", "qwen2"])
def test_writing_and_judging_are_as_before(family, dropout, caplog):
    model, rollout = with_dropout(family)
    batch = rollout.batch
    values = model.action_values(rollout)
    checkpoint_layers(model, dropout=dropout)
    updating(model, dropout=dropout)
    modes = [part.training for part in model.modules()]
    again = model.generate(batch, Decoding(max_tokens=8))
    assert torch.equal(again.completion_ids, rollout.completion_ids)
    generated = model.generate(batch, Decoding(max_tokens=8, strategy="greedy", engine="generate"))
    greedy = model.generate(batch, Decoding(max_tokens=8, strategy="greedy"))
    assert torch.equal(generated.completion_ids, greedy.completion_ids)
    assert torch.equal(model.action_values(rollout).q_taken, values.q_taken)
    assert [part.training for part in model.modules()] == modes
    assert "Caching is incompatible" not in caplog.text


def test_what_is_saved_knows_nothing_of_it(tmp_path):
    for name in ("before", "after"):
        model, _ = with_dropout("qwen2")
        if name == "after":
            checkpoint_layers(model, dropout=False)
        model.save(tmp_path / name)
    for file in ("config.json", "generation_config.json", "model.safetensors"):
        assert (tmp_path / "before" / file).read_bytes() == (tmp_path / "after" / file).read_bytes()
    loaded = load_model(tmp_path / "after")
    assert not any(getattr(m, "gradient_checkpointing", False) for m in loaded.modules())


def test_a_model_that_cannot_says_so(monkeypatch):
    model, _ = with_dropout("t5")
    monkeypatch.setattr(type(model.model), "supports_gradient_checkpointing", False)
    with pytest.raises(ModelError, match="T5ForConditionalGeneration .* does not support it;") as e:
        checkpoint_layers(model, dropout=True)
    assert "\n" not in str(e.value)


def test_layers_of_an_older_kind_need_training_mode(monkeypatch):
    model, _ = with_dropout("t5")
    monkeypatch.setattr("brim.models.modes._layers", lambda module: [])
    checkpoint_layers(model, dropout=True)
    with pytest.raises(ModelError, match="does not support it without dropout;"):
        checkpoint_layers(model, dropout=False)
