"""A quantized teacher judges, and says how far its Q-values drift."""

import json

import pytest
from pairs import LLAMA, T5

from brim.config.loading import load_config
from brim.errors import ConfigError, ModelError
from brim.models import Quantization, load_model
from brim.plan import plan
from brim.runs.evaluate import evaluate_run
from brim.runs.train import train
from brim.training.settings import RunConfig

NO_TRAINING = ("teacher.build=null", "teacher.tokenizer=null", "teacher.train=null")


@pytest.fixture(scope="module")
def teachers(make_config, tmp_path_factory):
    """Folders of trained teachers."""
    found = {}
    for name, model in (("t5", T5), ("llama", LLAMA)):
        run = tmp_path_factory.mktemp(name) / "run"
        train(make_config(model, "student.predistill=null", "objective={name: seqkd}"), run)
        found[name] = next((run / "stages").glob("teacher-*")) / "best"
    return found


@pytest.mark.parametrize("backend", ["bitsandbytes", "torchao"])
@pytest.mark.parametrize("name", ["t5", "llama"])
def test_a_run_with_8_bits(make_config, teachers, tmp_path, name, backend):
    pytest.importorskip(backend)
    teacher = f"teacher={{path: {teachers[name]}, quantization: {{backend: {backend}, bits: 8}}}}"
    config = make_config({"t5": T5, "llama": LLAMA}[name], teacher, *NO_TRAINING)
    results = train(config, tmp_path / "run")
    drift = json.loads((tmp_path / "run" / "manifest.json").read_text())["quantization"]
    assert 0 < drift["mean_taken"] <= drift["max_taken"]
    assert 0 < drift["same_best"] <= 1
    again = evaluate_run(tmp_path / "run", split="test")
    assert again["scores"]["return"]["value"] == results["scores"]["return"]["value"]


@pytest.fixture(scope="module")
def stored(teachers, tmp_path_factory):
    """A trained teacher whose weights bitsandbytes has stored in 8 bits."""
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp("stored") / "t5"
    load_model(teachers["t5"], quantization=Quantization(backend="bitsandbytes", bits=8)).save(
        folder
    )
    return folder


BITS = "{backend: bitsandbytes, bits: 8}"
LOOP = "{trainer: {max_steps: 1, rollout_batch_size: 4}}"
LAYERS = "student={keep_layers: 1}"
STUDENT = "student={path: STORED}"
ADAPTED = "student={path: STORED, lora: {r: 2}}"


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ([f"teacher={{path: STORED, quantization: {BITS}}}"], ModelError, "to null"),
        ([f"teacher={{path: STORED, train: {LOOP}}}"], ConfigError, "teacher.train: .* stored in"),
        (["teacher={path: STORED, sharding: offload}"], ConfigError, "teacher.sharding: .*stored"),
        ([f"teacher={{path: PLAIN, quantization: {BITS}}}", LAYERS], ConfigError, "quantized lay"),
        (["teacher={path: STORED}", LAYERS], ConfigError, "student.keep_layers: quantized layers"),
        (["teacher={path: PLAIN}", STUDENT], ConfigError, "student.path: .* bitsandbytes, 8 bits"),
        (["teacher={path: PLAIN}", ADAPTED], ConfigError, "student.path: .* bitsandbytes, 8 bits"),
    ],
)
def test_a_folder_that_is_stored_quantized_has_the_same_limits(
    make_config, teachers, stored, tmp_path, overrides, error, message
):
    if not any("student" in override for override in overrides):
        overrides = [*overrides, "student={path: PLAIN}"]
    plain = str(teachers["t5"])
    places = [o.replace("STORED", str(stored)).replace("PLAIN", plain) for o in overrides]
    config = make_config(T5, *NO_TRAINING, "student.build=null", *places)
    for begin in (plan, lambda config: train(config, tmp_path / "run")):
        with pytest.raises(error, match=message) as caught:
            begin(config)
        assert "\n" not in str(caught.value)


def test_a_folder_that_is_stored_quantized_teaches_and_is_evaluated(
    make_config, teachers, stored, tmp_path
):
    config = make_config(T5, f"teacher={{path: {stored}}}", *NO_TRAINING)
    assert str(plan(config).models[0].stored) == "bitsandbytes, 8 bits"
    results = train(config, tmp_path / "run")
    quantization = "quantization: {backend: bitsandbytes, bits: 8, drift_examples: 0}"
    same = make_config(T5, f"teacher={{path: {teachers['t5']}, {quantization}}}", *NO_TRAINING)
    assert train(same, tmp_path / "same")["scores"] == results["scores"]
    assert "quantization" not in json.loads((tmp_path / "same" / "manifest.json").read_text())
    again = load_config(RunConfig, tmp_path / "same" / "config.yaml")
    assert again.teacher.quantization.bits == 8
    evaluated = evaluate_run(tmp_path / "run", split="test", model=str(stored), out=tmp_path / "it")
    assert "return" in evaluated["scores"]
