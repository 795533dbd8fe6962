"""Files of a report, and what damaged runs get; what an evaluation prints."""

from __future__ import annotations

import base64
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from run_folders import SEEDS, make_folder, make_grid, results_of, rows_of, scores_of
from rundirs import unseal, write_run

from brim.errors import RunError
from brim.metrics import mean_score, score
from brim.report import summary, write_reports


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    make_grid(root, systems=("kl", "llmr"), seeds=SEEDS[:1])
    manifest = {"versions": {"torch": "9.9"}, "platform": "an <odd> one"}
    make_folder(root / "brim", {"name": "brim", "k": 2}, 1, scores_of(20.0), manifest=manifest)
    results = results_of(scores_of(3.0), num_parameters=1_234_567)
    write_run(root / r"$\frac{", rows=rows_of("strange"), results=results)
    out = root / "report"
    write_reports([root], out)
    return out


def test_pictures_are_pictures_and_matplotlib_is_left_as_it_was(written):
    import matplotlib
    import matplotlib.image

    before = dict(matplotlib.rcParams)
    write_reports([written.parent], written)
    assert dict(matplotlib.rcParams) == before
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )
    height, width, _ = matplotlib.image.imread(written / "figure2.png").shape
    assert width > 1000
    assert height > 800
    assert ElementTree.parse(written / "figure2.svg").getroot().tag.endswith("svg")


def test_dollar_signs_in_a_label_are_no_mathematics(written):
    assert r"<!-- $\frac{ -->" in (written / "figure1.svg").read_text()


def test_pictures_in_the_page_are_the_files_beside_it(written):
    page = (written / "report.html").read_text()
    encoded = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    files = {path.read_bytes() for path in written.glob("*.svg")}
    assert {base64.b64decode(picture) for picture in encoded} == files


def test_settings_and_provenance_are_on_the_page(written):
    page = (written / "report.html").read_text()
    for text in ("d_model: 16", "torch 9.9", "an &lt;odd&gt; one", "1,234,567"):
        assert text in page


def test_without_training_there_are_no_curves(tmp_path):
    scores = {"exact_match": 3.0}
    make_folder(tmp_path / "runs", {"name": "kl"}, 1, scores, metrics=[])
    write_reports([tmp_path / "runs"], tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"table1.{end}" for end in ("md", "tex", "csv")} | {
        *("summary.md", "report.html", "results.json"),
    }
    assert "<img" not in (tmp_path / "out" / "report.html").read_text()


def without(*parts):
    def change(directory: Path) -> None:
        directory.joinpath(*parts).unlink()

    return change


def rewritten(name, text):
    def change(directory: Path) -> None:
        path = directory / name
        path.write_text(text(path.read_text()) if callable(text) else text)

    return change


def replaced(old, new):
    return rewritten("predictions/test.jsonl", lambda text: text.replace(old, new, 1))


REFUSED = {
    "results are no JSON": (rewritten("results.json", '{"test": '), "results.json"),
    "results are a list": (rewritten("results.json", "[]"), "results.json: damaged"),
    "score cut": (
        rewritten("results.json", '{"test": {"scores": {"bleu": {"value": 1}}}}'),
        "damaged",
    ),
    "metrics without step": (rewritten("metrics.jsonl", '{"train/loss": 1}\n'), "metrics.jsonl:1"),
    "no settings": (without("config.yaml"), "config.yaml is missing"),
    "settings of something else": (rewritten("config.yaml", "a: 1\n"), "config.yaml: damaged"),
}
NAMED = {
    "no results": (without("results.json"), "without results of the test split"),
    "other split": (rewritten("results.json", '{"train": {}}'), "without results of the test"),
    "scores missing": (rewritten("results.json", '{"test": {}}'), "without results of the test"),
    "no predictions": (without("predictions", "test.jsonl"), "test.jsonl: no predictions"),
    "torn prediction": (rewritten("predictions/test.jsonl", lambda t: t[:-20]), "test.jsonl:6"),
    "prediction without text": (replaced('"text"', '"txt"'), "test.jsonl:1: damaged"),
    "number for a text": (replaced('"p 0"', "3"), "test.jsonl:1: damaged"),
    "lone surrogate": (replaced('"p 0"', r'"\ud800"'), "test.jsonl:1: damaged"),
    "prediction lost": (
        rewritten("predictions/test.jsonl", lambda t: t.split("\n", 1)[1]),
        "5 predictions where results.json counts 6",
    ),
    "other examples": (replaced('"word3"', '"word_3"'), "outputs not shown, for they are of other"),
}


@pytest.mark.parametrize("name", [*REFUSED, *NAMED])
def test_what_is_missing_or_damaged_is_named_on_one_line(tmp_path, name):
    change, message = {**REFUSED, **NAMED}[name]
    make_grid(tmp_path / "runs", systems=("llmr",), seeds=SEEDS[:1])
    scores = {"exact_match": 1.0, "length": 1.0}
    kl = make_folder(tmp_path / "runs" / "more" / "kl", {"name": "kl"}, 1, scores, predictions=True)
    change(unseal(kl))
    out = tmp_path / "out"
    if name in REFUSED:
        with pytest.raises(RunError) as caught:
            write_reports([tmp_path / "runs"], out)
        text = str(caught.value)
        assert "\n" not in text
        assert str(kl) in text
        assert not out.exists()
    else:
        text = write_reports([tmp_path / "runs"], out).text
    assert message in text


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path):
    make_grid(tmp_path / "runs", systems=("kl",), seeds=SEEDS[:1])
    (tmp_path / "out").write_text("mine")
    with pytest.raises(RunError, match="out: is a file"):
        write_reports([tmp_path / "runs"], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


# -- what an evaluation prints ------------------------------------------------------------------


def results(**facts):
    references = [(f"P{i} AH0 T{i % 7}",) for i in range(60)]
    texts = [group[0] if i % 3 else "X" for i, group in enumerate(references)]
    scores = score(["exact_match", "bleu"], texts, references, num_resamples=100)
    scores["return"] = mean_score("return", [float(i % 5) for i in range(60)], num_resamples=100)
    return {
        "split": "test",
        "scores": {name: value.as_dict() for name, value in scores.items()},
        "num_examples": 60,
        "num_truncated_prompts": 0,
        "num_truncated_completions": 3,
        "num_parameters": 1_234_567,
        **facts,
    }


def test_summary_has_each_score_with_interval_and_the_counts():
    found = results(steps=40, best_step=30, seconds=1234.5)
    text = summary(found)
    for name, digits in (("exact_match", 1), ("bleu", 1), ("return", 2)):
        score = found["scores"][name]
        numbers = [f"{score[end]:.{digits}f}" for end in ("value", "low", "high")]
        line = next(line for line in text.splitlines() if line.startswith(score["name"]))
        assert "{} [{}, {}]".format(*numbers) in line
        assert line.endswith(score["signature"])
    assert "60 examples, 95 % intervals" in text
    assert "0 prompts, 3 completions" in text
    assert "1,234,567" in text
    assert "40 steps in 1,234 s, best at step 30" in text


def test_summary_of_a_model_that_was_not_trained_here():
    assert "steps" not in summary(results())
