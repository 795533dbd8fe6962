"""What was decoded unlike the rest is marked; it is no part of a mean, of a test, or the best."""

from __future__ import annotations

import json
import re

import pytest
from run_folders import OBJECTIVES, SEEDS, make_folder, make_grid, scores_of
from rundirs import change_results

from brim.report.gather import gather
from brim.report.report import write_reports
from brim.report.seed_tests import all_tests
from brim.report.tables import SAMPLED_OTHERWISE, main_table

GREEDY = {"strategy": "greedy", "max_tokens": 20, "max_prompt_tokens": None}
BEAM = {"strategy": "beam", "num_beams": 4, "length_penalty": 1.0, **GREEDY, "max_tokens": 20}
BEAM |= {"strategy": "beam"}


def decode_all(root, decoding):
    for path in root.rglob("results.json"):
        change_results(path.parent, decoding=decoding)


def labels(root):
    (task,) = gather([root]).tasks
    return [system.label for system in task.systems]


def test_the_same_decoding_is_no_matter_whatever_it_is(tmp_path):
    make_grid(tmp_path, systems=("kl", "llmr"))
    for decoding in (GREEDY, BEAM):
        decode_all(tmp_path, decoding)
        assert labels(tmp_path) == ["KL", "LLMR"]
    (task,) = gather([tmp_path]).tasks
    assert task.decoding.startswith("beam, ")
    assert "num_beams = 4" in task.decoding


def test_results_from_before_it_was_written_down_are_greedy(tmp_path):
    make_grid(tmp_path, systems=("kl", "llmr"))
    change_results(tmp_path / "llmr" / f"seed={SEEDS[0]}", decoding=GREEDY)
    assert labels(tmp_path) == ["KL", "LLMR"]
    decode_all(tmp_path / "kl", BEAM)
    assert labels(tmp_path) == ["KL [beam, num_beams = 4, length_penalty = 1.0]", "LLMR"]


@pytest.mark.parametrize(
    ("decoding", "mark"),
    [
        (BEAM, "beam, num_beams = 4, length_penalty = 1.0"),
        ({**GREEDY, "max_tokens": 40}, "max_tokens = 40"),
        ({**GREEDY, "max_prompt_tokens": 9}, "max_prompt_tokens = 9"),
        (
            {**GREEDY, "strategy": "sampling", "temperature": 0.5, "top_k": None, "num_samples": 4},
            "sampling, temperature = 0.5, num_samples = 4",
        ),
    ],
)
def test_the_odd_one_out_is_marked_and_not_compared(tmp_path, decoding, mark):
    make_grid(tmp_path, systems=("kl", "llmr", "brim-k=2", "brim-k=4"))
    decode_all(tmp_path, GREEDY)
    decode_all(tmp_path / "kl", decoding)
    (task,) = gather([tmp_path]).tasks
    label = f"KL [{mark}]"
    assert [s.label for s in task.systems] == [label, "LLMR", "BRIM (K = 2)", "BRIM (K = 4)"]
    assert {test.against for test in all_tests(task)} == {"LLMR"}


def test_what_is_decoded_otherwise_is_never_the_best_nor_better(tmp_path):
    make_grid(tmp_path, systems=("kl", "llmr"))
    for seed in SEEDS:
        make_folder(tmp_path / "top" / f"seed={seed}", {"name": "rkl"}, seed, scores_of(99 + seed))
    decode_all(tmp_path / "top", BEAM)
    (task,) = gather([tmp_path]).tasks
    rows = {row[0].text: row[1] for row in main_table([task], baseline="LLMR", alpha=0.05).rows}
    best = [label for label, cell in rows.items() if cell.best]
    assert best == ["LLMR"]
    assert not any(cell.significant for cell in rows.values())
    decode_all(tmp_path / "top", GREEDY)
    (task,) = gather([tmp_path]).tasks
    rows = {row[0].text: row[1] for row in main_table([task], baseline="LLMR", alpha=0.05).rows}
    assert rows["RKL"].best


def test_seeds_of_two_decodings_are_not_averaged(tmp_path):
    make_grid(tmp_path, systems=("kl", "llmr"))
    change_results(tmp_path / "llmr" / f"seed={SEEDS[1]}", decoding=BEAM)
    (task,) = gather([tmp_path]).tasks
    found = {s.label: [run.seed for run in s.runs] for s in task.systems}
    assert found.pop("KL") == list(SEEDS)
    assert found.pop("LLMR") == [SEEDS[0], SEEDS[2]]
    assert [(re.match(r"LLMR \[beam", k) is not None, v) for k, v in found.items()] == [
        (True, [SEEDS[1]])
    ]


def test_a_k_that_is_decoded_otherwise_is_not_chosen(tmp_path):
    make_grid(tmp_path, systems=("brim-k=2", "brim-k=4"))
    (task,) = gather([tmp_path]).tasks
    assert task.best_brim().name.k == 4
    make_folder(tmp_path / "llmr", OBJECTIVES["llmr"], 1, scores_of(1.0))
    decode_all(tmp_path / "brim-k=4", BEAM)
    (task,) = gather([tmp_path]).tasks
    assert task.best_brim().name.k == 2


def test_expected_returns_of_two_ways_of_sampling_are_not_tested(tmp_path):
    make_grid(tmp_path / "runs", systems=("kl", "llmr", "brim-k=2"))
    for path in (tmp_path / "runs").rglob("results.json"):
        known = json.loads(path.read_text())["test"]["scores"]
        scores = {**known, "expected_return": {**known["return"], "name": "expected return"}}
        hot = path.parent.parent.name == "kl"
        sampling = {"strategy": "sampling", "temperature": 1.0 if hot else 0.5}
        change_results(path.parent, scores=scores, sampling=sampling)
    (task,) = gather([tmp_path / "runs"]).tasks
    assert [system.label for system in task.systems] == ["KL", "LLMR", "BRIM (K = 2)"]
    against = {
        name: {t.against for t in all_tests(task) if t.metric == name} for name in task.tested
    }
    assert against["exact_match"] == against["return"] == {"KL", "LLMR"}
    assert against["expected_return"] == {"LLMR"}
    assert task.best_students("return", task.systems)
    assert not task.best_students("expected_return", task.systems)
    text = write_reports([tmp_path / "runs"], tmp_path / "out", max_outputs=0).text
    assert SAMPLED_OTHERWISE in " ".join(text.split())
    for path in (tmp_path / "runs" / "kl").rglob("results.json"):
        change_results(path.parent, sampling={"strategy": "sampling", "temperature": 0.5})
    (task,) = gather([tmp_path / "runs"]).tasks
    assert {t.against for t in all_tests(task) if t.metric == "expected_return"} == {"KL", "LLMR"}


def test_the_reader_is_told(tmp_path):
    make_grid(tmp_path / "runs", systems=("kl", "llmr", "brim-k=2"))
    decode_all(tmp_path / "runs", GREEDY)
    decode_all(tmp_path / "runs" / "llmr", {**GREEDY, "max_tokens": 40})
    out = tmp_path / "out"
    text = write_reports([tmp_path / "runs"], out, max_outputs=0).text
    label = "LLMR [max_tokens = 40]"
    sentence = f"{label}: decoded otherwise than the rest (greedy, max_tokens = 20)"
    for place in (text, *((out / name).read_text() for name in ("summary.md", "table1.md"))):
        assert sentence in place.replace("\\", "")
    assert "no LLMR, so no marks of significance" in text
    assert "greedy, max_tokens = 40" in (out / "report.html").read_text()  # of each run
    systems = json.loads((out / "results.json").read_text())["tasks"][0]["systems"]
    assert {s["label"]: s["decoding"] for s in systems} == {
        "KL": None, label: "max_tokens = 40", "BRIM (K = 2)": None,
    }  # fmt: skip
