import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from rounding import assert_rounding
from safetensors.torch import load_file, save_file
from tiny import ENCODER_DECODERS, FAMILIES, encoded, tiny_language_model, written
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from brim.errors import ModelError, RunError
from brim.models import Decoding, LanguageModel, Lora, add_adapters, load_model
from brim.models.adapters import ADAPTERS, find_targets
from brim.training.settings import StudentConfig
from brim.types import Rollout

ATTENTION = {
    "t5": ["q", "v"],
    "bart": ["q_proj", "v_proj"],
    "llama": ["q_proj", "v_proj"],
    "qwen2": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
}


def trainable(model: LanguageModel) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def train(model: LanguageModel, rollout: Rollout, num_steps: int = 10) -> list[float]:
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    losses = []
    for _ in range(num_steps):
        loss = -model.logprobs(rollout).sum() / rollout.num_tokens
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def adapted(family: str, **options: object) -> tuple[LanguageModel, Rollout]:
    """A model whose adapters have learnt something."""
    model, rollout = written(family)
    add_adapters(model.model, Lora(**{"r": 4, **options}), seed=0)
    train(model, rollout, 3)
    return model, rollout


def state(model: LanguageModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_learn_beside_frozen_weights(family):
    model, rollout = written(family)
    before, num_parameters = state(model), model.num_parameters
    logprobs = model.logprobs(rollout).detach()
    add_adapters(model.model, Lora(r=4), seed=0)
    assert_rounding(model.logprobs(rollout).detach(), logprobs)
    assert all(".lora_" in name for name in trainable(model))
    assert model.num_trainable == sum(p.numel() for p in trainable(model).values())
    assert model.num_parameters == num_parameters + model.num_trainable
    assert not any(module.training for module in model.modules())

    losses = train(model, rollout)
    assert losses[-1] < 0.8 * losses[0]
    after = state(model)
    frozen = {name.replace(".base_layer", ""): after[name] for name in after if "lora" not in name}
    assert_equal(frozen, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_the_merged_model(family, tmp_path):
    model, rollout = adapted(family)
    before = state(model)
    model.save(tmp_path)
    assert_equal(state(model), before)
    assert not (tmp_path / ADAPTERS).exists()

    plain = tiny_language_model(family)
    auto = AutoModelForSeq2SeqLM if family in ENCODER_DECODERS else AutoModelForCausalLM
    read, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert read.state_dict().keys() == plain.model.state_dict().keys()
    loaded = load_model(tmp_path)
    assert loaded.num_parameters == loaded.num_trainable == plain.num_parameters
    logprobs = model.logprobs(rollout).detach()
    assert_rounding(loaded.logprobs(rollout).detach(), logprobs)
    assert not torch.allclose(plain.eval().logprobs(rollout), logprobs, atol=0.1)
    decoding = Decoding(max_tokens=6)
    assert model.decode(model.generate(encoded(model), decoding)) == loaded.decode(
        loaded.generate(encoded(loaded), decoding)
    )


@pytest.mark.parametrize("family", ["t5", "bart", "qwen2", "gpt2"])
def test_restoring_is_exact(family, tmp_path):
    model, rollout = adapted(family)
    model.save(tmp_path, resumable=True)
    again, _ = written(family)
    add_adapters(again.model, Lora(r=4), seed=1)
    again.restore(tmp_path, load_model)
    assert_equal(state(again), state(model))
    assert train(again, rollout, 3) == train(model, rollout, 3)
    assert_equal(state(again), state(model))


@pytest.mark.parametrize("family", ["t5_v1_1", "gpt2"])
def test_restoring_without_adapters(family, tmp_path):
    model, rollout = written(family)
    train(model, rollout, 2)
    model.save(tmp_path, resumable=True)
    assert not (tmp_path / ADAPTERS).exists()
    again, _ = written(family)
    parameter = next(again.parameters())
    again.restore(str(tmp_path), load_model)
    assert next(again.parameters()) is parameter  # as an optimizer holds it
    assert_equal(state(again), state(model))


def test_merging_follows_the_formula(tmp_path):
    model, _ = adapted("qwen2", r=3, alpha=5.0)
    live = state(model)
    model.save(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    layer = "model.layers.1.self_attn.q_proj"
    a, b = (live[f"{layer}.lora_{side}.default.weight"] for side in "AB")
    assert a.shape == (3, 16)
    expected = live[f"{layer}.base_layer.weight"] + 5 / 3 * b @ a
    assert_rounding(stored[f"{layer}.weight"], expected)
    assert torch.equal(stored[f"{layer}.bias"], live[f"{layer}.base_layer.bias"])


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_layers_but_the_head(family):
    model, _ = written(family)
    matrices = {n for n, p in model.model.named_parameters() if p.dim() == 2}
    others = ("embed", "shared", "relative_attention_bias", "wte", "wpe", "lm_head")
    expected = {n.removesuffix(".weight") for n in matrices if not any(o in n for o in others)}
    assert set(find_targets(model.model, None)) == expected
    add_adapters(model.model, Lora(), seed=0)
    assert {name.partition(".lora_")[0] for name in trainable(model)} == {
        f"model.{name}" for name in expected
    }


@pytest.mark.parametrize("family", ATTENTION)
def test_layers_by_name(family):
    model, rollout = written(family)
    names = ATTENTION[family]
    add_adapters(model.model, Lora(r=4, target_modules=names), seed=0)
    found = {name.partition(".lora_")[0].rpartition(".")[2] for name in trainable(model)}
    assert found == set(names)
    losses = train(model, rollout)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["nowhere", "lm_head", "embed_tokens", "proj"])
def test_a_name_that_fits_no_layer(name):
    model, _ = written("llama")
    before = state(model)
    with pytest.raises(ModelError, match=f"'{name}' is no linear layer .*choose among down_proj"):
        add_adapters(model.model, Lora(target_modules=["q_proj", name]), seed=0)
    assert_equal(state(model), before)
    assert model.num_trainable == model.num_parameters


def test_initial_weights_come_from_a_stream_of_their_own():
    models = []
    for noise, seed in ((1, 0), (2, 0), (3, 1)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        model, _ = written("t5")
        add_adapters(model.model, Lora(), seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        models.append(state(model))
    assert_equal(models[0], models[1])
    name = "encoder.block.0.layer.0.SelfAttention.q.lora_{}.default.weight"
    assert not torch.equal(models[0][name.format("A")], models[2][name.format("A")])
    assert not models[2][name.format("B")].any()


def test_adapters_of_a_bfloat16_model_are_float32(tmp_path):
    tiny_language_model("llama").save(tmp_path / "low")
    model = load_model(tmp_path / "low", dtype="bfloat16")
    rollout = model.generate(encoded(model), Decoding(max_tokens=6))
    add_adapters(model.model, Lora(r=4), seed=0)
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    losses = train(model, rollout)
    assert losses[-1] < losses[0]
    model.save(tmp_path / "merged")
    merged = load_model(tmp_path / "merged", dtype="auto")
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    difference = (merged.logprobs(rollout) - model.logprobs(rollout)).abs()
    assert difference.max() < 0.5
    assert difference.mean() < 0.05


def test_dropout_of_the_adapters_is_for_training():
    model, rollout = adapted("llama", dropout=0.5)
    assert torch.equal(model.logprobs(rollout), model.logprobs(rollout))
    model.train()
    assert not torch.equal(model.logprobs(rollout), model.logprobs(rollout))


def test_the_next_stage_begins_with_fresh_adapters(tmp_path):
    model, rollout = adapted("t5_v1_1")
    model.save(tmp_path)
    following = load_model(tmp_path)
    logprobs = following.logprobs(rollout).detach()
    add_adapters(following.model, Lora(r=2), seed=5)
    assert_rounding(following.logprobs(rollout).detach(), logprobs)
    with pytest.raises(ModelError, match="has adapters already"):
        add_adapters(following.model, Lora(), seed=6)


def test_a_copy_has_adapters_of_its_own():
    model, rollout = adapted("gpt2")
    before = state(model)
    clone = model.copy()
    assert_equal(state(clone), before)
    train(clone, rollout, 2)
    assert_equal(state(model), before)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-64]), "cannot be read"),
        (
            lambda path: save_file({n: value[:1] for n, value in load_file(path).items()}, path),
            "do not fit the model's",
        ),
        (
            lambda path: save_file(load_file(path), path, metadata={"frozen": "0" * 32}),
            "belong to other weights than the model's",
        ),
    ],
)
def test_what_cannot_be_restored(damage, message, tmp_path):
    model, _ = adapted("llama")
    model.save(tmp_path, resumable=True)
    damage(tmp_path / ADAPTERS)
    before = state(model)
    with pytest.raises(RunError, match=message) as caught:
        model.restore(tmp_path, load_model)
    assert "\n" not in str(caught.value)
    assert_equal(state(model), before)


def test_adapters_and_models_that_do_not_belong_together(tmp_path):
    model, _ = adapted("llama")
    model.save(tmp_path, resumable=True)
    plain, _ = written("llama")
    with pytest.raises(RunError, match="is of a model with adapters"):
        plain.restore(tmp_path, load_model)
    with torch.no_grad():
        plain.model.model.norm.weight[0] += 1e-3
    add_adapters(plain.model, Lora(r=4), seed=0)
    with pytest.raises(RunError, match="belong to other weights"):
        plain.restore(tmp_path, load_model)


def test_without_peft(monkeypatch):
    model, _ = written("t5")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"pip install 'brim-distill\[lora\]'"):
        add_adapters(model.model, Lora(), seed=0)


def test_settings():
    student = StudentConfig.model_validate({"path": "x", "lora": {"target_modules": ["q"]}})
    model, _ = written("t5")
    add_adapters(model.model, student.lora, seed=0)
    assert model.num_trainable > 0
    for wrong in ({"r": 0}, {"alpha": 0}, {"dropout": 1.0}, {"target_modules": []}, {"rank": 8}):
        with pytest.raises(ValidationError):
            StudentConfig.model_validate({"path": "x", "lora": wrong})
