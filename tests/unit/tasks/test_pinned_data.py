"""What the tasks read is to the byte what 0.2.0 read, and copies that it made are found again.

Manifests of runs hold these hashes: with others no run of before could be resumed.
"""

import json

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

# Of train, validation and test: how many examples, and their hash.
PINS = {
    "cmudict": [
        (112730, "223dfc2292b13759e0bf44a5f8de00fa7a9b2910a2f79c9f2566ea1f578fa214"),
        (1735, "6e48d8b8ab3d56c85eb04f176e714d7f867a025c64cc146f06e539d5555fedfd"),
        (2901, "cd9a03edcbdb2fa8074a8c20c2231bd328f2fa2edbe11cc98e974e8237f4c27b"),
    ],
    "synopsis": [
        (100, "12242c34c43d3c1bb0517e477e9c9998d8f7b5ec1054769d8c965474340cdb2b"),
        (520, "e6f1447104b7dde777d88672104bcfac63fbaa41c80a7d9c86fa648d5ad69ecd"),
        (780, "3b22647e9a0d25579bf62ba19165ccd2a25ebfd08312f72cd8acee9cf37087e1"),
    ],
    "wordproblems": [
        (1000, "fc55abf009681d23933b73f694ead5931ee38ed7068057fc82d6aa3c54edb2d2"),
        (500, "e9517cba04d030c0821d30f1e1d218b9c4a89250ec4899bbef8c6cba58a9b17f"),
        (1000, "40a3cef669c734c144884fa1b931680f4e7245f84beeffa5d406fab93f9ead96"),
    ],
    "wordproblems, large": [
        (500, "05a06cd810471034844ab9bf32c0388986b427c082e532bc37c49232d54bbf81"),
        (500, "4dadeebf4bbca3bb8b9178af78b3112de2e44ad5a0cbcd6537767281ab0a2f96"),
        (9, "b6c389d81f4451886bfa5e5d84772ba34e1839b69175667fef0f8d267dfe27f3"),
    ],
    "files": [
        (223, "a1515f15e629182b6583ec8a8fcd6939eb47810dcfa3921c4a126cacba583f42"),
        (21, "166b729479c34ab2fa4fd48d435073ba76f02ff3f6e1ce0a12e1724cfd1511b6"),
        (56, "10c0dd3d0f1d6f239a3f6a7ed6e2d4111a6fa55e20fda5a467d89501dbaa79e6"),
    ],
    "files, chats": [
        (91, "59c9a733991dc610291806a0421e9f582a58de35f87565069520fa0c65c0c3c1"),
        (6, "f63401c9891e13122db4a6c295cfd220b6f503bdc5c15748866afdd2df129355"),
        (3, "2e6f70f7448d34afc572c953fe318bf61140f05851f943f55d0d66753fb12dba"),
    ],
    "xsum": [
        (2000, "6fc6bf22ac8d0c130ee56afee2f8acf2e0329af37d11e42c6260d602044e47ad"),
        (1, "0a953b058426de80e094716cf692b384e8a7407866b6aa0080c6e132f8b360ad"),
        (10, "82c81e488dd71f6b31eaad1507769a9390b76dd423248f47027e5dc86c1e668f"),
    ],
    "europarl": [
        (1970, "b1eff79f1fe1952e810bbdd5ea513178cfd21686f82b385b717574187f87960f"),
        (13, "4d085feff9ce765c8c93397795f366c6fc72e9f5af4c9b76c5e68459a8e862a9"),
        (17, "1e13bc2989825893dd4f0ed4749157b16aaea47a20222f62b068f4a897aa6b05"),
    ],
    "gsm8k": [
        (6705, "aa9554e16a855047728e459bf1113e79ba6738860053df7b1588336b94eff1c5"),
        (768, "6ced238e4cdc132303575eab9972e409fefeca23fc57672cd40dd039a3afa9c3"),
        (10, "b156cf9f75e82c1340ab56feebe8b7d1aae5eb9281ae8df719304f3ae7226552"),
    ],
}

COPIES = {
    "202e4b027671a3e9",
    "4756bf7de66f1ba4",
    "4c6419dd869bc5d1",
    "63ba0e81b771b46b",
    "914f88234747b440",
    "97d7415077202a29",
    "abfccdd5ff0feb28",
    "b146dde2072b362a",
    "ca026b4ef577ab60",
}


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
    return [(fact["num_examples"], fact["sha256"]) for fact in facts]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cached", [True, False])
def test_hashes_of_all_splits(data, tmp_path, case, cached):
    assert read(CASES[case], tmp_path / "cache" if cached else None) == PINS[case]


def test_names_of_copies(data, tmp_path):
    for case in CASES:
        read(CASES[case], tmp_path / "cache")
    assert {path.name.partition(".")[0] for path in (tmp_path / "cache").iterdir()} == COPIES
