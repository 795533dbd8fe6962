"""What stages and runs are hashed by, key for key: with one more, finished work is made again."""

import json
from pathlib import Path

import pytest
from pairs import GPT2

from brim._version import __version__
from brim.config.loading import config_hash
from brim.models import load_model
from brim.runs.stages import Stage
from brim.runs.train import train
from brim.support.files import read_json

OPTIM = {
    "optimizer": "adamw", "betas": [0.9, 0.999], "eps": 1e-08, "weight_decay": 0.0,
    "max_grad_norm": 1.0, "warmup_steps": 0,
}  # fmt: skip
LOOP = {
    "num_epochs": None, "rollout_batch_size": 16, "micro_batch_tokens": 8192, "save_every": 100,
    "dropout": None, "gradient_checkpointing": False, "keep_checkpoints": 2,
    "max_nonfinite_steps": 5, "sharding": "none",
}  # fmt: skip
SHORT = ["trainer.max_steps=1", "evaluation.num_resamples=100"]


@pytest.fixture
def opened(monkeypatch) -> dict[str, dict]:
    """By name, the inputs of each stage that was opened, without what a reader may check alone."""
    found: dict[str, dict] = {}
    original = Stage.open.__func__

    def noting(cls, root, name, inputs):
        stage = original(cls, root, name, inputs)
        assert stage.inputs == {"brim": __version__, **inputs}
        assert stage.directory == root / f"{name}-{config_hash(stage.inputs)[:12]}"
        found[name] = json.loads(json.dumps(inputs))
        return stage

    monkeypatch.setattr(Stage, "open", classmethod(noting))
    return found


def data_of(run: Path) -> dict[str, str]:
    return {
        split: facts["sha256"] for split, facts in read_json(run / "manifest.json")["data"].items()
    }


def models_of(run: Path) -> dict[str, str]:
    models = read_json(run / "manifest.json")["models"]
    return {role: facts["sha256"] for role, facts in models.items()}


def test_stages_of_models_that_are_trained(make_config, tmp_path, opened):
    config = make_config(GPT2, *SHORT, "student.lora={r: 2}", "objective={name: seqkd}")
    pytest.importorskip("peft")
    train(config, tmp_path)
    manifest = read_json(tmp_path / "manifest.json")
    data, models, stages = data_of(tmp_path), models_of(tmp_path), manifest["stages"]
    limits = {"max_prompt_tokens": 40, "max_tokens": 8}
    common = {
        **limits, "data": data["train"], "validation": data["validation"], "metric": "exact_match",
        "precision": "float32", "seed": 0,
    }  # fmt: skip
    assert opened == {
        "teacher": {
            **common,
            "model": models["teacher"],
            "settings": {
                "optim": {**OPTIM, "lr": 3e-3, "schedule": "linear"},
                "trainer": {**LOOP, "max_steps": 4, "evaluate_every": 4},
            },
        },
        "teacher_outputs": {
            **limits, "data": data["train"], "teacher": stages["teacher"], "excluded": [],
        },
        "predistill": {
            **common,
            "model": models["student"],
            "outputs": stages["teacher_outputs"],
            "lora": {"r": 2, "alpha": 16.0, "dropout": 0.0, "target_modules": None},
            "settings": {
                "optim": {**OPTIM, "lr": 3e-3, "schedule": "constant"},
                "trainer": {**LOOP, "max_steps": 3, "evaluate_every": 3},
            },
        },
    }  # fmt: skip
    assert list(stages) == ["teacher", "teacher_outputs", "predistill"]
    assert list(manifest["stages_sha256"]) == list(stages)
    assert manifest["stages_dir"] == "stages"
    kept = {key: value for key, value in config.model_dump(mode="json").items()
            if key not in ("description", "tracking")}  # fmt: skip
    assert list(kept) == [
        "seed", "task", "teacher", "student", "objective", "decoding", "optim", "trainer",
        "evaluation",
    ]  # fmt: skip
    for name in ("server", "key_env", "requests"):  # where a teacher is, and how it is asked
        del kept["teacher"][name]
    del kept["trainer"]["callbacks"]  # who watches
    assert manifest["config_hash"] == config_hash(kept)


def test_stages_of_models_that_are_loaded(make_config, tmp_path, opened):
    train(make_config(GPT2, *SHORT, "teacher.train.trainer.max_steps=1"), tmp_path / "first")
    opened.clear()
    settings = ["student.predistill=null", "teacher.train=null", "teacher.tokenizer=null"]
    best = next((tmp_path / "first" / "stages").glob("teacher-*")) / "best"
    for role in ("teacher", "student"):
        load_model(best).save(tmp_path / role)
        settings += [f"{role}.build=null", f"{role}.path={tmp_path / role}"]
    train(make_config(GPT2, *SHORT, *settings), tmp_path / "run")
    data, models = data_of(tmp_path / "run"), models_of(tmp_path / "run")
    common = {
        "teacher": models["teacher"], "data": {key: data[key] for key in ("validation", "test")},
        "max_prompt_tokens": 40, "max_tokens": 8,
    }  # fmt: skip
    assert opened == {role: {**common, "model": models[role]} for role in ("teacher", "student")}
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert {role: folder.split("-")[0] for role, folder in manifest["stages"].items()} == {
        "teacher": "teacher", "student": "student",
    }  # fmt: skip
    assert manifest["stages_sha256"] == {}


def test_only_the_layers_of_a_teacher_that_were_kept_name_their_student(
    make_config, tmp_path, opened
):
    settings = ["student.build=null", "student.keep_layers=1", "student.predistill=null"]
    train(make_config(GPT2, *SHORT, *settings, "teacher.seed=3"), tmp_path)
    stages = read_json(tmp_path / "manifest.json")["stages"]
    assert list(opened) == ["teacher", "student"]
    assert list(stages) == ["teacher", "student"]
    assert opened["teacher"]["seed"] == 3
    assert opened["student"]["teacher"] == stages["teacher"]
    assert models_of(tmp_path).keys() == {"teacher"}
