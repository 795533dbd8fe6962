"""ROUGE (Lin, 2004) by Google's `rouge_score`.

Only its scorer is used: its `BootstrapAggregator` draws from NumPy's global generator, so that an
evaluation would change the training after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any

from brim.metrics.base import (
    Array,
    Metric,
    References,
    mean_of_sums,
    num_references,
    with_counts,
)


def rouge(rouge_type: str, label: str, *, use_stemmer: bool = True) -> Metric:
    """Return a ROUGE metric: the mean over examples of the F-measure, times 100.

    Of several references the one with the highest F-measure counts (`score_multi`). The tokens are
    runs of ASCII letters and digits, in lower case: text in other scripts scores 0.

    Args:
        rouge_type: `rouge1` to `rouge9`, `rougeL`, or `rougeLsum`, which takes lines as sentences.
        label: the name as it is printed.
        use_stemmer: strip suffixes with the Porter stemmer, as published numbers mostly do; it is
            named in the signature.
    """

    def statistics(predictions: Sequence[str], references: References) -> Array:
        scorer = _scorer(rouge_type, use_stemmer)
        return with_counts(
            [
                100 * scorer.score_multi(group, prediction)[rouge_type].fmeasure
                for prediction, group in zip(predictions, references, strict=True)
            ]
        )

    def signature(references: References) -> str:
        stemming = "yes" if use_stemmer else "no"
        release = version("rouge-score")
        nrefs = num_references(references)
        return f"nrefs:{nrefs}|refs:max|stem:{stemming}|agg:mean-f|version:rouge_score-{release}"

    return Metric(label, statistics, mean_of_sums, signature)


@cache
def _scorer(rouge_type: str, use_stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([rouge_type], tokenizer=_tokenizer(use_stemmer))


@cache
def _tokenizer(use_stemmer: bool) -> Any:
    from rouge_score.tokenizers import DefaultTokenizer

    tokenizer = DefaultTokenizer(use_stemmer)
    if use_stemmer:  # most of ROUGE's time goes into stemming, and words repeat
        tokenizer._stemmer.stem = lru_cache(maxsize=2**16)(tokenizer._stemmer.stem)
    return tokenizer
