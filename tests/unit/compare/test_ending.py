"""What a run prints at its end: one narrow table, differences, texts, places, commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import rundirs
from rich.cells import cell_len
from written_runs import garble, make_references, write_run

from brim.compare.ending import ending
from brim.runs.directory import RunDirectory

SETTINGS = {
    "task": {"name": "files"},
    "objective": {"name": "brim"},
    "evaluation": {"metric": "expected_return"},
}
RATES = {"teacher": 0.1, "predistill": 0.6, "own": 0.3, "student": 0.6}


def make_run(
    folder: Path,
    *,
    stages: Sequence[str] = ("teacher", "predistill"),
    prompt: str | None = None,
    settings=SETTINGS,
) -> RunDirectory:
    """A run whose teacher and start are tested too, all on the same forty examples."""
    references, run = make_references(), folder / "a run"
    manifest = {"stages_dir": "stages", "stages": {name: f"{name}-1" for name in stages}}
    rundirs.write_run(run, settings=settings, manifest=manifest)
    places = {**{name: run / "stages" / f"{name}-1" for name in stages}, "own": run}
    for seed, (name, place) in enumerate(places.items()):
        texts = garble(references, rate=RATES[name], seed=seed)
        write_run(
            place,
            texts,
            references,
            returns=[float(len(text)) for text in texts],
            sampled=texts,
            changes=None if prompt is None else {"prompt": prompt},
        )
        facts = {"split": "test", "steps": 20, "best_step": 10, "seconds": 3.0}
        counts = {"num_truncated_prompts": 0, "num_truncated_completions": 4}
        rundirs.change_results(place, **facts, **counts, num_parameters=123_456)
    return RunDirectory(run)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    return make_run(tmp_path_factory.mktemp("ended"))


@pytest.fixture(scope="module")
def shown(run):
    """What the run prints on a terminal of so many columns."""
    return cache(lambda width: ending(run, width=width))


def rows_of(text: str, name: str) -> list[str]:
    return [line for line in text.splitlines() if line.split()[:1] == [name]]


def without_paths(text: str) -> str:
    return text.partition("where things are")[0]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_everything_but_paths_is_as_narrow_as_the_terminal(shown, width):
    text = without_paths(shown(width))
    assert max(map(cell_len, text.splitlines())) <= width
    tables = text.partition("texts:")[0]
    assert max(map(cell_len, tables.splitlines())) <= 80
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_teacher_start_and_student_are_three_rows_of_one_table(run, shown):
    text = shown(80)
    results = {
        "teacher": run.path / "stages" / "teacher-1",
        "start": run.path / "stages" / "predistill-1",
        "student": run.path,
    }
    for name, place in results.items():
        row, scores = rows_of(text, name)[0], RunDirectory(place).results("test").scores
        assert f" {scores['expected_return'].value:.2f} " in row
        assert "123,456" in row
    assert "start: the student before brim, pre-distilled" in text
    assert "brim, 20 steps in 3 s, best at step 10" in text
    assert "0 prompts, 4 completions" in text
    # The chosen metric comes first, and what is lower where better says so.
    assert text.index("expected") < text.index("BLEU")
    assert "TER ↓" in text


def test_intervals_are_shown_where_there_is_room_and_signatures_never(run, shown):
    score = run.results("test").scores["expected_return"]
    interval = f"[{score.low:.2f}, {score.high:.2f}]"
    assert interval in rows_of(shown(80), "student")[0]
    assert "version:" not in shown(200)


def test_what_has_no_room_is_named(shown):
    narrow = " ".join(shown(40).split())
    assert re.search("no room here for .*exact match.*: see results.json", narrow)
    assert "no room" not in shown(80)


def test_differences_to_start_and_teacher_have_intervals_and_p(shown):
    text = shown(80).partition("texts:")[0]
    to_start, to_teacher = text.partition("student minus start")[2].split("student minus teacher")
    for block in (to_start, to_teacher):
        row = next(line for line in block.splitlines() if line.startswith("  expected return"))
        assert row.count("[") == 1
        assert 0 <= float(row.split()[-1]) <= 1
    # The student has more of the reference's words than the start, and fewer than the teacher.
    assert re.search(r"^  BLEU +\+\d", to_start, re.MULTILINE)
    assert re.search(r"^  BLEU +-\d", to_teacher, re.MULTILINE)


def test_five_examples_are_spread_over_the_split_with_all_texts(run, shown):
    text = shown(80)
    assert "texts: 5 of the 40 examples, evenly spaced" in text
    heads = [line for line in text.splitlines() if line[:1].isdigit()]
    assert heads == ["1. row0", "9. row8", "17. row16", "25. row24", "33. row32"]
    written = {row.id: row for row in run.predictions("test")}
    block = text.partition("9. row8\n")[2].partition("\n\n")[0]
    names = [line.split()[0] for line in block.splitlines()]
    assert names == ["prompt", "reference", "teacher", "start", "student"]
    assert block.splitlines()[4].endswith(written["row8"].texts[0])
    assert ending(run, width=80) == text  # chosen without chance


@pytest.mark.parametrize(
    "prompt",
    [
        "two\nlines\tand \x1b[31mred\x07",
        "日本語の文章" * 40,
        "שלום עולם " * 40 + "\u202eabc",
        "👩‍👩‍👧‍👦e\u0301" * 50,
        "word " * 400,
        "[bold]no markup[/bold]",
    ],
    ids=["controls", "wide", "right to left", "joined", "long", "markup"],
)
@pytest.mark.parametrize("width", [60, 200])
def test_strange_texts_stay_on_their_line_and_in_the_terminal(tmp_path, prompt, width):
    text = without_paths(ending(make_run(tmp_path, stages=(), prompt=prompt), width=width))
    lines = rows_of(text, "prompt")
    assert len(lines) == 5
    assert max(map(cell_len, text.splitlines())) <= width
    assert not set("\x1b\x07\t\u202e") & set(text)
    if prompt.startswith("[bold]"):
        assert lines[0].endswith(prompt)


def test_long_and_wide_names_of_metrics_leave_the_table_narrow(tmp_path):
    run = make_run(tmp_path)
    for place in (run.path, *(run.path / "stages").iterdir()):
        results = RunDirectory(place).results("test")
        renamed = {
            key: replace(
                score, name={"ter": "評価" * 20, "bleu": "a metric " * 9}.get(key, score.name)
            )
            for key, score in results.scores.items()
        }
        rundirs.change_results(place, scores={k: s.as_dict() for k, s in renamed.items()})
    for width in (60, 80):
        text = without_paths(ending(run, width=width))
        assert max(map(cell_len, text.splitlines())) <= width


def test_commands_can_be_copied_and_paths_are_there(run, shown):
    text = shown(80)
    places, _, commands = text.partition("where things are\n")[2].partition("\n\nnext\n")
    for line in places.splitlines():
        assert Path(line[15:]).exists() or "best model" in line, line
    report, generate, compare = commands.splitlines()
    start = run.path / "stages" / "predistill-1"
    assert shlex.split(report) == ["brim", "report", str(run.path)]
    assert shlex.split(compare) == ["brim", "compare", str(run.path), str(start)]
    given, _, reader = generate.partition(" | ")
    assert shlex.split(reader) == ["brim", "generate", str(run.path)]
    said = subprocess.run(["sh", "-c", given], capture_output=True, text=True, check=True)
    assert said.stdout == "prompt 0\n"


def test_a_prompt_that_no_line_can_hold_is_not_offered(tmp_path):
    text = ending(make_run(tmp_path, stages=(), prompt="two\nlines"), width=80)
    assert f"  brim generate {shlex.quote(str(tmp_path / 'a run'))}" in text.splitlines()


def test_without_tested_stages_the_student_stands_alone(tmp_path):
    run = make_run(tmp_path, stages=())
    text = ending(run, width=80)
    assert "minus" not in text
    assert not rows_of(text, "teacher")
    assert len(rows_of(text, "student")) == 6
    assert f"brim evaluate {shlex.quote(str(run.path))} --split validation" in text


def test_a_student_of_random_weights_has_no_start(tmp_path):
    text = ending(make_run(tmp_path, stages=("teacher",)), width=80)
    assert rows_of(text, "teacher")
    assert not rows_of(text, "start")
    assert "student minus teacher" in text
    assert "student minus start" not in text


def test_a_start_that_was_loaded_says_so(tmp_path):
    assert "start: the student before brim, as it was loaded" in ending(
        make_run(tmp_path, stages=("student",)), width=80
    )


def test_it_needs_no_torch(run):
    code = (
        "import sys; from pathlib import Path; from brim.compare.ending import ending; "
        "from brim.runs.directory import RunDirectory; "
        "print(ending(RunDirectory(Path(sys.argv[1])))); assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "student minus start" in done.stdout
