"""What a metric is, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from brim._version import __version__
from brim.errors import DataError

Array: TypeAlias = npt.NDArray[np.float64]
References: TypeAlias = Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Metric:
    """A corpus metric whose sufficient statistics add up over examples.

    Because they add up, the score of any resample of the corpus is `corpus_score` of a weighted
    sum of rows, and a thousand resamples are one matrix product.

    Attributes:
        label: the name as it is printed.
        statistics: predictions and references of N examples -> (N, S) float64.
        corpus_score: sums of statistics (..., S) -> scores (...,), 0-100 as the field prints them.
        signature: references -> everything that the number depends on, as `key:value|...`.
        higher_is_better: False for an error rate.
        details: sums of statistics (S,) -> further numbers printed beside the score.
        sentence_score: like `corpus_score`, where a single sentence needs another formula.
    """

    label: str
    statistics: Callable[[Sequence[str], References], Array]
    corpus_score: Callable[[Array], Array]
    signature: Callable[[References], str]
    higher_is_better: bool = True
    details: Callable[[Array], Mapping[str, float]] = lambda sums: {}
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
        """Return the fields as plain values for JSON; `Score(**fields)` reads them back."""
        return asdict(self)


def finite_values(name: str, values: npt.ArrayLike) -> Array:
    """Return (N,) finite numbers in float64; `name` is what errors call them.

    Raises:
        DataError: no values, or one that is not a finite number.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise DataError(f"{name}: values have shape {array.shape}; give a list of numbers")
    finite = np.isfinite(array)
    if not finite.all():
        position = int(np.argmin(finite))
        raise DataError(f"{name}: value {position} is {array[position]}")
    return array


def paired_values(name: str, a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[Array, Array]:
    """Return `finite_values` of both; raises a DataError too where their numbers differ."""
    first, second = finite_values(name, a), finite_values(name, b)
    if len(first) != len(second):
        raise DataError(f"{name}: {len(first)} values against {len(second)}; give pairs")
    return first, second


def with_counts(*columns: Sequence[float] | Array) -> Array:
    """Return (N, S + 1) statistics of a mean: S columns of N values and a column of ones."""
    return np.column_stack([*columns, np.ones(len(columns[0]))]).astype(np.float64)


def mean_of_sums(sums: Array) -> Array:
    """Return (...,) means of the first column, of (..., S) sums of `with_counts` statistics."""
    return np.asarray(sums[..., 0] / sums[..., -1])


def own_signature(references: References, **parts: str) -> str:
    """Return the signature of a metric of ours: number of references, `parts`, version."""
    parts = {"nrefs": num_references(references), **parts, "version": f"brim-{__version__}"}
    return "|".join(f"{key}:{value}" for key, value in parts.items())


def num_references(references: References) -> str:
    """Return the references an example, or `var` where it varies, as signatures say it."""
    counts = {len(group) for group in references}
    return str(counts.pop()) if len(counts) == 1 else "var"
