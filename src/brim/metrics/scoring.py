"""The registry of metrics, and scores with intervals from predictions and references."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches

import numpy.typing as npt

from brim._version import __version__
from brim.errors import ConfigError, DataError
from brim.metrics.answers import ANSWER_ACCURACY, EXACT_MATCH, GSM8K_ACCURACY
from brim.metrics.base import (
    Array,
    Metric,
    References,
    Score,
    finite_values,
    mean_of_sums,
    paired_values,
    with_counts,
)
from brim.metrics.bootstrap import bootstrap_interval
from brim.metrics.rouge import rouge
from brim.metrics.translation import BLEU, CHRF, TER

METRICS: dict[str, Metric] = {
    "rouge1": rouge("rouge1", "ROUGE-1"),
    "rouge2": rouge("rouge2", "ROUGE-2"),
    "rougeL": rouge("rougeL", "ROUGE-L"),
    "rougeLsum": rouge("rougeLsum", "ROUGE-Lsum"),
    "bleu": BLEU,
    "chrf": CHRF,
    "ter": TER,
    "exact_match": EXACT_MATCH,
    "answer_accuracy": ANSWER_ACCURACY,
    "gsm8k_accuracy": GSM8K_ACCURACY,
}


def get_metric(name: str) -> Metric:
    """Return the metric of this name.

    Raises:
        ConfigError: there is none; the text gives the nearest name.
    """
    if name in METRICS:
        return METRICS[name]
    near = get_close_matches(name, METRICS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(METRICS)}"
    raise ConfigError(f"unknown metric {name!r}: {hint}")


def score(
    names: Iterable[str],
    predictions: Sequence[str],
    references: References,
    *,
    seed: int = 0,
    num_resamples: int = 1000,
    confidence: float = 0.95,
) -> dict[str, Score]:
    """Score predictions by each of these metrics, with bootstrap intervals.

    Args:
        names: keys of `METRICS`.
        predictions: N texts; an empty text is a prediction like any other.
        references: N groups of at least one acceptable text each; their number may vary.
        seed: of the resamples, which all metrics share.
        num_resamples: corpora drawn with replacement for the interval.
        confidence: coverage of the interval.

    Raises:
        ConfigError: an unknown metric, fewer than one resample, a confidence outside (0, 1).
        DataError: no examples, different lengths, an example without references or with
            something other than text, a reference that has no answer to compare with.
    """
    metrics = {name: get_metric(name) for name in names}
    _check_texts(predictions, references)
    return {
        name: score_statistics(
            name,
            metric.statistics(predictions, references),
            references,
            seed=seed,
            num_resamples=num_resamples,
            confidence=confidence,
        )
        for name, metric in metrics.items()
    }


def score_statistics(
    name: str,
    statistics: Array,
    references: References,
    *,
    seed: int = 0,
    num_resamples: int = 1000,
    confidence: float = 0.95,
) -> Score:
    """Return the score, with its bootstrap interval, of examples whose statistics are known.

    Args:
        name: a key of `METRICS`.
        statistics: (N, S), one row an example, which may be a sum over several texts for it.
        references: of the examples, for the signature.
        seed: of the resamples.
        num_resamples: corpora drawn with replacement for the interval.
        confidence: coverage of the interval.

    Raises:
        ConfigError: an unknown metric, fewer than one resample, a confidence outside (0, 1).
    """
    metric = get_metric(name)
    return _estimate(
        metric.label,
        statistics,
        metric.corpus_score,
        seed=seed,
        num_resamples=num_resamples,
        confidence=confidence,
        signature=metric.signature(references),
        higher_is_better=metric.higher_is_better,
        details=metric.details,
    )


def sentence_statistics(name: str, predictions: Sequence[str], references: References) -> Array:
    """Return (N, S) additive statistics; `METRICS[name].corpus_score` takes their sum.

    Raises:
        ConfigError: an unknown metric.
        DataError: as for `score`.
    """
    metric = get_metric(name)
    _check_texts(predictions, references)
    return metric.statistics(predictions, references)


def sentence_scores(name: str, predictions: Sequence[str], references: References) -> Array:
    """Return (N,) the score of each example alone, to show beside its text.

    Their mean is the corpus score of ROUGE, exact match and answer accuracy, and not that of BLEU,
    chrF and TER. BLEU of one sentence leaves out the n-gram orders longer than the sentence.

    Raises:
        ConfigError: an unknown metric.
        DataError: as for `score`.
    """
    metric = get_metric(name)
    statistics = sentence_statistics(name, predictions, references)
    return (metric.sentence_score or metric.corpus_score)(statistics)


def mean_score(
    name: str,
    values: npt.ArrayLike,
    *,
    seed: int = 0,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    higher_is_better: bool = True,
) -> Score:
    """Return the mean of one number an example, such as its return, with its bootstrap interval.

    Args:
        name: as it is to be printed.
        values: (N,) finite numbers.
        seed: of the resamples, the same as those of `score` for N examples.
        num_resamples: corpora drawn with replacement for the interval.
        confidence: coverage of the interval.
        higher_is_better: False for an error or a cost.

    Raises:
        ConfigError: fewer than one resample, or a confidence outside (0, 1).
        DataError: no values, or one that is not a finite number.
    """
    return _estimate(
        name,
        with_counts(finite_values(name, values)),
        mean_of_sums,
        seed=seed,
        num_resamples=num_resamples,
        confidence=confidence,
        signature=f"agg:mean|version:brim-{__version__}",
        higher_is_better=higher_is_better,
    )


def paired_difference(
    values_a: npt.ArrayLike,
    values_b: npt.ArrayLike,
    *,
    name: str = "difference",
    seed: int = 0,
    num_resamples: int = 1000,
    confidence: float = 0.95,
) -> Score:
    """Return the mean over examples of `a - b`: A beats B beyond the interval where `low > 0`.

    Both systems see the same examples, so what makes an example hard for both cancels, and the
    interval is narrower than two separate ones suggest.

    Args:
        values_a: (N,) finite numbers of system A.
        values_b: (N,) finite numbers of system B on the same examples, in the same order.
        name: as it is to be printed.
        seed: of the resamples.
        num_resamples: corpora drawn with replacement for the interval.
        confidence: coverage of the interval.

    Raises:
        ConfigError: fewer than one resample, or a confidence outside (0, 1).
        DataError: no values, different lengths, or a value that is not a finite number.
    """
    a, b = paired_values(name, values_a, values_b)
    return mean_score(name, a - b, seed=seed, num_resamples=num_resamples, confidence=confidence)


def _estimate(
    name: str,
    statistics: Array,
    corpus_score: Callable[[Array], Array],
    *,
    seed: int,
    num_resamples: int,
    confidence: float,
    signature: str,
    higher_is_better: bool,
    details: Callable[[Array], Mapping[str, float]] = lambda sums: {},
) -> Score:
    low, high = bootstrap_interval(
        statistics, corpus_score, seed=seed, num_resamples=num_resamples, confidence=confidence
    )
    sums = statistics.sum(axis=0)
    return Score(
        name=name,
        value=float(corpus_score(sums)),
        low=low,
        high=high,
        confidence=confidence,
        signature=signature,
        higher_is_better=higher_is_better,
        num_examples=len(statistics),
        details=details(sums),
    )


def _check_texts(predictions: Sequence[str], references: References) -> None:
    if len(predictions) != len(references):
        raise DataError(
            f"{len(predictions)} predictions for {len(references)} groups of references; "
            "give one prediction an example"
        )
    if not predictions:
        raise DataError("nothing to score: the data set is empty")
    for position, (prediction, group) in enumerate(zip(predictions, references, strict=True)):
        if not isinstance(prediction, str):
            raise DataError(f"prediction of example {position} is {prediction!r}, not a text")
        if isinstance(group, str) or not all(isinstance(text, str) for text in group):
            raise DataError(
                f"references of example {position} are {group!r}; give a tuple of texts"
            )
        if not group:
            raise DataError(f"example {position} has no references to score against")
