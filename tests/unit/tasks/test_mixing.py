"""Several sources of training data with weights, and what evaluation compares with."""

import json
import logging
from collections import Counter

import pytest

from brim.errors import ConfigError, DataError
from brim.tasks import SPLITS, Files, describe, locate, reading, without_rows
from brim.tasks.base import example_digest
from brim.tasks.mixing import Weighted


def write_jsonl(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(name, count):
    return [{"prompt": f"{name}{i}", "target": f"t{i}", "key": i} for i in range(count)]


@pytest.fixture
def two(tmp_path):
    a = write_jsonl(tmp_path / "a" / "rows.jsonl", pairs("a", 400))
    b = write_jsonl(tmp_path / "b" / "other.jsonl", pairs("b", 100))
    return a, b


def task_of(*sources, **settings):
    return Files(train=sources, **{"validation_fraction": 0, "test_fraction": 0, **settings})


def test_sources_without_weights_follow_each_other(two, tmp_path):
    task = task_of(*two)
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        examples = task.load("train", cache_dir=cache)
        assert [e.prompt for e in examples] == [r["prompt"] for r in pairs("a", 400)] + [
            r["prompt"] for r in pairs("b", 100)
        ]
        assert (examples[0].id, examples[400].id) == ("rows.jsonl:1", "other.jsonl:1")
        facts = describe(examples)
        assert facts["source"] == ", ".join(two)
        assert facts["sources"] == [
            {"source": two[0], "num_examples": 400},
            {"source": two[1], "num_examples": 100},
        ]
        assert facts["sha256"] == example_digest(examples)
    assert list(task_of(two[0]).load("train")) == list(examples[:400])


def test_a_weight_says_how_often_an_epoch_has_a_row(two, tmp_path):
    a, b = two
    task = task_of({"path": a, "weight": 0.5}, {"path": b, "weight": 2.25})
    examples = task.load("train", cache_dir=tmp_path / "cache")
    counts = Counter(example.prompt for example in examples)
    halves = [counts[f"a{i}"] for i in range(400)]
    more = [counts[f"b{i}"] for i in range(100)]
    # Binomial: 4 standard deviations on each side.
    assert set(halves) == {0, 1}
    assert 160 <= sum(halves) <= 240
    assert set(more) == {2, 3}
    assert 207 <= sum(more) <= 243
    # The same ones at every call, whatever the other sources; ids are unique.
    assert list(task.load("train")) == list(examples)
    alone = task_of({"path": a, "weight": 0.5}).load("train")
    assert [e.prompt for e in alone] == [e.prompt for e in examples[: len(alone)]]
    assert len({example.id for example in examples}) == len(examples)
    assert examples[len(alone)].id + "*2" == examples[len(alone) + 1].id
    facts = describe(examples)
    assert facts["sources"][1] == {"source": b, "num_examples": 100, "weight": 2.25}
    assert facts["sha256"] == example_digest(examples)
    assert facts["num_examples"] == len(examples)
    assert list(examples[5:9]) == [examples[i] for i in range(5, 9)]


def test_weights_are_of_training_and_not_of_what_is_carved(two):
    a, b = two
    plain = task_of(a, b, validation_fraction=0.2)
    task = task_of(a, {"path": b, "weight": 3}, validation_fraction=0.2)
    assert list(task.load("validation")) == list(plain.load("validation"))
    trained = {example.prompt for example in task.load("train")}
    assert trained.isdisjoint(example.prompt for example in task.load("validation"))
    assert trained == {example.prompt for example in plain.load("train")}


def test_another_weight_reads_the_copy_that_there_is(two, tmp_path):
    for weight in (1, 2, 0.3):
        task = task_of(two[0], {"path": two[1], "weight": weight})
        task.load("train", cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1


def test_files_of_one_name_and_ids_of_one_column_are_told_apart(tmp_path, two):
    same = write_jsonl(tmp_path / "b" / "rows.jsonl", pairs("c", 3))
    examples = task_of(two[0], same).load("train")
    assert (examples[0].id, examples[400].id) == (f"{two[0]}:1", f"{same}:1")
    own = task_of(two[0], two[1], id_column="key").load("train")
    assert (own[7].id, own[407].id) == ("rows.jsonl:7", "other.jsonl:7")
    double = write_jsonl(tmp_path / "double.jsonl", [*pairs("a", 2), *pairs("b", 1)])
    with pytest.raises(DataError, match=r"double.jsonl:3: id given twice: 'double.jsonl:0'"):
        task_of(two[0], double, id_column="key").load("train")


def test_bad_rows_and_unusable_ones_are_named_in_their_own_file(tmp_path, two, caplog):
    bad = write_jsonl(tmp_path / "bad.jsonl", [*pairs("c", 1), {"prompt": "q"}])
    with pytest.raises(DataError, match=r'bad.jsonl:2: no field "target"'):
        task_of(*two, bad).load("train")
    task = task_of(two[0], {"path": bad, "weight": 2}, on_bad_row="skip")
    examples = task.load("train")
    assert describe(examples)["skipped"] == {'no field "target"': 1}
    assert locate(task, "train", [examples[400]]) == [f"{bad}:1"]
    with caplog.at_level(logging.WARNING):
        left = without_rows(task, "train", examples, {400: "why", 401: "why"})
    assert f"the first: {bad}:1: why" in caplog.text
    assert len(left) == 400
    with pytest.raises(DataError, match="gone.jsonl: no such file"):
        task_of(two[0], "gone.jsonl").load("train")


def test_a_weight_that_leaves_no_row_is_an_error(tmp_path):
    path = write_jsonl(tmp_path / "one.jsonl", pairs("a", 1))
    assert len(Weighted(["x"], [(1, 1e-9)])) == 0
    with pytest.raises(DataError, match=r"one.jsonl: .*weight"):
        task_of({"path": path, "weight": 1e-9}).load("train")


# References


def test_evaluation_compares_with_its_own_column(tmp_path):
    rows = [{"prompt": f"p{i}", "target": f"t{i}", "refs": [f"r{i}", "s"]} for i in range(200)]
    task = Files(
        train=write_jsonl(tmp_path / "train.jsonl", rows),
        reference_column="refs",
        validation_fraction=0.3,
        test_fraction=0.3,
    )
    for cache in (None, tmp_path / "cache"):
        for split in SPLITS:
            examples = task.load(split, cache_dir=cache)
            number = examples[0].prompt[1:]
            wanted = (f"t{number}",) if split == "train" else (f"r{number}", "s")
            assert examples[0].references == wanted
    plain = Files(train=task.train, validation_fraction=0.3, test_fraction=0.3)
    for split in SPLITS:
        assert [e.id for e in plain.load(split)] == [e.id for e in task.load(split)]


def test_a_split_needs_the_columns_of_its_own(tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", [{"prompt": "p", "target": "t"}])
    dev = write_jsonl(tmp_path / "dev.jsonl", [{"prompt": "q", "target": "u"}])
    test = tmp_path / "test.csv"
    test.write_text("prompt,refs,more\nr,v,w\n")
    task = Files(train=train, validation=dev, test=str(test), reference_column={"test": "refs"})
    assert [task.load(split)[0].references for split in SPLITS] == [("t",), ("u",), ("v",)]
    both = task.model_copy(update={"reference_column": ("refs", "more")})
    assert both.load("test")[0].references == ("v", "w")
    with pytest.raises(DataError, match=r'dev.jsonl:1: no field "refs"'):
        both.load("validation")
    with pytest.raises(ConfigError, match=r"test.csv: no column 'ref'"):
        Files(train=train, test=str(test), reference_column="ref").load("test")


def test_a_count_is_the_length_of_what_is_loaded(tmp_path, two, monkeypatch):
    bad = write_jsonl(tmp_path / "bad.jsonl", [*pairs("c", 60), {"prompt": "q"}])
    sources = (two[0], {"path": two[1], "weight": 1.5}, {"path": bad, "weight": 0.5})
    for settings in (
        {"train": sources, "validation_fraction": 0.2},
        {"train": sources, "max_train_examples": 70},
        {"train": two[0], "test": bad},
    ):
        task = Files(**settings, on_bad_row="skip")
        for split in SPLITS:
            assert task.count(split) == len(task.load(split))
    assert Files(train=(two[0], bad)).count("train") == Files(
        train=(two[0], bad), on_bad_row="skip"
    ).count("train")
    assert Files(train="org/name").count("train") is None
    assert Files(train=(two[0], "gone.jsonl")).count("train") is None
    assert Files().count("train") is None
    monkeypatch.setattr(reading, "COUNTED_BYTES", 100)
    assert task.count("train") is None
