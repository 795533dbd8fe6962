"""Falls of the learning curves, and skipped updates, in the table of stability."""

from __future__ import annotations

import csv
import io
import json
import random
import statistics

import pytest
from run_folders import OBJECTIVES, SEEDS, make_folder, scores_of

from brim.report.gather import gather
from brim.report.report import write_reports
from brim.report.tables import stability, stability_table
from brim.runs.train import update_manifest
from brim.support.tables import as_csv

COLUMNS = ("largest fall", "fall at the end", "rise to the best", "skipped updates, %", "n")


def curve(values, key="eval/return", **more):
    rows = [{"step": 10 * i, key: value} for i, value in enumerate(values)]
    return [row | {name: column[i] for name, column in more.items()} for i, row in enumerate(rows)]


def run_of(folder, values, *, seed=1, key="eval/return", scores=None, **more):
    metrics = curve(values, key, **more)
    found = scores_of(20.0) if scores is None else scores
    return make_folder(folder, OBJECTIVES["llmr"], seed, found, metrics=metrics, predictions=False)


def numbers(folder):
    (task,) = gather([folder]).tasks
    (system,) = task.systems
    return stability(system.runs[0], system, task)


def walk(seed, num=30):
    draw = random.Random(seed)
    values = [draw.gauss(0, 5)]
    for _ in range(num - 1):
        values.append(values[-1] + draw.gauss(0.1, 1))
    return values


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_fall_is_over_all_pairs_and_no_later_fall_is_larger(tmp_path, seed):
    values = walk(seed)
    found = numbers(run_of(tmp_path / "a", values))
    pairs = [values[i] - values[j] for j in range(len(values)) for i in range(j + 1)]
    assert found["largest_fall"] == pytest.approx(max(pairs))
    assert 0 <= found["final_fall"] <= found["largest_fall"]
    assert found["rise"] - found["final_fall"] == pytest.approx(values[-1] - values[0])
    # It is of differences, so where the curve lies does not matter, and its unit does.
    moved = numbers(run_of(tmp_path / "b", [3 * value + 7 for value in values]))
    for name in ("largest_fall", "final_fall", "rise"):
        assert moved[name] == pytest.approx(3 * found[name])


def test_what_only_rises_never_falls_and_what_only_falls_falls_to_the_end(tmp_path):
    values = sorted(walk(0))
    up = numbers(run_of(tmp_path / "up", values))
    assert (up["largest_fall"], up["final_fall"]) == (0, 0)
    down = numbers(run_of(tmp_path / "down", values[::-1]))
    assert down["largest_fall"] == down["final_fall"] == up["rise"] == values[-1] - values[0]
    assert down["rise"] == 0


def test_where_lower_is_better_a_rise_is_a_fall(tmp_path):
    values = walk(1)
    ter = {"ter": 20.0, "length": 7.0}
    lower = numbers(run_of(tmp_path / "a", values, key="eval/ter", scores=ter))
    mirrored = numbers(run_of(tmp_path / "b", [-value for value in values]))
    assert lower == mirrored
    assert lower["largest_fall"] > 0


def test_the_table_has_mean_and_deviation_over_the_seeds(tmp_path):
    curves = {1: [0.0, 4.0, 1.0, 3.0], 2: [0.0, 4.0, 2.0, 6.0], 3: [0.0, 1.0, 0.0, 1.0]}
    for seed, values in curves.items():
        skipped = [float(seed == 1 and i == 2) for i in range(4)]
        run_of(tmp_path / "llmr" / f"{seed}", values, seed=seed, **{"optim/skipped": skipped})
    table = stability_table(gather([tmp_path]).tasks)
    assert table.head == ("system", *COLUMNS)
    (row,) = table.rows
    # Largest falls 3, 2, 1; at the end 1, 0, 0; rises 4, 6, 1; skipped 25, 0, 0 per cent.
    expected = [(3, 2, 1), (1, 0, 0), (4, 6, 1), (25, 0, 0)]
    texts = [f"{statistics.mean(v):.2f} ± {statistics.stdev(v):.2f}" for v in expected]
    assert [cell.text for cell in row] == ["LLMR", *texts, "3"]
    unrounded = {r["number"]: r for r in csv.DictReader(io.StringIO(as_csv(table.data)))}
    assert float(unrounded["final_fall"]["mean"]) == 1 / 3
    assert unrounded["final_fall"]["seeds"] == "1 2 3"


def test_numbers_that_are_not_finite_are_left_out_and_counted(tmp_path):
    run_of(tmp_path / "llmr", [1.0, "nan", 3.0, "-inf", 2.0])
    (row,) = stability_table(gather([tmp_path]).tasks).rows
    assert (row[1].text, row[1].note) == ("1.00", "2 not finite")
    assert row[4].text == "—"  # no update is known to have been made


def test_stages_and_runs_without_a_curve_have_no_row(tmp_path):
    stage = tmp_path / "stages" / "predistill-1"
    (stage / "best").mkdir(parents=True)
    (stage / "inputs.json").write_text("{}")
    run = run_of(tmp_path / "llmr", [1.0, 2.0])
    for name in ("results.json", "metrics.jsonl"):
        (stage / name).write_bytes((run / name).read_bytes())
    stages = {"stages_dir": "../stages", "stages": {"predistill": "predistill-1"}}
    update_manifest(run, stages)
    make_folder(tmp_path / "kl", {"name": "kl"}, 1, scores_of(1.0), metrics=[], predictions=False)
    (task,) = gather([tmp_path]).tasks
    assert [system.label for system in task.systems] == ["Pre-distilled student", "KL", "LLMR"]
    assert [row[0].text for row in stability_table([task]).rows] == ["LLMR"]
    assert stability_table([]) is None


def test_two_sizes_of_student_stand_below_each_other(tmp_path):
    for width, values in ((8, [2.0, 1.0]), (16, [2.0, 0.0])):
        for seed in SEEDS[:2]:
            build = {"family": "t5", "d_model": width}
            make_folder(
                tmp_path / f"{width}-{seed}", OBJECTIVES["llmr"], seed, scores_of(20.0),
                metrics=curve(values), student__build=build,
            )  # fmt: skip
    write_reports([tmp_path], tmp_path / "out", max_outputs=0)
    with (tmp_path / "out" / "stability.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    falls = {row["task"]: float(row["mean"]) for row in rows if row["number"] == "largest_fall"}
    assert falls == {"cmudict [d_model = 16]": 2.0, "cmudict [d_model = 8]": 1.0}
    for name in ("stability.md", "stability.tex", "summary.md", "report.html"):
        assert "How steady training was" in (tmp_path / "out" / name).read_text()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    for task in results["tasks"]:
        (system,) = task["systems"]
        found = [run["stability"]["final_fall"] for run in system["runs"]]
        assert found == [falls[task["label"]]] * 2
