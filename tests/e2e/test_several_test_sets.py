"""A run with several test sets: each has results, and every command shows each of them."""

import json

import pytest
from pairs import LLAMA

from brim.config.loading import dump_config
from brim.plan import plan, plan_sweep
from brim.runs.directory import RunDirectory
from brim.runs.train import train
from brim.sweep import Point

FAST = (
    "trainer.max_steps=2", "trainer.evaluate_every=2", "trainer.save_every=2",
    "task.max_train_examples=24", "task.max_validation_examples=4", "task.max_test_examples=4",
    "teacher.train.trainer.max_steps=2", "evaluation.num_resamples=100",
)  # fmt: skip
SETS = ("test.high", "test.low")


@pytest.fixture(scope="module")
def settings(make_config, numerals, tmp_path_factory):
    """Settings of runs whose tests are of small and of large numbers."""
    folder, lines = tmp_path_factory.mktemp("sets"), {"low": [], "high": []}
    for line in (numerals / "test.jsonl").read_text(encoding="utf-8").splitlines():
        lines["high" if int(json.loads(line)["number"]) > 100 else "low"].append(line)
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    tests = f"task.test={{high: {folder}/high.jsonl, low: {folder}/low.jsonl}}"
    return lambda *changes: make_config(LLAMA, *FAST, tests, *changes)


@pytest.fixture(scope="module")
def runs(settings, tmp_path_factory):
    """Two runs, of two learning rates, that share their teacher."""
    root = tmp_path_factory.mktemp("runs")
    for name, rate in {"a": "1e-2", "b": "1e-3"}.items():
        train(settings(f"optim.lr={rate}"), root / name, stages_dir=root / "stages")
    return root


def test_each_set_has_results_and_predictions(runs):
    found = RunDirectory(runs / "a")
    assert found.tests() == SETS
    assert found.tests("validation") == ("validation",)
    digests = {found.results(split).data for split in SETS}
    assert len(digests) == 2
    assert {path.name for path in (runs / "a/predictions").glob("*.jsonl")} == {
        "test.high.jsonl", "test.low.jsonl"
    }  # fmt: skip
    for split, large in zip(SETS, (True, False), strict=True):
        assert len(list(found.predictions(split, count=4))) == 4
        for row in found.predictions(split):
            assert any(int(word) > 100 for word in row.prompt.split() if word.isdigit()) == large
    assert {"test.high", "test.low"} <= found.manifest()["data"].keys()


def test_the_plans_of_a_run_and_of_a_sweep_count_it(settings):
    config = settings()
    assert plan(config).stages[-1].num_examples == 24
    assert plan_sweep([Point(1, "a", 0, "a.yaml", (), config)]).systems[0].count == 1


def test_a_finished_run_keeps_what_it_has(runs, settings):
    before = {path: path.read_bytes() for path in (runs / "a/predictions").iterdir()}
    found = train(settings("optim.lr=1e-2"), runs / "a", stages_dir=runs / "stages")
    assert tuple(found) == SETS
    assert before == {path: path.read_bytes() for path in (runs / "a/predictions").iterdir()}


def test_evaluate_writes_each_set(runs, brim_says):
    code, out, _ = brim_says("evaluate", runs / "a", "--stage", "teacher")
    assert code == 0
    assert [split in out for split in SETS] == [True, True]
    code, out, _ = brim_says("evaluate", runs / "a", "--split", "test.low")
    assert (code, "test.low" in out, "test.high" in out) == (0, True, False)
    code, _, err = brim_says("evaluate", runs / "a", "--split", "test.other")
    assert (code, err.count("\n")) == (2, 1)
    assert "there is no split test.other; the task has train, validation, test.high, tes" in err
    code, _, err = brim_says("evaluate", runs / "a", "--split", "tset")
    assert code == 2
    assert "test.NAME" in err


def test_compare_shows_each_set(runs, brim_says):
    code, out, _ = brim_says("compare", runs / "a", runs / "b", "--out", "both")
    assert code == 0
    assert out.index("test.high split, 4 examples") < out.index("test.low split, 4 examples")
    code, out, _ = brim_says("compare", runs / "a", runs / "b", "--json")
    assert tuple(json.loads(out)) == SETS
    code, out, _ = brim_says("compare", runs / "a", runs / "b", "--json", "--split", "test.low")
    assert json.loads(out)["split"] == "test.low"


def test_the_report_has_each_set_as_a_task(runs, brim_says, tmp_path):
    code, out, _ = brim_says("report", runs)
    assert code == 0
    page = json.loads((tmp_path / "report/results.json").read_text(encoding="utf-8"))
    assert [task["label"] for task in page["tasks"]] == ["files, high", "files, low"]
    assert "files, low" in out
    code, _, _ = brim_says("report", runs, "--split", "test.low", "--out", "low")
    one = json.loads((tmp_path / "low/results.json").read_text(encoding="utf-8"))
    assert [task["label"] for task in one["tasks"]] == ["files, low"]


def test_train_prints_each_set_beside_its_start(runs, settings, brim_says, tmp_path):
    (tmp_path / "r.yaml").write_text(dump_config(settings("optim.lr=1e-3")), encoding="utf-8")
    code, out, _ = brim_says("train", "r.yaml", "--out", runs / "b", "--stages", runs / "stages")
    assert code == 0
    for split in SETS:
        assert f"{split} split: 4 examples" in out
