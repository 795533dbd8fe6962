"""`brim init` writes a recipe that loads, whatever the answers, and spoils nothing."""

import itertools
import json
from pathlib import Path

import pytest

from brim.config.loading import load_config
from brim.config.schema import MODELINE, SCHEMA_FILE
from brim.errors import ConfigError, DataError
from brim.objectives import OBJECTIVES
from brim.recipes.draft import (
    TASKS,
    check_method,
    check_student,
    check_teacher,
    default_student,
    default_teacher,
    draft,
    find_data,
)
from brim.recipes.first_row import read_first_row
from brim.training.settings import RunConfig

CHAT = [{"role": "user", "content": "3 May"}, {"role": "assistant", "content": "05 03"}]
ROWS = {
    "pairs.jsonl": {"question": "3 May", "answer": "05 03"},
    "chats.jsonl": {"messages": CHAT},
    "prompts.jsonl": {"text": "3 May"},
    "odd, name #1.jsonl": {"a: b": "3 May", "c # d": "05 03"},
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, row in ROWS.items():
        Path(name).write_text(json.dumps(row) + "\n", encoding="utf-8")
    return [*ROWS, *TASKS]


def test_every_combination_of_answers_loads_or_is_refused(files):
    loaded = {name: set() for name in files}
    students = ("scratch", "3", "org/small")
    for name, teacher, student in itertools.product(files, ("scratch", "org/large"), students):
        data = find_data(name)
        try:
            check_student(check_teacher(data, teacher), student)
        except ConfigError:
            continue
        loaded[name].add((teacher, student))
        for method in OBJECTIVES:
            path = Path("recipe.yaml")
            path.write_text(draft(data, teacher, student, method), encoding="utf-8")
            config = load_config(RunConfig, path)
            assert config.objective.name == check_method(method)
            assert config.teacher.path == (None if teacher == "scratch" else teacher)
            assert config.student.path == ("org/small" if student == "org/small" else None)
            assert config.student.keep_layers == (3 if student == "3" else None)
            assert config.task.name == (name if name in TASKS else "files")
            if teacher == "scratch" and student == "3":
                assert config.teacher.build["layers"] >= 3
    # A loaded teacher teaches all; one from scratch needs targets in columns.
    needy = {"chats.jsonl", "prompts.jsonl"}
    for name in files:
        of_scratch = set() if name in needy else {("scratch", "scratch"), ("scratch", "3")}
        assert loaded[name] == of_scratch | {("org/large", "3"), ("org/large", "org/small")}
        assert default_teacher(find_data(name)) == (None if name in needy else "scratch")
    assert default_student("org/large") is None


@pytest.mark.parametrize(
    ("row", "settings", "has_target"),
    [
        ({"prompt": "a", "target": "b"}, ("prompt_column", "prompt", "target"), True),
        ({"ID": "1", "Answer": "b", "Question": "a"},
         ("prompt_column", "Question", "Answer"), True),
        ({"instruction": "a", "input": "x", "output": "b"},
         ("prompt_column", "instruction", "output"), True),
        ({"article": "a", "summary": ["b", "c"], "n": 3},
         ("prompt_column", "article", "summary"), True),
        ({"en": "a", "nl": "b"}, ("prompt_column", "en", "nl"), True),
        ({"en": "a", "nl": "b", "de": "c"}, ("prompt_column", "en", None), False),
        ({"label": "a"}, ("prompt_column", "label", None), False),
        ({"text": "a", "n": 1}, ("prompt_column", "text", None), False),
        ({"id": "7", "chat": CHAT}, ("messages_column", "chat", None), True),
        ({"chat": CHAT[:1]}, ("messages_column", "chat", None), False),
        ({"chat": CHAT[:1], "answer": "b"}, ("messages_column", "chat", "answer"), True),
    ],
)  # fmt: skip
def test_columns_are_guessed_from_the_first_row(tmp_path, row, settings, has_target):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\nnot read\n", encoding="utf-8")
    found = read_first_row(str(path))
    kind, column, target = settings
    assert found.columns == tuple(row)
    assert found.settings == {kind: column, "target_column": target}
    assert found.has_target is has_target
    assert column in found.in_words()
    assert str(target or "target") in found.in_words()
    assert found.teaches is (has_target and not found.is_chat)


def test_a_table_has_a_first_row_too(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("id,question,answer\n1,a,b\n", encoding="utf-8")
    assert read_first_row(str(path)).settings == {
        "prompt_column": "question",
        "target_column": "answer",
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [("", "no rows"), ("{\n", "rows.jsonl:1: "), ('{"n": 1}\n', "no column has text")],
)
def test_a_first_row_that_cannot_be_used_is_an_error(tmp_path, text, problem):
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=problem):
        read_first_row(str(path))


def test_answers_and_options_write_the_same_and_wrong_answers_are_asked_again(brim_says, files):
    given = ["--data", "pairs.jsonl", "--teacher", "scratch", "--student", "2", "--method", "kl"]
    code, out, err = brim_says("init", "options/a.yaml", *given)
    assert (code, err) == (0, "")
    assert "prompt_column question, target_column answer" in out
    answers = "nowhere.jsonl\npairs.jsonl\n\norg/small\n2\nkll\nkl\n"
    code, out, err = brim_says("init", "answers/a.yaml", stdin=answers)
    assert (code, err) == (0, "")
    for mistake in ("nowhere.jsonl: no such file", "student: 'org/small'", "method: 'kll'"):
        assert out.count(mistake) == 1
    for name in ("a.yaml", SCHEMA_FILE):
        assert Path("answers", name).read_bytes() == Path("options", name).read_bytes()
    text = Path("answers/a.yaml").read_text(encoding="utf-8")
    assert text.startswith(f"{MODELINE}\n")
    assert "extends" not in text


def test_no_file_is_overwritten_and_what_has_no_default_is_asked_for(brim_says, files):
    assert brim_says("init", "--yes")[0] == 0
    first = Path("recipe.yaml").read_bytes()
    for arguments, problem in {
        ("--yes",): "recipe.yaml: there already",
        ("mine.txt", "--yes"): "mine.txt: name the recipe .yaml",
        ("b.yaml", "--yes", "--data", "chats.jsonl"): "--teacher: has no default",
        ("b.yaml", "--yes", "--data", "chats.jsonl", "--teacher", "scratch"): "no chat template",
        ("b.yaml", "--yes", "--data", "prompts.jsonl", "--teacher", "scratch"): "no targets",
        ("b.yaml", "--yes", "--teacher", "m"): "--student: has no default",
        ("b.yaml", "--yes", "--teacher", ""): "teacher: give scratch",
        ("b.yaml",): "--data: no answer",
    }.items():
        code, _, err = brim_says("init", *arguments)
        assert code == 2, arguments
        assert problem in err
        assert err.count("\n") == 1
    assert not Path("b.yaml").exists()
    assert Path("recipe.yaml").read_bytes() == first


def test_what_it_writes_trains(brim_says):
    rows = [{"question": f"{i} {i + 1}", "answer": f"{i + 1} {i}"} for i in range(80)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert brim_says("init", "--yes", "--data", "rows.jsonl")[0] == 0
    short = [
        *("teacher.train.trainer.max_steps=2", "student.predistill.trainer.max_steps=2"),
        *(
            "trainer.max_steps=2",
            "trainer.rollout_batch_size=4",
            "teacher.tokenizer.vocab_size=300",
        ),
        *("decoding.max_tokens=4", "evaluation.num_resamples=100"),
        *("teacher.train.trainer.rollout_batch_size=4", "evaluation.stages=false"),
    ]
    code, _, err = brim_says("train", "recipe.yaml", *short, "--out", "run", "-q")
    assert code == 0, err
    log = Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(log[-1])["step"] == 2
