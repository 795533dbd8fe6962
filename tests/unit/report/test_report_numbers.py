"""Means, tests, marks and the paper's numbers in the tables of a report."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import (
    BRIM,
    DATA,
    LLMR,
    OBJECTIVES,
    SEEDS,
    make_folder,
    make_grid,
    results_of,
    rows_of,
    scores_of,
)
from rundirs import write_run

from brim.judge import VARIANTS, Verdict, summarize
from brim.report.choices import best_k_table
from brim.report.gather import gather
from brim.report.seed_tests import all_tests, significance_tables
from brim.report.tables import decoder_only_table, main_table, return_table
from brim.report.verdicts import judge_table, read_verdicts
from brim.support.tables import Cell, Table


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    return make_grid(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def task(grid):
    (found,) = gather([grid]).tasks
    return found


def cells(table: Table) -> dict[str, dict[str, Cell]]:
    return {row[0].text: dict(zip(table.head, row, strict=True)) for row in table.rows}


def test_a_cell_is_mean_and_standard_deviation_over_the_seeds(task):
    table = cells(main_table([task], baseline="LLMR", alpha=0.05))
    assert list(table) == [
        "KL", "LLMR", "BRIM (K = 2)", "BRIM (K = 4)", "PPO with LLMR", "PPO with BRIM",
    ]  # fmt: skip
    # 20, 21, 22: mean 21, deviation 1. 23, 22, 25: mean 70/3, squares 1/9 + 16/9 + 25/9 over 2.
    assert table["KL"]["exact match ↑"].text == "21.00 ± 1.00"
    assert table["LLMR"]["exact match ↑"].text == f"23.33 ± {math.sqrt(42 / 9 / 2):.2f}"
    assert table["LLMR"]["TER ↓"].text == f"36.67 ± {math.sqrt(42 / 9 / 2):.2f}"
    returns = cells(return_table([task], baseline="LLMR", alpha=0.05))
    assert returns["KL"]["return ↑"].text == "10.50 ± 0.50"
    assert returns["KL"]["length"].text == "7.0 ± 0.0"


def test_paired_tests_have_the_numbers_of_the_formula(task):
    found = {(t.system, t.against, t.metric): t for t in all_tests(task)}
    # Differences 1, 2, 3: t = 2 / (1 / √3), and two degrees of freedom have p = 1 - t / √(2 + t²).
    test = found["BRIM (K = 4)", "LLMR", "exact_match"]
    t = 2 * math.sqrt(3)
    assert test.test.difference == pytest.approx(2.0)
    assert test.test.p_value == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert test.test.effect_size == pytest.approx(2.0)
    assert test.test.num_pairs == 3
    # t of 95 % with two degrees of freedom is 4.3027.
    assert test.test.low == pytest.approx(2 - 4.30265 / math.sqrt(3), abs=1e-4)
    test = found["BRIM (K = 2)", "LLMR", "exact_match"]
    t = 2 / (0.1 / math.sqrt(3))
    low = 1 - t / math.sqrt(2 + t * t)
    assert test.test.p_value == pytest.approx(low, rel=1e-6)
    assert test.test.effect_size == pytest.approx(20.0)
    # Against KL it is 5.1, 3.0, 4.9 above: less certain, so Holm doubles the smaller p of two.
    other = found["BRIM (K = 2)", "KL", "exact_match"]
    assert other.test.p_value > low
    assert test.holm == pytest.approx(2 * low)
    assert other.holm == pytest.approx(other.test.p_value)


def test_lower_ter_is_better(task):
    found = {(t.system, t.against, t.metric): t for t in all_tests(task)}
    assert found["BRIM (K = 2)", "LLMR", "ter"].test.difference == pytest.approx(-2.0)
    assert found["BRIM (K = 2)", "LLMR", "ter"].better
    assert found["BRIM (K = 2)", "LLMR", "ter"].verdict(0.05) == "better"
    assert found["BRIM (K = 4)", "LLMR", "ter"].verdict(0.05) == "not significant"
    assert not any(t.metric == "length" for t in all_tests(task))


def test_ppo_is_tested_against_ppo_only(task):
    against = {(t.system, t.against) for t in all_tests(task)}
    assert ("PPO with BRIM", "PPO with LLMR") in against
    assert {a for s, a in against if s == "PPO with BRIM"} == {"PPO with LLMR"}
    assert {a for s, a in against if s == "BRIM (K = 2)"} == {"KL", "LLMR"}


def test_k_is_chosen_on_validation_and_never_on_test(task):
    assert task.best_brim().label == "BRIM (K = 4)"
    table = cells(best_k_table([task]))
    column = "cmudict: validation exact match"
    assert table["best K, encoder-decoder"][column].text == "4"
    assert table["validation score, K = 2"][column] == Cell("30.00")
    assert table["validation score, K = 4"][column] == Cell("31.00", best=True)
    first, others = significance_tables([task], {"cmudict": all_tests(task)}, alpha=0.05)
    assert {row[0].text for row in first.rows} == {"BRIM (K = 4)"}
    assert {row["system"] for row in others.data} >= {"BRIM (K = 2)", "PPO with BRIM"}
    # A K with no validation score, or with seeds of its own only, leaves the choice open.
    assert task.best_brim("bleu") is None


def test_k_is_chosen_over_the_seeds_that_all_k_have(tmp_path):
    make_grid(tmp_path, systems=("brim-k=2", "brim-k=4"), seeds=SEEDS[:2])
    extra = tmp_path / "brim-k=2" / "seed=5"
    metrics = [{"step": 20, "eval/exact_match": 99.0}]
    make_folder(extra, OBJECTIVES["brim-k=2"], 5, scores_of(20.0), metrics=metrics)
    (task,) = gather([tmp_path]).tasks
    assert task.validation_by_k("exact_match") == {2: 30.0, 4: 31.0}


def test_best_is_bold_and_only_what_beats_the_baseline_has_a_star(task):
    table = cells(main_table([task], baseline="LLMR", alpha=0.05))
    marks = {label: row["exact match ↑"] for label, row in table.items()}
    assert [label for label, cell in marks.items() if cell.significant] == ["BRIM (K = 2)"]
    # Both means are 2 above LLMR's.
    assert [label for label, cell in marks.items() if cell.best] == ["BRIM (K = 2)", "BRIM (K = 4)"]
    assert marks["PPO with LLMR"].significant is False  # significantly worse
    loose = cells(main_table([task], baseline="LLMR", alpha=0.08))
    starred = [label for label, row in loose.items() if row["exact match ↑"].significant]
    assert starred == ["BRIM (K = 2)", "BRIM (K = 4)"]
    none = main_table([task], baseline="absent", alpha=0.05)
    assert not any(cell.significant for row in none.rows for cell in row)
    assert "better than" not in none.caption


def test_one_seed_has_the_interval_of_its_examples(tmp_path):
    make_grid(tmp_path, systems=("llmr", "brim-k=2"), seeds=SEEDS[:1])
    (task,) = gather([tmp_path]).tasks
    table = main_table([task], baseline="LLMR", alpha=0.05)
    assert cells(table)["LLMR"]["exact match ↑"].text == "23.00 [22.00, 24.00]"
    assert not any(cell.significant for row in table.rows for cell in row)


def test_fewer_seeds_are_counted_in_the_cell(tmp_path):
    make_grid(tmp_path, systems=("llmr",))
    make_grid(tmp_path, systems=("brim-k=2",), seeds=SEEDS[:2])
    (task,) = gather([tmp_path]).tasks
    table = cells(main_table([task], baseline="LLMR", alpha=0.05))
    assert table["BRIM (K = 2)"]["exact match ↑"].note == "n = 2"
    assert table["LLMR"]["exact match ↑"].note == ""
    assert not table["BRIM (K = 2)"]["exact match ↑"].best  # its seeds may have been the easy ones


# -- the paper's numbers ----------------------------------------------------------------------

ROUGE = {"rouge1": 30.0, "rouge2": 10.0, "rougeL": 20.0, "length": 9.0}


def paper_task(root: Path, family: str, name: str = "xsum"):
    for k in (2, 4):
        make_folder(
            root / f"brim{k}",
            {**BRIM, "name": "brim", "k": k},
            1,
            ROUGE,
            validation={"rouge1": 30.0 + k},
            task={"name": name},
            student__build={"family": family},
        )
    make_folder(
        root / "llmr", LLMR, 1, ROUGE, task={"name": name}, student__build={"family": family}
    )
    (task,) = gather([root]).tasks
    return task


def test_the_papers_numbers_stand_beside_ours_and_for_themselves(tmp_path):
    task = paper_task(tmp_path, "t5")
    table = cells(main_table([task], baseline="LLMR", alpha=0.05, paper=True))
    assert table["BRIM (K = 2)"]["ROUGE-L ↑"].note == "paper 29.29"
    assert table["LLMR"]["ROUGE-2 ↑"].text == "10.00 [9.00, 11.00]"
    assert table["TVD"]["ROUGE-1 ↑"] == Cell("—", note="paper 35.17")
    assert list(table)[:3] == ["Teacher", "Student", "SeqKD"]
    assert len(table) == 13
    assert decoder_only_table([task], baseline="LLMR", alpha=0.05) is None
    best = cells(best_k_table([task], paper=True))["best K, encoder-decoder"]
    assert best["xsum: validation ROUGE-1"] == Cell("4", note="paper, T5: 2")


def test_decoder_only_students_have_table_7_with_one_brim(tmp_path):
    task = paper_task(tmp_path, "llama")
    table = cells(decoder_only_table([task], baseline="LLMR", alpha=0.05, paper=True))
    assert list(table) == ["Teacher", "Student", "KL", "TVD", "LLMR", "BRIM"]
    assert table["BRIM"]["ROUGE-1 ↑"].note == "K = 4, paper 32.28"
    assert table["LLMR"]["ROUGE-1 ↑"].note == "paper 31.61"
    first = main_table([task], baseline="LLMR", alpha=0.05, paper=True)
    assert not any("paper" in cell.note for row in first.rows for cell in row)


def test_other_tasks_have_the_layout_without_the_papers_numbers(task):
    assert not any(
        "paper" in cell.note
        for row in main_table([task], baseline="LLMR", alpha=0.05, paper=True).rows
        for cell in row
    )


def test_without_the_papers_layout_its_numbers_and_rows_are_not_there(tmp_path):
    task = paper_task(tmp_path, "t5")
    for table in (main_table([task], baseline="LLMR", alpha=0.05), best_k_table([task])):
        assert "paper" not in f"{table.rows} {table.caption}"
    assert len(main_table([task], baseline="LLMR", alpha=0.05).rows) == 3


# -- the judge --------------------------------------------------------------------------------


def judge_file(path: Path, a: Path, b: Path, **changes) -> Path:
    """What `brim judge` writes, for a judge that prefers A's text in three pairs of four."""
    a_wins = [verdict for v in VARIANTS for verdict in (Verdict.A, Verdict.B) if v.score(verdict)]
    b_wins = [Verdict.B if verdict is Verdict.A else Verdict.A for verdict in a_wins]
    summary = summarize([a_wins, a_wins, a_wins, b_wins]).as_dict()
    sides = {
        side: {"name": side, "directory": str(Path("..") / run.relative_to(path.parent.parent))}
        for side, run in (("a", a), ("b", b))
    }
    data = {
        **sides,
        "split": "test",
        "judge": {"model": "some-judge"},
        "criteria": {"overall": summary, "coherence": summary},
        **changes,
    }
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(data))
    return path


def test_verdicts_become_table_3(grid, task, tmp_path):
    kl, llmr, brim = (grid / name / f"seed={SEEDS[0]}" for name in ("kl", "llmr", "brim-k=4"))
    straight = judge_file(grid / "judge1" / "judge.json", brim, kl)
    turned = judge_file(grid / "judge2" / "judge.json", kl, llmr)
    foreign = judge_file(grid / "judge3" / "judge.json", brim, grid / "elsewhere")
    broken = grid / "judge4" / "judge.json"
    broken.parent.mkdir()
    broken.write_text('{"a": 1}')
    try:
        notes: list[str] = []
        paths = gather([grid]).extras["judge.json"]
        assert set(paths) == {straight, turned, foreign, broken}
        found = read_verdicts(paths, [task], "test", notes)
    finally:
        for path in (straight, turned, foreign, broken):
            path.unlink()
            path.parent.rmdir()
    assert len(notes) == 2
    assert str(foreign) in notes[0]
    assert str(broken) in notes[1]
    table = judge_table(found, [task])
    assert table.head == ("task", "system", "against", "Overall", "Coherence")
    rates = {(row[1].text, row[2].text): row[3].text.split()[0] for row in table.rows}
    # KL as A won three of four against LLMR, as BRIM did against KL.
    assert rates == {("BRIM (K = 4)", "KL"): "75.00", ("LLMR", "KL"): "25.00"}
    low, high = (found[0].criteria["overall"][end] for end in ("low", "high"))
    assert table.rows[0][3].text == f"75.00 [{low:.2f}, {high:.2f}]"
    assert 0 < low < 75 < high < 100
    assert table.rows[1][3].text == f"25.00 [{100 - high:.2f}, {100 - low:.2f}]"
    assert "some-judge" in table.caption
    assert not any(row[1].note for row in table.rows)
    # Two judges of one pair are two opinions, and no seeds.
    other = replace(found[0], judge="other", criteria={"overall": {**found[0].criteria["overall"],
                                                                   "rate": 40.0}})  # fmt: skip
    both = judge_table([found[0], other], [task])
    assert [(row[1].note, row[3].text.split()[0]) for row in both.rows] == [
        ("by some-judge", "75.00"),
        ("by other", "40.00"),
    ]


def test_two_verdicts_on_one_pair_of_runs_are_no_seeds(grid, task, tmp_path):
    runs = {
        seed: [grid / name / f"seed={seed}" for name in ("brim-k=4", "kl")] for seed in SEEDS[:2]
    }
    first, second = runs.values()
    few = summarize([[Verdict.B] * 4] * 2).as_dict()
    asked = {"templates": {"overall": "which?"}, "keep_lines": False}
    paths = [
        judge_file(grid / "j1" / "judge.json", *first, criteria={"overall": few}, **asked),
        judge_file(grid / "j2" / "judge.json", *first, **asked),
        judge_file(grid / "j3" / "judge.json", *second, **asked),
        judge_file(grid / "j4" / "judge.json", *second, **{**asked, "keep_lines": True}),
    ]
    notes: list[str] = []
    try:
        found = read_verdicts(paths, [task], "test", notes)
    finally:
        for path in paths:
            path.unlink()
            path.parent.rmdir()
    assert [one.path for one in found] == paths[1:3]
    assert [str(paths[0]) in notes[1], "same two runs" in notes[1]] == [True, True]
    assert [str(paths[3]) in notes[0], "asked otherwise" in notes[0]] == [True, True]
    (row,) = judge_table(found, [task]).rows
    assert row[3].text == "75.00 ± 0.00"


def test_models_without_training_compete_and_have_no_seed(tmp_path):
    make_grid(tmp_path, systems=("llmr", "kl"))
    results = results_of(scores_of(1.0)) | {"data": {"sha256": DATA}}
    del results["best_step"]
    write_run(tmp_path / "student", rows=rows_of("student"), results=results)
    (task,) = gather([tmp_path]).tasks
    table = cells(main_table([task], baseline="LLMR", alpha=0.05))
    assert table["Student"]["exact match ↑"] == Cell("1.00 [0.00, 2.00]")
    assert not [t for t in all_tests(task) if t.against == "Student"]
