"""Right or wrong: exact match, and the accuracy of GSM8K's final answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from textwrap import shorten

from brim.errors import DataError
from brim.metrics.base import (
    Array,
    Metric,
    References,
    mean_of_sums,
    own_signature,
    with_counts,
)

# github.com/openai/grade-school-math, dataset.py: the first match of this, without its commas, is
# compared as text. So `#### 18.0` is not its `#### 18`, nor is `#### $18`.
_OFFICIAL = re.compile(r"#### (-?[0-9.,]+)")
# Here a dollar sign is allowed too, and numbers are compared.
_NUMERAL = r"(?:-?\$?|\$-)[0-9.,]+"
_MARKED = re.compile(rf"#### ({_NUMERAL})")
_BARE = re.compile(rf"\s*({_NUMERAL})\s*")
# A minus after a word, a number or a bracket subtracts: the last number of `16-3` is 3.
_NUMBER = re.compile(r"(?:(?<![\w.)])-)?\$?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)")


def extract_answer(text: str) -> Decimal | None:
    """The number after the first `#### `, without commas and dollar signs, or None."""
    marked = _MARKED.search(text)
    return _parse(marked[1]) if marked else None


def extract_official_answer(text: str) -> str | None:
    """The text of the first number after `#### `, without commas, or None: GSM8K's own rule."""
    marked = _OFFICIAL.search(text)
    return marked[1].replace(",", "") if marked else None


def extract_last_number(text: str) -> Decimal | None:
    """The last number in the text, whatever is around it, or None."""
    numbers = _NUMBER.findall(text)
    return _parse(numbers[-1]) if numbers else None


def _parse(numeral: str) -> Decimal | None:
    try:
        return Decimal(re.sub("[$,]", "", numeral))
    except InvalidOperation:  # `#### ...` or `#### 1.2.3`
        return None


def _reference_answer(text: str, position: int) -> Decimal:
    bare = _BARE.fullmatch(text)
    answer = _parse(bare[1]) if bare else extract_answer(text)
    if answer is None:
        raise DataError(
            f"answer_accuracy: reference of example {position} has no answer: "
            f"{shorten(text, 60)!r}; it must end in '#### <number>' or be a number"
        )
    return answer


def _as_written(text: str) -> str | None:
    bare = _BARE.fullmatch(text)
    return bare[1].replace(",", "") if bare else extract_official_answer(text)


def _answer_statistics(predictions: Sequence[str], references: References) -> Array:
    strict, lenient, official = [], [], []
    for position, (prediction, group) in enumerate(zip(predictions, references, strict=True)):
        accepted = [_reference_answer(reference, position) for reference in group]
        answer = extract_answer(prediction)
        fallback = extract_last_number(prediction) if answer is None else answer
        strict.append(100.0 * (answer in accepted))
        lenient.append(100.0 * (fallback in accepted))
        written = extract_official_answer(prediction)
        official.append(100.0 * (written is not None and written in map(_as_written, group)))
    return with_counts(strict, lenient, official)


def _answer_details(sums: Array) -> Mapping[str, float]:
    return {
        "with_last_number_fallback": float(sums[1] / sums[-1]),
        "by_official_rule": float(sums[2] / sums[-1]),
    }


def _match_statistics(predictions: Sequence[str], references: References) -> Array:
    return with_counts(
        [
            100.0 * (_normalise(prediction) in map(_normalise, group))
            for prediction, group in zip(predictions, references, strict=True)
        ]
    )


def _normalise(text: str) -> str:
    return " ".join(text.split())


EXACT_MATCH = Metric(
    label="exact match",
    higher_is_better=True,
    statistics=_match_statistics,
    corpus_score=mean_of_sums,
    signature=lambda references: own_signature(
        references, refs="any", case="mixed", norm="whitespace"
    ),
)
ANSWER_ACCURACY = Metric(
    label="answer accuracy",
    higher_is_better=True,
    statistics=_answer_statistics,
    corpus_score=mean_of_sums,
    signature=lambda references: own_signature(
        references, refs="any", answer="first-####", norm="commas+dollars", compare="number"
    ),
    details=_answer_details,
)
