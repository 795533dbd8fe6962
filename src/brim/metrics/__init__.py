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
    score_statistics,
    sentence_scores,
    sentence_statistics,
)
from brim.metrics.significance import (
    BootstrapTest,
    Pair,
    PairedTest,
    WinTieLoss,
    approximate_randomization,
    holm,
    paired_bootstrap,
    paired_t_test,
    sign_test,
    spread,
    win_tie_loss,
)

__all__ = [
    "METRICS",
    "BootstrapTest",
    "Metric",
    "Pair",
    "PairedTest",
    "Score",
    "WinTieLoss",
    "approximate_randomization",
    "get_metric",
    "holm",
    "mean_score",
    "paired_bootstrap",
    "paired_difference",
    "paired_t_test",
    "score",
    "score_statistics",
    "sentence_scores",
    "sentence_statistics",
    "sign_test",
    "spread",
    "win_tie_loss",
]
