"""The whole report on many runs: its files, and what is said of what is missing."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from run_folders import (
    OBJECTIVES,
    SCORES,
    SEEDS,
    make_folder,
    make_grid,
    results_of,
)
from rundirs import write_run
from typer.testing import CliRunner

from brim.cli.app import app
from brim.cli.results import report
from brim.errors import ConfigError, RunError
from brim.report.figures import learning_curves
from brim.report.gather import gather
from brim.report.layout import PARTS
from brim.report.outputs import choose_outputs
from brim.report.report import write_reports
from brim.support.figures import Style, draw_mean
from brim.support.tables import Cell, Table, as_latex, as_markdown, escape_latex


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    return make_grid(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def written(tmp_path_factory, grid) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("out") / "new" / "report"
    return out, write_reports([grid], out, max_outputs=4).text


def test_all_files_are_there(written):
    out, _ = written
    tables = ("table1", "returns", "table8", "significance", "significance_all", "stability")
    figures = ("figure1", "figure2", "figure3", "curves", "variance_training")
    expected = {f"{name}.{end}" for name in tables for end in ("md", "tex", "csv")}
    expected |= {f"{name}.{end}" for name in figures for end in ("png", "svg")}
    assert {p.name for p in out.iterdir()} == expected | {
        "report.html",
        "results.json",
        "summary.md",
    }


def test_what_an_earlier_report_knew_is_gone(tmp_path, grid):
    out, few = tmp_path / "report", tmp_path / "few"
    make_grid(few, systems=("llmr", "kl"))
    write_reports([grid], out, max_outputs=0)
    assert {path.stem for path in out.iterdir()} - {"report", "results", "summary"} <= PARTS
    (out / "notes.md").write_text("mine")
    write_reports([few], out, max_outputs=0)
    write_reports([few], tmp_path / "new", max_outputs=0)
    new = {path.name for path in (tmp_path / "new").iterdir()}
    assert {path.name for path in out.iterdir()} == new | {"notes.md"}
    assert "table8.md" not in new


def test_same_runs_same_bytes_and_nothing_heavy_is_imported(written, grid):
    out, text = written
    again = out.parent / "again"
    code = (
        "import sys; from pathlib import Path; from brim.report.report import write_reports; "
        f"print(write_reports([Path({str(grid)!r})], Path({str(again)!r}), max_outputs=4).text); "
        "assert not {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == f"{text}\n"
    for path in out.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_csv_is_unrounded_and_tidy(written):
    with (written[0] / "table1.csv").open(newline="") as file:
        rows = {(row["system"], row["score"]): row for row in csv.DictReader(file)}
    row = rows["LLMR", "exact_match"]
    assert float(row["mean"]) == pytest.approx(70 / 3, abs=1e-12)
    assert row["seeds"] == " ".join(map(str, SEEDS))
    assert row["num_runs"] == "3"
    assert rows["BRIM (K = 4)", "exact_match"]["num_pairs"] == "3"
    assert float(rows["BRIM (K = 4)", "exact_match"]["difference"]) == pytest.approx(2.0)


def test_results_hold_every_run_and_test(written, grid):
    results = json.loads((written[0] / "results.json").read_text())
    (found,) = results["tasks"]
    assert found["best_k"] == 4
    runs = {s["label"]: s["runs"] for s in found["systems"]}
    values = [run["scores"]["exact_match"]["value"] for run in runs["BRIM (K = 2)"]]
    assert values == SCORES["brim-k=2"]
    assert runs["BRIM (K = 2)"][0]["validation"]["exact_match"] == 30.0
    directory = written[0] / runs["LLMR"][0]["directory"]
    assert directory.resolve() == (grid / "llmr" / f"seed={SEEDS[0]}").resolve()
    assert len(found["tests"]) == (2 * 2 + 1) * 3  # 2 K against 2, and PPO; 2 metrics, 1 return


def test_summary_says_what_the_numbers_say(written):
    _, text = written
    assert "6 systems with 3 seeds each (18 runs)" in text
    assert "K = 4 is chosen, by the validation exact match" in text
    # Differences of 1, 1.5 and 0.5 in exact match are half of that in return.
    p = 1 - 2 * math.sqrt(3) / math.sqrt(2 + 12)
    line = "PPO with BRIM is not significantly different from PPO with LLMR in return"
    assert f"{line} (p = {p:.3f}, +0.50, 3" in text
    markdown = (written[0] / "summary.md").read_text()
    assert "## Findings" in markdown
    assert "## Missing" not in markdown
    for name in ("figure1", "figure3"):
        assert f"]({name}.png)" in markdown


def test_page_has_the_texts_of_the_first_seed(written):
    page = (written[0] / "report.html").read_text()
    block = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    data = json.loads(block[1])
    assert [row["id"] for row in data["outputs"]] == ["word0", "word1", "word3", "word5"]
    texts = dict(zip(data["systems"], data["outputs"][0]["texts"], strict=True))
    assert texts["KL"] == "kl 0"
    assert texts["BRIM (K = 4)"] == "brim-k=4 0"
    names = dict(zip(data["names"], data["outputs"][1]["numbers"], strict=True))
    assert names["exact match"] == [100.0] * 6
    assert names["return"] == [1.0] * 6


def test_numbers_of_several_samples_are_of_the_one_that_is_shown(tmp_path):
    run = make_folder(tmp_path / "runs" / "llmr", OBJECTIVES["llmr"], 1, None)
    samples = [{"text": t, "num_tokens": n, "teacher_return": r}
               for t, n, r in (("R 0", 3, 0.0), ("other", 6, 3.0))]  # fmt: skip
    row = {"id": "word0", "prompt": "p", "references": ["R 0"], **samples[0], "samples": samples}
    row["statistics"] = {"exact_match": [1.0, 2.0]}  # over both
    write_run(run, rows=[row], results=results_of({"exact_match": 50.0}, 1))
    (output,), _ = choose_outputs(gather([tmp_path / "runs"]), 4, [])
    assert output.texts == {"LLMR": "R 0"}
    assert output.numbers == {"LLMR": {"return": 0.0, "length": 3, "exact match": 100.0}}


def test_what_is_missing_is_said(tmp_path):
    make_grid(tmp_path / "runs", systems=("kl", "brim-k=2"), seeds=SEEDS[:1])
    make_folder(tmp_path / "runs" / "brim-k=2" / "seed=9", OBJECTIVES["brim-k=2"], 9, None)
    (tmp_path / "runs" / "kl" / f"seed={SEEDS[0]}" / "predictions" / "test.jsonl").unlink()
    text = write_reports([tmp_path / "runs"], tmp_path / "out").text
    summary = (tmp_path / "out" / "summary.md").read_text()
    for line in (
        "no LLMR, so no marks",
        "KL: outputs not shown",
        "BRIM (K = 2), seed 9: no results",
    ):
        assert line in text
        assert line in summary
    with pytest.raises(ConfigError, match="'LLMR' is none of the systems: KL, BRIM"):
        write_reports([tmp_path / "runs"], tmp_path / "out", baseline="LLMR")
    with pytest.raises(ConfigError, match="alpha"):
        write_reports([tmp_path / "runs"], tmp_path / "out", alpha=0.0)


@pytest.mark.parametrize("name", ["config.yaml", "results.json", "summary.md", "notes/today.txt"])
def test_a_folder_of_something_else_is_not_written_into(tmp_path, name):
    make_grid(tmp_path / "runs", systems=("kl",), seeds=SEEDS[:1])
    theirs = tmp_path / "out" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("# mine")
    with pytest.raises(RunError, match="out: is not empty and no report"):
        write_reports([tmp_path / "runs"], tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [theirs]
    assert theirs.read_text() == "# mine"


def test_a_report_is_written_anew_also_after_a_stop(tmp_path):
    make_grid(tmp_path / "runs", systems=("kl",), seeds=SEEDS[:1])
    out = tmp_path / "out"
    write_reports([tmp_path / "runs"], out)
    for path in out.iterdir():  # all that a stop at the earliest moments leaves
        if path.name != "summary.md":
            path.unlink()
    write_reports([tmp_path / "runs"], out)
    (out / "summary.md").rename(out / ".summary.md.0123abcd-1-ff.tmp")
    for path in out.iterdir():
        if path.suffix != ".tmp":
            path.unlink()
    write_reports([tmp_path / "runs"], out)
    assert (out / "report.html").exists()


def test_variance_by_k_is_drawn_and_a_damaged_file_is_named(tmp_path):
    make_grid(tmp_path / "runs", systems=("kl",), seeds=SEEDS[:1])
    rows = [
        {"k": k, "tail": tail, "active": 1.0, "numbers": {
            "variance_first": {"value": 8 / k, "low": 7 / k, "high": 9 / k},
            "bias_first": {"value": k - 1.0, "low": None, "high": None},
        }}
        for k in (1, 2, 4) for tail in (("one_step",) if k == 1 else ("one_step", "none"))
    ]  # fmt: skip
    students = [{"label": "pre-distilled", "numbers": {"reverse_kl": {"value": 0.5}}, "rows": rows}]
    files = {"good": json.dumps({"students": students}), "bad": '{"students": 3}'}
    files["anchored"] = json.dumps({"students": [{"label": "it", "rows": [{"lambda": 1.0}]}]})
    for name, text in files.items():
        (tmp_path / "runs" / name / "analysis").mkdir(parents=True)
        (tmp_path / "runs" / name / "analysis" / "variance.json").write_text(text)
    text = write_reports([tmp_path / "runs"], tmp_path / "out", max_outputs=0).text
    assert "bad/analysis/variance.json: left out" in text
    assert "anchored/analysis" not in text
    svg = (tmp_path / "out" / "variance_k.svg").read_text()
    for label in ("pre-distilled, KL 0.50 (one-step tail)", "pre-distilled, KL 0.50 (no tail)"):
        assert f"<!-- {label} -->" in svg


def test_a_task_without_references_has_returns_only(tmp_path):
    for name, objective in (("kl", {"name": "kl"}), ("llmr", {"name": "llmr"})):
        make_folder(tmp_path / "runs" / name, objective, 1, {"return": 3.0, "length": 2.0})
    write_reports([tmp_path / "runs"], tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"returns.md", "figure1.png", "curves.svg"} <= names
    assert "table1.md" not in names


# -- curves ------------------------------------------------------------------------------------


def test_a_mean_curve_is_over_common_steps_with_a_band_of_a_deviation():
    ax = Figure().subplots()
    curves = [[(0, 1.0), (10, 2.0), (20, 9.0)], [(0, 3.0), (10, 6.0)]]
    draw_mean(ax, curves, Style("#000000", "o", "-"))
    (line,) = ax.lines
    assert line.get_xydata().tolist() == [[0, 2], [10, 4]]
    corners = {tuple(corner) for corner in ax.collections[0].get_paths()[0].vertices.tolist()}
    deviations = {0: math.sqrt(2), 10: math.sqrt(8)}
    for step, mean in ((0, 2), (10, 4)):
        for end in (mean - deviations[step], mean + deviations[step]):
            assert any(corner == pytest.approx((step, end)) for corner in corners)

    one = Figure().subplots()
    draw_mean(one, [curves[0], []], Style("#000000", "o", "-"))
    assert one.lines[0].get_xydata().tolist() == [[0, 1], [10, 2], [20, 9]]
    assert not one.collections
    draw_mean(one, [], Style("#000000", "o", "-"))
    assert len(one.lines) == 1


def test_methods_with_a_baseline_are_compared_where_none_is_without(tmp_path):
    centered = {"baseline": "time_mean", "q_centering": "policy"}
    scores = {"return": 3.0, "length": 2.0}
    anchored = {"name": "anchored", "lambda": 0.0}
    for name in ("llmr", "brim-k=2", "anchored"):
        objective = anchored if name == "anchored" else {**OBJECTIVES[name], **centered}
        make_folder(tmp_path / name, objective, 1, scores, validation=scores, predictions=False)
    (task,) = gather([tmp_path]).tasks
    assert [figure.name for figure in learning_curves([task])] == ["figure2"]
    make_folder(tmp_path / "plain", OBJECTIVES["llmr"], 1, scores, validation=scores,
                predictions=False)  # fmt: skip
    (task,) = gather([tmp_path]).tasks
    assert [figure.name for figure in learning_curves([task])] == ["figure2", "curves"]


def test_curves_of_the_stages_are_a_figure_of_their_own(tmp_path):
    manifest = {"stages_dir": "../stages", "stages": {"predistill": "predistill-1"}}
    for name, objective in (("kl", {"name": "kl"}), ("llmr", OBJECTIVES["llmr"])):
        scores = {"return": 3.0, "length": 2.0}
        run = make_folder(tmp_path / name, objective, 1, scores, validation=scores,
                          manifest=manifest, predictions=False)  # fmt: skip
    (task,) = gather([tmp_path]).tasks
    assert "curves_stages" not in [figure.name for figure in learning_curves([task])]
    stage = tmp_path / "stages" / "predistill-1"
    (stage / "best").mkdir(parents=True)
    for name in ("results.json", "metrics.jsonl"):
        (stage / name).write_bytes((run / name).read_bytes())
    (task,) = gather([tmp_path]).tasks
    figures = learning_curves([task])
    labels = [re.findall("<!-- (.*) -->", figure.svg.decode()) for figure in figures]
    assert [figure.name for figure in figures] == ["figure2", "curves", "curves_stages"]
    systems = [s.label for s in task.systems]
    shown = [[label for label in systems if label in found] for found in labels]
    assert shown == [["LLMR"], ["KL"], ["Pre-distilled student"]]


# -- text -------------------------------------------------------------------------------------

HOSTILE = [
    "a & b",
    "50 %",
    "$x$",
    "#1",
    "a_b",
    "{x}",
    "~",
    "^",
    "\\input{/etc/passwd}",
    "\\",
    "<b>",
]


@pytest.mark.parametrize("text", [*HOSTILE, "".join(HOSTILE), 'a|b "c"', "± ↑ ↓ — Ĝ", "a\nb"])
def test_latex_sets_the_text_as_it_is(text):
    escaped = escape_latex(text)
    assert "\n" not in escaped
    # Every command and escape that we write, turned back, is the text; nothing special is left.
    back = {
        r"\textbackslash{}": "\\", r"\textasciicircum{}": "^", r"\textasciitilde{}": "~",
        r"\textless{}": "<", r"\textgreater{}": ">", r"\textbar{}": "|", r"\textquotedbl{}": '"',
        r"$\pm$": "±", r"$\uparrow$": "↑", r"$\downarrow$": "↓", "---": "—", r"$\hat{G}$": "Ĝ",
        r"\{": "{", r"\}": "}", r"\$": "$", r"\&": "&", r"\#": "#", r"\%": "%", r"\_": "_",
    }  # fmt: skip
    pieces = re.split("|".join(map(re.escape, back)), escaped)
    assert not set("".join(pieces)) & set("\\{}$&#%_^~<>|")
    found = re.findall("|".join(map(re.escape, back)), escaped)
    shown = "".join(
        piece + back.get(mark, "") for piece, mark in zip(pieces, [*found, ""], strict=True)
    )
    assert shown == " ".join(text.split())


def test_marks_in_latex_and_markdown():
    table = Table(
        "t1",
        "A & B",
        ("system", "x_1 ↑"),
        (
            (Cell("a_b"), Cell("1.00", best=True, significant=True, note="paper 2 %")),
            (Cell("c"), Cell("—")),
        ),
        "p < 0.05",
    )
    latex = as_latex(table)
    assert r"a\_b & \textbf{1.00}$^{*}$ {\scriptsize (paper 2 \%)} \\" in latex
    assert r"\begin{tabular}{lr}" in latex
    assert r"\caption{A \& B. p \textless{} 0.05}" in latex
    assert [line.count("&") for line in latex.splitlines() if line.endswith(r"\\")] == [1, 1, 1]
    assert "| a\\_b | **1.00**\\* (paper 2 %) |" in as_markdown(table)
    assert "| --- | ---: |" in as_markdown(table)


# -- the command ------------------------------------------------------------------------------


def test_command_writes_the_report_and_says_what_it_found(tmp_path):
    assert report in {command.callback for command in app.registered_commands}
    make_grid(tmp_path / "runs", systems=("kl",))
    runner = CliRunner()
    arguments = ["report", str(tmp_path / "runs"), "--out", str(tmp_path / "r"), "--alpha", "0.035"]
    done = runner.invoke(app, [*arguments, "--baseline", "KL", "--outputs", "2"])
    assert done.exit_code == 0, done.output
    assert "(3 runs)" in done.output
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    assert (results["alpha"], results["baseline"]) == (0.035, "KL")
    failed = runner.invoke(app, ["report", str(tmp_path / "nowhere")])
    assert "no such folder" in str(failed.exception)
