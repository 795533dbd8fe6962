"""What a metric is, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from brim._version import __version__

Array: TypeAlias = npt.NDArray[np.float64]
References: TypeAlias = Sequence[Sequence[str]]


def _no_details(sums: Array) -> Mapping[str, float]:
    return {}


@dataclass(frozen=True, slots=True)
class Metric:
    """A corpus metric whose sufficient statistics add up over examples.

    Because they add up, the score of any resample of the corpus is `corpus_score` of a weighted
    sum of rows, and a thousand resamples are one matrix product.

    Attributes:
        label: the name as it is printed.
        higher_is_better: False for an error rate.
        statistics: predictions and references of N examples -> (N, S) float64.
        corpus_score: sums of statistics (..., S) -> scores (...,), 0-100 as the field prints them.
        signature: references -> everything that the number depends on, as `key:value|...`.
        details: sums of statistics (S,) -> further numbers printed beside the score.
        sentence_score: like `corpus_score`, where a single sentence needs another formula.
    """

    label: str
    higher_is_better: bool
    statistics: Callable[[Sequence[str], References], Array]
    corpus_score: Callable[[Array], Array]
    signature: Callable[[References], str]
    details: Callable[[Array], Mapping[str, float]] = _no_details
    sentence_score: Callable[[Array], Array] | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """A number with its interval and the signature that makes it comparable.

    Printed as `BLEU 34.9 [33.8, 36.0]`; a format specification applies to the three numbers, as in
    `f"{score:.2f}"`.

    Attributes:
        name: the name as it is printed.
        value: the score of the whole corpus.
        low: lower end of the percentile bootstrap interval.
        high: upper end of it.
        confidence: coverage of the interval, 0.95 for 95 %.
        signature: what the number depends on.
        higher_is_better: False for an error rate.
        num_examples: the size of the corpus.
        details: further numbers of the metric, without intervals.
    """

    name: str
    value: float
    low: float
    high: float
    confidence: float
    signature: str
    higher_is_better: bool
    num_examples: int
    details: Mapping[str, float] = field(default_factory=dict)

    def __format__(self, spec: str) -> str:
        spec = spec or ".1f"
        return f"{self.name} {self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def __str__(self) -> str:
        return format(self)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON; `Score(**fields)` reads them back."""
        return asdict(self)


def with_counts(*columns: Sequence[float] | Array) -> Array:
    """(N, S + 1) statistics of a mean: S columns of N values and a column of ones."""
    return np.column_stack([*columns, np.ones(len(columns[0]))]).astype(np.float64)


def mean_of_sums(sums: Array) -> Array:
    """(..., S) sums of `with_counts` statistics -> (...,) means of the first column."""
    return np.asarray(sums[..., 0] / sums[..., -1])


def own_signature(references: References, **parts: str) -> str:
    """The signature of a metric of ours: number of references, `parts`, version."""
    parts = {"nrefs": num_references(references), **parts, "version": f"brim-{__version__}"}
    return "|".join(f"{key}:{value}" for key, value in parts.items())


def num_references(references: References) -> str:
    """References an example, or `var` where it varies, as signatures say it."""
    counts = {len(group) for group in references}
    return str(counts.pop()) if len(counts) == 1 else "var"
