"""Several systems on the same examples: what quickstart prints at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from brim.compare.sentences import Comparison, compare_runs
from brim.runs.directory import Results, RunDirectory
from brim.support.tables import align, interval_text, p_text, percent, score_format

_FACTS = {"num_parameters": "parameters", "seconds": "train seconds"}


def side_by_side(
    systems: Mapping[str, Path],
    pairs: Sequence[tuple[str, str]],
    *,
    split: str = "test",
    metrics: Sequence[str] | None = None,
) -> str:
    """Return the scores of systems below each other, then paired differences, for a terminal.

    With names of up to ten letters it is 80 columns wide.

    Args:
        systems: directories as `compare_runs` takes them, by what they are called.
        pairs: names of A and B of each difference A minus B.
        split: of the data, evaluated in all of them.
        metrics: keys of scores; None for all.

    Raises:
        RunError: a directory has no results of the split, or two are not of the same examples.
    """
    results = {name: RunDirectory(path).results(split) for name, path in systems.items()}
    found = [score for one in results.values() for score in one.scores.values()]
    confidence = found[0].confidence
    compared = {
        (a, b): compare_runs(
            systems[a],
            systems[b],
            split=split,
            metrics=metrics,
            confidence=confidence,
            num_sentences=0,
        )
        for a, b in pairs
    }
    names = metrics or list(dict.fromkeys(key for one in results.values() for key in one.scores))
    interval = f"[{percent(confidence)} interval]"
    scores = [["", "system", f"{split} score {interval}", ""]]
    differences = [["", "paired by example", f"difference {interval}", "p"]]
    for key in names:
        scores += _block(_scores(results, key))
        differences += _block(_differences(compared, key))
    for key, label in _FACTS.items():
        facts = {name: one.facts[key] for name, one in results.items() if key in one.facts}
        scores += _block([[label, name, f"{fact:,.0f}", ""] for name, fact in facts.items()])
    left_out = [
        f"left out of {a} minus {b}: {key}: {reason}"
        for (a, b), comparison in compared.items()
        for key, reason in comparison.left_out.items()
    ]
    return "\n".join([*align(scores), "", *align(differences), *left_out])


def _scores(results: Mapping[str, Results], key: str) -> list[list[str]]:
    spec, rows = score_format(key), []
    for name, found in results.items():
        if score := found.scores.get(key):
            text = interval_text(score.value, score.low, score.high, spec=spec)
            rows.append([score.name, name, text, ""])
    return rows


def _differences(compared: Mapping[tuple[str, str], Comparison], key: str) -> list[list[str]]:
    spec, rows = score_format(key, difference=True), []
    for (a, b), comparison in compared.items():
        if metric := comparison.metrics.get(key):
            text = interval_text(metric.difference, metric.low, metric.high, spec=spec)
            rows.append([metric.a.name, f"{a} minus {b}", text, p_text(metric.randomization_p)])
    return rows


def _block(rows: list[list[str]]) -> list[list[str]]:
    """The rows with what they have in common written once."""
    return [[label if i == 0 else "", *row] for i, (label, *row) in enumerate(rows)]
