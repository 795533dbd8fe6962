"""Whole reports: what is written, what it says, and what bad directories get."""

from __future__ import annotations

import base64
import csv
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from brim.errors import BrimError, ConfigError, RunError
from brim.report import System, summary, write_report
from brim.report.curves import group_by_start
from brim.report.evidence import read_evidence

RNG = np.random.default_rng(7)
BASE_RETURNS = RNG.normal(5, 3, size=60).tolist()
FILES = {"results_table.md", "results_table.csv", "samples.md", "samples.json", "report.html"}
CURVES = {"curves.png", "curves.svg"}


def report(out: Path, systems: list[System], **changes) -> str:
    arguments = {
        "title": "A report",
        "lead": "What it is.\n\nAnd why.",
        "metric": "exact_match",
        "baseline": systems[0].label,
        **changes,
    }
    return write_report(out, systems, **arguments)


@pytest.fixture(scope="module")
def systems(tmp_path_factory, make_run, metrics_of_a_run) -> list[System]:
    root = tmp_path_factory.mktemp("runs")
    noise = RNG.normal(0, 1, size=60)
    noise -= noise.mean() - 0.01
    wrong = [f"P{i} AH0 X" if i % 3 else f"P{i} AH0 T{i % 7}" for i in range(60)]
    facts = {"steps": 40, "best_step": 30, "seconds": 1234.5}
    manifest = {"seed": 11, "command": ["brim", "train", "a b"], "versions": {"torch": "9.9"}}
    manifest["config_hash"] = "0"
    return [
        make_run(root / "base", "student", texts=wrong, returns=BASE_RETURNS),
        make_run(root / "same", "noisy", returns=(np.array(BASE_RETURNS) + noise).tolist()),
        make_run(root / "worse", "worse", returns=(np.array(BASE_RETURNS) - 1.5).tolist()),
        *(
            make_run(
                root / f"k{k}",
                f"BRIM (K = {k})",
                returns=(np.array(BASE_RETURNS) + 2.0).tolist(),
                metrics=metrics_of_a_run(k),
                facts=facts,
                files={
                    "config.yaml": f"objective: {{k: {k}}}\n",
                    "manifest.json": json.dumps(manifest),
                },
            )
            for k in (1, 2)
        ),
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory, systems) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("report") / "new" / "folder"
    return out, report(out, systems)


def rows_of(out: Path) -> dict[str, dict[str, str]]:
    with (out / "results_table.csv").open(newline="") as file:
        return {row["system"]: row for row in csv.DictReader(file)}


def test_every_file_is_there_and_no_other(written):
    assert {path.name for path in written[0].iterdir()} == FILES | CURVES


def test_table_holds_the_numbers_of_the_results_files(written, systems):
    out, text = written
    markdown, page = (out / "results_table.md").read_text(), (out / "report.html").read_text()
    rows = rows_of(out)
    assert list(rows) == [system.label for system in systems]
    for system in systems:
        scores = json.loads((system.directory / "results.json").read_text())["test"]["scores"]
        for name, digits in (("exact_match", 1), ("return", 2), ("length", 1)):
            low, value, high = (scores[name][end] for end in ("low", "value", "high"))
            row = rows[system.label]
            found = [float(row[f"{name}{end}"]) for end in ("_low", "", "_high")]
            assert found == [low, value, high]
            number, interval = f"{value:.{digits}f}", f"[{low:.{digits}f}, {high:.{digits}f}]"
            assert f"{number} {interval}" in text
            assert f"{number} {interval}" in markdown
            assert number in page
            assert interval in page
        assert rows[system.label]["num_parameters"] == "1234567"
    assert rows["BRIM (K = 2)"]["train_seconds"] == "1234.5"
    assert rows["student"]["train_seconds"] == ""
    assert "1,234,567" in text
    assert "1,234" in text.split("BRIM (K = 2)")[1].splitlines()[0]


def test_differences_are_paired_and_judged_by_their_interval_only(written):
    out, text = written
    rows = rows_of(out)
    ends = ("_low", "", "_high")
    for label, shift in (("worse", -1.5), ("BRIM (K = 1)", 2.0), ("BRIM (K = 2)", 2.0)):
        # A constant shift has no spread once it is paired, however wide each system's own interval.
        found = [float(rows[label][f"return_difference{end}"]) for end in ends]
        assert found == pytest.approx([shift] * 3)
        assert float(rows[label]["return_high"]) - float(rows[label]["return_low"]) > 1
        assert rows[label]["verdict"] == "beyond the interval"
    assert float(rows["noisy"]["return_difference"]) == pytest.approx(0.01)
    assert rows["noisy"]["verdict"] == "within the interval"
    assert rows["student"]["return_difference"] == rows["student"]["verdict"] == ""
    assert "-1.50 [-1.50, -1.50]  beyond the interval" in text
    assert "+2.00 [+2.00, +2.00]  beyond the interval" in text


def test_columns_of_the_terminal_are_aligned(written):
    _, text = written
    lines = text.splitlines()[1:7]
    assert len({len(line) for line in lines}) == 1
    assert max(map(len, text.splitlines())) <= 100


def test_same_input_same_bytes(written, systems):
    out, text = written
    again = out.parent / "again"
    assert report(again, systems) == text
    for name in FILES | CURVES:
        assert (again / name).read_bytes() == (out / name).read_bytes(), name


def test_pictures_are_pictures_and_matplotlib_is_left_as_it_was(written, systems):
    import matplotlib
    import matplotlib.image

    out, _ = written
    height, width, _ = matplotlib.image.imread(out / "curves.png").shape
    assert width > 1200
    assert height > 800
    assert ElementTree.parse(out / "curves.svg").getroot().tag.endswith("svg")
    before = dict(matplotlib.rcParams)
    report(out.parent / "third", systems)
    assert dict(matplotlib.rcParams) == before
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


def test_systems_that_began_alike_share_their_axes(tmp_path, make_run, metrics_of_a_run):
    def begun_elsewhere(shift):
        rows = metrics_of_a_run(1)
        keys = [key for row in rows for key in row if key == "eval/exact_match"]
        return [{**row, **{k: row[k] + shift for k in keys if k in row}} for row in rows]

    runs = {
        "teacher": begun_elsewhere(5),
        "student": begun_elsewhere(-5),
        "llmr": metrics_of_a_run(1),
        "loaded": None,
        "brim": metrics_of_a_run(2),
    }
    systems = [make_run(tmp_path / n, n, metrics=rows) for n, rows in runs.items()]
    evidence = read_evidence(systems, metric="exact_match", baseline="student", split="test")
    groups = group_by_start(evidence, "exact_match")
    assert [[s.label for s in g] for g in groups] == [["llmr", "brim"], ["teacher", "student"]]


def test_picture_in_the_page_is_the_file_beside_it(written):
    page = (written[0] / "report.html").read_text()
    encoded = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', page)[1]
    assert base64.b64decode(encoded) == (written[0] / "curves.svg").read_bytes()


def test_settings_and_provenance_are_on_the_page(written):
    page = (written[0] / "report.html").read_text()
    for text in ("objective: {k: 2}", "9.9", "brim train &#39;a b&#39;", "And why."):
        assert text in page
    assert "nrefs:var|refs:any|case:mixed" in page


def test_without_training_there_are_no_curves(tmp_path, systems):
    report(tmp_path / "out", systems[:1])
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<img" not in page
    assert "minus" not in page


def test_without_returns_there_is_no_column_of_them(tmp_path, make_run):
    systems = [make_run(tmp_path / name, name) for name in ("a", "b")]
    text = report(tmp_path / "out", systems)
    assert "return" not in text
    assert "return" not in (tmp_path / "out" / "results_table.md").read_text()
    assert rows_of(tmp_path / "out")["b"]["return_difference"] == ""


def test_dollar_signs_in_a_label_are_no_mathematics(tmp_path, make_run, metrics_of_a_run):
    system = make_run(tmp_path / "run", r"$\frac{", metrics=metrics_of_a_run(2))
    report(tmp_path / "out", [system])
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000


def without(*parts):
    def change(directory: Path) -> None:
        directory.joinpath(*parts).unlink()

    return change


def rewritten(name, text):
    def change(directory: Path) -> None:
        path = directory / name
        path.write_text(text(path.read_text()) if callable(text) else text)

    return change


def moved_away(directory: Path) -> None:
    directory.rename(directory.with_name("elsewhere"))


DAMAGES = {
    "no directory": (moved_away, "no such directory"),
    "no results": (without("results.json"), "results.json: no results of the test"),
    "no predictions": (without("predictions", "test.jsonl"), "test.jsonl: no predictions"),
    "no metrics": (without("metrics.jsonl"), "metrics.jsonl: missing"),
    "results are no JSON": (rewritten("results.json", '{"test": '), "results.json"),
    "results are a list": (rewritten("results.json", "[]"), "results.json: damaged"),
    "other split": (rewritten("results.json", '{"train": {}}'), "no results of the test split"),
    "scores missing": (rewritten("results.json", '{"test": {}}'), "no results of the test split"),
    "score cut": (
        rewritten("results.json", '{"test": {"scores": {"bleu": {"value": 1}}}}'),
        "damaged",
    ),
    "torn prediction": (rewritten("predictions/test.jsonl", lambda t: t[:-20]), "test.jsonl:60"),
    "prediction without text": (
        rewritten("predictions/test.jsonl", lambda t: t.replace('"text"', '"txt"', 1)),
        "test.jsonl:1: damaged",
    ),
    "number for a text": (
        rewritten("predictions/test.jsonl", lambda t: t.replace('"p 0 t"', "3", 1)),
        "test.jsonl:1: damaged",
    ),
    "lone surrogate": (
        rewritten("predictions/test.jsonl", lambda t: t.replace('"p 0 t"', r'"\ud800"', 1)),
        "test.jsonl:1: damaged",
    ),
    "prediction lost": (
        rewritten("predictions/test.jsonl", lambda t: t.split("\n", 1)[1]),
        "59 predictions where results.json counts 60",
    ),
    "other examples": (
        rewritten("predictions/test.jsonl", lambda t: t.replace('"word9"', '"word_9"')),
        "other examples than in",
    ),
    "other confidence": (
        rewritten("results.json", lambda t: t.replace('"confidence": 0.95', '"confidence": 0.9')),
        "another confidence",
    ),
    "metrics without step": (rewritten("metrics.jsonl", '{"train/loss": 1}\n'), "metrics.jsonl:1"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_missing_or_damaged_is_named_on_one_line(
    tmp_path, make_run, metrics_of_a_run, name
):
    change, message = DAMAGES[name]
    good = make_run(tmp_path / "good", "good")
    bad = make_run(tmp_path / "bad", "bad", metrics=metrics_of_a_run(1))
    change(bad.directory)
    with pytest.raises(RunError) as caught:
        report(tmp_path / "out", [good, bad])
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_metric_split_and_labels_are_checked(tmp_path, make_run):
    systems = [make_run(tmp_path / name, name) for name in ("a", "b")]
    twin = System("a", systems[1].directory, train=False)
    for kind, changes, message in (
        (RunError, {"metric": "rougeL"}, "there are exact_match, bleu, length"),
        (RunError, {"split": "validation"}, "--split validation"),
        (ConfigError, {"baseline": "c"}, "'c' is none of the systems: a, b"),
        (ConfigError, {"systems": [systems[0], twin]}, "a label of its own"),
    ):
        with pytest.raises(kind, match=message):
            report(tmp_path / "out", **{"systems": systems, **changes})


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path, make_run):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(BrimError, match="out: cannot write"):
        report(tmp_path / "out", [make_run(tmp_path / "a", "a")])
    assert (tmp_path / "out").read_text() == "mine"


def test_summary_has_each_score_with_interval_and_the_counts(systems):
    results = json.loads((systems[-1].directory / "results.json").read_text())["test"]
    text = summary(results)
    for name, digits in (("exact_match", 1), ("bleu", 1), ("return", 2), ("length", 1)):
        score = results["scores"][name]
        numbers = [f"{score[end]:.{digits}f}" for end in ("value", "low", "high")]
        line = next(line for line in text.splitlines() if line.startswith(score["name"]))
        assert "{} [{}, {}]".format(*numbers) in line
        assert line.endswith(score["signature"])
    assert "60 examples" in text
    assert "0 prompts, 3 completions" in text
    assert "1,234,567" in text
    assert "40 steps in 1,234 s, best at step 30" in text


def test_summary_of_a_model_that_was_not_trained_here(systems):
    results = json.loads((systems[0].directory / "results.json").read_text())["test"]
    assert "steps" not in summary(results)


def test_import_waits_for_nothing():
    code = (
        "import sys, brim.report; "
        "assert not {'torch', 'matplotlib', 'jinja2'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
