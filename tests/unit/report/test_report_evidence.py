"""What a report says of how much its runs can tell: tests, ties, lengths, and K that are LLMR."""

from __future__ import annotations

import json
import shutil

import pytest
from run_folders import (
    BRIM,
    LLMR,
    OBJECTIVES,
    SCORES,
    SEEDS,
    make_folder,
    make_grid,
    results_of,
    rows_of,
    scores_of,
)
from rundirs import change_results, write_run

from brim.compare import compare_runs
from brim.config.loading import load_config
from brim.metrics import detectable_difference, spread
from brim.objectives.method import is_llmr
from brim.recipes import find_recipe
from brim.report.choices import best_k_table, settings_table
from brim.report.findings import findings
from brim.report.gather import gather
from brim.report.report import write_reports
from brim.report.seed_tests import all_tests, significance_tables
from brim.report.tables import main_table, return_table
from brim.training.settings import RunConfig

ANCHORED = {"name": "anchored", "lambda": 0.7, "remaining_regret": "time_mean"}


def add_anchored(root, weight, validation, values=SCORES["kl"], name="anchored"):
    for seed, value in zip(SEEDS, values, strict=True):
        found = {"exact_match": validation}
        make_folder(root / f"{name}-{weight}" / f"seed={seed}", {**ANCHORED, "lambda": weight},
                    seed, scores_of(value), validation=found, predictions=False)  # fmt: skip


def know_lengths(root, medians, regrets=None, *, first=None, **logged):
    """Give the results of a system's runs their median lengths, and their regrets by position.

    Training begins with texts of `first` tokens, by default as long; and what else is `logged`.
    """
    for system, median in medians.items():
        for path in (root / system).rglob("metrics.jsonl"):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            for row in rows:
                row.update({"rollout/length": median} | logged)
            rows[0]["rollout/length"] = median if first is None else first
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for path in (root / system).rglob("results.json"):
            facts = json.loads(path.read_text())["test"]
            facts["scores"]["length"]["details"] = {"median": median}
            known = {} if regrets is None else {"mean_regrets": {"return": regrets[system]}}
            change_results(path.parent, scores=facts["scores"], **known)


def test_anchored_is_tested_against_all_and_the_chosen_k(tmp_path):
    root = make_grid(tmp_path, systems=("kl", "llmr", "brim-k=2", "brim-k=4"))
    add_anchored(root, 0.7, 33.0)
    add_anchored(root, 0.5, 34.0)
    (task,) = gather([root]).tasks
    tests = all_tests(task)
    for weight in (0.5, 0.7):
        against = {t.against for t in tests if t.system == f"Anchored (λ = {weight})"}
        assert against == {"KL", "LLMR", "BRIM (K = 4)"}
    assert not any(t.against.startswith("Anchored") for t in tests)
    # One of each kind is in the first table: those that validation chooses.
    first, _ = significance_tables([task], {"cmudict": tests}, alpha=0.05)
    assert {row["system"] for row in first.data} == {"BRIM (K = 4)", "Anchored (λ = 0.5)"}
    said = " ".join(findings(task, tests, baseline="LLMR", alpha=0.05))
    assert "Anchored (λ = 0.5) is " in said
    assert "Anchored (λ = 0.7) is " not in said


def test_the_best_setting_of_each_method_is_the_validation_splits(tmp_path):
    root = make_grid(tmp_path, systems=("kl", "brim-k=2", "brim-k=4"))
    # What is the better one on the test split is the worse one on validation.
    for lr, validation, tested in ((1e-4, 31.0, "kl"), (1e-3, 30.0, "brim-k=4")):
        for seed, value in zip(SEEDS, SCORES[tested], strict=True):
            directory = root / f"llmr-{lr}" / f"seed={seed}"
            make_folder(directory, LLMR, seed, scores_of(value), optim={"lr": lr},
                        validation={"exact_match": validation})  # fmt: skip
    (task,) = gather([root]).tasks
    table = settings_table([task])
    assert [(row[0].text, row[1].text, row[1].best) for row in table.rows] == [
        ("LLMR [lr = 0.0001]", "31.00", True),
        ("LLMR [lr = 0.001]", "30.00", False),
    ]
    said = findings(task, all_tests(task), baseline="LLMR", alpha=0.05)
    assert "Best settings by the validation exact match: LLMR [lr = 0.0001]." in said
    # Equal by the digits that are shown, they tie, whatever their names.
    for run in task.find("LLMR [lr = 0.001]").runs:
        for row in run.metrics:
            row["eval/exact_match"] = 30.996 if row["step"] else 0.0
    assert [row[1].best for row in settings_table([task]).rows] == [True, True]
    (said,) = [x for x in findings(task, [], baseline="LLMR", alpha=0.05) if "Best settings" in x]
    assert "LLMR [lr = 0.0001] or LLMR [lr = 0.001]" in said
    # K alone has its own table, and one setting is no choice.
    (alone,) = gather([root / "kl", root / "brim-k=2", root / "brim-k=4"]).tasks
    assert settings_table([alone]) is None


@pytest.mark.parametrize(("k", "median", "same"), [(4, 3.9, True), (4, 4, True), (4, 4.5, False)])
def test_a_k_that_most_texts_do_not_exceed_is_llmr(k, median, same):
    assert is_llmr(k, [median]) is same


def test_llmr_under_another_name_is_marked_no_choice_and_not_tested(tmp_path):
    root = make_grid(tmp_path, systems=("kl", "llmr", "brim-k=2", "brim-k=4"))
    make_folder(root / "no-tail" / "seed=1", {**BRIM, "k": 9, "tail": "none"}, 1, scores_of(1.0))
    know_lengths(root, {"brim-k=2": 4.0, "brim-k=4": 4.0, "no-tail": 4.0})
    (task,) = gather([root]).tasks
    assert [s.label for s in task.systems if s.is_llmr] == ["BRIM (K = 4)"]
    assert task.best_brim().label == "BRIM (K = 2)"  # K = 4 has the better validation score
    tests = all_tests(task)
    assert {t.against for t in tests if t.system == "BRIM (K = 4)"} == {"KL"}
    assert {t.against for t in tests if t.system == "BRIM (K = 2)"} == {"KL", "LLMR"}
    table = main_table([task], baseline="LLMR", alpha=0.9)
    rows = {row[0].text: row for row in table.rows}
    assert rows["BRIM (K = 4)"][0].note == "= LLMR here"
    assert not any(cell.significant for cell in rows["BRIM (K = 4)"])
    assert rows["BRIM (K = 2)"][0].note == ""
    cells = {row[0].text: row[1] for row in best_k_table([task]).rows}
    assert cells["validation score, K = 4"].note == "= LLMR here"
    said = " ".join(findings(task, tests, baseline="LLMR", alpha=0.05))
    assert "BRIM (K = 4): = LLMR here" in said


@pytest.mark.parametrize(
    ("first", "logged", "same"),
    [
        (4.0, {}, True),
        (36.0, {}, False),  # it was trained as BRIM, and collapsed
        (4.0, {"rollout/segment_length": 0.5}, False),  # K counts segments, here 8
    ],
)
def test_what_was_not_trained_as_llmr_is_tested_against_it(tmp_path, first, logged, same):
    root = make_grid(tmp_path, systems=("llmr", "brim-k=4"))
    know_lengths(root, {"brim-k=4": 4.0}, first=first, **logged)
    (task,) = gather([root]).tasks
    assert any(s.is_llmr for s in task.systems) is same
    assert bool(all_tests(task)) is not same


def test_what_has_far_fewer_seeds_than_others_is_no_choice(tmp_path):
    make_grid(tmp_path, systems=("llmr", "brim-k=2"), seeds=SEEDS[:3])
    make_grid(tmp_path, systems=("brim-k=4",), seeds=SEEDS[:2])
    (task,) = gather([tmp_path]).tasks
    said = " ".join(findings(task, all_tests(task), baseline="LLMR", alpha=0.05))
    assert "K = 4 is chosen, by the validation exact match over 2 of 3 seeds" in said
    shutil.rmtree(tmp_path / "brim-k=4" / f"seed={SEEDS[1]}")
    (task,) = gather([tmp_path]).tasks  # one seed would decide for three
    assert task.best_brim().label == "BRIM (K = 2)"


def test_a_k_that_is_there_twice_has_no_one_score(tmp_path):
    for lr, validation in ((1e-4, 32.0), (1e-3, 36.0)):
        for k in (2, 4):
            directory = tmp_path / f"brim-{k}-{lr}" / "seed=1"
            make_folder(directory, {**BRIM, "k": k}, 1, scores_of(1.0), optim={"lr": lr},
                        validation={"exact_match": validation + k})  # fmt: skip
    (task,) = gather([tmp_path]).tasks
    table = best_k_table([task])
    scores = [row[1].text for row in table.rows if "score" in row[0].text]
    assert scores == ["—", "—"]
    # It is the best K at its best rate that is tested, and that others are tested against.
    assert task.best_brim().label == "BRIM (K = 4) [lr = 0.001]"
    assert task.best_brim() in task.ours
    said = " ".join(findings(task, [], baseline="LLMR", alpha=0.05))
    assert "BRIM (K = 4) [lr = 0.001]" in said
    assert "is chosen" not in said
    found = {row["system"]: row["validation"] for row in table.data}
    assert found["BRIM (K = 4) [lr = 0.001]"] == 40
    assert found["BRIM (K = 4) [lr = 0.0001]"] == 36
    settings = {row[0].text: row[1] for row in settings_table([task]).rows}
    assert [label for label, cell in settings.items() if cell.best] == ["BRIM (K = 4) [lr = 0.001]"]


def test_of_old_results_the_mean_length_decides(tmp_path):
    make_grid(tmp_path, systems=("llmr",))
    make_folder(tmp_path / "k" / "seed=1", {**BRIM, "k": 7}, 1, scores_of(1.0))  # of 7.0 tokens
    (task,) = gather([tmp_path]).tasks
    assert [s.is_llmr for s in task.systems] == [False, True]


def test_systems_that_are_equal_to_the_shown_digits_tie(tmp_path):
    values = [v + 1e-4 for v in SCORES["brim-k=4"]]
    root = make_grid(tmp_path, systems=("llmr", "brim-k=4", "ppo_llmr"))
    for i, seed in enumerate(SEEDS):
        make_folder(root / "kl" / f"seed={seed}", OBJECTIVES["kl"], seed, scores_of(values[i]))
        same = scores_of(SCORES["ppo_llmr"][i])
        make_folder(root / "ppo_brim" / f"seed={seed}", OBJECTIVES["ppo_brim"], seed, same)
    (task,) = gather([root]).tasks
    assert {s.label for s in task.best_students("exact_match", task.systems)} == {
        "KL", "BRIM (K = 4)",
    }  # fmt: skip
    tests = {(t.system, t.against, t.metric): t for t in all_tests(task)}
    assert tests["PPO with BRIM", "PPO with LLMR", "exact_match"].verdict(0.05) == "tie"
    assert not any(t.better for key, t in tests.items() if key[0] == "PPO with BRIM")
    said = findings(task, list(tests.values()), baseline="LLMR", alpha=0.05)
    assert any("KL and BRIM (K = 4) tie for the best student" in line for line in said)
    assert any("PPO with BRIM ties with PPO with LLMR" in line for line in said)
    table = main_table([task], baseline="LLMR", alpha=0.05)
    assert {row[0].text for row in table.rows if row[1].best} == {"KL", "BRIM (K = 4)"}


@pytest.mark.parametrize(("value", "names"), [(99.0, set()), (0.0, {"BRIM (K = 4)"})])
def test_no_system_is_the_best_where_one_with_fewer_seeds_has_a_better_mean(tmp_path, value, names):
    root = make_grid(tmp_path, systems=("llmr", "brim-k=4"))
    seed = SEEDS[0]
    make_folder(root / "kl" / f"seed={seed}", OBJECTIVES["kl"], seed, scores_of(value))
    (task,) = gather([root]).tasks
    assert {s.label for s in task.best_students("exact_match", task.systems)} == names


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_each_test_says_what_it_could_have_seen(tmp_path, alpha):
    root = make_grid(tmp_path / "runs", systems=("kl", "brim-k=2"))
    write_reports([root], tmp_path / "out", alpha=alpha, max_outputs=0)
    (task,) = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]
    (test,) = (t for t in task["tests"] if t["score"] == "exact_match")
    deviation = spread([5.1, 3.0, 4.9])[1]
    expected = detectable_difference(deviation, 3, alpha=alpha)
    assert test["detectable"] == pytest.approx(expected)
    assert test["over"] == "seeds"
    assert f"{expected:.2f}" in (tmp_path / "out" / "significance.md").read_text()


def test_what_explains_a_return_stands_beside_it(tmp_path):
    root = make_grid(tmp_path, systems=("llmr", "brim-k=2"))
    regrets = {"llmr": [1.0, 1.0], "brim-k=2": [1.0, 1.0, 1.0, 1.0]}
    know_lengths(root, {"llmr": 2.5, "brim-k=2": 4.0}, regrets)
    (task,) = gather([root]).tasks
    assert task.cut == 2
    table = return_table([task], baseline="LLMR", alpha=0.05)
    assert table.head == ("system", "return ↑", "return, first 2 tokens ↑", "length")
    means = {row["system"]: row["mean"] for row in table.data if row["score"] == "cut_return"}
    whole = {row["system"]: row["mean"] for row in table.data if row["score"] == "return"}
    assert means["LLMR"] == whole["LLMR"]
    assert means["BRIM (K = 2)"] == pytest.approx(whole["BRIM (K = 2)"] + 2)
    tests = {t.metric: t.test.difference for t in all_tests(task)}
    assert tests["cut_return"] == pytest.approx(tests["return"] + 2)


# -- one seed ---------------------------------------------------------------------------------


def write_texts(root, objective, num_right, size=40):
    directory = root / objective["name"] / "seed=1"
    make_folder(directory, objective, 1, None, predictions=False)
    rows = [{**row, "text": "R" if i < num_right else "x", "references": ["R"]}
            for i, row in enumerate(rows_of("", size))]  # fmt: skip
    scores = {"exact_match": 100 * num_right / size, "return": 19.5, "length": 3.0}
    write_run(directory, rows=rows, results=results_of(scores, size))
    return directory


def test_one_seed_is_tested_over_its_sentences(tmp_path):
    llmr, brim = (
        write_texts(tmp_path, objective, right)
        for objective, right in ((LLMR, 10), ({**BRIM, "k": 2}, 30))
    )
    (task,) = gather([tmp_path]).tasks
    tests = {t.metric: t for t in all_tests(task)}
    expected = compare_runs(brim, llmr, num_resamples=2000).metrics["exact_match"]
    found = tests["exact_match"]
    assert (found.over, found.test.num_pairs, found.better) == ("sentences", 40, True)
    assert found.test.difference == pytest.approx(50)
    assert found.test.p_value == expected.randomization_p < 0.01
    assert (found.test.low, found.test.high) == (expected.low, expected.high)
    assert found.test.detectable == pytest.approx(expected.detectable)
    assert found.verdict(0.05) == "better"
    assert tests["return"].verdict(0.05) == "tie"  # the same texts' returns in both
    stricter = {t.metric: t for t in all_tests(task, alpha=0.01)}["exact_match"]
    assert stricter.test.detectable > found.test.detectable
    said = " ".join(findings(task, list(tests.values()), baseline="LLMR", alpha=0.05))
    assert "over 40 sentences of one seed" in said
    (table, *_) = significance_tables([task], {task.label: list(tests.values())}, alpha=0.05)
    assert "another seed may turn it" in table.caption
    starred = main_table([task], baseline="LLMR", alpha=0.05)
    assert [row[0].text for row in starred.rows if row[1].significant] == ["BRIM (K = 2)"]


def test_one_seed_whose_texts_are_gone_is_not_tested(tmp_path):
    make_grid(tmp_path, systems=("llmr", "brim-k=2"), seeds=SEEDS[:1])
    for path in tmp_path.rglob("test.jsonl"):
        path.unlink()
    (task,) = gather([tmp_path]).tasks
    tests = all_tests(task)
    assert {test.verdict(0.05) for test in tests} == {"too few seeds"}
    assert significance_tables([task], {"cmudict": tests}, alpha=0.05) == []


def test_a_setting_that_older_runs_do_not_have_is_the_default_there(tmp_path):
    recipe = find_recipe("cmudict/anchored")
    changes = ["objective.per_token=false", "trainer.max_steps=20"]
    config = load_config(RunConfig, recipe, changes, search=find_recipe)
    settings = config.model_dump(mode="json")
    old = {**settings, "objective": {**settings["objective"]}}
    del old["objective"]["per_token"]
    for name, each in (("new", settings), ("old", old)):
        write_run(
            tmp_path / name / "seed=1",
            settings={**each, "seed": 1},
            manifest={"seed": 1},
            metrics=[{"step": 0}],
            rows=rows_of(name),
            results=results_of(scores_of(1.0)),
        )
    (task,) = gather([tmp_path]).tasks
    labels = [system.label for system in task.systems if len(system.runs)]
    marks = [f"[per_token = {value}]" for value in ("false", "true")]
    assert labels == [f"Anchored (λ = 0.0) {mark}" for mark in marks]
