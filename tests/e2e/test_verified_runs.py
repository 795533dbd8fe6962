"""What a run reads again is what it wrote, and its models are those that it was begun with."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from pairs import GPT2, stopping
from safetensors.torch import load_file, save_file

from brim.errors import BrimError, RunError
from brim.models import Decoding, load_model
from brim.models.loading import describe_model
from brim.report.gather import gather
from brim.runs.directory import RunDirectory
from brim.runs.evaluate import evaluate_run
from brim.runs.generate import generate
from brim.runs.train import train
from brim.support.files import read_json
from brim.support.seals import MANIFEST, find_damage, seal
from brim.training.trainer import Interrupted

KEPT = ["trainer.max_steps=4", "trainer.keep_checkpoints=2"]


@pytest.fixture(scope="module")
def sound(make_config, tmp_path_factory) -> Path:
    """A finished run with trained teacher and pre-distilled student."""
    folder = tmp_path_factory.mktemp("sound")
    train(make_config(GPT2, *KEPT), folder / "run")
    return folder / "run"


@pytest.fixture
def run(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "run"))


@pytest.fixture(scope="module")
def config(make_config):
    return make_config(GPT2, *KEPT)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def contents(run: Path) -> dict[str, bytes]:
    """What the seed decides of a run."""
    names = ["config.yaml", "metrics.jsonl", "samples.jsonl", "predictions/test.jsonl"]
    names += [f"best/{path.name}" for path in sorted((run / "best").iterdir())]
    return {name: (run / name).read_bytes() for name in names}


def stage(run: Path, name: str) -> Path:
    return next((run / "stages").glob(f"{name}-*"))


def test_training_again_mends_what_sound_files_can_mend(sound, run, config, caplog):
    # `best/` is of step 4, and so is a checkpoint.
    flip(run / "best" / "model.safetensors")
    for path in (run / "data").glob("*.arrow"):
        flip(path)
    flip(run / "config.yaml")
    flip(run / "predictions" / "test.jsonl")
    flip(stage(run, "teacher") / "best" / "model.safetensors")
    flip(stage(run, "teacher_outputs") / "train.jsonl")
    flip(stage(run, "predistill") / "done.json")
    train(config, run)
    said = ["best: is damaged; made again from", "reading", "config.yaml: is not what"]
    said += ["write it anew", "model.safetensors has", "train.jsonl has", "done.json"]
    assert [text for text in said if text not in caplog.text] == []
    assert contents(run) == contents(sound)
    caplog.clear()
    train(config, run)
    assert not caplog.text


def test_the_best_checkpoint_of_another_training_is_none(sound, run, config, caplog):
    ours, theirs = run / "best", stage(run, "teacher") / "best"
    ours.rename(run / "aside")
    theirs.rename(ours)
    (run / "aside").rename(theirs)
    for reader in (write, evaluate):
        with pytest.raises(RunError, match="best: damaged: it is not what this training|teacher-"):
            reader(run)
    train(config, run)
    assert contents(run) == contents(sound)


def test_a_log_is_made_again_from_a_checkpoint_that_is_older_than_its_damage(
    sound, run, config, caplog
):
    older = read_json(run / "checkpoints" / "step-3" / "logs.json")["metrics.jsonl"]["bytes"]
    os.truncate(run / "metrics.jsonl", older + 5)
    shutil.rmtree(run / "best")
    train(config, run)
    assert "going back to a checkpoint before step-4" in caplog.text
    assert contents(run) == contents(sound)


REFUSED = {
    "log": (lambda run: flip(run / "metrics.jsonl"), "metrics.jsonl .*bring it back, or delete"),
    "results": (lambda run: flip(run / "results.json"), "results.json: .*remove it, and write"),
    "manifest": (lambda run: flip(run / "manifest.json"), "manifest.json: .*bring it back"),
    "no manifest": (lambda run: (run / "manifest.json").unlink(), "manifest.json is missing"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_nothing_can_mend_is_one_line_with_a_remedy(run, config, what):
    damage, said = REFUSED[what]
    damage(run)
    with pytest.raises(RunError, match=said) as caught:
        train(config, run)
    assert "\n" not in str(caught.value)


def write(run: Path) -> None:
    list(generate(run, ["one"], decoding=Decoding(max_tokens=2)))


def evaluate(run: Path) -> None:
    evaluate_run(run, out=run.parent / "out")


def report(run: Path) -> None:
    gather([run])


READERS = {
    write: ["best/model.safetensors", "best/tokenizer.json", "best/manifest.json", "manifest.json"],
    evaluate: ["best/model.safetensors", "best/manifest.json", "config.yaml", "manifest.json"],
    report: ["results.json", "predictions/test.jsonl", "best/config.json", "config.yaml",
             "manifest.json"],
    lambda run: RunDirectory(run).log("metrics.jsonl"): ["metrics.jsonl"],
}  # fmt: skip
DELETED = [(write, "best/manifest.json"), (evaluate, "best/manifest.json")]
DELETED += [(reader, "config.yaml") for reader in (evaluate, report)]
DELETED += [(report, "manifest.json"), ([*READERS][-1], "metrics.jsonl")]


@pytest.mark.parametrize(
    ("reader", "name", "damage"),
    [(reader, name, flip) for reader, names in READERS.items() for name in names]
    + [(reader, name, Path.unlink) for reader, name in DELETED],
)
def test_readers_refuse_what_is_not_what_was_written(run, reader, name, damage):
    damage(run / name)
    with pytest.raises(RunError) as caught:
        reader(run)
    assert name.rpartition("/")[2] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_without_its_checkpoints_is_evaluated_to_the_same_results(run, tmp_path):
    whole = evaluate_run(run, out=tmp_path / "whole")
    shutil.rmtree(run / "checkpoints")
    assert evaluate_run(run, out=tmp_path / "without") == whole


def test_a_stage_that_was_made_again_to_other_weights_is_refused(run, config):
    best = stage(run, "teacher") / "best"
    weights = load_file(best / "model.safetensors")
    weights["lm_head.weight" if "lm_head.weight" in weights else min(weights)] += 1
    save_file(weights, best / "model.safetensors", metadata={"format": "pt"})
    seal(best, {"step": 4})
    names = [f"best/{MANIFEST}", "inputs.json"]
    seal(best.parent, {}, files=names, manifest="done.json")
    for again in (lambda: train(config, run), lambda: evaluate(run)):
        with pytest.raises(RunError, match="made again since"):
            again()


OTHER_JSON = ["[]", "3", '"x"', "null", "{}", '{"a": 1}', '{"config_hash": 4}', "[" * 100_000]
OTHER_JSON += ['{"config_hash": "0", "stages": 5}', '{"config_hash": "0", "data": {"test": []}}']


@pytest.mark.parametrize("text", OTHER_JSON)
def test_other_json_in_the_manifest_is_one_line(run, config, text):
    (run / "manifest.json").write_text(text)
    for again in (lambda: train(config, run), lambda: report(run)):
        with pytest.raises(RunError, match=r"manifest\.json|other settings|no finished") as caught:
            again()
        assert "\n" not in str(caught.value)


FORGED = [("trainer_state.json", text) for text in ("[]", "{}", '{"step": 4}')]
FORGED += [("trainer_state.json", '{"step": 4, "best_step": 4, "nonfinite_steps": "x"}')]
FORGED += [("logs.json", "[]"), ("logs.json", "{}"), ("optimizer.json", "[]")]
FORGED += [("model.safetensors", "x"), ("optimizer.safetensors", "x")]


def test_other_files_in_a_checkpoint_are_one_line_each(run, config):
    shutil.rmtree(run / "checkpoints" / "step-3")
    path = run / "checkpoints" / "step-4"
    for name, text in FORGED:
        before = (path / name).read_bytes()
        (path / name).write_text(text)
        seal(path, {"step": 4})
        with pytest.raises(BrimError) as caught:
            train(config, run)
        assert "\n" not in str(caught.value)
        (path / name).write_bytes(before)


@pytest.mark.parametrize("left", [[], ["data"], ["data", ".manifest.json.x-123-ab.tmp"]])
def test_a_run_killed_before_its_manifest_was_there_is_begun_again(run, config, tmp_path, left):
    out = tmp_path / "killed"
    out.mkdir()
    for name in left:
        if name == "data":
            shutil.copytree(run / "data", out / "data")
        else:
            (out / name).write_text('{"half": ')
    (out / ".lock").touch()
    train(config, out, stages_dir=run / "stages")
    assert contents(out) == contents(run)


def test_a_best_folder_that_a_stop_left_aside_is_brought_back(run, config, sound, caplog):
    for path in (run / "checkpoints").iterdir():
        if path.name != "step-4":
            shutil.rmtree(path)
    (run / "best").rename(run / ".best.old")
    train(config, run)
    assert contents(run) == contents(sound)
    assert not caplog.text


def test_a_run_from_before_there_were_seals_still_opens(run, config, sound, caplog):
    for path in run.rglob("*.json"):
        if path.name in ("manifest.json", "results.json", "done.json", "inputs.json"):
            if path.parent.name == "best":
                path.unlink()
                continue
            value = read_json(path)
            for key in ("sealed", "config_sha256", "models", "stages_sha256"):
                value.pop(key, None)
            if path.name == "done.json":
                value.pop("files")
            if path.name == "results.json":
                value["test"].pop("predictions")
            path.write_text(json.dumps(value))
    for path in (run / "checkpoints").glob("*"):
        state = read_json(path / "trainer_state.json")
        del state["best_sha256"]
        (path / "trainer_state.json").write_text(json.dumps(state))
        (path / "logs.json").unlink()
        seal(path, {"step": state["step"]})
    for reader in (report, write, evaluate):
        reader(run)
    train(config, run)
    assert not caplog.text
    old, new = contents(run), contents(sound)
    assert old.items() <= new.items()
    # From now on its models are known.
    assert (
        read_json(run / "manifest.json")["models"] == read_json(sound / "manifest.json")["models"]
    )


# -- models -----------------------------------------------------------------------------------


@pytest.fixture
def loaded(sound, make_config, tmp_path):
    """A finished run of a teacher and a student that lie in folders, and its settings."""
    settings = ["student.predistill=null", "teacher.train=null", "teacher.tokenizer=null"]
    for role in ("teacher", "student"):
        load_model(stage(sound, "teacher") / "best").save(tmp_path / role)
        settings += [f"{role}.build=null", f"{role}.path={tmp_path / role}"]
    config = make_config(GPT2, "trainer.max_steps=2", *settings)
    train(config, tmp_path / "run")
    return tmp_path / "run", config


def change_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in sorted(weights) if "ln_f" in key)
    weights[name] = weights[name] * 1.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layer_norm_epsilon": 0.5}))


def change_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"].pop()
    path.write_text(json.dumps(tokenizer))


def test_a_run_with_another_model_than_it_was_begun_with_is_refused(loaded):
    run, config = loaded
    known = read_json(run / "manifest.json")["models"]
    assert all(re.fullmatch("[0-9a-f]{64}", known[name]["sha256"]) for name in known)
    before = contents(run)
    for role in ("teacher", "student"):
        sound = shutil.copytree(run.parent / role, run.parent / f"sound {role}")
        for change in (change_weights, change_config, change_tokenizer):
            change(run.parent / role)
            said = f"the {role} is not the one that this run was begun with|different tokenizers"
            with pytest.raises(BrimError, match=said):
                train(config, run)
            if role == "teacher":  # the student is not needed any more
                with pytest.raises(RunError, match=said):
                    evaluate_run(run, model=str(run / "best"), out=run.parent / "out")
            if change is change_weights:  # one that is asked for by name is not refused
                asked_for = [f"teacher.path={run.parent / role}"]
                evaluate_run(run, out=run.parent / role / "out", overrides=asked_for)
            shutil.rmtree(run.parent / role)
            shutil.copytree(sound, run.parent / role)
    assert contents(run) == before
    train(config, run)
    evaluate(run)
    assert contents(run) == before


def test_a_fingerprint_is_of_the_model_and_not_of_its_files(sound, tmp_path):
    model = load_model(stage(sound, "teacher") / "best")
    model.save(tmp_path / "whole")
    model.model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    model.tokenizer.save_pretrained(tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 1
    config = tmp_path / "parts" / "config.json"
    newer = {**json.loads(config.read_text()), "transformers_version": "99.0"}
    config.write_text(json.dumps(newer))
    assert describe_model(load_model(tmp_path / "whole")) == describe_model(
        load_model(tmp_path / "parts")
    )


def test_the_commit_of_a_model_from_the_hub_is_known(sound):
    model = load_model(stage(sound, "teacher") / "best")
    assert "commit" not in describe_model(model)
    model.model.config._commit_hash = "1" * 40
    assert describe_model(model)["commit"] == "1" * 40


def test_a_stopped_run_heals_as_a_finished_one_does(sound, config, tmp_path, caplog):
    shutil.copytree(sound / "stages", tmp_path / "stages")
    with stopping(3), pytest.raises(Interrupted):
        train(config, tmp_path / "run", stages_dir=tmp_path / "stages")
    assert find_damage(tmp_path / "run" / "best") is None
    flip(tmp_path / "run" / "best" / "model.safetensors")
    flip(tmp_path / "run" / "checkpoints" / "step-3" / "model.safetensors")
    train(config, tmp_path / "run", stages_dir=tmp_path / "stages")
    assert "step-3: damaged" in caplog.text
    assert contents(tmp_path / "run") == contents(sound)
