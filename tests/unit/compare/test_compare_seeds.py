"""Two methods over the seeds that both were run with."""

import json
import re
from pathlib import Path

import pytest
import rundirs
from scipy import stats
from written_runs import garble, write_run

from brim.compare import SeedComparison, compare
from brim.compare.write import comparison_text
from brim.errors import ConfigError, RunError
from brim.metrics import spread
from brim.runs.directory import RunDirectory

SEEDS = ("310", "19083", "34007")


@pytest.fixture
def methods(tmp_path: Path, references) -> tuple[Path, Path]:
    for method, rate in (("a", 0.1), ("b", 0.3)):
        for seed in SEEDS:
            texts = garble(references, rate=rate, seed=int(seed) + ord(method))
            write_run(tmp_path / method / f"seed={seed}", texts, references)
    return tmp_path / "a", tmp_path / "b"


def values(method: Path, name: str, seeds: tuple[str, ...] = SEEDS) -> list[float]:
    paths = [method / f"seed={seed}" / "results.json" for seed in seeds]
    return [json.loads(p.read_text())["test"]["scores"][name]["value"] for p in paths]


def change_results(run: Path, old: str, new: str) -> None:
    facts = json.dumps(RunDirectory(run).splits()["test"])
    assert old in facts
    rundirs.change_results(run, **json.loads(facts.replace(old, new)))


def test_means_deviations_and_t_tests(methods) -> None:
    comparison = compare(*methods)
    assert isinstance(comparison, SeedComparison)
    assert comparison.seeds == SEEDS  # by number
    assert list(comparison.metrics) == ["bleu", "ter", "exact_match", "length"]
    assert (comparison.left_out, comparison.unpaired) == ({}, {})
    for name, metric in comparison.metrics.items():
        a, b = (values(method, name) for method in methods)
        assert (list(metric.values_a), list(metric.values_b)) == (a, b)
        assert ((metric.mean_a, metric.sd_a), (metric.mean_b, metric.sd_b)) == (
            spread(a),
            spread(b),
        )
        if name == "length":  # the same in all runs: scipy's p-value is NaN
            assert (metric.test.difference, metric.test.p_value) == (0, 1)
            continue
        expected = stats.ttest_rel(a, b)
        assert metric.test.p_value == pytest.approx(expected.pvalue)
        interval = expected.confidence_interval(0.95)
        assert (metric.test.low, metric.test.high) == pytest.approx(tuple(interval))
        assert metric.test.num_pairs == 3
    assert comparison.metrics["ter"].higher_is_better is False
    assert comparison.metrics["length"].higher_is_better is None
    json.dumps(comparison.as_dict(), allow_nan=False)


def test_returns_of_two_teachers_are_left_out_and_a_teacher_a_seed_is_none(methods) -> None:
    for method in methods:
        for seed in SEEDS:
            run = method / f"seed={seed}"
            known = RunDirectory(run).splits()["test"]["scores"]
            scores = {**known, "return": known["bleu"]}
            rundirs.change_results(run, scores=scores, teacher=f"teacher-{seed}")
    assert "return" in compare(*methods).metrics
    rundirs.change_results(methods[1] / f"seed={SEEDS[0]}", teacher="teacher-x")
    comparison = compare(*methods)
    assert "bleu" in comparison.metrics
    assert "another teacher scored the texts" in comparison.left_out["return"]


def test_seeds_that_one_lacks_are_named(methods, references) -> None:
    a, b = methods
    write_run(a / "seed=55080", garble(references, rate=0.1, seed=7), references)
    (b / "seed=310" / "results.json").unlink()  # still running
    (b / "seed=7").mkdir()
    comparison = compare(a, b)
    assert comparison.seeds == ("19083", "34007")
    assert comparison.unpaired == {
        "7": f"{b / 'seed=7'} has no test results yet",
        "310": f"{b / 'seed=310'} has no test results yet",
        "55080": f"not in {b}",
    }
    assert list(comparison.metrics["bleu"].values_a) == values(a, "bleu", ("19083", "34007"))


def test_seeds_without_the_split_are_named(methods, references) -> None:
    a, b = methods
    with pytest.raises(RunError, match="no seed that both have validation results of"):
        compare(a, b, split="validation")
    for seed in SEEDS[1:]:
        for method in methods:
            texts = garble(references, rate=0.2, seed=int(seed))
            write_run(method / f"seed={seed}", texts, references, split="validation")
    comparison = compare(a, b, split="validation")
    assert comparison.seeds == ("19083", "34007")
    assert comparison.unpaired == {"310": f"{a / 'seed=310'} has no validation results yet"}
    (b / "seed=310" / "results.json").write_text("3")
    with pytest.raises(RunError, match="results.json: damaged"):
        compare(a, b, split="validation")


def test_one_shared_seed_is_shown_without_a_test(methods) -> None:
    a, b = methods
    for seed in SEEDS[1:]:
        (a / f"seed={seed}" / "results.json").unlink()
    metric = compare(a, b).metrics["bleu"]
    assert metric.test.difference == metric.values_a[0] - metric.values_b[0]
    assert (metric.test.p_value, metric.test.low, metric.sd_a) == (None, None, None)
    (a / "seed=310" / "results.json").unlink()
    with pytest.raises(RunError, match="no seed that both have test results of"):
        compare(a, b)


def test_scores_that_cannot_stand_side_by_side(methods) -> None:
    a, b = methods
    change_results(b / "seed=310", "tok:13a", "tok:zh")
    comparison = compare(a, b)
    assert list(comparison.metrics) == ["ter", "exact_match", "length"]
    assert "tok:zh" in comparison.left_out["bleu"]
    with pytest.raises(RunError, match="cannot compare bleu: signature"):
        compare(a, b, metrics=["bleu"])
    with pytest.raises(RunError, match="cannot compare chrf: .*seed=310 does not have it"):
        compare(a, b, metrics=["chrf"])
    assert list(compare(a, b, metrics=["ter"]).metrics) == ["ter"]


def test_other_data(methods) -> None:
    a, b = methods
    change_results(b / "seed=34007", "the data", "other data")
    with pytest.raises(RunError, match="seed=34007: evaluated on other examples than"):
        compare(a, b)


def test_a_run_against_seeds(methods) -> None:
    a, b = methods
    with pytest.raises(ConfigError, match="holds runs of several seeds and .*seed=310 does not"):
        compare(a, b / "seed=310")
    with pytest.raises(ConfigError, match="b holds runs of several seeds"):
        compare(a / "seed=310", b)


def decode_by(run: Path, **decoding: object) -> None:
    rundirs.change_results(run, decoding=decoding)


def test_what_was_decoded_differently_is_said_and_never_mixed(methods) -> None:
    a, b = methods
    for seed in SEEDS:
        decode_by(a / f"seed={seed}", strategy="greedy", max_tokens=8)
        decode_by(b / f"seed={seed}", strategy="greedy", max_tokens=8)
    assert "decoded differently" not in comparison_text(compare(a, b))
    for seed in SEEDS:
        decode_by(b / f"seed={seed}", strategy="beam", max_tokens=8, num_beams=4)
    assert (
        "decoded differently: A greedy, max_tokens = 8; B beam, max_tokens = 8, num_beams = 4"
        in comparison_text(compare(a, b))
    )
    run = f"seed={SEEDS[0]}"
    assert "decoded differently" in comparison_text(compare(a / run, b / run))
    decode_by(b / f"seed={SEEDS[-1]}", strategy="greedy", max_tokens=8)
    with pytest.raises(RunError, match="decoded otherwise .*evaluate all seeds of a method alike"):
        compare(a, b)


def test_runs_whose_training_had_not_ended_are_left_out(methods) -> None:
    a, b = methods
    facts = '"split": "test", "steps": 11, "planned_steps": 120'
    change_results(a / "seed=310", '"split": "test"', facts)
    comparison = compare(a, b)
    assert comparison.seeds == SEEDS[1:]
    text = "left out: seed 310: .*seed=310: its training had not ended .step 11 of 120."
    assert re.search(text, comparison_text(comparison))
    for seed in SEEDS[1:]:
        change_results(b / f"seed={seed}", '"split": "test"', facts)
    with pytest.raises(RunError, match="compare finished runs"):
        compare(a, b)
