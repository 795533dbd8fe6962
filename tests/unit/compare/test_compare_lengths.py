"""A shorter text has the higher return: what a comparison says beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rundirs

from brim.compare import compare, compare_runs
from brim.compare.write import comparison_text
from brim.metrics import mean_score
from brim.metrics.regrets import mean_regrets

REGRETS = np.random.default_rng(0).uniform(size=(40, 12)).round(4)


def write(directory: Path, regrets: np.ndarray, worth: float = 9.0, text: str = "") -> Path:
    """A run whose texts have these regrets, of prompts that are worth the same."""
    length = regrets.shape[1]
    values = worth - regrets.sum(axis=1)
    rows = [
        {"id": f"e{i}", "prompt": "p", "references": [], "text": text or f"{length} {worth} {i}",
         "num_tokens": length, "teacher_return": values[i], "regrets": row}
        for i, row in enumerate(regrets.tolist())
    ]  # fmt: skip
    tokens = np.full(len(regrets), float(length))
    scores = {
        "return": mean_score("return", values),
        "regret_per_token": mean_score("regret per token", regrets.sum(axis=1), weights=tokens,
                                       higher_is_better=False),
        "length": mean_score("length", tokens),
    }  # fmt: skip
    found = {name: score.as_dict() for name, score in scores.items()}
    found["length"]["details"] = {"median": length}
    by_position = {"return": mean_regrets([[row] for row in regrets.tolist()])}
    facts = {"scores": found, "num_examples": len(rows), "mean_regrets": by_position}
    return rundirs.write_run(directory, rows=rows, results=facts)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """B stops where A is halfway."""
    return write(tmp_path / "a", REGRETS), write(tmp_path / "b", REGRETS[:, :6])


def test_other_tokens_of_the_same_texts_are_not_compared(tmp_path: Path) -> None:
    # The same return in half as many tokens, each of which has the regrets of two.
    fine, coarse = REGRETS, REGRETS.reshape(40, 6, 2).sum(axis=2)
    two = [write(tmp_path / str(r.shape), r, text="as long") for r in (fine, coarse)]
    comparison = compare_runs(*two, num_resamples=100)
    assert list(comparison.metrics) == ["return", "length"]
    assert comparison.metrics["return"].difference == pytest.approx(0, abs=1e-9)
    assert all("their tokenizers are not the same" in why for why in comparison.left_out.values())
    assert list(comparison.left_out) == ["cut_return", "regret_per_token"]


def test_what_stops_early_is_better_by_its_return_only(two) -> None:
    metrics = compare_runs(*two, num_resamples=500).metrics
    assert list(metrics) == ["return", "cut_return", "regret_per_token", "length"]
    whole, cut = metrics["return"], metrics["cut_return"]
    assert whole.difference < -2
    assert whole.randomization_p < 0.01
    assert cut.a.name == "return, first 6 tokens"
    assert cut.difference == pytest.approx(0, abs=1e-9)
    assert cut.randomization_p == 1
    ratio = metrics["regret_per_token"]
    assert (ratio.a.value, ratio.b.value) == pytest.approx((REGRETS.mean(), REGRETS[:, :6].mean()))
    assert ratio.higher_is_better is False
    assert ratio.a.signature.startswith("agg:ratio")
    other = compare_runs(*two, metrics=["cut_return"], num_resamples=50, cut=3)
    assert other.metrics["cut_return"].a.value == pytest.approx(9 - REGRETS[:, :3].sum(1).mean())


def test_scores_are_those_of_the_results(two) -> None:
    found = compare_runs(*two, num_resamples=1000).metrics["regret_per_token"]
    for side, values in (("a", REGRETS), ("b", REGRETS[:, :6])):
        tokens = np.full(40, float(values.shape[1]))
        expected = mean_score("x", values.sum(axis=1), weights=tokens)
        score = getattr(found, side)
        assert (score.value, score.low, score.high) == pytest.approx(
            (expected.value, expected.low, expected.high)
        )


def test_old_predictions_lack_the_columns(two) -> None:
    rows = [{"id": f"e{i}", "prompt": "p", "references": [], "text": f"{i}", "num_tokens": 2,
             "teacher_return": 1.0} for i in range(40)]  # fmt: skip
    old = rundirs.write_run(two[0].parent / "old", rows=rows, results={
        "scores": {"return": mean_score("return", [1.0] * 40).as_dict()}, "num_examples": 40,
    })  # fmt: skip
    comparison = compare_runs(two[0], old, num_resamples=50)
    assert list(comparison.metrics) == ["return", "length"]
    assert list(comparison.left_out) == ["regret_per_token"]


def test_seeds_are_compared_at_the_length_common_to_all(tmp_path: Path) -> None:
    for seed in range(3):
        rows = REGRETS + seed
        write(tmp_path / "a" / f"seed={seed}", rows)
        write(tmp_path / "b" / f"seed={seed}", rows[:, : 6 + seed])
    comparison = compare(tmp_path / "a", tmp_path / "b")
    cut = comparison.metrics["cut_return"]
    assert cut.label == "return, first 7 tokens"
    # The texts of one seed are shorter than that: they count whole, and have the higher return.
    assert cut.values_a[0] < cut.values_b[0] - 0.1
    cut = replace(cut, values_a=cut.values_a[1:], values_b=cut.values_b[1:])
    assert cut.values_a == pytest.approx(cut.values_b, abs=1e-4)
    assert comparison.metrics["return"].test.difference < -4
    detectable = comparison.metrics["return"].test.detectable
    text = comparison_text(comparison)
    assert f"{detectable:.3f}" in text
    assert "could see" in text
    assert comparison.as_dict()["metrics"]["return"]["test"]["detectable"] == detectable


def test_few_sentences_and_ties_are_said(tmp_path: Path) -> None:
    a, b = (write(tmp_path / name, REGRETS[:9], worth) for name, worth in (("a", 9.0), ("b", 9.5)))
    text = comparison_text(compare(a, b, num_resamples=50))
    assert "Fewer than 30 examples" in text
    rows = {line.split("  ")[0]: line.split()[-1] for line in reversed(text.splitlines()) if line}
    assert rows["return"] == "B"
    assert rows["regret per token (lower is better)"] == "tie"
    assert "Fewer" not in comparison_text(compare(*(write(tmp_path / n, REGRETS) for n in "cd")))
