"""Settings that take less memory for the same training: checkpointed layers, 8-bit moments."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from makers import policy_gradient, ppo_brim, ppo_llmr, seqkd
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from brim.errors import ConfigError, RunError
from brim.examples import Example
from brim.models import Decoding, LanguageModel, build_model, load_model, train_tokenizer
from brim.objectives.base import Objective
from brim.training.loop_settings import LoopConfig, OptimConfig
from brim.training.optimizer import build_optimizer, load_optimizer, save_optimizer
from brim.training.updates import Updater
from brim.types import Rollout

TEXTS = ("one two three four five six seven eight nine ten", "ten nine eight seven")
EXAMPLES = [
    Example(str(i), "one two three"[: 3 + 4 * (i % 3)], ("four five six",)) for i in range(6)
]


def student(family: str, *, dropout: float = 0.0, d_model: int = 16) -> LanguageModel:
    tokenizer = train_tokenizer(TEXTS, kind="word", vocab_size=40)
    return build_model(
        {"family": family, "d_model": d_model, "layers": 2, "heads": 2, "dropout": dropout},
        tokenizer,
        seed=1,
    )


def make_updater(model: LanguageModel, objective: Objective, **settings: Any) -> Updater:
    optim = OptimConfig(lr=1e-2, optimizer=settings.pop("optimizer", "adamw"))
    loop = LoopConfig(max_steps=1, rollout_batch_size=len(EXAMPLES), **settings)
    teacher = model.copy()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter *= 1.5
    return Updater(model, teacher, objective, optim, loop, Accelerator(cpu=True), seed=5)


def step(updater: Updater, number: int) -> Rollout:
    batch = updater.student.encode(EXAMPLES, max_tokens=None, seeds=range(9, 9 + len(EXAMPLES)))
    with torch.no_grad():
        rollout, _ = updater.objective.collect(batch, updater.behavior, updater.teacher)
    updater.begin_step(number, 1e-2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        assert updater.update(rollout, number, True).finite
    return rollout


def weights(updater: Updater) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in updater.module.named_parameters()}


OBJECTIVES = {
    "seqkd": lambda: seqkd(Decoding(max_tokens=6)),
    "reused": lambda: policy_gradient(Decoding(max_tokens=6), rollout_reuse=2),
    "ppo_brim": lambda: ppo_brim(Decoding(max_tokens=6), num_epochs=2, num_minibatches=2),
    "ppo_llmr": lambda: ppo_llmr(
        Decoding(max_tokens=6), critic="separate", num_epochs=2, num_minibatches=2
    ),
}


@pytest.mark.parametrize("family", ["t5", "qwen2"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_checkpointed_layers_learn_the_same(objective: str, family: str) -> None:
    learned = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = student(family, dropout=0.2)
        updater = make_updater(
            model, OBJECTIVES[objective](), gradient_checkpointing=checkpointing,
            micro_batch_tokens=40,
        )  # fmt: skip
        passes = count_passes(updater.module)
        for number in range(2):
            step(updater, number)
        learned.append((weights(updater), passes["gradient"]))
    (plain, once), (checkpointed, twice) = learned
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=0, atol=2e-4)
    assert twice == 2 * once > 0


def count_passes(module: nn.Module) -> dict[str, int]:
    """Passes of layers in updates: twice as many where the backward pass makes them again."""
    passes = {"gradient": 0}

    def count(_module: nn.Module, inputs: Any) -> None:
        passes["gradient"] += torch.is_grad_enabled()

    for layer in module.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            # Of what the layer calls: its own hooks stay outside of the checkpoint.
            called = (part for part in layer.modules() if not isinstance(part, nn.ModuleList))
            next(part for part in called if part is not layer).register_forward_pre_hook(count)
    return passes


def matrices(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(100, 70), nn.Tanh(), nn.Linear(70, 3), nn.LayerNorm(3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for number in steps:
        generator = torch.Generator().manual_seed(number)
        inputs = torch.randn(16, 100, generator=generator)
        optimizer.zero_grad()
        (model(inputs) - inputs[:, :3].sin()).square().mean().backward()
        optimizer.step()


EIGHT_BITS = OptimConfig(lr=3e-3, betas=(0.8, 0.97), weight_decay=0.1, optimizer="adamw_8bit")


def test_moments_of_large_matrices_have_8_bits_and_only_matrices_decay() -> None:
    pytest.importorskip("bitsandbytes")
    model = matrices()
    optimizer = build_optimizer(model, EIGHT_BITS)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {p.dim() for p in optimizer.param_groups[1]["params"]} == {1}
    assert all(group["betas"] == (0.8, 0.97) for group in optimizer.param_groups)
    train(model, optimizer, range(2))
    types = {p.numel(): optimizer.state[p]["state1"].dtype for p in model.parameters()}
    assert types == {7000: torch.uint8, 210: torch.float32, 70: torch.float32, 3: torch.float32}


@pytest.mark.parametrize(("steps", "least", "most"), [(1, 0.0, 1e-5), (10, 1e-4, 0.05)])
def test_8_bit_moments_lead_to_about_the_same_weights(
    steps: int, least: float, most: float
) -> None:
    pytest.importorskip("bitsandbytes")
    begun = nn.utils.parameters_to_vector(matrices().parameters())
    ends = []
    for name in ("adamw", "adamw_8bit"):
        model = matrices()
        optimizer = build_optimizer(model, EIGHT_BITS.model_copy(update={"optimizer": name}))
        train(model, optimizer, range(steps))
        ends.append(nn.utils.parameters_to_vector(model.parameters()))
    exact, coarse = ends
    # The first step's moments are rounded after they were used.
    assert least < (coarse - exact).norm() / (exact - begun).norm() < most


@pytest.mark.parametrize("stop", [1, 3])
def test_8_bit_moments_are_saved_and_restored_bit_for_bit(tmp_path: Path, stop: int) -> None:
    pytest.importorskip("bitsandbytes")
    first = matrices()
    optimizer = build_optimizer(first, EIGHT_BITS)
    train(first, optimizer, range(stop))
    save_optimizer(optimizer, tmp_path)
    stored = load_file(tmp_path / "optimizer.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.uint8, torch.float32}
    assert json.loads((tmp_path / "optimizer.json").read_text())["class"] == "AdamW8bit"
    second = matrices(seed=1)
    second.load_state_dict(first.state_dict())
    train(first, optimizer, range(stop, 8))

    other = build_optimizer(second, EIGHT_BITS)
    held = [p.detach().clone() for p in second.parameters()]
    train(second, other, range(99, 100))  # a state of its own, which the loaded one must replace
    with torch.no_grad():
        for parameter, value in zip(second.parameters(), held, strict=True):
            parameter.copy_(value)
    load_optimizer(other, tmp_path)
    train(second, other, range(stop, 8))
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)
        for name, value in optimizer.state[one].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other.state[two][name]))


def test_the_state_of_the_other_adamw_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = matrices()
    save_optimizer(build_optimizer(model, OptimConfig()), tmp_path)
    with pytest.raises(RunError, match="state of AdamW, not of AdamW8bit"):
        load_optimizer(build_optimizer(model, EIGHT_BITS), tmp_path)


def test_a_updater_with_8_bit_moments_goes_on_bit_for_bit(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")

    def updater() -> Updater:
        torch.manual_seed(0)
        model = student("qwen2", d_model=64)
        return make_updater(model, OBJECTIVES["ppo_llmr"](), optimizer="adamw_8bit")

    whole, resumed = updater(), updater()
    step(whole, 0)
    whole.save(tmp_path)
    resumed.restore(tmp_path, load_model)
    for one in (whole, resumed):
        step(one, 1)
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    states = [state["state1"].dtype for state in whole.optimizer.state.values()]
    assert torch.uint8 in states


def test_without_bitsandbytes_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match=r"pip install 'brim-distill\[bitsandbytes\]'") as error:
        build_optimizer(matrices(), EIGHT_BITS)
    assert "\n" not in str(error.value)


def test_a_bitsandbytes_that_cannot_compute_here_is_met_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    optim = pytest.importorskip("bitsandbytes.optim")

    def fail(self: Any, *args: Any) -> None:
        raise NotImplementedError("no kernel\nfor this device")

    monkeypatch.setattr(optim.AdamW8bit, "step", fail)
    with pytest.raises(ConfigError, match=r"on cpu \(NotImplementedError\)") as error:
        build_optimizer(matrices(), EIGHT_BITS)
    assert "\n" not in str(error.value)
