"""Several test sets of one task: what is read for each, and what cannot be one."""

import json

import pytest

from brim.config.loading import make_config
from brim.errors import BrimError, ConfigError
from brim.preview import preview
from brim.tasks import SPLITS, Files, describe


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path):
    columns = {"train": "t", "news": "n", "wiki": "w"}
    return {
        name: write(
            tmp_path / f"{name}.jsonl",
            [{"prompt": f"{letter}{i}", "target": "x", "gold": f"{name}{i}"} for i in range(40)],
        )
        for name, letter in columns.items()
    }


def task_of(files, **settings):
    tests = {"news": files["news"], "wiki": files["wiki"]}
    return Files(train=files["train"], test=tests, **settings)


def test_each_set_is_a_split(files, tmp_path):
    task = task_of(files, max_test_examples=3)
    assert task.splits() == ("train", "validation", "test.news", "test.wiki")
    for cache_dir in (None, tmp_path / "data"):
        found = {split: task.load(split, cache_dir=cache_dir) for split in task.splits()}
        assert [example.prompt for example in found["test.news"]] == ["n0", "n1", "n2"]
        assert [example.prompt for example in found["test.wiki"]] == ["w0", "w1", "w2"]
        # Nothing is carved out for a test; validation is, as it would be anyway.
        assert len(found["train"]) + len(found["validation"]) == 40
        assert len(found["validation"]) > 0
    assert task.count("test.wiki") == 3
    assert task.find("test.news", {"news.jsonl:2"}) == {"news.jsonl:2": f"{files['news']}:2"}


def test_sets_are_compared_with_the_tests_own_references(files):
    task = task_of(files, reference_column={"test": "gold"})
    assert task.load("test.wiki")[1].references == ("wiki1",)
    assert task.load("train")[0].references == ("x",)


def test_one_test_set_is_what_it_was(files, tmp_path):
    task = Files(train=files["train"], test=files["news"])
    assert task.splits() == SPLITS
    several = Files(train=files["train"], test={"news": files["news"]})
    alone, named = task.load("test"), several.load("test.news")
    assert describe(alone)["sha256"] == describe(named)["sha256"]


@pytest.mark.parametrize("split", ["test", "test.", "test.other", "tset"])
def test_a_set_that_there_is_not(files, split):
    with pytest.raises(ConfigError, match=r"no split .*there are train, .*test\.news, test\.wiki"):
        task_of(files).load(split)


@pytest.mark.parametrize(
    ("tests", "text"),
    [
        ({}, "names no test set"),
        ({"a/b": "x.jsonl"}, "'a/b' cannot be the name of a test set"),
        ({"..": "x.jsonl"}, "cannot be the name of a test set"),
        ({"": "x.jsonl"}, "cannot be the name of a test set"),
        ({"a": "x.jsonl", "b": "x.jsonl"}, "names x.jsonl twice"),
    ],
)
def test_what_cannot_be_test_sets(tests, text):
    with pytest.raises(ConfigError, match=text):
        make_config(Files, {"train": "train.jsonl", "test": tests}, "recipe.yaml")


def test_a_set_whose_file_is_missing_or_empty(files, tmp_path):
    empty = write(tmp_path / "empty.jsonl", [])
    for path, text in ((str(tmp_path / "none.jsonl"), "no such file"), (empty, "empty.jsonl")):
        task = Files(train=files["train"], test={"news": files["news"], "bad": path})
        with pytest.raises(BrimError, match=text):
            task.load("test.bad")


def test_data_shows_each_set(files):
    found = preview(task_of(files))
    counts = {split.name: split.num_examples for split in found.splits}
    assert counts["test.news"] == counts["test.wiki"] == 40
