"""A quantised teacher judges, and says how far its Q-values drift."""

import json

import pytest
from pairs import LLAMA, T5

from brim.config import load_config
from brim.errors import ConfigError
from brim.runs import evaluate_run, train
from brim.settings import RunConfig

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


def test_layers_of_a_quantised_teacher_make_no_student(make_config, teachers, tmp_path):
    pytest.importorskip("bitsandbytes")
    teacher = (
        f"teacher={{path: {teachers['t5']}, quantization: {{backend: bitsandbytes, bits: 8}}}}"
    )
    student = ("student.build=null", "student.keep_layers=1")
    config = make_config(T5, teacher, *NO_TRAINING, *student)
    with pytest.raises(ConfigError, match="quantised layers"):
        train(config, tmp_path / "run")


def test_settings_of_the_run_are_read_back(make_config, teachers, tmp_path):
    pytest.importorskip("bitsandbytes")
    quantization = "quantization: {backend: bitsandbytes, bits: 8, drift_examples: 0}"
    teacher = f"teacher={{path: {teachers['t5']}, {quantization}}}"
    train(make_config(T5, teacher, *NO_TRAINING), tmp_path / "run")
    assert "quantization" not in json.loads((tmp_path / "run" / "manifest.json").read_text())
    again = load_config(RunConfig, tmp_path / "run" / "config.yaml")
    assert again.teacher.quantization.bits == 8
