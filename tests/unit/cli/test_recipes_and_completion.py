"""Recipes are found by words, shown whole, completed by shells; all without what takes seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from makers import configure
from typer.testing import CliRunner

from brim.cli import app
from brim.config.loading import load_config
from brim.recipes import complete, list_recipes, recipe_table
from brim.training.settings import RunConfig


@pytest.mark.parametrize("words", [["CMUDICT", "llmr"], ["total VARIATION", "gsm8k"]])
def test_words_filter_names_and_descriptions_in_any_case(brim_says, words):
    found = [
        name
        for name, text in list_recipes()
        if all(word.lower() in f"{name} {text}".lower() for word in words)
    ]
    _, out, _ = brim_says("recipes", *words)
    assert [line.split()[0] for line in out.splitlines() if line[0] != " "] == found
    assert 1 < len(found) < 10


def test_the_table_is_narrow_and_loses_no_word(brim_says):
    code, out, err = brim_says("recipes")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    words = [word for row in list_recipes() for word in " ".join(row).split()]
    assert out.split() == words
    assert recipe_table([("a", "b c"), ("b", "d")], ["C"], width=5) == "a  b\n   c"


def test_no_match_and_no_name_are_one_line(brim_says):
    for arguments in (["cmudict", "gsm8k"], ["show"], ["show", "cmudict/brin"]):
        code, out, err = brim_says("recipes", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("brim: ")
        assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["cmudict/ppo_llmr", "xsum/qwen/brim"])
def test_a_recipe_is_shown_with_all_keys_and_loads_as_the_same(brim_says, tmp_path, name):
    code, out, _ = brim_says("recipes", "show", name, "seed=3")
    assert code == 0
    path = tmp_path / "shown.yaml"
    path.write_text(out, encoding="utf-8")
    assert load_config(RunConfig, path) == configure(name, "seed=3")
    assert "extends" not in out
    assert "num_resamples" in out


def completions(words: str, shell: str = "bash") -> list[str]:
    number = len(words.split(" ")) - 1
    environment = {
        "_BRIM_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(number),
    }
    done = CliRunner().invoke(app, [], prog_name="brim", env=environment)
    assert done.exit_code == 0, done.output
    return done.output.split()


@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_shell_completes_recipes_and_files(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.yaml", "mine.jsonl", "mines/deep.yml", ".hidden.yaml"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    names = [name for name, _ in list_recipes()]
    assert completions(f"brim {command} gsm8k/q") == [n for n in names if n.startswith("gsm8k/q")]
    assert completions(f"brim {command} mine") == ["mine.yaml", "mines/"]
    assert completions(f"brim {command} mines/") == ["mines/deep.yml"]
    assert complete("") == [*names, "mine.yaml", "mines/"]
    assert complete("nothing/like/it") == []


def test_commands_complete_and_the_script_is_shown():
    assert "init" in completions("brim in")
    done = CliRunner().invoke(app, ["--help"])
    assert "--install-completion" in done.output


def test_none_of_it_needs_torch_and_the_schema_is_the_same_each_time(tmp_path, brim_says):
    commands = [
        *("schema run", "schema judge", "schema sweep", "init --yes", "recipes brim"),
        "recipes show cmudict/brim",
    ]
    code = (
        "import sys\nfrom brim.cli import main\n"
        f"for command in {commands!r}:\n"
        "    sys.argv = ['brim', *command.split()]\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert not stop.code, command\n"
        "    heavy = {'torch', 'transformers', 'datasets', 'pyarrow'} & sys.modules.keys()\n"
        "    assert not heavy, (command, heavy)\n"
        "    print('\\0', end='')\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True,
        encoding="utf-8", capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    texts = done.stdout.split("\0")
    for command, text in zip(commands[:3], texts, strict=False):
        assert json.loads(text)["title"] == f"brim {command.split()[1]}"
        assert brim_says(*command.split()) == (0, text, "")
    assert (tmp_path / "brim.schema.json").read_text(encoding="utf-8") == texts[0]
