"""What the command line says of mistakes in its arguments, and what it does not import for that."""

import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import brim.cli
import brim.recipes
from brim.cli import app


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train a.yaml --objective.k=3", "no such option: --objective.k; settings have no dashes: "
         "write objective.k=3; see brim train -h"),
        ("train a.yaml --seed 3", "no such option: --seed; settings have no dashes: write "
         "seed=VALUE; see brim train -h"),
        ("compare a b --objective.k=3", "no such option: --objective.k; see brim compare -h"),
        ("evaluate a --split tst", "invalid value for '--split': 'tst' is not train, "
         "validation, test, or test.NAME of several test sets; see brim evaluate -h"),
        ("evaluate a --stage foo", "invalid value for '--stage': 'foo' is not one of 'teacher', "
         "'student', 'predistill'; see brim evaluate -h"),
        ("train", "missing argument 'recipe'; see brim train -h"),
        ("trian a.yaml", "no such command 'trian'. Did you mean 'train'; see brim -h"),
        ("schema run a", "got unexpected extra argument(s) (a); see brim schema -h"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_one_line_and_exit_code_2(brim_says, arguments, message):
    code, out, err = brim_says(*arguments.split())
    assert (code, out) == (2, "")
    assert err == f"brim: {message}\n"


NUMBERS = [
    "plan cmudict/brim --memory",
    "plan cmudict/brim --tflops",
    "generate run --temperature",
    "generate run --top-p",
    "report runs --alpha",
    "sweep file.yaml --gpus-per-job",
]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_number_that_is_not_finite_is_refused(brim_says, number, value):
    code, out, err = brim_says(*number.split(), value)
    assert (code, out) == (2, "")
    assert err.startswith(f"brim: invalid value for '{number.split()[-1]}': ")


@pytest.mark.parametrize(
    "arguments",
    [
        "train cmudict/brim --out LONG",
        "train LONG",
        "quickstart --short --out LONG",
        "report . --out LONG",
        "report LONG",
        "evaluate LONG",
        "evaluate . --out LONG",
        "compare LONG LONG",
        "compare a b --out LONG",
        "sweep LONG",
        "analyze variance LONG",
        "judge LONG LONG",
    ],
)
def test_a_name_of_300_characters_is_one_line(brim_says, arguments):
    code, out, err = brim_says(*arguments.replace("LONG", "x" * 300).split())
    assert (code, out) == (2, "")
    [line] = [line for line in err.splitlines() if line.startswith("brim: ")]
    assert len(line) < 600
    assert "Traceback" not in err


@pytest.mark.parametrize("command", [["analyze", "variance", "a"], ["judge", "a", "b"]])
def test_a_setting_may_be_longer_than_a_name(brim_says, command):
    code, _, err = brim_says(*command, f"task.prompt={'x' * 300}")
    assert code == 2
    assert "too long" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        *("report a --alpha 5", "generate a --temperature -1", "sweep a --jobs x", "train a --out"),
        *("generate a --temperature nan", "generate a --temperature inf", "generate a --top-p nan"),
    ],
)
def test_a_wrong_value_is_named_with_its_option_on_one_line(brim_says, arguments):
    code, out, err = brim_says(*arguments.split())
    command, option = arguments.split()[0], arguments.split()[2]
    assert (code, out) == (2, "")
    assert err.startswith("brim: ")
    assert option in err
    assert err.count("\n") == 1
    assert "Input should" not in err
    assert "Value error" not in err
    if arguments != "train a --out":  # typer's parser does not say of which command
        assert err.endswith(f"; see brim {command} -h\n")


def test_help_and_version_are_no_mistakes(brim_says):
    code, out, err = brim_says("--version")
    assert (code, out, err) == (0, f"{brim.__version__}\n", "")
    code, out, err = brim_says("train", "--help")
    assert (code, err) == (0, "")
    assert "Run directory" in out
    _, out, err = brim_says()
    assert "Commands:" in out + err
    assert "brim: " not in out + err


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (typer.Exit(1), 1)])
def test_the_exit_code_of_a_command_reaches_the_shell(brim_says, monkeypatch, stop, code):
    def stopped():
        raise stop

    monkeypatch.setattr(brim.recipes, "list_recipes", stopped)
    assert brim_says("recipes")[0] == code


def test_no_sentence_of_the_help_is_cut_at_80_columns():
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).output
    assert "quickstart" in text
    assert "..." not in text.partition("Commands:")[2]


@pytest.mark.parametrize("command", [["evaluate"], ["compare", "runs/dates"]])
def test_a_folder_of_runs_is_no_run_and_one_in_it_is_offered(brim_says, command):
    Path("runs/dates").mkdir(parents=True)
    Path("runs/dates/config.yaml").touch()
    for name in ("results.json", "predictions/test.jsonl"):
        Path("runs/dates", name).parent.mkdir(exist_ok=True)
    code, _, err = brim_says(command[0], "runs", *command[1:])
    assert code == 2
    assert err == "brim: runs: holds runs and is none; name one, such as runs/dates\n"


EARLY = {
    "train nowhere.yaml": "no such file",
    "train cmudict/brin": "did you mean cmudict/brim?",
    "train cmudict/brim seed": "write a setting as key.sub=value",
    "train bad.yaml": "bad.yaml:2: ",
    "train worse.yaml": "worse.yaml:1: extends: bad.yaml:2: ",
    "plan nowhere.yaml": "no such file",
    "evaluate runs/nowhere": "no run directory",
    "generate runs/nowhere --top-k 3": "--top-k, --top-p: ",
    "compare nowhere nowhere": "no such directory",
    "report nowhere": "no such folder",
    "judge nowhere.yaml": "no such file",
    "judge bad.yaml": "bad.yaml:2: ",
    "judge judge.yaml modle=n": "command line: modle=n: unknown key; did you mean model?",
    "judge judge.yaml nowhere nowhere2": "no such directory",
    "sweep nowhere.yaml --status": "no such file",
    "sweep bad.yaml --dry-run": "bad.yaml:2: ",
}


def test_mistakes_in_paths_and_files_are_found_without_torch(tmp_path):
    (tmp_path / "bad.yaml").write_text("task: files\ntask: gsm8k\n")
    (tmp_path / "judge.yaml").write_text("model: m\n")
    (tmp_path / "worse.yaml").write_text("extends: bad.yaml\n")
    code = (
        "import sys\nfrom brim.cli import main\n"
        f"for command in {list(EARLY)!r}:\n"
        "    sys.argv = ['brim', *command.split()]\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert stop.code == 2, command\n"
        "    heavy = {'torch', 'transformers', 'datasets'} & sys.modules.keys()\n"
        "    assert not heavy, (command, heavy)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    for (command, message), line in zip(EARLY.items(), lines, strict=True):
        assert line.startswith("brim: "), command
        assert message in line, command


def test_a_full_disk_anywhere_is_one_line_with_numbers(brim_says, monkeypatch, tmp_path):
    def full(*arguments):
        try:
            raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "cache"))
        except OSError as error:
            raise RuntimeError("the data set could not be made") from error

    monkeypatch.setattr(brim.recipes, "list_recipes", full)
    code, out, err = brim_says("recipes")
    assert (code, out) == (2, "")
    assert re.fullmatch(
        rf"brim: {tmp_path}/cache: cannot write: no space left on the device "
        r"\(at least [\d,]+ bytes needed, [\d,]+ free\); .*\n", err
    )  # fmt: skip
