import json
from itertools import islice
from pathlib import Path

import pytest
from rundirs import unseal, write_run

from brim.errors import RunError
from brim.metrics import mean_score
from brim.runs.directory import RunDirectory

ROWS = [
    {"id": f"x{i}", "prompt": f"p{i}", "references": [f"r{i}"], "text": f"t{i}", "num_tokens": i}
    for i in range(5)
]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    scores = {"length": mean_score("length", [1.0, 2.0], num_resamples=10).as_dict()}
    facts = {"scores": scores, "num_examples": 5, "data": {"sha256": "abc"}, "seconds": 3.5}
    return write_run(tmp_path, rows=ROWS, results=facts)


def spoil(directory: Path, place: int, line: str) -> None:
    path = RunDirectory(unseal(directory)).predictions_path("test")
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{text}\n" for text in [*lines[:place], line, *lines[place + 1 :]]))


def test_results_have_scores_and_all_else_that_the_file_has(directory):
    results = RunDirectory(directory).results("test")
    assert results.scores["length"].value == 1.5
    assert (results.num_examples, results.data) == (5, "abc")
    assert results.facts["seconds"] == 3.5
    assert RunDirectory(directory).find_results("test") == results


@pytest.mark.parametrize("text", [None, "{}", '{"train": {}}', '{"test": {"accuracy": 1}}'])
def test_no_results_yet_are_no_mistake_unless_they_are_needed(directory, text):
    path = directory / "results.json"
    path.unlink() if text is None else path.write_text(text)
    assert RunDirectory(directory).find_results("test") is None
    with pytest.raises(RunError, match=r"results.json: no results of the test split; write them"):
        RunDirectory(directory).results("test")


@pytest.mark.parametrize(
    "text", ["[]", '{"test": {"scores": {}}}', '{"test": {"scores": {"a": 1}, "num_examples": 5}}']
)
def test_damaged_results_are_never_passed_over(directory, text):
    (directory / "results.json").write_text(text)
    with pytest.raises(RunError, match=r"results.json: damaged: .*--split test"):
        RunDirectory(directory).find_results("test")


PLANS = {"40": {"max_steps": 40, "num_epochs": None}, "30": {"max_steps": None, "num_epochs": 1.5}}


@pytest.mark.parametrize("plan", PLANS)
def test_results_from_before_the_end_of_a_training_say_how_far_it_was(tmp_path, plan):
    settings = {"task": {"name": "files"}, "trainer": {**PLANS[plan], "rollout_batch_size": 5}}
    write_run(tmp_path, settings=settings, manifest={"data": {"train": {"num_examples": 98}}})
    planned = int(plan)
    assert RunDirectory(tmp_path).planned_steps() == planned
    # Results of an older version do not have the number of planned steps.
    assert (
        RunDirectory(tmp_path).stopped_at({"steps": planned - 1})
        == f"step {planned - 1} of {planned}"
    )
    assert RunDirectory(tmp_path).stopped_at({"steps": planned}) is None
    assert RunDirectory(tmp_path).stopped_at({}) is None
    assert (
        RunDirectory(tmp_path / "no run").stopped_at({"steps": 0, "planned_steps": 1200})
        == "step 0 of 1,200"
    )
    assert RunDirectory(tmp_path).stopped_at({"steps": 7, "planned_steps": 7}) is None


@pytest.mark.parametrize("config", ["trainer: {max_steps: null}", "trainer: 3", "{", "seed: 1", ""])
def test_of_settings_that_do_not_say_it_the_planned_steps_are_not_known(tmp_path, config):
    (tmp_path / "config.yaml").write_text(config)
    assert RunDirectory(tmp_path).planned_steps() is None
    (tmp_path / "manifest.json").write_text("{}")
    assert RunDirectory(tmp_path).planned_steps() is None
    assert RunDirectory(tmp_path).stopped_at({"steps": 3}) is None


def test_rows_come_one_after_the_other(directory):
    spoil(directory, 3, "{")
    rows = RunDirectory(directory).predictions("test")
    assert [row.text for row in islice(rows, 3)] == ["t0", "t1", "t2"]
    with pytest.raises(RunError, match=r"test.jsonl:4: damaged"):
        next(rows)


def test_only_the_lines_that_are_wanted_are_parsed(directory):
    spoil(directory, 2, "{")
    rows = RunDirectory(directory).predictions("test", count=5, at={1, 4})
    assert [(row.id, row.num_tokens, row.teacher_return) for row in rows] == [
        ("x1", 1.0, None),
        ("x4", 4.0, None),
    ]
    with pytest.raises(RunError, match=r"test.jsonl:3: damaged"):
        list(RunDirectory(directory).predictions("test", at={2}))


@pytest.mark.parametrize("at", [None, {0}, set()])
def test_lines_are_counted_whatever_is_wanted(directory, at):
    list(RunDirectory(directory).predictions("test", count=5, at=at))
    with pytest.raises(RunError, match=r"5 predictions where results.json counts 6"):
        list(RunDirectory(directory).predictions("test", count=6, at=at))
    RunDirectory(unseal(directory)).predictions_path("test").write_text("")
    with pytest.raises(RunError, match="holds no predictions"):
        list(RunDirectory(directory).predictions("test", at=at))


def test_of_samples_the_first_is_shown_and_numbers_are_means(directory):
    samples = [
        {"text": "one", "num_tokens": 1, "teacher_return": 2.0},
        {"text": "two", "num_tokens": 4, "teacher_return": 5.0},
    ]
    spoil(directory, 0, json.dumps({**ROWS[0], "text": "one", "samples": samples}))
    row = next(RunDirectory(directory).predictions("test"))
    assert (row.text, row.texts) == ("one", ("one", "two"))
    assert (row.num_tokens, row.teacher_return) == (2.5, 3.5)


@pytest.mark.parametrize(
    "change",
    [{"id": 3}, {"text": None}, {"prompt": "\ud800"}, {"references": 1}, {"statistics": [1]}],
)
def test_a_damaged_row_is_named_with_what_mends_it(directory, change):
    spoil(directory, 1, json.dumps({**ROWS[1], **change}))
    with pytest.raises(RunError, match=r"test.jsonl:2: damaged: .*--split test") as caught:
        list(RunDirectory(directory).predictions("test"))
    assert "\n" not in str(caught.value)


def test_a_place_without_the_split_and_no_place_are_told_apart(directory):
    with pytest.raises(RunError, match=r"train.jsonl: no predictions of the train split"):
        list(RunDirectory(directory).predictions("train"))
    for read in (RunDirectory.results, lambda *of: list(RunDirectory.predictions(*of))):
        with pytest.raises(RunError, match="nowhere: no such directory; check the path"):
            read(RunDirectory(directory / "nowhere"), "test")
