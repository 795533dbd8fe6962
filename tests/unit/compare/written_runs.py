"""Run directories, written as an evaluation writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rundirs

from brim.metrics import mean_score, score, sentence_statistics

METRICS = ("bleu", "ter", "exact_match")
WORDS = list("abcdefghijklmnop")


def make_references(size: int = 40) -> list[list[str]]:
    rng = np.random.default_rng(0)
    return [[" ".join(rng.choice(WORDS, size=6 + i % 5))] for i in range(size)]


def garble(references: Sequence[Sequence[str]], *, rate: float, seed: int) -> list[str]:
    """The first references with this part of their words replaced."""
    rng = np.random.default_rng(seed)
    return [
        " ".join(
            str(rng.choice(WORDS)) if rng.random() < rate else word for word in group[0].split()
        )
        for group in references
    ]


def write_run(
    directory: Path,
    texts: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    metrics: Sequence[str] = METRICS,
    returns: Sequence[float] | None = None,
    sampled: Sequence[str] | None = None,
    statistics: bool = False,
    split: str = "test",
    data: str = "the data",
    changes: dict[str, Any] | None = None,
) -> Path:
    answered = [i for i, group in enumerate(references) if group]
    ours = [texts[i] for i in answered]
    groups = [references[i] for i in answered]
    scores = score(metrics, ours, groups, num_resamples=50) if answered else {}
    rows: list[dict[str, Any]] = [
        {
            "id": f"row{i}",
            "prompt": f"prompt {i}",
            "references": list(references[i]),
            "text": text,
            "num_tokens": len(text.split()) + 1,
            "truncated": False,
            "teacher_return": None if returns is None else returns[i],
            "sampled_text": None if sampled is None else sampled[i],
            "sampled_return": None if sampled is None else float(len(sampled[i])),
            **(changes or {}),
        }
        for i, text in enumerate(texts)
    ]
    if returns is not None:
        scores["return"] = mean_score("return", returns, num_resamples=50)
    if sampled is not None:
        scores["expected_return"] = mean_score(
            "expected return", [float(len(text)) for text in sampled], num_resamples=50
        )
    lengths = [row["num_tokens"] for row in rows]
    scores["length"] = mean_score("length", lengths, num_resamples=50)
    if statistics:
        found = {name: sentence_statistics(name, ours, groups).tolist() for name in metrics}
        for row in rows:
            row["statistics"] = {}
        for k, i in enumerate(answered):
            rows[i]["statistics"] = {name: found[name][k] for name in metrics}
    results = {
        "scores": {name: value.as_dict() for name, value in scores.items()},
        "data": {"num_examples": len(texts), "sha256": data},
        "num_examples": len(texts),
    }
    return rundirs.write_run(directory, rows=rows, results=results, split=split)
