"""Made-up runs as folders: what `brim train` leaves, without any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rundirs import write_run

from brim.metrics import Score

SEEDS = (19083, 34007, 84122)
NAMES = {
    "exact_match": "exact match", "ter": "TER", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L", "return": "return", "expected_return": "expected return",
    "length": "length", "answer_accuracy": "answer accuracy",
    "regret_per_token": "regret per token",
}  # fmt: skip
DATA = "5" * 64


def settings_of(objective: Mapping[str, Any], seed: int, **changes: Any) -> dict[str, Any]:
    """Settings of a run; `changes` has dotted keys, with `__` for the dots."""
    settings: dict[str, Any] = {
        "description": f"seed {seed}",
        "seed": seed,
        "task": {"name": "cmudict", "max_test_examples": None},
        "teacher": {"build": {"family": "t5", "d_model": 16}, "batch_tokens": 64, "seed": 0,
                    "train": {"trainer": {"max_steps": 9}}},
        "student": {"build": {"family": "t5", "d_model": 8}, "predistill": None},
        "objective": dict(objective),
        "optim": {"lr": 0.001},
        "trainer": {"max_steps": 20, "micro_batch_tokens": 128},
        "evaluation": {"metric": None},
        "tracking": {"project": "brim"},
    }  # fmt: skip
    for key, value in changes.items():
        *path, last = key.split("__")
        place = settings
        for part in path:
            place = place[part]
        place[last] = value
    return settings


def results_of(scores: Mapping[str, float], num_examples: int = 6, **facts: Any) -> dict[str, Any]:
    """What `results.json` holds of a split."""
    found = {
        name: Score(
            name=NAMES[name], value=value, low=value - 1, high=value + 1, confidence=0.95,
            signature="", higher_is_better=name != "ter", num_examples=num_examples,
        ).as_dict()
        for name, value in scores.items()
    }  # fmt: skip
    return {
        "scores": found,
        "num_examples": num_examples,
        "data": {"sha256": DATA, "num_examples": num_examples},
        "best_step": 20,
        "steps": 20,
        "seconds": 2.5,
        **facts,
    }


def make_folder(
    directory: Path,
    objective: Mapping[str, Any],
    seed: int,
    scores: Mapping[str, float] | None,
    *,
    validation: Mapping[str, float] | None = None,
    metrics: Sequence[Mapping[str, Any]] | None = None,
    manifest: Mapping[str, Any] | None = None,
    predictions: bool = True,
    **changes: Any,
) -> Path:
    """A run directory; without results where `scores` is None."""
    if metrics is None:
        best = validation or {}
        metrics = [
            {"step": 0, **{f"eval/{name}": value - 1 for name, value in best.items()}},
            {"step": 20, **{f"eval/{name}": value for name, value in best.items()}},
        ]
    return write_run(
        directory,
        settings=settings_of(objective, seed, **changes),
        manifest={"seed": seed, **(manifest or {})},
        metrics=metrics,
        rows=rows_of(directory.parent.name) if predictions else None,
        results=None if scores is None else results_of(scores),
    )


def rows_of(text: str, num: int = 6) -> list[dict[str, Any]]:
    return [
        {
            "id": f"word{i}", "prompt": f"p {i}", "references": [f"R {i}"],
            "text": f"R {i}" if i % 2 else f"{text} {i}", "num_tokens": 3, "truncated": False,
            "teacher_return": float(i), "sampled_text": None, "sampled_return": None,
        }
        for i in range(num)
    ]  # fmt: skip


# A grid of systems and seeds

LLMR = {"name": "llmr", "baseline": "none"}
BRIM = {"name": "brim", "phase": "aligned", "immediate": "sampled", "tail": "one_step"}
# Exact match by seed; K = 2 is 2.1, 2.0, 1.9 above LLMR, K = 4 is 1, 2, 3 above it.
SCORES = {
    "kl": [20.0, 21.0, 22.0],
    "llmr": [23.0, 22.0, 25.0],
    "brim-k=2": [25.1, 24.0, 26.9],
    "brim-k=4": [24.0, 24.0, 28.0],
    "ppo_llmr": [20.0, 20.0, 20.0],
    "ppo_brim": [21.0, 21.5, 20.5],
}
OBJECTIVES = {
    "kl": {"name": "kl"},
    "llmr": LLMR,
    "brim-k=2": {**BRIM, "name": "brim", "k": 2},
    "brim-k=4": {**BRIM, "name": "brim", "k": 4},
    "ppo_llmr": {"name": "ppo_llmr"},
    "ppo_brim": {"name": "ppo_brim", "k": 2},
}
# On validation K = 4 is better, whatever the test split says.
VALIDATION = {"brim-k=2": 30.0, "brim-k=4": 31.0}


def scores_of(value: float) -> dict[str, float]:
    return {"exact_match": value, "ter": 60 - value, "return": value / 2, "length": 7.0}


def curves_of(system: str, seed: int) -> list[dict[str, float]]:
    """A line a step, with numbers that differ by system and seed."""
    size = len(system) + seed % 7
    rows = []
    for step in range(21):
        row = {"step": step}
        if step:
            row |= {
                "rollout/var_return_k": 10.0 + size,
                "rollout/bias": 0.1 * size,
                "rollout/return": float(step),
                "rollout/length": 7.0,
                "train/loss": "nan",
            }
            row |= {"ppo/td_error": 3.0, "ppo/value_loss": 0.5} if system == "ppo_llmr" else {}
        if step in (0, 10, 20):
            best = VALIDATION.get(system, 25.0)
            row |= {
                "eval/exact_match": best - 20 + step,
                "eval/return": 5.0 + step,
                "eval/length": 7.0,
                "eval/ter": 40.0,
            }
        rows.append(row)
    return rows  # fmt: skip


def make_grid(root: Path, systems=tuple(SCORES), seeds=SEEDS, **changes) -> Path:
    for system in systems:
        for i, seed in enumerate(seeds):
            make_folder(
                root / system / f"seed={seed}",
                OBJECTIVES[system],
                seed,
                scores_of(SCORES[system][i]),
                metrics=curves_of(system, seed),
                predictions=i == 0,  # no others are read
                **changes,
            )
    return root
