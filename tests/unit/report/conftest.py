"""Small run directories, made by the library's own metrics and written as a run writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from brim.metrics import mean_score, score
from brim.report import System

REFERENCES = [
    (f"P{i} AH0 T{i % 7}", f"P{i} IH1 T{i % 7}") if i % 5 == 0 else (f"P{i} AH0 T{i % 7}",)
    for i in range(60)
]

MakeRun = Callable[..., System]


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    """make_run(directory, label, texts=, returns=, metrics=, **files) -> the System there."""
    return _make_run


def _make_run(
    directory: Path,
    label: str,
    *,
    texts: Sequence[str] | None = None,
    references: Sequence[Sequence[str]] = REFERENCES,
    prompts: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    returns: Sequence[float] | None = None,
    metrics: Sequence[dict[str, Any]] | None = None,
    facts: dict[str, Any] | None = None,
    files: dict[str, str] | None = None,
) -> System:
    texts = [group[0] for group in references] if texts is None else texts
    prompts = [f"p {i} t" for i in range(len(texts))] if prompts is None else prompts
    ids = [f"word{i}" for i in range(len(texts))] if ids is None else ids
    scores = score(["exact_match", "bleu"], texts, references, num_resamples=100)
    lengths = [float(len(text.split()) + 1) for text in texts]
    if returns is not None:
        scores["return"] = mean_score("return", returns, num_resamples=100)
    scores["length"] = mean_score("length", lengths, num_resamples=100)
    (directory / "predictions").mkdir(parents=True)
    rows = [
        {
            "id": ids[i],
            "prompt": prompts[i],
            "references": list(references[i]),
            "text": texts[i],
            "num_tokens": int(lengths[i]),
            "truncated": False,
            "teacher_return": None if returns is None else returns[i],
        }
        for i in range(len(texts))
    ]
    _write_lines(directory / "predictions" / "test.jsonl", rows)
    results = {
        "split": "test",
        "scores": {name: value.as_dict() for name, value in scores.items()},
        "num_examples": len(texts),
        "num_truncated_prompts": 0,
        "num_truncated_completions": 3,
        "num_parameters": 1_234_567,
        **(facts or {}),
    }
    (directory / "results.json").write_text(json.dumps({"test": results}))
    if metrics is not None:
        _write_lines(directory / "metrics.jsonl", metrics)
    for name, content in (files or {}).items():
        (directory / name).write_text(content)
    return System(label, directory, train=metrics is not None)


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def metrics_of_a_run() -> Callable[..., list[dict[str, Any]]]:
    """metrics_of_a_run(k) -> lines of metrics.jsonl; every run begins from the same student."""

    def lines(k: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for step in range(41):
            if step:
                variance = 80 + 3.0 * (step % 4)
                rollout = {"var_return": variance, "var_return_k": variance / k}
                rows.append(
                    {
                        "step": step,
                        "train/loss": "nan" if step == 7 else -0.1 * step,
                        **{f"rollout/{name}": value for name, value in rollout.items()},
                    }
                )
            if step % 10 == 0:
                scores = {
                    "exact_match": 40 + step / k,
                    "return": step / 10,
                    "length": 9 - step / 40,
                }
                rows.append({"step": step, **{f"eval/{n}": v for n, v in scores.items()}})
        return rows

    return lines
