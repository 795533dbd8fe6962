"""Is A better than B? Two runs sentence by sentence, or two methods seed by seed.

>>> import brim
>>> brim.compare("runs/brim", "runs/llmr")  # doctest: +SKIP

A run is any directory with `results.json` and `predictions/SPLIT.jsonl`: of a run, a stage or an
evaluation. Several seeds are a folder of runs `seed=*`, as a sweep writes them. Nothing here
imports torch.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from brim.compare.seeds import SeedComparison, SeedMetric, compare_seeds, holds_seeds
from brim.compare.sentences import Comparison, MetricComparison, Sentence, compare_runs
from brim.compare.write import comparison_text
from brim.errors import ConfigError, RunError
from brim.support.imports import make_callable

__all__ = [
    "Comparison",
    "MetricComparison",
    "SeedComparison",
    "SeedMetric",
    "Sentence",
    "compare",
    "compare_runs",
    "compare_seeds",
]


def compare(
    a: str | Path,
    b: str | Path,
    *,
    split: str = "test",
    metrics: Sequence[str] | None = None,
    num_resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
    num_sentences: int = 10,
) -> Comparison | SeedComparison:
    """`compare_seeds` of two folders of seeds, `compare_runs` of two of anything else.

    Of several test sets `split` names one, as `test.NAME`. What it returns prints as `brim compare`
    does.

    Raises:
        ConfigError: the one is a folder of seeds and the other is not, and as the two functions.
        RunError: as the two functions.
    """
    a, b = Path(a), Path(b)
    for directory in (a, b):
        if not directory.is_dir():
            raise RunError(f"{directory}: no such directory; check the path")
    if holds_seeds(a) != holds_seeds(b):
        seeds, run = (a, b) if holds_seeds(a) else (b, a)
        raise ConfigError(
            f"{seeds} holds runs of several seeds and {run} does not: compare two such folders, "
            f"or name one run in {seeds}"
        )
    found: Comparison | SeedComparison
    if holds_seeds(a):
        found = compare_seeds(a, b, split=split, metrics=metrics, confidence=confidence)
        return replace(found, text=comparison_text(found))
    found = compare_runs(
        a,
        b,
        split=split,
        metrics=metrics,
        num_resamples=num_resamples,
        seed=seed,
        confidence=confidence,
        num_sentences=num_sentences,
    )
    return replace(found, text=comparison_text(found))


make_callable(__name__, compare)
