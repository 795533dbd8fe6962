"""The data inside the package: counts, splits that do not overlap, notices, settings."""

import gzip
import json
import re
from importlib import resources
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from brim.tasks import SPLITS, AnyTask, CMUdict, Synopsis

SHARED = Path(__file__).parents[4] / "shared" / "data"
COUNTS = {"cmudict": (112_730, 1_735, 2_901), "synopsis": (11_640, 520, 780)}


@pytest.fixture(scope="module")
def loaded():
    tasks = {"cmudict": CMUdict(), "synopsis": Synopsis()}
    return {name: {s: task.load(s) for s in SPLITS} for name, task in tasks.items()}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_and_disjoint_splits(loaded, name):
    splits = loaded[name]
    assert tuple(len(splits[split]) for split in SPLITS) == COUNTS[name]
    examples = [example for split in SPLITS for example in splits[split]]
    assert len({example.id for example in examples}) == len(examples)
    prompts = {split: {example.prompt for example in splits[split]} for split in SPLITS}
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["train"] & prompts["test"]
    assert not prompts["validation"] & prompts["test"]


@pytest.mark.parametrize(
    ("name", "folder"), [("cmudict", "g2p_cmudict"), ("synopsis", "debian_synopsis_small")]
)
@pytest.mark.parametrize("split", SPLITS)
def test_the_rows_are_those_of_the_data_they_were_made_from(loaded, name, folder, split):
    path = SHARED / folder / f"{split}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    origin = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            references = tuple(dict.fromkeys([row["target"], *row.get("refs", [])]))
            origin.setdefault(row["id"], (row["source"], references))
    assert {e.id: (e.prompt, e.references) for e in loaded[name][split]} == origin


def test_pronunciations_are_stressed_arpabet(loaded):
    example = next(e for e in loaded["cmudict"]["train"] if e.id == "postmaster")
    assert example.prompt == "p o s t m a s t e r"
    assert example.references == ("P OW1 S T M AE2 S T ER0", "P OW1 S M AE2 S T ER0")
    phoneme = re.compile(r"[AEIOU][A-Z][012]|[B-DF-HJ-NP-TV-Z][H]?|HH|NG")
    for split in SPLITS:
        for example in loaded["cmudict"][split]:
            assert example.prompt == " ".join(example.id)
            for reference in example.references:
                assert all(phoneme.fullmatch(symbol) for symbol in reference.split(" "))


def test_few_words_to_measure_have_another_form_in_train(loaded):
    train = {example.id for example in loaded["cmudict"]["train"]}
    endings = ("s", "ed", "ing", "er", "ly")
    for split in ("validation", "test"):
        words = [example.id for example in loaded["cmudict"][split]]
        related = [
            word
            for word in words
            if any(word + end in train for end in endings)
            or any(word.endswith(end) and word.removesuffix(end) in train for end in endings)
        ]
        assert len(related) / len(words) == pytest.approx(0.05, abs=0.002)


def test_the_first_rows_are_a_sample_of_the_alphabet(loaded):
    assert len({example.id[0] for example in loaded["cmudict"]["train"][:500]}) >= 24
    assert len({example.id[0] for example in loaded["synopsis"]["train"][:500]}) >= 20


def test_a_limit_keeps_the_first_rows_and_the_template_wraps_them(loaded):
    task = CMUdict(prompt="pronounce: {source} {{now}}", max_test_examples=3)
    first = loaded["cmudict"]["test"][:3]
    assert [e.prompt for e in task.load("test")] == [
        f"pronounce: {e.prompt} {{now}}" for e in first
    ]
    assert len(task.load("validation")) == 1_735


@pytest.mark.parametrize("name", COUNTS)
def test_the_notice_travels_with_the_data(name):
    folder = resources.files("brim") / "data" / name
    notice = (folder / "NOTICE").read_text("utf-8")
    expected = {
        "cmudict": "Copyright (C) 1993-2015 Carnegie Mellon University. All rights reserved.",
        "synopsis": "Debian Free Software",
    }
    assert expected[name] in notice
    size = sum(len((folder / f"{split}.tsv.xz").read_bytes()) for split in SPLITS)
    assert size < 1_200_000


def test_settings_are_told_apart_by_name_and_checked():
    read = TypeAdapter(AnyTask).validate_python
    assert read({"name": "cmudict"}) == CMUdict()
    with pytest.raises(ValidationError, match=r"no column 'text'; columns: 'source'"):
        read({"name": "synopsis", "prompt": "summarize: {text}"})
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        read({"name": "cmudict", "max_train_examples": 0})
