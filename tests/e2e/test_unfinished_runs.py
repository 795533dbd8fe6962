"""Runs that were stopped, finished, or evaluated in folders and on data that are not their own."""

import json
import shutil
from pathlib import Path

import pytest
from listening import Listener
from pairs import T5, stopping
from rundirs import write_run
from test_train import rows

from brim.errors import ConfigError, RunError
from brim.runs.directory import RunDirectory
from brim.runs.evaluate import evaluate_run, evaluate_stage
from brim.runs.train import train
from brim.support.files import read_json, write_sealed_json
from brim.training.optimizer import count_steps
from brim.training.partial import PartialResults
from brim.training.trainer import Interrupted, Trainer

SAMPLES = ["evaluation.decoding.strategy=sampling", "evaluation.decoding.num_samples=2"]


@pytest.fixture(scope="module")
def data(numerals, tmp_path_factory) -> Path:
    """Files that tests may change, and mend again."""
    return Path(shutil.copytree(numerals, tmp_path_factory.mktemp("data") / "numerals"))


@pytest.fixture(scope="module")
def make(make_config, data):
    splits = [f"task.{name}={data}/{name}.jsonl" for name in ("train", "validation", "test")]
    return lambda *overrides: make_config(T5, *splits, *overrides)


def stop_at(step: int, config, out: Path, stages: Path) -> Path:
    """A run that has got Ctrl-C in a step."""
    with stopping(step), pytest.raises(Interrupted):
        train(config, out, stages_dir=stages)
    return out


@pytest.fixture(scope="module")
def finished(make, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(make(), folder / "run", stages_dir=folder / "stages")
    return folder / "run"


def test_results_of_a_stopped_run_say_so_until_it_has_gone_on(make, finished, tmp_path, caplog):
    stages = finished.parent / "stages"
    run = stop_at(3, make(), tmp_path / "run", stages)
    caplog.set_level("WARNING", logger="brim")  # which `-q` has made silent
    for split, out in (("test", None), ("validation", None), ("test", tmp_path / "elsewhere")):
        evaluate_run(run, split=split, out=out)
        assert "its training has not ended (step 3 of 6)" in caplog.text
        caplog.clear()
        assert RunDirectory(out or run).results(split).stopped_at == "step 3 of 6"
    train(make(), run, stages_dir=stages)
    assert RunDirectory(run).results("test").stopped_at is None
    # That was not measured again.
    assert RunDirectory(run).results("validation").stopped_at == "step 3 of 6"
    evaluate_run(run, split="validation")
    assert RunDirectory(run).results("validation").stopped_at is None
    assert not caplog.text


def test_a_run_that_never_saved_is_not_finished_and_one_without_its_checkpoints_is(
    make, finished, tmp_path, monkeypatch
):
    def crashing(self):
        raise OSError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", crashing)
        with pytest.raises(OSError, match="power"):
            train(make(), tmp_path / "run", stages_dir=finished.parent / "stages")
    evaluate_run(tmp_path / "run")
    assert RunDirectory(tmp_path / "run").results("test").stopped_at == "step 0 of 6"

    shutil.copytree(finished, tmp_path / "copy" / "run")
    (tmp_path / "copy" / "stages").symlink_to(finished.parent / "stages")
    shutil.rmtree(tmp_path / "copy" / "run" / "checkpoints")
    evaluate_run(tmp_path / "copy" / "run")
    assert RunDirectory(tmp_path / "copy" / "run").results("test").stopped_at is None


@pytest.mark.parametrize("length", ["max_steps=5", "num_epochs=0.2", "num_epochs=1.01"])
def test_the_planned_steps_are_those_that_the_trainer_counts(make, data, tmp_path, length):
    config = make("trainer.max_steps=null", "trainer.num_epochs=null", f"trainer.{length}")
    size = len(rows(data / "train.jsonl"))
    manifest = {"data": {"train": {"num_examples": size}}}
    write_run(tmp_path, settings=config.model_dump(mode="json"), manifest=manifest)
    assert RunDirectory(tmp_path).planned_steps() == count_steps(config.trainer, size)


def test_training_a_finished_run_again_decodes_nothing_and_says_what_it_kept(
    make, finished, monkeypatch
):
    before = (finished / "results.json").read_bytes()
    listener = Listener()
    monkeypatch.setattr(PartialResults, "append", None)  # a decoded block would call it
    results = train(make(), finished, stages_dir=finished.parent / "stages", reporter=listener)
    assert listener.lines[-2:] == ["brim: unchanged, kept", "brim on test: unchanged, kept"]
    assert results == json.loads(before)["test"]
    assert (finished / "results.json").read_bytes() == before


def test_results_of_another_model_are_not_taken_for_those_of_the_best_checkpoint(make, finished):
    path = finished / "results.json"
    results = read_json(path)
    results["test"]["model"] = "another"
    write_sealed_json(path, results)
    train(make(), finished, stages_dir=finished.parent / "stages")
    assert json.loads(path.read_text())["test"]["model"] != "another"


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_run_keeps_its_results_where_the_data_has_changed(finished, data, tmp_path, split):
    evaluate_run(finished, split=split)
    before = (finished / "results.json").read_bytes()
    path = data / f"{split}.jsonl"
    text = path.read_text()
    path.write_text("".join(text.splitlines(keepends=True)[:-1]))
    try:
        for evaluate in (evaluate_run, lambda *a, **k: evaluate_stage(*a, "teacher", **k)):
            with pytest.raises(RunError, match=f"the {split} split is not what .*--out FOLDER"):
                evaluate(finished, split=split)
        assert (finished / "results.json").read_bytes() == before
        assert evaluate_run(finished, split=split, out=tmp_path / "out")
    finally:
        path.write_text(text)


def test_a_folder_keeps_results_of_one_model_decoded_in_one_way(finished, tmp_path):
    out = tmp_path / "out"
    evaluate_run(finished, out=out)
    evaluate_run(finished, out=out)
    evaluate_run(finished, out=out, split="validation")
    before = (out / "results.json").read_bytes()
    teacher = next((finished.parent / "stages").glob("teacher-*")) / "best"
    for split in ("test", "train"):
        with pytest.raises(RunError, match=r"holds test results of another decoding.*--out"):
            evaluate_run(finished, split=split, out=out, overrides=SAMPLES)
        with pytest.raises(RunError, match=r"holds test results of another model.*--out"):
            evaluate_run(finished, split=split, out=out, model=str(teacher))
    with pytest.raises(RunError, match="holds test results of another seed"):
        evaluate_run(finished, out=out, overrides=["seed=7"])
    assert (out / "results.json").read_bytes() == before
    with pytest.raises(ConfigError, match="need a folder of their own"):
        evaluate_run(finished, out=finished, model=str(teacher))


def test_damaged_results_are_met_before_anything_is_decoded(finished, tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text('{"test": {"sco')
    monkeypatch.setattr(PartialResults, "append", None)  # a decoded block would call it
    with pytest.raises(RunError, match=r"results.json: cannot be read: .*; remove it, and write"):
        evaluate_run(finished, out=tmp_path)


def test_a_run_stopped_before_its_teacher_is_told_from_one_that_lost_it(make, finished, tmp_path):
    run = stop_at(2, make(), tmp_path / "run", tmp_path / "stages")  # the teacher's
    with pytest.raises(RunError, match="stopped before it had its teacher .* resume it by"):
        evaluate_run(run)
    shutil.copytree(finished, tmp_path / "far" / "away")
    with pytest.raises(RunError, match="teacher is missing; bring back its stages folder"):
        evaluate_run(tmp_path / "far" / "away")
