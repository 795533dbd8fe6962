"""BLEU, chrF2 and TER: sacrebleu's sentence statistics, summed into many corpora at once.

The statistics and the signatures are sacrebleu's own. Its corpus formulas take one corpus; the ones
here take any number, and are tested to give its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from brim.metrics.base import Array, Metric, References, num_references

_BLEU_ORDER = 4
_CHRF_ORDER = 6
_CHRF_BETA = 2


def bleu_score(sums: Array, *, effective_order: bool = False) -> Array:
    """Return BLEU (Papineni et al., 2002) with `exp` smoothing (Chen and Cherry, 2014, method 3).

    The i-th n-gram order without a match counts 2^-i matches. A corpus without any match, or
    without any n-gram of some order, scores 0.

    Args:
        sums: (..., 10): tokens of the predictions, tokens of the closest references, matches of
            order 1 to 4, n-grams of order 1 to 4.
        effective_order: leave out the orders longer than the text, as a single sentence needs.
    """
    matches, totals = np.split(sums[..., 2:], 2, axis=-1)
    missed = matches == 0
    present = totals > 0
    smoothed = np.where(missed, 0.5 ** np.cumsum(missed, axis=-1), matches)
    log_precisions = np.log(_ratio(smoothed, totals, where=present, otherwise=1.0)).sum(axis=-1)
    scored = matches.any(axis=-1)
    if effective_order:
        log_precisions /= np.maximum(present.sum(axis=-1), 1)
    else:
        log_precisions /= _BLEU_ORDER
        scored &= present.all(axis=-1)
    return np.where(scored, 100 * _brevity_penalty(sums) * np.exp(log_precisions), 0.0)


def chrf_score(sums: Array) -> Array:
    """Return chrF2 (Popović, 2015): F2 of precision and recall averaged over n-gram orders 1 to 6.

    Orders that are longer than the predictions or the references are left out of the average.

    Args:
        sums: (..., 18): for each order the n-grams of the predictions, of the references, of both.
    """
    by_order = sums.reshape(*sums.shape[:-1], _CHRF_ORDER, 3)
    predicted, expected, matched = by_order[..., 0], by_order[..., 1], by_order[..., 2]
    present = (predicted > 0) & (expected > 0)
    num_orders = np.maximum(present.sum(axis=-1), 1)
    precision = _ratio(matched, predicted, where=present).sum(axis=-1) / num_orders
    recall = _ratio(matched, expected, where=present).sum(axis=-1) / num_orders
    weighted = _CHRF_BETA**2 * precision + recall
    f_score = _ratio((1 + _CHRF_BETA**2) * precision * recall, weighted, where=weighted > 0)
    return 100 * f_score


def ter_score(sums: Array) -> Array:
    """Return TER (Snover et al., 2006): edits for each reference token; it may be above 100.

    Args:
        sums: (..., 2): fewest edits to any reference, mean length of the references.
    """
    edits, length = sums[..., 0], sums[..., 1]
    # A text where every reference is empty is all wrong, as in sacrebleu.
    return 100 * _ratio(edits, length, where=length > 0, otherwise=edits > 0)


def _ratio(
    numerator: Array, denominator: Array, *, where: npt.NDArray[np.bool_], otherwise: Any = 0.0
) -> Array:
    quotient = numerator / np.where(where, denominator, 1)
    return np.where(where, quotient, otherwise)


def _brevity_penalty(sums: Array) -> Array:
    predicted, expected = sums[..., 0], sums[..., 1]
    penalty = np.exp(np.minimum(0, 1 - expected / np.maximum(predicted, 1)))
    return np.asarray(np.where(predicted > 0, penalty, expected == 0))


def _bleu_details(sums: Array) -> Mapping[str, float]:
    return {
        "brevity_penalty": float(_brevity_penalty(sums)),
        "length_ratio": float(sums[0] / sums[1]) if sums[1] else 0.0,
    }


def _bleu() -> Any:
    from sacrebleu.metrics import BLEU

    # `force` only silences the warning about text that looks tokenized, as phonemes do.
    return BLEU(force=True)


def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF(char_order=_CHRF_ORDER, word_order=0, beta=_CHRF_BETA)


def _ter() -> Any:
    from sacrebleu.metrics import TER

    return TER()


def _statistics(
    make: Callable[[], Any], predictions: Sequence[str], references: References
) -> Array:
    streams = list(zip_longest(*references))  # None where an example has fewer references
    return np.array(make()._extract_corpus_statistics(predictions, streams), dtype=np.float64)


def _signature(make: Callable[[], Any], references: References) -> str:
    metric = make()
    metric.num_refs = num_references(references)
    return str(metric.get_signature())


BLEU = Metric(
    label="BLEU",
    statistics=partial(_statistics, _bleu),
    corpus_score=bleu_score,
    signature=partial(_signature, _bleu),
    details=_bleu_details,
    sentence_score=partial(bleu_score, effective_order=True),
)
CHRF = Metric(
    label="chrF2",
    statistics=partial(_statistics, _chrf),
    corpus_score=chrf_score,
    signature=partial(_signature, _chrf),
)
TER = Metric(
    label="TER",
    higher_is_better=False,
    statistics=partial(_statistics, _ter),
    corpus_score=ter_score,
    signature=partial(_signature, _ter),
)
