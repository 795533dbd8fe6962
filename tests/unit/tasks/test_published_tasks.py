"""XSum, Europarl and GSM8K as they are published: the hub's layout, local files, splits, faults."""

import gzip
import json
import logging
import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from brim.config.loading import dump_config, load_config
from brim.errors import ConfigError, DataError
from brim.examples import Example
from brim.tasks import GSM8K, SPLITS, AnyTask, Europarl, XSum, describe
from brim.tasks.gsm8k import NUM_TRAIN_LINES, validation_lines

TASKS = {"xsum": XSum, "europarl": Europarl, "gsm8k": GSM8K}
# Prompt's and target's column on the hub, and the prompt of the defaults.
COLUMNS = {
    "xsum": ("document", "summary", "summarize: {}"),
    "europarl": ("en", "nl", "translate English to Dutch: {}"),
    "gsm8k": ("question", "answer", "{}"),
}
HUB = {
    "xsum": ("EdinburghNLP/xsum", None, "refs/convert/parquet"),
    "europarl": ("Helsinki-NLP/europarl", "en-nl", None),
    "gsm8k": ("openai/gsm8k", "main", None),
}
each_task = pytest.mark.parametrize("name", TASKS)


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def problems(split: str, count: int) -> list[dict]:
    return [
        {"question": f"{split} {i}?", "answer": f"<<{i}+0={i}>>{i}\n#### {i}"} for i in range(count)
    ]


def example(example_id: str, prompt: str, text: str, reference: str) -> Example:
    head, tail = prompt.split("{}")
    field = (len(head), len(head + text)) if head or tail else None
    return Example(example_id, head + text + tail, (reference,), field=field)


# Settings


@each_task
def test_defaults_are_the_hub_s(name):
    task = TASKS[name]()
    assert (task.path, task.published.config, task.published.revision) == HUB[name]
    assert type(TypeAdapter(AnyTask).validate_python({"name": name})) is TASKS[name]
    assert task.prompt == COLUMNS[name][2].format("{" + COLUMNS[name][0] + "}")


@each_task
def test_settings_are_written_and_read(name, tmp_path):
    recipe = tmp_path / "task.yaml"
    text = {"name": name, "path": "data", "max_test_examples": 3, "metrics": ["chrf"]}
    task = TypeAdapter(AnyTask).validate_python(text)
    recipe.write_text(dump_config(task))
    assert load_config(type(task), recipe) == task
    limits = tuple(map(task.limit, SPLITS))
    assert (task.path, limits, task.metrics) == ("data", (None, None, 3), ("chrf",))


@each_task
@pytest.mark.parametrize("prompt", ["no field", "{", "{source}", "{id} {}"])
def test_a_prompt_without_the_task_s_field_is_refused(name, prompt):
    with pytest.raises((ValidationError, ConfigError), match="prompt template"):
        TASKS[name](prompt=prompt)


# Local files


@each_task
@pytest.mark.parametrize("columns", ["hub", "neutral"])
def test_a_folder_with_three_files(name, columns, tmp_path):
    hub = COLUMNS[name][:2]
    prompt, target = hub if columns == "hub" else ("source", "target")
    for split, ending in zip(SPLITS, (".jsonl", ".jsonl.gz", ".ndjson"), strict=True):
        rows = [
            {"id": "a", prompt: f"{split} text", target: "reply #### 1", "other": 1},
            {"id": 7, prompt: "second", target: "reply #### 2"},
            {prompt: "third", target: "reply #### 3"},
        ]
        write(tmp_path / f"{split}{ending}", rows)
    task = TASKS[name](path=str(tmp_path), max_test_examples=2)
    for split, ending in zip(SPLITS, (".jsonl", ".jsonl.gz", ".ndjson"), strict=True):
        expected = [
            example("a", COLUMNS[name][2], f"{split} text", "reply #### 1"),
            example("7", COLUMNS[name][2], "second", "reply #### 2"),
            example(f"{split}{ending}:3", COLUMNS[name][2], "third", "reply #### 3"),
        ]
        examples = task.load(split, cache_dir=tmp_path / "data")
        assert list(examples) == expected[: 2 if split == "test" else 3]
        assert describe(examples)["source"] == str(tmp_path / f"{split}{ending}")


def test_the_task_s_own_name_of_a_column_counts_before_others(tmp_path):
    row = {"source": "wrong", "document": "right", "target": "wrong", "summary": "right"}
    write(tmp_path / "test.jsonl", [row])
    assert XSum(path=str(tmp_path)).load("test")[0].prompt == "summarize: right"
    (tmp_path / "test.jsonl").unlink()
    (tmp_path / "test.csv").write_text("source,document,summary\nwrong,right,ok\n")
    example = XSum(path=str(tmp_path)).load("test")[0]
    assert (example.prompt, example.references) == ("summarize: right", ("ok",))


def test_a_split_named_by_itself_is_in_place_of_the_folder_s(tmp_path):
    for split in SPLITS:
        write(tmp_path / f"{split}.jsonl", [{"document": split, "summary": "s"}])
    other = write(tmp_path / "mine.jsonl", [{"document": "mine", "summary": "s"}])
    task = XSum(path=str(tmp_path), test=str(other))
    assert [task.load(split)[0].prompt.split()[1] for split in SPLITS] == [
        "train",
        "validation",
        "mine",
    ]


def test_missing_columns_and_splits_are_named(tmp_path):
    write(tmp_path / "train.jsonl", [{"text": "a", "summary": "b"}])
    strict = XSum(path=str(tmp_path), on_bad_row="error")
    with pytest.raises(DataError, match=r'train.jsonl:1: no field "document"; columns: \'text\''):
        strict.load("train")
    with pytest.raises(DataError, match=r"no validation.jsonl, .* name it in task.validation$"):
        strict.load("validation")
    (tmp_path / "test.tsv").write_text("text\tsummary\na\tb\n")
    with pytest.raises(ConfigError, match=r"test.tsv: no column 'document'; columns: 'text'"):
        strict.load("test")
    write(tmp_path / "test.jsonl.gz", [])
    with pytest.raises(DataError, match=r"test.jsonl.gz, test.tsv: which one is it"):
        strict.load("test")


def test_bad_rows_are_left_out_and_counted_or_stop_the_run(tmp_path):
    rows = [{"document": "", "summary": "s"}, {"document": "d", "summary": "s"}]
    write(tmp_path / "train.jsonl", rows)
    examples = XSum(path=str(tmp_path)).load("train")
    assert describe(examples)["skipped"] == {'field "document" is empty': 1}
    write(tmp_path / "train.jsonl", [{"id": 1, **rows[1]}, {"id": 1, **rows[1]}])
    with pytest.raises(DataError, match=r"train.jsonl:2: id given twice: '1'"):
        XSum(path=str(tmp_path), on_bad_row="error").load("train")


# The hub's layout, in a folder


@pytest.fixture
def hub(tmp_path, datasets):
    """`hub(name, splits)` writes Parquet files as the hub has them and says where."""

    def publish(name: str, splits: dict[str, dict], features=None) -> Path:
        folder, config = tmp_path / name, HUB[name][1]
        lines = []
        for split, table in splits.items():
            path = (
                f"default/{split}/0000.parquet" if name == "xsum" else f"{config}/{split}-0.parquet"
            )
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_dict(table, features=features).to_parquet(folder / path)
            lines.append(f"  - split: {split}\n    path: {config}/{split}-*\n")
        if config:
            head = f"configs:\n- config_name: {config}\n  data_files:\n"
            (folder / "README.md").write_text(f"---\n{head}{''.join(lines)}---\n")
        return folder

    return publish


def test_xsum_s_parquet_branch(hub):
    table = {"document": ["An article.", ""], "summary": ["It.", "Nothing."], "id": ["35", "36"]}
    folder = hub("xsum", dict.fromkeys(SPLITS, table))
    task = XSum(path=str(folder))
    for split in SPLITS:
        examples = task.load(split)
        assert list(examples) == [example("35", "summarize: {}", "An article.", "It.")]
        assert describe(examples)["source"] == f"{folder}#{split}"


def test_europarl_s_pairs_are_one_column(hub, datasets, caplog):
    pairs = [{"en": f"sentence {i % 900}", "nl": f"zin {i}"} for i in range(1000)]
    features = datasets.Features(
        {"translation": datasets.features.Translation(languages=["en", "nl"])}
    )
    folder = hub("europarl", {"train": {"translation": pairs}}, features)
    task = Europarl(path=str(folder), dataset_config="en-nl")
    parts = {split: list(task.load(split)) for split in SPLITS}
    assert sum(map(len, parts.values())) == 1000
    everything = {(e.prompt, e.references[0]) for part in parts.values() for e in part}
    assert everything == {(f"translate English to Dutch: {p['en']}", p["nl"]) for p in pairs}
    prompts = [{example.prompt for example in part} for part in parts.values()]
    assert sum(map(len, prompts)) == 900  # no sentence is in two splits
    assert min(len(part) for part in parts.values()) >= 1
    assert parts["train"][0].id == "train:0"
    assert "0.6 % of its prompts, by hash" in caplog.text


@pytest.mark.parametrize("prompt", ["{en}", "{{Dutch}} of {en}:", "{en}\nDutch:", "{en} = {en}!"])
def test_europarl_s_split_is_the_same_whatever_the_prompt(prompt, tmp_path):
    rows = [{"en": "ab" * (i % 5) + f"{i}", "nl": f"{i}"} for i in range(1000)]
    write(tmp_path / "train.jsonl", rows)
    for split in SPLITS:
        one, other = (
            Europarl(path=str(tmp_path), **template).load(split)
            for template in ({}, {"prompt": prompt})
        )
        assert [e.references for e in one] == [e.references for e in other]


def test_europarl_s_common_sentences_are_trained_on():
    # Each of them is many rows of the data, which would be as many in a split of 12,000.
    sentences = ["The debate is closed.", "That concludes the debate.", "(Applause)"]
    task = Europarl(prompt="{en}")
    assert {task.interval(Example("", sentence)) for sentence in sentences} == {"train"}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_europarl_s_errors_name_settings_that_it_has(tmp_path, split):
    write(tmp_path / "train.jsonl", [{"en": "Yes.", "nl": "Ja."}])
    with pytest.raises(DataError, match="too few rows") as caught:
        Europarl(path=str(tmp_path)).load(split)
    named = set(re.findall(r"task\.(\w+)", str(caught.value)))
    assert named == {"validation", "test"}
    assert named < Europarl.model_fields.keys()


def test_europarl_holds_out_enough_of_the_published_pairs():
    counts = {"train": 0, "validation": 0, "test": 0}
    task = Europarl()
    for i in range(100_000):
        counts[task.interval(Example("", f"translate English to Dutch: {i}"))] += 1
    for split in ("validation", "test"):
        assert counts[split] == pytest.approx(100_000 * Europarl.held_out, abs=4 * 25)
    assert Europarl.held_out * Europarl.published.num_rows[SPLITS] > 10_016 * 1.15


@pytest.mark.parametrize("marks", [True, False])
def test_gsm8k_s_training_data_makes_two_splits(marks, hub):
    tables = {
        split: {key: [row[key] for row in rows] for key in ("question", "answer")}
        for split, rows in [
            ("train", problems("train", NUM_TRAIN_LINES)),
            ("test", problems("test", 1319)),
        ]
    }
    task = GSM8K(path=str(hub("gsm8k", tables)), dataset_config="main", calculator_marks=marks)
    parts = {split: task.load(split) for split in SPLITS}
    assert [len(parts[split]) for split in SPLITS] == [6705, 768, 1319]
    assert [example.prompt for example in parts["validation"]] == [
        f"train {line}?" for line in sorted(validation_lines())
    ]
    lines = set(range(NUM_TRAIN_LINES)) - validation_lines()
    assert [example.id for example in parts["train"]] == [
        f"gsm8k-train-{line}" for line in sorted(lines)
    ]
    expected = "<<9+0=9>>9\n#### 9" if marks else "9\n#### 9"
    assert parts["test"][9] == Example("gsm8k-test-9", "test 9?", (expected,))


@each_task
def test_what_the_hub_is_asked_for(name, datasets, monkeypatch):
    asked = []

    def load(path, config, *, split, revision):
        asked.append((path, config, split, revision))
        prompt, target, _ = COLUMNS[name]
        count = NUM_TRAIN_LINES if name == "gsm8k" and split == "train" else 5
        return datasets.Dataset.from_dict({prompt: ["p"] * count, target: ["#### 1"] * count})

    monkeypatch.setattr(datasets, "load_dataset", load)
    hub_id, config, revision = HUB[name]
    task = TASKS[name]()
    task.load("train")
    splits = ["train"]
    if name != "europarl":  # the five pairs are the same, and so none is held out
        task.load("validation")
        task.load("test")
        splits += ["validation" if name == "xsum" else "train", "test"]
    assert asked == [(hub_id, config, split, revision) for split in splits]

    asked.clear()
    TASKS[name](path="me/copy").load("train")
    TASKS[name](train="me/copy#train").load("train")
    TASKS[name](dataset_config="c", dataset_revision="r").load("train")
    assert asked == [
        ("me/copy", None, "train", None),
        ("me/copy", None, "train", None),
        (hub_id, "c", "train", "r"),
    ]


@each_task
def test_without_the_hub_the_error_says_what_to_do(name, datasets, monkeypatch):
    def fail(*args, **options):
        raise ConnectionError("Couldn't reach the hub\nat all")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"#train: .*Couldn't reach the hub; .* in task.path$"):
        TASKS[name]().load("train")
    with pytest.raises(DataError, match=r"me/copy#train: .*Couldn't reach the hub$"):
        TASKS[name](path="me/copy").load("train")


# The published files, and what is not quite them


@pytest.fixture
def official(tmp_path):
    write(tmp_path / "train.jsonl", problems("train", NUM_TRAIN_LINES))
    write(tmp_path / "test.jsonl", problems("test", 1319))
    return tmp_path


def test_gsm8k_s_published_files(official, caplog, tmp_path):
    cache = tmp_path / "cache"
    task = GSM8K(path=str(official))
    for _ in range(2):  # read, and found again
        lengths = [len(task.load(split, cache_dir=cache)) for split in SPLITS]
        assert lengths == [6705, 768, 1319]
    assert caplog.text == ""
    bare = GSM8K(path=str(official), calculator_marks=False)
    example = bare.load("test", cache_dir=cache)[3]
    assert example.references == ("3\n#### 3",)  # another copy than that with marks


@pytest.mark.parametrize("count", [NUM_TRAIN_LINES - 1, NUM_TRAIN_LINES + 1, 10])
def test_the_line_index_fits_the_published_file_only(official, count):
    write(official / "train.jsonl", problems("train", count))
    for split in ("train", "validation"):
        with pytest.raises(DataError, match=rf"{count} rows, and the split is of .* 7,473; name"):
            GSM8K(path=str(official)).load(split)


def test_a_row_of_the_published_file_that_is_bad_is_named_by_its_line(official):
    rows = problems("train", NUM_TRAIN_LINES)
    rows[20] = {"question": "", "answer": "x"}
    write(official / "train.jsonl", rows)
    task = GSM8K(path=str(official))
    with pytest.raises(DataError, match=r'train.jsonl:21: field "question" is empty'):
        task.load("train")
    assert len(task.load("validation")) == 768


@pytest.mark.parametrize(("count", "warned"), [(1318, True), (660, True), (659, False), (5, False)])
def test_another_number_of_rows_is_warned_of_where_it_is_no_sample(official, count, warned, caplog):
    write(official / "test.jsonl", problems("test", count))
    with caplog.at_level(logging.WARNING):
        GSM8K(path=str(official), max_test_examples=3).load("test")
    line = f"test.jsonl: {count} rows, where the published data has 1319: another version of it?"
    assert (line in caplog.text) == warned


def test_known_counts():
    assert XSum.published.num_rows == {("train",): 204045, ("validation",): 11332, ("test",): 11334}
    assert sum(GSM8K.published.num_rows.values()) == NUM_TRAIN_LINES + 1319
    assert len(validation_lines()) == 768
    assert validation_lines() < set(range(NUM_TRAIN_LINES))
