"""Gradient checkpointing: the same gradients, fewer bytes kept."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from rounding import assert_rounding
from tiny import FAMILIES, encoded, tiny_language_model
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


def written(family: str, dropout: float | None = None) -> tuple[LanguageModel, Rollout]:
    model = tiny_language_model(family).eval()
    rollout = model.generate(encoded(model, (3, 1, 6, 2)), Decoding(max_tokens=8))
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


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_same_and_less_is_kept(family: str, dropout: float) -> None:
    model, rollout = written(family, dropout)
    updating(model, dropout=True)
    expected, before = gradients(model, rollout)
    checkpoint_layers(model, dropout=True)
    updating(model, dropout=True)
    found, after = gradients(model, rollout)
    assert_equal(found, expected)
    assert after < 0.6 * before


@pytest.mark.parametrize("family", FAMILIES)
def test_without_dropout_it_is_evaluation_mode_and_less_is_kept(family: str) -> None:
    model, rollout = written(family, 0.4)
    updating(model, dropout=False)
    assert not any(part.training for part in model.modules())
    expected, before = gradients(model, rollout)
    checkpoint_layers(model, dropout=False)
    updating(model, dropout=False)
    modes = {type(part): part.training for part in model.modules() if part.training}
    assert modes
    assert all(issubclass(part, GradientCheckpointingLayer) for part in modes)
    found, after = gradients(model, rollout)
    assert_equal(found, expected)
    assert after < 0.6 * before


def test_layers_that_are_left_out_and_adapters_stay_as_in_evaluation() -> None:
    model, rollout = written("bart", 0.4)
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
def test_a_critic_is_checkpointed_too(trunk: str) -> None:
    student, rollout = written("t5")
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
def test_writing_and_judging_are_as_before(
    family: str, dropout: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model, rollout = written(family)
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


def test_what_is_saved_knows_nothing_of_it(tmp_path) -> None:
    for name in ("before", "after"):
        model, _ = written("qwen2")
        if name == "after":
            checkpoint_layers(model, dropout=False)
        model.save(tmp_path / name)
    for file in ("config.json", "generation_config.json", "model.safetensors"):
        assert (tmp_path / "before" / file).read_bytes() == (tmp_path / "after" / file).read_bytes()
    loaded = load_model(tmp_path / "after")
    assert not any(getattr(m, "gradient_checkpointing", False) for m in loaded.modules())


def test_a_model_that_cannot_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = written("t5")
    monkeypatch.setattr(type(model.model), "supports_gradient_checkpointing", False)
    with pytest.raises(ModelError, match="T5ForConditionalGeneration .* does not support it;") as e:
        checkpoint_layers(model, dropout=True)
    assert "\n" not in str(e.value)


def test_layers_of_an_older_kind_need_training_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = written("t5")
    monkeypatch.setattr("brim.models.modes._layers", lambda module: [])
    checkpoint_layers(model, dropout=True)
    with pytest.raises(ModelError, match="does not support it without dropout;"):
        checkpoint_layers(model, dropout=False)
