"""Rows that the models cannot use are found before training, by file and line, in every split."""

import json
import logging
from pathlib import Path

import pytest
from tiny import tiny_language_model

from brim.config.loading import load_config
from brim.errors import DataError
from brim.runs.evaluate import evaluate_run
from brim.runs.train import train
from brim.support.files import read_json
from brim.training.settings import RunConfig

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('no system message') }}{% endif %}"
    "{{ m['content'] }}{% if not loop.last %} {% endif %}{% endfor %}"
)
SPLITS = {"train": 12, "validation": 4, "test": 4}


def row(number: int, content: str = "w5 w6", target: str = "w7", role: str = "user") -> dict:
    messages = [{"role": role, "content": content}, {"role": "user", "content": "w9"}]
    return {"key": f"k{number}", "messages": messages, "target": target}


BAD = {
    "refused by the template": row(3, role="system"),
    "ends too early": row(3, target="w5 </s> w6"),
    "longer than the positions": row(3, "w5 " * 70),
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    model = tiny_language_model("gpt2")
    model.tokenizer.chat_template = TEMPLATE
    folder = tmp_path_factory.mktemp("model")
    model.save(folder)
    return folder


@pytest.fixture
def make(model_folder, tmp_path):
    """`make(split, bad, *overrides)`: settings of a run with a bad third row in a split."""

    def config(split: str | None, bad: dict, *overrides: str) -> RunConfig:
        for name, count in SPLITS.items():
            rows = [row(i) for i in range(1, count + 1)]
            if name == split:
                rows[2] = bad
            text = "".join(json.dumps(value) + "\n" for value in rows)
            (tmp_path / f"{name}.jsonl").write_text(text)
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(f"""
task: {{name: files, train: {tmp_path}/train.jsonl, validation: {tmp_path}/validation.jsonl,
       test: {tmp_path}/test.jsonl, messages_column: messages, id_column: key,
       metrics: [exact_match]}}
teacher: {{path: {model_folder}}}
student: {{path: {model_folder}}}
objective: {{name: llmr}}
decoding: {{max_tokens: 4}}
trainer: {{max_steps: 2, rollout_batch_size: 4, evaluate_every: 2, save_every: 2}}
""")
        return load_config(RunConfig, recipe, overrides)

    return config


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("split", SPLITS)
def test_a_bad_row_is_an_error_before_any_step(make, tmp_path, split, bad):
    out = tmp_path / "run"
    with pytest.raises(DataError, match=rf"{split}\.jsonl:3: .*; mend the row, or .*on_bad_row"):
        train(make(split, bad), out)
    assert not out.exists()


def test_bad_rows_are_left_out_and_counted(make, tmp_path, caplog):
    out = tmp_path / "run"
    bad = BAD["refused by the template"]
    config = make("test", bad, "task.on_bad_row=skip")
    with caplog.at_level(logging.WARNING):
        results = train(config, out)
    assert "test: left out 1 of 4 rows" in caplog.text
    assert "test.jsonl:3: the chat template refuses" in caplog.text
    assert results["num_examples"] == SPLITS["test"] - 1
    data = read_json(out / "manifest.json")["data"]
    assert {name: facts["num_examples"] for name, facts in data.items()} == {**SPLITS, "test": 3}
    assert sum(data["test"]["skipped"].values()) == 1
    rows = [json.loads(line)["id"] for line in (out / "predictions" / "test.jsonl").open()]
    assert rows == ["k1", "k2", "k4"]
    # The same run, resumed and evaluated again, is of the same rows.
    assert train(config, out) == results
    assert evaluate_run(out)["scores"] == results["scores"]


def test_all_rows_bad(make, tmp_path):
    config = make(None, {}, "task.on_bad_row=skip", "decoding.max_tokens=70")
    with pytest.raises(DataError, match=r"all 12 rows of train are bad, the first: .*positions"):
        train(config, tmp_path / "run")


def test_what_cannot_be_spelled_is_said_and_kept(make, tmp_path, caplog):
    out = tmp_path / "run"
    with caplog.at_level(logging.WARNING):
        train(make("validation", row(3, target="w5 <<w6>>")), out)
    assert (
        "validation: 1 of 4 rows (25.0%) have text that the tokenizer cannot spell" in caplog.text
    )
    assert "validation.jsonl:3: 'w5 <<w6>>' comes back as 'w5 <unk>'" in caplog.text
    spelling = read_json(out / "manifest.json")["spelling"]
    assert spelling["validation"] == {"num_examples": 4, "num_unknown": 1, "num_changed": 1}
    assert spelling["train"] == {"num_examples": 12, "num_unknown": 0, "num_changed": 0}
