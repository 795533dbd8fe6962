"""Real rows of XSum, Europarl and GSM8K through the tasks."""

import gzip
import json
from pathlib import Path

import pytest

from brim.tasks import GSM8K, SPLITS, Europarl, XSum, describe

SHARED = Path(__file__).parents[4] / "shared" / "data"
FOLDERS = {"xsum": "xsum_mini", "europarl": "europarl_en_nl_mini", "gsm8k": "gsm8k"}
TASKS = {"xsum": XSum, "europarl": Europarl, "gsm8k": GSM8K}
COUNTS = {"xsum": (999, 768, 2337), "europarl": (2187, 300, 500), "gsm8k": (6705, 768, 1319)}
TEMPLATES = {"xsum": "summarize: ", "europarl": "translate English to Dutch: ", "gsm8k": ""}

pytestmark = pytest.mark.skipif(
    not all((SHARED / folder).is_dir() for folder in FOLDERS.values()),
    reason="the shared data sets are not here",
)


def rows(name: str, split: str) -> list[dict]:
    path = SHARED / FOLDERS[name] / f"{split}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    tasks = {name: task(path=str(SHARED / FOLDERS[name])) for name, task in TASKS.items()}
    return lambda name, split: tasks[name].load(split, cache_dir=cache)


@pytest.mark.parametrize("name", FOLDERS)
def test_counts_and_texts(name, load, caplog):
    for split, count in zip(SPLITS, COUNTS[name], strict=True):
        examples, expected = load(name, split), rows(name, split)
        assert describe(examples)["num_examples"] == count == len(expected)
        assert describe(examples)["skipped"] == {}
        for i in range(0, count, 97):
            example, row = examples[i], expected[i]
            assert (example.id, example.prompt) == (row["id"], TEMPLATES[name] + row["source"])
            assert example.references == (row["target"],)
    assert caplog.text == ""


def test_the_line_index_rebuilds_gsm8k_s_three_splits(load, tmp_path):
    published = {"train": [], "test": []}
    for split in SPLITS:
        for row in rows("gsm8k", split):
            file, line = row["id"].split("-")[1:]
            published[file].append((int(line), row["source"], row["target"]))
    for file, lines in published.items():
        text = [json.dumps({"question": q, "answer": a}) for _, q, a in sorted(lines)]
        (tmp_path / f"{file}.jsonl").write_text("\n".join(text) + "\n")
    task = GSM8K(path=str(tmp_path))
    for split in SPLITS:
        ours = {(e.id, e.prompt, e.references) for e in task.load(split)}
        assert ours == {(e.id, e.prompt, e.references) for e in load("gsm8k", split)}
