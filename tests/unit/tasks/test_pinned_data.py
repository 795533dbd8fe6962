"""What the tasks read is to the byte what 0.2.0 read, and copies that it made are found again.

Manifests of runs hold these hashes: with others no run of before could be resumed.
"""

import json
from pathlib import Path

import pytest

from brim.tasks import (
    GSM8K,
    SPLITS,
    CMUdict,
    Europarl,
    Files,
    Synopsis,
    WordProblems,
    XSum,
    describe,
)
from brim.tasks.sources import FileSource

CASES = {
    "cmudict": CMUdict(),
    "synopsis": Synopsis(prompt="summarize: {source}", max_train_examples=100),
    "wordproblems": WordProblems(num_train=1000),
    "wordproblems, large": WordProblems(
        levels=(3, 4), numbers="large", calculator_marks=False, num_train=500, seed=3,
        max_test_examples=9,
    ),
    "files": Files(
        train="pairs.jsonl", prompt="say {prompt}: {key}", on_bad_row="skip", id_column="key",
        test_fraction=0.2,
    ),
    "files, chats": Files(
        train="chats.jsonl", messages_column="chat", target_column=None,
        metrics=("answer_accuracy",),
    ),
    "xsum": XSum(path="xsum"),
    "europarl": Europarl(path="europarl", prompt="{en} in Dutch:"),
    "gsm8k": GSM8K(path="gsm8k", calculator_marks=False),
}  # fmt: skip

# Of train, validation and test: how many examples, and their hash; and the names of copies.
PINS = json.loads((Path(__file__).parents[2] / "data" / "pinned_data.json").read_text())


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Sources of all kinds in the working directory, the same wherever and whenever written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FileSource, "identity", lambda self: [self.path.name, 1, 2])
    pairs = [
        {"prompt": f"p{i}" + "é" * (i % 3), "target": ["t", f"t{i}"], "key": f"k{i}"}
        for i in range(300)
    ]
    write(tmp_path / "pairs.jsonl", [*pairs, {"prompt": ""}, {"prompt": None}])
    chats = [[("user", f"q{i}"), ("assistant", f"{i}")] for i in range(100)]
    rows = [{"chat": [{"role": role, "content": text} for role, text in chat]} for chat in chats]
    write(tmp_path / "chats.jsonl", rows)
    for folder, prompt, target, count in (
        ("xsum", "document", "summary", 2000),
        ("europarl", "en", "nl", 2000),
        ("gsm8k", "question", "answer", 7473),
    ):
        for split, number in ("train", count), ("test", 10):
            texts = ((f"{split} text {i}", f"{i} <<{i}={i}>>\n#### {i}") for i in range(number))
            rows = [{prompt: text, target: reply} for text, reply in texts]
            write(tmp_path / folder / f"{split}.jsonl", rows)
    write(tmp_path / "xsum" / "validation.jsonl", [{"document": "d", "summary": "s", "id": 7}])
    (tmp_path / "europarl" / "test.jsonl").unlink()


def read(task, cache_dir):
    facts = [describe(task.load(split, cache_dir=cache_dir)) for split in SPLITS]
    return [[fact["num_examples"], fact["sha256"]] for fact in facts]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cached", [True, False])
def test_hashes_of_all_splits(data, tmp_path, case, cached):
    assert read(CASES[case], tmp_path / "cache" if cached else None) == PINS["splits"][case]


def test_names_of_copies(data, tmp_path):
    for case in CASES:
        read(CASES[case], tmp_path / "cache")
    assert {path.name.partition(".")[0] for path in (tmp_path / "cache").iterdir()} == set(
        PINS["copies"]
    )
