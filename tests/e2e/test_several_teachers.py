"""A recipe with a list of teachers: their mean, or the one that each example names."""

import json

import pytest
import torch
from pairs import LLAMA, stopping
from safetensors.torch import load_file

from brim.config.loading import dump_config, load_config
from brim.config.yaml import parse
from brim.errors import ConfigError, DataError, RunError
from brim.models import AveragedTeacher, build_model, load_model, train_tokenizer
from brim.plan import plan
from brim.runs.directory import RunDirectory
from brim.runs.evaluate import evaluate_run
from brim.runs.train import train
from brim.training.settings import RunConfig
from brim.training.trainer import Interrupted

FAST = (
    "trainer.max_steps=3", "trainer.evaluate_every=3", "trainer.save_every=1", "optim.lr=1e-2",
    "task.max_train_examples=32", "task.max_validation_examples=4", "task.max_test_examples=4",
    "evaluation.num_resamples=100", "evaluation.expected_returns=false",
)  # fmt: skip
ONE = ("teacher.build=null", "teacher.tokenizer=null", "teacher.train=null")
SAMPLED = "objective={name: anchored, immediate: sampled, expected_regrets: false}"


@pytest.fixture(scope="module")
def folders(numerals, tmp_path_factory):
    """Two teachers of one tokenizer."""
    lines = (numerals / "train.jsonl").read_text(encoding="utf-8").splitlines()
    texts = ["write {number} in Roman numerals: {roman}".format(**json.loads(x)) for x in lines]
    tokenizer = train_tokenizer(texts, kind="bpe", vocab_size=290)
    folders = {}
    for seed, name in enumerate(("even", "odd")):
        folders[name] = tmp_path_factory.mktemp(name)
        build_model(parse(LLAMA, str).data, tokenizer, seed=seed).save(folders[name])
    return folders


@pytest.fixture(scope="module")
def averaged(make_config, folders):
    teachers = f"teacher=[{{path: {folders['even']}, weight: 3}}, {{path: {folders['odd']}}}]"
    return lambda *changes: make_config(LLAMA, *FAST, teachers, *changes)


@pytest.fixture(scope="module")
def routed(make_config, folders, numerals, tmp_path_factory):
    folder = tmp_path_factory.mktemp("routed")
    for path in numerals.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [{**row, "by": ("even", "odd")[int(row["number"]) % 2]} for row in rows]
        (folder / path.name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    named = ", ".join(f"{{name: {name}, path: {path}}}" for name, path in folders.items())
    data = [f"task.{split}={folder}/{split}.jsonl" for split in ("train", "validation", "test")]
    fixed = (*FAST, *data, "task.teacher_column=by", f"teacher=[{named}]")
    return lambda *changes: make_config(LLAMA, *fixed, *changes)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


def weights(out):
    return load_file(out / "best" / "model.safetensors")


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("objective", ["{name: anchored}", "{name: kl}", "{name: brim, k: 2}"])
def test_a_mean_trains_any_method(objective, averaged, stages, tmp_path):
    config = averaged(f"objective={objective}")
    train(config, tmp_path / "whole", stages_dir=stages)
    with stopping(2, "stopped"), pytest.raises(Interrupted):
        train(config, tmp_path / "stopped", stages_dir=stages)
    train(config, tmp_path / "stopped", stages_dir=stages)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    facts = RunDirectory(tmp_path / "whole").manifest()["models"]["teacher"]["teachers"]
    assert {name: {*found} for name, found in facts.items()} == {"0": {"sha256"}, "1": {"sha256"}}


def test_a_mean_of_one_teacher_twice_teaches_what_it_teaches(make_config, folders, tmp_path):
    path = folders["odd"]
    alone = make_config(LLAMA, *FAST, *ONE, f"teacher.path={path}")
    twice = make_config(LLAMA, *FAST, f"teacher=[{{path: {path}}}, {{path: {path}}}]")
    for name, config in {"alone": alone, "twice": twice}.items():
        train(config, tmp_path / name)
    one, other = weights(tmp_path / "alone"), weights(tmp_path / "twice")
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-3, rtol=1e-3)


def test_results_and_outputs_are_of_all_teachers(averaged, stages, folders, tmp_path):
    train(averaged(), tmp_path / "run", stages_dir=stages)
    found = evaluate_run(tmp_path / "run", stage="teacher")
    parts = [load_model(folders[name]) for name in ("even", "odd")]
    mean = AveragedTeacher(parts, [3, 1])
    assert found["num_parameters"] == mean.num_parameters
    again = load_config(RunConfig, tmp_path / "run" / "config.yaml")
    assert again == averaged()
    assert "several" in dump_config(again)


@pytest.mark.parametrize("objective", ["{name: llmr}", SAMPLED.partition("=")[2]])
def test_each_example_is_scored_by_its_own(objective, routed, stages, tmp_path):
    config = routed(f"objective={objective}")
    train(config, tmp_path / "whole", stages_dir=stages)
    with stopping(1, "stopped"), pytest.raises(Interrupted):
        train(config, tmp_path / "stopped", stages_dir=stages)
    train(config, tmp_path / "stopped", stages_dir=stages)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    # Both teachers are read: with one of them for all rows the student is another.
    names = {"even": "odd", "odd": "even"}
    swapped = [t.model_copy(update={"name": names[t.name]}) for t in config.teacher.several]
    teacher = config.teacher.model_copy(update={"several": tuple(swapped)})
    train(config.model_copy(update={"teacher": teacher}), tmp_path / "swapped", stages_dir=stages)
    assert not same(weights(tmp_path / "whole"), weights(tmp_path / "swapped"))


def test_another_teacher_behind_a_name_is_refused_on_resume(routed, stages, folders, tmp_path):
    with stopping(1, "stopped"), pytest.raises(Interrupted):
        train(routed(), tmp_path / "stopped", stages_dir=stages)
    path = folders["odd"] / "model.safetensors"
    before, other = path.read_bytes(), (folders["even"] / "model.safetensors").read_bytes()
    try:
        path.write_bytes(other)
        with pytest.raises(RunError, match="teacher is not the one"):
            train(routed(), tmp_path / "stopped", stages_dir=stages)
    finally:
        path.write_bytes(before)


def test_an_example_that_names_no_teacher_is_refused(routed, tmp_path):
    with pytest.raises(DataError, match="names the teacher"):
        train(routed("task.teacher_column=number"), tmp_path / "run")


def test_a_plan_counts_all_of_them(averaged, routed):
    whole, shared = plan(averaged("objective={name: llmr}")), plan(routed("objective={name: llmr}"))
    assert [model.role for model in whole.models] == ["teacher", "teacher", "student"]
    mean, each = whole.stages[-1].operations, shared.stages[-1].operations
    assert mean.teacher == 2 * each.teacher
    assert mean.rollout == each.rollout
    assert whole.peak_bytes == shared.peak_bytes


TWO = "teacher=[{path: a}, {path: b}]"
NAMED = "teacher=[{path: a, name: x}, {path: b, name: y}]"
MAPPED = "teacher={several: [{path: a}, {path: b}], build: null, tokenizer: null, train: null"
COLUMN = "task.teacher_column=roman"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ((TWO, "student={build: null, keep_layers: 1}"), "student.keep_layers"),
        (("teacher=[{path: a}, {server: 'http://x', model: m}]",), "m is behind a server"),
        (("teacher=[{path: a}]",), "at least 2"),
        (("teacher=[{path: a, weight: 0}, {path: b}]",), "greater than 0"),
        ((f"{MAPPED}, sharding: fsdp}}",), "sharding"),
        ((f"{MAPPED}, path: c}}",), "exactly one"),
        ((COLUMN, *ONE, "teacher.path=a"), "one teacher"),
        ((COLUMN, TWO), "needs a name"),
        ((COLUMN, "teacher=[{path: a, name: x}, {path: b, name: x}]"), "needs a name"),
        ((COLUMN, "teacher=[{path: a, name: x, weight: 2}, {path: b, name: y}]"), "weights are"),
        ((COLUMN, NAMED, "objective={name: kl}"), "name=kl"),
        ((COLUMN, NAMED, "objective={name: anchored}"), "immediate=expected"),
    ],
)
def test_what_has_no_meaning_is_refused(make_config, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_config(LLAMA, *FAST, *changes)


def test_single_keys_are_put_on_top_of_a_list(make_config, tmp_path):
    path = tmp_path / "recipe.yaml"
    text = dump_config(make_config(LLAMA, *FAST, TWO))
    listed = {**parse(text, str).data, "teacher": [{"path": "a"}, {"path": "b", "weight": 0.5}]}
    path.write_text(json.dumps(listed), encoding="utf-8")
    config = load_config(RunConfig, path, ["teacher.batch_tokens=77"])
    assert config.teacher.batch_tokens == 77
    assert [teacher.weight for teacher in config.teacher.several] == [1, 0.5]
