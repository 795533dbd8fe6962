"""The task on the user's own data: splits, carving, the cache, data sets, real files."""

import hashlib
import itertools
import json
import logging
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pytest
from pydantic import TypeAdapter, ValidationError

from brim.config.loading import dump_config, load_config
from brim.errors import BrimError, ConfigError, DataError, RunError
from brim.examples import Example
from brim.metrics import METRICS
from brim.tasks import SPLITS, AnyTask, Files, arrow, describe, rows, warn_of_overlap
from brim.tasks.arrow import ArrowExamples, ArrowWriter
from brim.tasks.base import MetricName, Selected, example_digest

MESSAGES = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"})


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(count, start=0):
    return [{"prompt": f"p{i}", "target": f"t{i}"} for i in range(start, start + count)]


@pytest.fixture
def train(tmp_path):
    return write_jsonl(tmp_path / "train.jsonl", pairs(1000))


# Arrow


@pytest.fixture(params=["memory", "file"])
def some_examples(request, tmp_path, monkeypatch):
    """Examples over many blocks, and the same as a list."""
    monkeypatch.setattr(arrow, "BLOCK_BYTES", 300)
    expected = [
        Example(
            f"id{i}",
            "p" * (i % 7),
            ("a", "é" * i)[: i % 3],
            MESSAGES[: i % 3],
            (i % 7 // 2, i % 7) if i % 2 else None,
        )
        for i in range(100)
    ]
    provenance = {"source": "rows.jsonl", "sha256": example_digest(expected)}
    if request.param == "memory":
        return Selected(expected, range(100), **provenance), expected
    path = tmp_path / "rows.arrow"
    with path.open("wb") as file:
        writer = ArrowWriter(file)
        for example in expected:
            writer.append(example)
        assert (writer.close(), len(writer)) == (provenance["sha256"], 100)
    examples = ArrowExamples(path, provenance)
    assert len(examples._blocks) > 10
    assert describe(examples) == {"num_examples": 100, **provenance}
    return examples, expected


def test_examples_are_a_sequence(some_examples):
    examples, expected = some_examples
    assert len(examples) == len(expected)
    assert list(examples) == expected
    for index in (0, 57, 99, -1, -100, 3):
        assert examples[index] == expected[index]
    for index in (100, -101):
        with pytest.raises(IndexError):
            examples[index]
    ends = (None, 0, 1, 40, 99, 100, 200, -1, -30)
    for start, stop, step in itertools.product(ends, ends, (None, 3, -7)):
        assert list(examples[start:stop:step]) == expected[start:stop:step]
    view = examples[90:10:-4]
    assert list(view[5:2:-1]) == expected[90:10:-4][5:2:-1]
    assert view[-1] == expected[90:10:-4][-1]


def test_a_description_is_that_of_the_rows(some_examples):
    examples, expected = some_examples
    assert describe(examples) == {
        "num_examples": 100,
        "sha256": example_digest(expected),
        "source": "rows.jsonl",
    }
    assert describe(examples[:7])["sha256"] == example_digest(expected[:7])
    assert describe(examples[::-1])["sha256"] == example_digest(expected[::-1])


def test_the_hash_is_of_the_field_too_and_of_old_data_what_it_was():
    plain = Example("a", "say p", ("r", "é"))
    known = hashlib.sha256(b'["a", "say p", ["r", "\\u00e9"], []]\n').hexdigest()
    assert example_digest([plain]) == known
    others = [replace(plain, field=span) for span in ((4, 5), (3, 5), (0, 5))]
    assert len({known, *(example_digest([other]) for other in others)}) == 4
    # Chats are cut inside a message, which they were not when their hash was of four parts.
    chat = Example("a", "", messages=MESSAGES[:1])
    four = json.dumps(["a", "", [], [{"content": "hi", "role": "user"}]]) + "\n"
    assert example_digest([chat]) != hashlib.sha256(four.encode()).hexdigest()


def test_a_file_of_no_examples_is_an_empty_sequence(tmp_path):
    path = tmp_path / "rows.arrow"
    with path.open("wb") as file:
        ArrowWriter(file).close()
    examples = ArrowExamples(path, {})
    assert len(examples) == 0
    assert list(examples) == []


# Splits


def test_given_splits_are_read_as_they_are(tmp_path, train):
    validation = write_jsonl(tmp_path / "dev.jsonl", pairs(3, 2000))
    task = Files(train=train, validation=validation, test=validation, max_test_examples=2)
    assert [len(task.load(split)) for split in SPLITS] == [1000, 3, 2]
    assert task.load("test")[1] == Example("dev.jsonl:2", "p2001", ("t2001",))
    assert "carved" not in describe(task.load("train"))


def test_missing_splits_are_carved_out_of_train_and_reported(train, caplog):
    task = Files(train=train, validation_fraction=0.1, test_fraction=0.2)
    with caplog.at_level(logging.WARNING):
        splits = {split: task.load(split) for split in SPLITS}
    assert sorted(e.id for split in SPLITS for e in splits[split]) == sorted(
        f"train.jsonl:{i + 1}" for i in range(1000)
    )
    # Binomial: 4 standard deviations on each side.
    assert 62 <= len(splits["validation"]) <= 138
    assert 149 <= len(splits["test"]) <= 251
    assert describe(splits["validation"])["carved"] == 0.1
    assert describe(splits["test"])["carved"] == 0.2
    assert "carved" not in describe(splits["train"])
    count = len(splits["validation"])
    expected = f"task.validation is not set: {count} rows of {train} (10 % of its prompts, by hash)"
    assert expected in caplog.text


def test_carving_looks_at_the_prompt_alone(tmp_path, train):
    """Order, targets, doubles and more rows do not move a prompt to another split."""
    rows = [{"prompt": row["prompt"], "target": "other"} for row in pairs(1200)]
    again = write_jsonl(tmp_path / "again.jsonl", [*reversed(rows), *rows])
    first, second = Files(train=train), Files(train=again)
    for split in SPLITS:
        prompts = {example.prompt for example in second.load(split)}
        assert {example.prompt for example in first.load(split)} == {
            prompt for prompt in prompts if int(prompt[1:]) < 1000
        }
    # A validation file takes nothing from the test split; its share of train goes back to train.
    third = Files(train=train, validation=train)
    assert list(third.load("test")) == list(first.load("test"))
    assert len(third.load("train")) == len(first.load("train")) + len(first.load("validation"))


def test_a_chat_is_carved_by_its_messages(tmp_path):
    rows = [{"chat": [{"role": "user", "content": f"q{i}"}]} for i in range(200)]
    task = Files(
        train=write_jsonl(tmp_path / "chat.jsonl", rows),
        messages_column="chat",
        target_column=None,
        validation_fraction=0.5,
    )
    lengths = [len(task.load(split)) for split in SPLITS]
    assert sum(lengths) == 200
    assert 70 <= lengths[1] <= 130
    assert task.load("train")[0].prompt == ""


def overlaps(caplog, task, *order, cache=None):
    """What is said of prompts in two splits while they are loaded."""
    caplog.clear()
    splits = {}
    for split in order:
        splits[split] = task.load(split, cache_dir=cache)
        warn_of_overlap(splits, split)
    return [text for text in caplog.messages if "in the training split too" in text]


@pytest.mark.parametrize("order", [SPLITS, SPLITS[::-1]])
@pytest.mark.parametrize("cached", [True, False])
def test_training_prompts_in_another_file_are_told_once(tmp_path, train, caplog, order, cached):
    rows = pairs(30, 980)
    test = write_jsonl(tmp_path / "test.jsonl", [*rows, *rows])
    validation = write_jsonl(tmp_path / "dev.jsonl", pairs(9, 2000) * 2)
    cache = tmp_path / "cache" if cached else None
    expected = (
        f"20 of the 30 different prompts of task.test ({test}) are in the training split too: "
        "its scores are partly of what was trained on"
    )
    task = Files(train=train, validation=validation, test=test)
    for _ in range(2):  # read, and found again
        assert overlaps(caplog, task, *order, cache=cache) == [expected]


def test_only_the_prompts_that_are_used_overlap(tmp_path, train, caplog):
    # Of the file that is carved, what went to validation is not trained on.
    task = Files(train=train, test=train, validation_fraction=0.4)
    count = len(task.load("train"))
    (text,) = overlaps(caplog, task, "train", "test")
    assert count < 700
    assert text.startswith(f"{count} of the 1000 different prompts of task.test")
    limits = {"max_train_examples": 100, "max_test_examples": 5}
    test = write_jsonl(tmp_path / "test.jsonl", [*pairs(5, 500), *pairs(5)])
    task = Files(train=train, test=test, validation_fraction=0, **limits)
    assert overlaps(caplog, task, "train", "test") == []
    # Repeats inside a split, and splits that are carved, are no overlap.
    double = write_jsonl(tmp_path / "double.jsonl", pairs(100) * 2)
    assert overlaps(caplog, Files(train=double), *SPLITS) == []


def test_chats_overlap_by_their_messages(tmp_path, caplog):
    paths = [
        write_jsonl(
            tmp_path / f"{name}.jsonl",
            [{"m": [{"role": "user", "content": f"q{i}"}]} for i in numbers],
        )
        for name, numbers in (("a", range(10)), ("b", range(8, 12)))
    ]
    task = Files(train=paths[0], test=paths[1], messages_column="m", target_column=None,
                 validation_fraction=0)  # fmt: skip
    (text,) = overlaps(caplog, task, "train", "test")
    assert text.startswith("2 of the 4 different prompts")


def test_a_split_that_nothing_gives_is_an_error(tmp_path, train):
    with pytest.raises(ConfigError, match=r"task\.train is not set; name a file"):
        Files(test=train).load("train")
    with pytest.raises(
        ConfigError, match=r"task\.validation is not set, and there is no task.train"
    ):
        Files(test=train).load("validation")
    with pytest.raises(ConfigError, match=r"task\.test is not set and task.test_fraction is 0"):
        Files(train=train, test_fraction=0).load("test")
    small = write_jsonl(tmp_path / "small.jsonl", pairs(1))
    with pytest.raises(
        DataError,
        match=r"small.jsonl: too few rows to carve out validation and test, for none is left for "
        r"validation; name files of their own in task.validation and task.test$",
    ):
        Files(train=small).load("validation")
    with pytest.raises(DataError, match=r"carve out test, .* its own in task.test$"):
        Files(train=small, validation=small).load("test")
    with pytest.raises(DataError, match=r"for train; name files of their own"):
        Files(train=small, validation_fraction=0.9, test_fraction=0.09).load("train")


def test_bad_rows_are_counted_where_they_are_left_out(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "p", "target": "t"}\n{\n{"prompt": "p"}\n[\n')
    with pytest.raises(DataError, match=r"rows.jsonl:2: broken JSON: .*task.on_bad_row=skip"):
        Files(test=str(path)).load("test")
    with caplog.at_level(logging.WARNING):
        task = Files(test=str(path), on_bad_row="skip")
        examples = task.load("test", cache_dir=tmp_path / "c")
    assert describe(examples) == {
        "num_examples": 1,
        "source": str(path),
        "skipped": {"broken JSON": 2, 'no field "target"': 1},
        "sha256": example_digest(examples),
    }
    assert 'left out 3 bad rows: broken JSON (2), no field "target" (1)' in caplog.text


# The cache


def test_the_copy_is_found_again_until_something_changes(tmp_path, train, monkeypatch):
    reads = []
    monkeypatch.setattr(
        "brim.tasks.files.read_examples",
        lambda source, *args, **options: (
            reads.append(source.name) or rows.read_examples(source, *args, **options)
        ),
    )
    cache = tmp_path / "run" / "data"

    def load(cache_dir=cache, **settings):
        task = Files(train=train, **settings)
        return {split: list(task.load(split, cache_dir=cache_dir)) for split in SPLITS}

    first = load()
    assert reads == [train]  # one pass for the three splits
    assert load() == first == load(cache_dir=None)
    assert len(reads) == 1 + 3

    for settings in (
        {"prompt": "say {prompt}"},
        {"target_column": ("target", "prompt")},
        {"id_column": "prompt"},
        {"validation_fraction": 0.1},
        {"on_bad_row": "skip"},
        {"teacher_column": "target"},
    ):
        reads.clear()
        assert load(**settings) == load(**settings, cache_dir=None)
        assert len(reads) == 1 + 3

    reads.clear()
    write_jsonl(Path(train), pairs(1000, 1))
    changed = load()
    assert len(reads) == 1
    assert changed == load(cache_dir=None) != first

    reads.clear()
    next(cache.glob("*.test.arrow")).unlink()
    for path in cache.glob("*.json"):
        path.unlink()
    assert load() == changed
    assert len(reads) == 1


def test_a_copy_in_an_older_format_is_made_anew(tmp_path, train, monkeypatch):
    def load():
        return Files(train=train, prompt="say {prompt}").load("train", cache_dir=tmp_path / "data")

    with monkeypatch.context() as older:
        older.setattr("brim.tasks.files._FORMAT", 2)
        older.setattr(arrow, "_SCHEMA", arrow._SCHEMA.remove(arrow._SCHEMA.names.index("field")))
        with pytest.raises(KeyError, match="field"):
            load()[0]  # such a copy cannot be read
    assert load()[0] == Example("train.jsonl:1", "say p0", ("t0",), field=(4, 6))


def test_a_bad_row_leaves_nothing_behind(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [*pairs(10), {"prompt": ""}])
    run = tmp_path / "run"
    with pytest.raises(DataError):
        Files(train=path).load("train", cache_dir=run / "a" / "b")
    assert not run.exists()
    run.mkdir()
    (run / "config.yaml").touch()
    with pytest.raises(DataError):
        Files(train=path).load("train", cache_dir=run / "data")
    assert [file.name for file in run.iterdir()] == ["config.yaml"]


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(tmp_path, train, monkeypatch):
    def refuse(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", refuse)
    cache = tmp_path / "data"
    with pytest.raises(RunError, match=r"\.arrow: cannot write: no space left on the device"):
        Files(train=train).load("train", cache_dir=cache)
    assert not cache.exists()


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path, train):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file/data: cannot write: "):
        Files(train=train).load("train", cache_dir=tmp_path / "file" / "data")


def test_rows_are_mapped_from_the_disk_and_not_held(tmp_path, monkeypatch):
    """Reading 20 MB in blocks of 64 KiB, and opening the result, never holds a tenth of it."""
    monkeypatch.setattr(arrow, "BLOCK_BYTES", 2**16)
    path = tmp_path / "big.jsonl"
    with path.open("w") as file:
        for i in range(1000):
            file.write(json.dumps({"prompt": f"{i} " + "x" * 20_000, "target": "t"}) + "\n")
    task = Files(test=str(path))
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    examples = task.load("test", cache_dir=tmp_path / "cache")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
    assert pa.total_allocated_bytes() - before < 1_000_000
    assert len(examples) == 1000
    assert examples[789].prompt.startswith("789 xx")


def test_progress_tells_bytes_of_the_file(train, monkeypatch):
    monkeypatch.setattr(rows, "_ROWS_PER_REPORT", 100)
    calls = []
    Files(test=train).load("test", on_progress=lambda *call: calls.append(call))
    size = Path(train).stat().st_size
    assert len(calls) == 11
    assert {(name, total) for name, _, total in calls} == {(train, size)}
    done = [done for _, done, _ in calls]
    assert done == sorted(done)
    assert done[-1] == size


# Prompts and targets


def test_prompts_come_from_a_column_or_a_template(tmp_path):
    path = write_jsonl(
        tmp_path / "rows.jsonl", [{"en": "yes {0}", "nl": "ja", "note": "short", "key": 9}]
    )

    def one(**settings):
        return Files(test=path, **settings).load("test")[0]

    assert one(prompt_column="en", target_column="nl") == Example(
        "rows.jsonl:1", "yes {0}", ("ja",)
    )
    template = "{note}: {en} {{en}}"
    assert one(prompt=template, target_column=["nl", "en"], id_column="key") == Example(
        "9", "short: yes {0} {en}", ("ja", "yes {0}"), field=(7, 14)
    )
    assert one(prompt_column="en", target_column="nl", teacher_column="note") == Example(
        "rows.jsonl:1", "yes {0}", ("ja",), teacher="short"
    )
    with pytest.raises(DataError, match='field "key" is'):
        one(prompt_column="en", target_column="nl", teacher_column="key")
    assert one(prompt_column="en", target_column=None).references == ()
    assert one(prompt_column="en", optional_target=True).references == ()
    with pytest.raises(DataError, match=r"no field \"prompt\"; columns: 'en', 'nl', 'note', 'key'"):
        one()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"messages_column": "m", "prompt": "{a}"}, "task.messages_column and task.prompt exclude"),
        ({"messages_column": "m", "prompt_column": "a"}, "and task.prompt_column exclude"),
        ({"prompt_column": "a", "prompt": "{b}"}, "task.prompt_column=a is not in the template"),
        ({"prompt": "{a"}, "single '{'"),
        ({"validation_fraction": 0.6, "test_fraction": 0.4}, "leave nothing to train on"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(ValidationError, match=message):
        Files(train="x.jsonl", **settings)


def test_settings_from_a_file_and_the_command_line_are_the_task(tmp_path, train):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: files\ntrain: {train}\nmetrics: [bleu, ter]\n")
    overrides = [
        "prompt=Say {prompt}!",
        "target_column=[target, prompt]",
        "max_test_examples=3",
        "on_bad_row=skip",
    ]
    task = load_config(Files, recipe, overrides)
    copy = tmp_path / "config.yaml"
    copy.write_text(dump_config(task))
    assert load_config(Files, copy) == task
    assert task.metrics == ("bleu", "ter")
    test = task.load("test", cache_dir=tmp_path / "cache")
    assert len(test) == 3
    number = test[0].references[0][1:]
    assert test[0].prompt == f"Say p{number}!"
    assert test[0].references == (f"t{number}", f"p{number}")
    prompts_only = load_config(Files, recipe, ["target_column=null"])
    assert prompts_only.load("test")[0].references == ()
    assert TypeAdapter(AnyTask).validate_python({"name": "files"}) == Files()


def test_metrics_are_checked_before_the_data_is_read(tmp_path):
    assert get_args(MetricName) == tuple(METRICS)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: files\ntrain: gone.jsonl\nmetrics: [exact, chrf]\n")
    for overrides, place in (
        ([], f"{recipe}:3: metrics.0"),
        (["metrics=[chrf,exact]"], "command line: metrics=[chrf,exact]: metrics.1"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(Files, recipe, overrides)
        text = str(caught.value)
        assert text.startswith(f'{place}: "exact" is not one of rouge1, ')
        assert text.endswith("; did you mean exact_match?")


# Data sets of Hugging Face's


def test_a_saved_data_set(tmp_path, datasets):
    table = {"prompt": ["a", "b", None], "target": ["x", "y", "z"], "refs": [["x"], ["y", "w"], []]}
    data = datasets.DatasetDict(train=datasets.Dataset.from_dict(table))
    folder = tmp_path / "saved"
    data.save_to_disk(folder)
    with pytest.raises(
        DataError, match=r'saved#train\[2\]: field "prompt" is null or an empty cell; mend'
    ):
        Files(test=f"{folder}#train").load("test")
    task = Files(test=f"{folder}#train", target_column="refs", on_bad_row="skip")
    examples = task.load("test")
    assert list(examples) == [
        Example("train:0", "a", ("x",)),
        Example("train:1", "b", ("y", "w")),
    ]
    assert describe(examples)["skipped"] == {'field "prompt" is null or an empty cell': 1}
    with pytest.raises(DataError, match=r"saved#test: no such split; splits: train"):
        Files(test=str(folder)).load("test")
    with pytest.raises(ConfigError, match=r"saved#train: no column 'q'; columns: 'prompt', "):
        Files(train=str(folder), prompt_column="q").load("train")
    single = tmp_path / "single"
    data["train"].select([0, 1]).save_to_disk(single)
    assert len(Files(test=str(single)).load("test", cache_dir=tmp_path / "cache")) == 2


def test_a_folder_that_datasets_can_read(tmp_path, datasets):
    folder = tmp_path / "folder"
    folder.mkdir()
    chats = [{"chat": [{"role": "user", "content": f"q{i}"}]} for i in range(30)]
    write_jsonl(folder / "train.jsonl", chats)
    write_jsonl(folder / "test.jsonl", chats[:2])
    task = Files(
        train=str(folder), test=str(folder), messages_column="chat", target_column=None,
        validation_fraction=0.3,
    )  # fmt: skip
    cache = tmp_path / "cache"
    lengths = [len(task.load(split, cache_dir=cache)) for split in ("train", "validation")]
    assert sum(lengths) == 30
    assert task.load("test", cache_dir=cache)[1].messages == ({"role": "user", "content": "q1"},)
    ten = Files(test=f"{folder}#train[:10]", messages_column="chat", target_column=None)
    assert len(ten.load("test")) == 10


@pytest.mark.parametrize("name", ["no-such-data-set", "org/no-such-data-set"])
def test_a_data_set_that_is_not_there_is_one_line(datasets, name):
    with pytest.raises(DataError) as caught:
        Files(train=name).load("train")
    assert str(caught.value).startswith(f"{name}#train: no file or folder, and on the hub: ")
    assert "\n" not in str(caught.value)


def test_every_error_is_one_of_ours_and_one_line(tmp_path, datasets):
    for text in ("", "#", "a b", "gone.jsonl", str(tmp_path), "x.txt", "../gone"):
        with pytest.raises(BrimError) as caught:
            Files(train=text).load("train")
        assert "\n" not in str(caught.value)
