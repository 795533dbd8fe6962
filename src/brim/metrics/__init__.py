"""Metrics: sentence statistics, added up, make a corpus score with an interval and a signature.

>>> from brim.metrics import score
>>> print(score(["exact_match"], ["a", "b"], [("a",), ("c",)])["exact_match"])
exact match 50.0 [0.0, 100.0]

A new metric is one `Metric` in `METRICS`. Nothing here imports torch, and the scoring libraries are
imported when first used.
"""

from brim.metrics.base import Metric, Score
from brim.metrics.scoring import (
    METRICS,
    get_metric,
    mean_score,
    paired_difference,
    score,
    sentence_scores,
    sentence_statistics,
)

__all__ = [
    "METRICS",
    "Metric",
    "Score",
    "get_metric",
    "mean_score",
    "paired_difference",
    "score",
    "sentence_scores",
    "sentence_statistics",
]
