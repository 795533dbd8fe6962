"""Right or wrong: exact match, and the accuracy of GSM8K's final answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import shorten

from brim.errors import DataError
from brim.metrics.base import (
    PERCENT,
    Array,
    Metric,
    References,
    mean_of_sums,
    own_signature,
    with_counts,
)
from brim.support.numerals import (
    MARK,
    REFERENCE_ANSWERS,
    last_number,
    marked_number,
    official_answer,
    official_reference,
    whole_number,
)


def _answer_statistics(predictions: Sequence[str], references: References) -> Array:
    strict, lenient, official = [], [], []
    for position, (prediction, group) in enumerate(zip(predictions, references, strict=True)):
        accepted = _accepted("answer_accuracy", group, position)
        marked, whole = marked_number(prediction), whole_number(prediction)
        fallback = last_number(prediction) if marked is None else marked
        right = any(
            # An output needs no mark where the reference has none.
            answer == (whole if marked is None and MARK not in reference else marked)
            for answer, reference in zip(accepted, group, strict=True)
        )
        written = official_answer(prediction)
        strict.append(100.0 * right)
        lenient.append(100.0 * (right or fallback in accepted))
        official.append(100.0 * (written is not None and written in map(official_reference, group)))
    return with_counts(strict, lenient, official)


def _official_statistics(predictions: Sequence[str], references: References) -> Array:
    pairs = enumerate(zip(predictions, references, strict=True))
    return with_counts(
        [
            100.0 * (official_answer(text) in _accepted("gsm8k_accuracy", group, position))
            for position, (text, group) in pairs
        ]
    )


def _accepted(metric: str, group: Sequence[str], position: int) -> list[object]:
    answers = [REFERENCE_ANSWERS[metric](reference) for reference in group]
    if None in answers:
        text = shorten(group[answers.index(None)], 60)
        raise DataError(
            f"{metric}: reference of example {position} has no answer: {text!r}; "
            "it must be one number, or end in '#### <number>'"
        )
    return answers


def _answer_details(sums: Array) -> Mapping[str, float]:
    return {
        "with_last_number_fallback": float(sums[1] / sums[-1]),
        "by_official_rule": float(sums[2] / sums[-1]),
    }


def _match_statistics(predictions: Sequence[str], references: References) -> Array:
    return with_counts(
        [
            100.0 * (_normalize(prediction) in map(_normalize, group))
            for prediction, group in zip(predictions, references, strict=True)
        ]
    )


def _normalize(text: str) -> str:
    return " ".join(text.split())


EXACT_MATCH = Metric(
    label="exact match",
    statistics=_match_statistics,
    corpus_score=mean_of_sums,
    signature=lambda references: own_signature(
        references, refs="any", case="mixed", norm="whitespace"
    ),
    bounds=PERCENT,
)
ANSWER_ACCURACY = Metric(
    label="answer accuracy",
    statistics=_answer_statistics,
    corpus_score=mean_of_sums,
    signature=lambda references: own_signature(
        references, refs="any", answer="first-####", norm="typesetting", compare="number"
    ),
    details=_answer_details,
    bounds=PERCENT,
)
GSM8K_ACCURACY = Metric(
    label="GSM8K accuracy",
    statistics=_official_statistics,
    corpus_score=mean_of_sums,
    signature=lambda references: own_signature(
        references, refs="any", answer="first-####", norm="commas", compare="text"
    ),
    bounds=PERCENT,
)
