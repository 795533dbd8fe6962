"""On CPU: bitsandbytes in 8 and 4 bits, torchao in 8 bits (where it is installed)."""

import copy
import json
import logging
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from pydantic import ValidationError
from tiny import NUM_TOKENS, encoded, tiny_language_model, word_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, BitsAndBytesConfig

from brim.errors import ModelError
from brim.models import (
    Decoding,
    LanguageModel,
    Quantization,
    build_model,
    head,
    keep_layers,
    load_model,
    plain_tensors,
    q_drift,
    quantization_of,
)
from brim.models.quantization import check_quantized
from brim.training.settings import StudentConfig
from brim.training.teacher_settings import TeacherConfig
from brim.types import Rollout

needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao: pip install it")
INT8, NF4, TORCHAO = (
    Quantization(backend="bitsandbytes", bits=8),
    Quantization(backend="bitsandbytes", bits=4),
    Quantization(backend="torchao", bits=8),
)
BACKENDS = [INT8, NF4, pytest.param(TORCHAO, marks=needs_torchao)]
SIZES = {"d_model": 64, "d_ff": 128, "layers": 1, "heads": 2}
FAMILIES = {
    "t5": {"family": "t5"},
    "t5_tied": {"family": "t5", "tied": True},
    "mt5": {"family": "mt5"},  # with gated feed-forward layers
    "qwen2": {"family": "qwen2"},
    "llama": {"family": "llama", "kv_heads": 1, "tied": False},
}
# By how much the rounding moves a weight at most, as a share of the largest of its layer: half the
# widest gap between two levels, 1 / 127 apart and 0.304 apart, and what float16 adds.
COARSEST = {INT8: 0.0045, NF4: 0.153, TORCHAO: 0.004}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, description in {**FAMILIES, "gpt2": {"family": "gpt2"}}.items():
        tokenizer = word_tokenizer(appends_eos="t5" in name)
        build_model({**SIZES, **description}, tokenizer, seed=0).save(folder / name)
    tiny_language_model("bart").save(folder / "bart")
    return folder


def written(model: LanguageModel) -> Rollout:
    return model.generate(encoded(model), Decoding(max_tokens=6))


def dequantized(module: nn.Module) -> Tensor | None:
    """The weight that a quantized layer stands for; None of one that is not quantized."""
    weight = module.weight
    if type(module).__name__ == "Linear8bitLt":
        return module.state.CB * module.state.SCB[:, None] / 127
    if type(module).__name__ == "Linear4bit":
        return dequantize_4bit(weight.data, weight.quant_state)
    return None if type(weight) is nn.Parameter else weight.dequantize()


def linear_layers(model: LanguageModel) -> dict[str, nn.Module]:
    return {name: m for name, m in model.model.named_modules() if isinstance(m, nn.Linear)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantization", BACKENDS, ids=str)
def test_all_linear_layers_but_the_head(folders, family, quantization):
    model = load_model(folders / family, quantization=quantization)
    original = load_model(folders / family)
    assert torch.equal(
        model.model.get_output_embeddings().weight, original.model.get_output_embeddings().weight
    )
    plain = set()
    for name, module in linear_layers(model).items():
        weight = dequantized(module)
        exact = linear_layers(original)[name].weight
        if weight is None:
            assert torch.equal(module.weight, exact)
            plain.add(name.rpartition(".")[2])
        else:
            assert not torch.equal(weight, exact)
            error = (weight - exact).abs().max() / exact.abs().max()
            assert error < COARSEST[quantization]
    # bitsandbytes leaves the `wo` of T5 alone, as its class wants.
    spared = {"wo"} if quantization.backend == "bitsandbytes" and "t5" in family else set()
    assert plain == {"lm_head"} | spared


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantization", BACKENDS, ids=str)
def test_q_values_are_those_of_the_dequantized_weights(folders, family, quantization):
    model = load_model(folders / family, quantization=quantization)
    original = load_model(folders / family)
    rollout = written(original)
    exact = load_model(folders / family)
    with torch.no_grad():
        for name, module in linear_layers(model).items():
            weight = dequantized(module)
            if weight is not None:
                linear_layers(exact)[name].weight.copy_(weight)
    drift = q_drift(model, original, [rollout])
    rest = q_drift(model, exact, [rollout])
    assert drift["mean_taken"] > 1e-3
    assert 1e-3 < drift["mean_taken"] < (1.0 if quantization == NF4 else 0.1)
    # In 8 bits bitsandbytes rounds what its layers read, too.
    assert rest["max_taken"] < (0.1 if quantization == INT8 else 1e-5)


@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize("quantization", BACKENDS, ids=str)
def test_it_does_what_a_teacher_does(folders, family, quantization, caplog):
    for dtype in ("float32", "bfloat16"):
        model = load_model(folders / family, quantization=quantization, dtype=dtype)
        model = model.requires_grad_(False).eval()
        with caplog.at_level(logging.WARNING):
            rollout = written(model)
            values = model.action_values(rollout)
        assert "MatMul8bitLt" not in caplog.text
        assert (values.q_max >= values.q_taken).all()
        assert model.decode(rollout)
        for same in (model.to("cpu"), model.to(torch.device("cpu")), model.copy()):
            assert torch.equal(same.action_values(rollout).q_taken, values.q_taken)
        assert all(
            tensor.flatten().contiguous().view(torch.uint8) is not None
            for tensor in plain_tensors(model.model.state_dict()).values()
        )


@needs_torchao
def test_tensors_of_torchao_are_taken_apart(folders):
    states = [
        plain_tensors(load_model(folders / "llama", quantization=q).model.state_dict())
        for q in (TORCHAO, TORCHAO, None)
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(type(tensor) is Tensor for tensor in states[0].values())
    layer = "model.layers.0.mlp.up_proj.weight"
    assert states[0][f"{layer}.qdata"].dtype == torch.int8
    assert states[2][layer].dtype == torch.float32
    assert torch.equal(states[0]["lm_head.weight"], states[2]["lm_head.weight"])


def test_a_head_with_a_bias_beside_it(folders):
    model, original = (load_model(folders / "bart", quantization=q) for q in (INT8, None))
    assert type(model.model.lm_head.weight) is nn.Parameter
    assert 0 < q_drift(model, original, [written(original)])["mean_taken"] < 0.1


def test_narrow_layers_that_bitsandbytes_would_read_wrongly(folders):
    with pytest.raises(ModelError, match=r"no multiple of 64, and that of model\..* is 16; choose"):
        load_model(folders / "bart", quantization=NF4)


@needs_torchao
def test_nothing_quantized_is_an_error(folders):
    with pytest.raises(ModelError, match="torchao found no layer of GPT2LMHeadModel"):
        load_model(folders / "gpt2", quantization=TORCHAO)
    assert load_model(folders / "gpt2", quantization=NF4).num_parameters > 0


def test_a_quantized_head_is_an_error(folders):
    careless = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["nothing"])
    model = AutoModelForSeq2SeqLM.from_pretrained(
        folders / "t5", quantization_config=careless, device_map={"": "cpu"}
    )
    with pytest.raises(ModelError, match="quantized the output head"):
        check_quantized(model, INT8)


def test_what_cannot_be_quantized_is_refused_in_one_line(folders, monkeypatch):
    cases = [("smollm2-135m-instruct", INT8, "cpu", "float32", "save it with LanguageModel.save")]
    if find_spec("torchao"):
        int4 = Quantization(backend="torchao", bits=4)
        cases += [
            (folders / "t5", int4, "cpu", "bfloat16", "need a CUDA GPU, and this is cpu"),
            (folders / "t5", int4, "cuda", "float32", "need dtype bfloat16"),
        ]
    for path, quantization, device, dtype, message in cases:
        with pytest.raises(ModelError, match=message) as caught:
            load_model(path, quantization=quantization, device=device, dtype=dtype)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr("brim.models.quantization.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'brim-distill\[bitsandbytes\]'"):
        load_model(folders / "t5", quantization=NF4)


def other(model: LanguageModel) -> LanguageModel:
    changed = model.copy()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return changed


def logits(model: LanguageModel, rollout: Rollout) -> Tensor:
    """transformers' own logits of the rollout's tokens, (N, V), less their mean."""
    ids = torch.cat([rollout.batch.prompt_ids, rollout.completion_ids], dim=1)
    mask = torch.cat([rollout.batch.prompt_mask, rollout.mask], dim=1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    out = model.model(input_ids=ids, attention_mask=mask.long(), position_ids=positions).logits
    width = rollout.batch.prompt_ids.shape[1]
    tokens = out[:, width - 1 : -1, :NUM_TOKENS][rollout.mask].double()
    return tokens - tokens.mean(1, keepdim=True)


def test_drift_is_that_of_the_full_logits(monkeypatch):
    reference = tiny_language_model("qwen2").eval()
    teacher, rollout = other(reference), written(reference)
    with torch.no_grad():
        ours, theirs = logits(teacher, rollout), logits(reference, rollout)
    taken = (ours - theirs).gather(1, rollout.completion_ids[rollout.mask][:, None]).abs()
    best = (ours.amax(1) - theirs.amax(1)).abs()
    kl = nn.functional.kl_div(
        ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="batchmean"
    )
    expected = {
        "num_tokens": rollout.num_tokens,
        "mean_taken": float(taken.mean()),
        "max_taken": float(taken.max()),
        "mean_best": float(best.mean()),
        "max_best": float(best.max()),
        "same_best": float((ours.argmax(1) == theirs.argmax(1)).double().mean()),
        "kl": float(kl),
    }
    monkeypatch.setattr(head, "CHUNK_BYTES", 4 * 48 * 5)  # five tokens at a time
    for parts in ([rollout], [rollout.select([i]) for i in range(len(rollout))]):
        drift = q_drift(teacher, reference, parts)
        assert {name: drift[name] for name in expected} == pytest.approx(expected, abs=1e-4)
        assert drift["kl"] > 0
        assert 0 < drift["mean_regret"] <= drift["mean_taken"] + drift["mean_best"] + 1e-6
        assert drift["mean_regret"] <= drift["max_regret"]
        values = reference.action_values(rollout)
        regret = (values.q_max - values.q_taken)[rollout.mask].mean()
        assert drift["reference_regret"] == pytest.approx(float(regret), abs=1e-4)


def test_no_drift_where_there_is_none():
    model = tiny_language_model("bart").eval()
    rollout = written(model)
    shifted = copy.deepcopy(model)
    shifted.model.final_logits_bias += 3.0  # a softmax does not know its offset
    for teacher, tolerance in ((model, 0.0), (shifted, 1e-4)):
        drift = q_drift(teacher, model, [rollout])
        assert drift.pop("same_best") == 1
        del drift["num_tokens"], drift["reference_regret"]
        assert all(abs(value) <= tolerance for value in drift.values())
    with pytest.raises(ValueError, match="no tokens"):
        q_drift(model, model, [])


BUILD = {"family": "t5", "d_model": 32, "layers": 1, "heads": 2}
LOOP = {"trainer": {"max_steps": 1}}
QUANTIZED = {"quantization": {"backend": "torchao", "bits": 8}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"build": BUILD, "tokenizer": {}, **QUANTIZED}, "quantization is for a loaded model"),
        ({"path": "x", "train": LOOP, **QUANTIZED}, "quantized weights cannot be trained"),
        ({"path": "x", "quantization": {"backend": "torchao", "bits": 2}}, "8 or 4"),
        ({"path": "x", "quantization": {"bits": 8}}, "backend"),
        ({"build": BUILD, "tokenizer": {}, "dtype": "bfloat16"}, "dtype is for a loaded model"),
        ({"build": BUILD, "tokenizer": {}, "revision": "main"}, "revision is for a loaded"),
        ({"build": BUILD, "tokenizer": {}, "trust_remote_code": True}, "trust_remote_code is for"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(ValidationError, match=message):
        TeacherConfig.model_validate(settings)


def test_settings_that_go_together():
    teacher = TeacherConfig.model_validate({"path": "x", "dtype": "bfloat16", **QUANTIZED})
    assert teacher.quantization is not None
    assert teacher.quantization == TORCHAO
    built = TeacherConfig.model_validate({"build": BUILD, "tokenizer": {}})
    # As a run's own config.yaml says it, every default spelt out.
    assert TeacherConfig.model_validate(built.model_dump()) == built
    with pytest.raises(ValidationError, match="dtype is for a loaded model"):
        StudentConfig.model_validate({"build": BUILD, "dtype": "float16"})


@pytest.fixture(scope="module")
def stored(folders, tmp_path_factory):
    """Folders in which bitsandbytes has stored the weights, by family and bits."""
    found = {}
    for family in ("t5", "llama"):
        for quantization in (INT8, NF4):
            found[f"{family}{quantization.bits}"] = tmp_path_factory.mktemp("stored") / family
            model = load_model(folders / family, quantization=quantization)
            model.save(found[f"{family}{quantization.bits}"])
    for name in ("t54", "llama4"):  # as most folders are made, on a GPU
        config = json.loads((found[name] / "config.json").read_text())
        config["quantization_config"]["bnb_4bit_compute_dtype"] = "bfloat16"
        (found[name] / "config.json").write_text(json.dumps(config))
    return found


@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize("quantization", [INT8, NF4], ids=str)
def test_a_folder_that_is_stored_so_is_read_as_one_that_is_quantized(
    folders, stored, family, quantization
):
    model = load_model(stored[f"{family}{quantization.bits}"])
    expected = load_model(folders / family, quantization=quantization)
    assert quantization_of(model) == quantization_of(expected) == quantization
    assert quantization_of(load_model(folders / family)) is None
    rollout = written(expected)
    close = {"rtol": 1e-5, "atol": 1e-5}
    for name in ("q_taken", "q_max", "logprobs"):
        values = (getattr(m.action_values(rollout), name) for m in (model, expected))
        torch.testing.assert_close(*values, **close)
    with pytest.raises(ModelError, match=r"quantized layers cannot be trained"):
        keep_layers(model, layers=1)
    with pytest.raises(ModelError, match=rf"stored in {quantization} already; set it to null"):
        load_model(stored[f"{family}{quantization.bits}"], quantization=INT8)


def change_config(folder: Path, copy_to: Path, **changes: object) -> Path:
    shutil.copytree(folder, copy_to)
    config = json.loads((copy_to / "config.json").read_text())
    config["quantization_config"] |= changes
    (copy_to / "config.json").write_text(json.dumps(config))
    return copy_to


def test_what_stored_weights_cannot_be_is_said_in_one_line(folders, stored, tmp_path, monkeypatch):
    careless = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["nothing"])
    AutoModelForSeq2SeqLM.from_pretrained(
        folders / "t5", quantization_config=careless, device_map={"": "cpu"}
    ).save_pretrained(tmp_path / "head")
    word_tokenizer(appends_eos=True).save_pretrained(tmp_path / "head")
    gptq = change_config(stored["t58"], tmp_path / "gptq", quant_method="gptq")
    cases = [
        (tmp_path / "head", "quantized the output head"),
        (gptq, "stored by gptq, which is not supported"),
    ]
    for folder, message in cases:
        with pytest.raises(ModelError, match=message) as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr("brim.models.quantization.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'brim-distill\[bitsandbytes\]'"):
        load_model(stored["t54"])


@needs_torchao
def test_a_folder_that_torchao_has_stored(folders, tmp_path):
    expected = load_model(folders / "llama", quantization=TORCHAO)
    expected.save(tmp_path)
    model = load_model(tmp_path)
    assert quantization_of(model) == TORCHAO
    rollout = written(expected)
    assert torch.equal(
        model.action_values(rollout).q_taken, expected.action_values(rollout).q_taken
    )
