"""`brim data`: what is shown is what training would read, in lines of 80 characters."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tiny import tiny, word_tokenizer

from brim.errors import ModelError
from brim.models import Encoder, LanguageModel, load_encoder
from brim.preview import DataConfig, Limits, as_text, preview
from brim.tasks import Files, WordProblems

TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}w9"


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def rows(tmp_path):
    """Prompts of one to five words, and targets of two and their end."""
    texts = [{"prompt": " ".join(["w5"] * (i % 5 + 1)), "target": "w6 w7"} for i in range(100)]
    return write_jsonl(tmp_path / "rows.jsonl", texts)


@pytest.fixture
def encoder():
    return LanguageModel(tiny("llama"), word_tokenizer()).encoder


@pytest.fixture(params=["llama", "t5"])
def saved(request, tmp_path):
    """A model and its folder, from which the weights are gone."""
    model = LanguageModel(tiny(request.param), word_tokenizer())
    folder = tmp_path / "model"
    model.save(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    return model, folder


def test_an_encoder_needs_no_weights_and_reads_as_the_model_does(saved):
    model, folder = saved
    found = load_encoder(folder)
    assert isinstance(found, Encoder)
    examples = Files(train="x").columns().examples({"prompt": "w5 w8", "target": "w6"}, "id")[1]
    assert found.prompts(examples, None) == model.encoder.prompts(examples, None)
    assert found.completions(examples, ["w6"]) == model.encoder.completions(examples, ["w6"])
    assert (found.eos_token_ids, found.is_encoder_decoder) == (
        model.encoder.eos_token_ids,
        model.encoder.is_encoder_decoder,
    )
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="has no config.json"):
        load_encoder(folder)


def test_lengths_and_cuts_are_those_of_training(rows, encoder):
    task = Files(train=rows, test=rows, validation_fraction=0.2)
    found = preview(task, encoder, max_prompt_tokens=3, max_tokens=2)
    assert [split.name for split in found.splits] == ["train", "validation", "test"]
    test = found.splits[2]
    assert (test.num_examples, test.num_measured, found.unit) == (100, 100, "tokens")
    assert sorted(test.prompts) == sorted([1, 2, 3, 4, 5] * 20)
    assert (test.cut_prompts, set(test.targets), test.cut_targets) == (40, {3}, 100)
    train = found.splits[0]
    assert sum(split.num_examples for split in found.splits[:2]) == 100
    for shown in train.shown:
        words = shown.prompt.split()
        assert set(words) == {"w5"}
        assert len(words) == min(shown.prompt_length, 3)
        assert shown.prompt_cut == (shown.prompt_length > 3)
        assert (shown.target, shown.target_cut) == ("w6 w7", True)
    assert len(train.shown) == 10
    assert found.splits[1].shown == []


def test_a_chat_is_shown_as_the_template_writes_it(tmp_path, encoder):
    encoder.tokenizer.chat_template = TEMPLATE
    chat = [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6"}]
    path = write_jsonl(tmp_path / "chat.jsonl", [{"m": chat}])
    task = Files(train=path, messages_column="m", validation_fraction=0, test_fraction=0)
    (shown,) = preview(task, encoder).splits[0].shown
    assert (shown.prompt, shown.target, shown.prompt_length) == ("w5 w9", "w6", 2)
    (text,) = preview(task).splits[0].shown
    assert (text.prompt, text.prompt_length) == ("user: w5", 8)


def test_what_is_bad_is_counted_and_the_first_is_named(tmp_path, encoder):
    lines = [{"prompt": "w5", "target": "w6"}] * 8 + [{"prompt": ""}, {"prompt": "w5"}, {"a": 1}]
    lines += [{"prompt": "w5", "target": "w6 </s> w7"}, {"prompt": "\x1b[31m w5", "target": "w6"}]
    path = write_jsonl(tmp_path / "rows.jsonl", lines)
    task = Files(train=path, validation_fraction=0, test_fraction=0)
    found = preview(task, encoder)
    assert [*found.skipped.values()] == [
        {'field "prompt" is empty': 1, 'no field "target"': 1, 'no field "prompt"': 1}
    ]
    assert found.first_bad[path].startswith(f'{path}:9: field "prompt" is empty')
    (split,) = found.splits
    assert len(split.unusable) == 1
    text = as_text(found)
    assert "1 of 10 rows of train cannot be used by the model" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_any_task_can_be_looked_at():
    found = preview(WordProblems(num_train=30, num_validation=5, num_test=5), num_shown=2)
    assert [split.num_examples for split in found.splits] == [30, 5, 5]
    assert len(found.splits[0].shown) == 2
    assert "no bad rows" in as_text(found)
    assert DataConfig().decoding == Limits()


LONG = "nowhere" + "x" * 200


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_too_long(tmp_path, width):
    rows = [
        {"prompt": " ".join([LONG, "word\n\nword\r\n  indented"] * 90), "target": LONG},
        {"prompt": "\t", "target": "t"},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    task = Files(train=path, validation_fraction=0, test_fraction=0)
    text = as_text(preview(task), width)
    # The table alone has a width of its own.
    assert max(len(line) for line in text.splitlines()) <= max(width, 80)
    assert "characters …]" in text


def test_the_command_reads_files_and_recipes(brim_says, rows, saved, tmp_path):
    _, folder = saved
    code, out, err = brim_says("data", rows, "--show", "3")
    assert (code, err) == (
        0,
        f"{rows}: prompt_column prompt, target_column target, by the first row\n",
    )
    assert out.count("── train ") == 3
    assert "mean characters" in out
    assert max(map(len, out.splitlines())) <= 80
    settings = ("decoding.max_prompt_tokens=2", "task.test_fraction=0.5")
    code, out, _ = brim_says("data", rows, *settings, "--tokenizer", folder)
    assert code == 0
    assert "mean tokens" in out
    assert "\ntest " in out
    code, out, _ = brim_says("data", "wordproblems/brim", "task.num_train=20", "--show", "1")
    assert code == 0
    assert re.search(r"\ntrain +20 ", out)
    for arguments, message in (
        (("gone.jsonl",), "gone.jsonl: no such file"),
        (("no/recipe",), "no such recipe"),
        ((rows, "task.prompt_colum=q"), "unknown key; did you mean task.prompt_column?"),
        ((rows, "task.prompt_column=q"), 'no field "q"'),
        ((rows, "--tokenizer", tmp_path), "has no config.json"),
    ):
        code, out, err = brim_says("data", *arguments)
        assert (code, out) == (2, "")
        assert message in err.splitlines()[-1]


def test_columns_that_are_not_named_are_guessed(brim_says, tmp_path):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"source": "x", "talk": chat}])
    code, out, err = brim_says("data", path)
    assert (code, "→ a" in out) == (0, True)
    assert "messages_column talk" in err
    code, out, _ = brim_says("data", path, "task.prompt_column=source", "task.target_column=null")
    assert (code, "no target" in out) == (0, True)


def test_a_look_at_text_needs_no_torch(rows):
    code = f"""
import sys
sys.argv = ["brim", "data", {rows!r}]
import brim.cli
try:
    brim.cli.main()
finally:
    heavy = {{"torch", "transformers", "datasets"}} & sys.modules.keys()
    print("heavy:", sorted(heavy))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("heavy: []\n")


def test_a_teacher_out_of_reach_leaves_characters(rows, brim_says, tmp_path, monkeypatch):
    from brim.cli import data

    said = []
    teacher = SimpleNamespace(path=str(tmp_path), revision=None, trust_remote_code=False)
    assert data._encoder(None, teacher, SimpleNamespace(say=said.append)) is None
    assert "lengths are in characters" in said[0]
