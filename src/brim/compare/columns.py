"""The numbers of both systems under one metric, from files or computed anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from brim._version import __version__
from brim.compare.measures import other_measure
from brim.errors import RunError
from brim.metrics import METRICS, Metric, Pair, Score, get_metric, sentence_statistics
from brim.metrics.base import Array, mean_of_sums
from brim.metrics.regrets import (
    CUT_RETURNS,
    REGRETS,
    RETURN_OF,
    common_length,
    cut_label,
    regret_and_length,
    regret_behind,
)
from brim.runs.directory import Results
from brim.training.predictions import Prediction

# Of numbers an example that are in the predictions.
NUMBERS = (*RETURN_OF, "length")
# Returns of one text, asked twice, differ by rounding; by more than this only with two teachers.
_ONE_TEACHER = 0.01

Both: TypeAlias = tuple[Results, Results]
BothWritten: TypeAlias = tuple[Sequence[Prediction], Sequence[Prediction]]


@dataclass(frozen=True, slots=True)
class Column:
    """One metric of both systems.

    Attributes:
        label: as it is printed.
        higher_is_better: False for an error rate, None where more is neither better nor worse.
        signatures: what the numbers of A and of B depend on.
        rows: (n,) ascending, the examples that the metric counts.
        pair: (n, S) statistics of both.
        values_a, values_b: (n,) the number of each example alone.
        details: sums of statistics (S,) -> further numbers of the score.
    """

    label: str
    higher_is_better: bool | None
    signatures: tuple[str, str]
    rows: npt.NDArray[np.int64]
    pair: Pair
    values_a: Array
    values_b: Array
    details: Callable[[Array], Mapping[str, float]] = lambda sums: {}

    def score(
        self,
        side: Literal["a", "b"],
        interval: tuple[float, float] | tuple[None, None],
        confidence: float,
    ) -> Score:
        """Return the score of one side, with this interval."""
        second = side == "b"
        statistics = self.pair.b if second else self.pair.a
        return Score(
            name=self.label,
            value=self.pair.scores[second],
            low=interval[0],
            high=interval[1],
            confidence=confidence,
            signature=self.signatures[second],
            higher_is_better=self.higher_is_better is not False,
            num_examples=len(self.rows),
            details=dict(self.details(statistics.sum(axis=0))),
        )

    def ahead(self, num_examples: int) -> Array:
        """Return (N,) how far A is ahead on each example; 0 where the metric does not count it."""
        ahead = np.zeros(num_examples)
        difference = self.values_a - self.values_b
        difference[np.isclose(self.values_a, self.values_b, rtol=1e-9, atol=1e-9)] = 0
        ahead[self.rows] = -difference if self.higher_is_better is False else difference
        return ahead


def read_columns(
    results: Both, rows: BothWritten, names: Sequence[str] | None, cut: int | None
) -> tuple[dict[str, Column], dict[str, str]]:
    """Return the columns of these metrics, or of all scores, and why some are left out.

    Raises:
        ConfigError: one of `names` is no metric.
        RunError: one of `names` is not there for both, or nothing is.
    """
    wanted = dict.fromkeys(names if names else _all_names(results))
    cut = cut or _common_length(rows)
    columns: dict[str, Column] = {}
    left_out: dict[str, str] = {}
    for name in wanted:
        found: Column | str
        if name in NUMBERS:
            found = _number_column(name, results, rows, cut)
        elif names or name in METRICS:
            found = _metric_column(name, get_metric(name), results, rows)
        else:
            found = "not a metric that is known here"
        if isinstance(found, Column):
            columns[name] = found
        else:
            left_out[name] = found
    if left_out and (names or not columns):
        name, reason = next(iter(left_out.items()))
        raise RunError(f"cannot compare {name}: {reason}; name another metric")
    if not columns:
        raise RunError(f"{results[0].directory / 'results.json'}: no scores; name a metric")
    return columns, left_out


def _metric_column(name: str, metric: Metric, results: Both, rows: BothWritten) -> Column | str:
    answered = np.array([i for i, row in enumerate(rows[0]) if row.references], dtype=np.int64)
    if not len(answered):
        return "no example has references"
    signature = metric.signature([rows[0][i].references for i in answered])
    signatures = signature + _samples(rows[0]), signature + _samples(rows[1])
    a, b = (
        _statistics(
            name, metric, signatures[side], results[side], [rows[side][i] for i in answered]
        )
        for side in (0, 1)
    )
    sentence_score = metric.sentence_score or metric.corpus_score
    number_a, number_b = len(rows[0][0].texts), len(rows[1][0].texts)
    if number_a != number_b:  # an example weighs the same whoever wrote for it, and may be swapped
        a, b = a / number_a, b / number_b
    return Column(
        label=metric.label,
        higher_is_better=metric.higher_is_better,
        signatures=signatures,
        rows=answered,
        pair=Pair(a, b, metric.corpus_score, metric.bounds),
        values_a=sentence_score(a),
        values_b=sentence_score(b),
        details=metric.details,
    )


def _samples(rows: Sequence[Prediction]) -> str:
    """What an evaluation adds to its signatures where it scored several samples an example."""
    number = len(rows[0].texts)
    return f"|samples:{number}" if number > 1 else ""


def _statistics(
    name: str, metric: Metric, signature: str, results: Results, rows: Sequence[Prediction]
) -> Array:
    """(n, S), those of the file where they were made as this version would make them."""
    known = results.scores.get(name)
    found = [row.statistics.get(name) for row in rows]
    if known is None or known.signature != signature or None in found:
        texts = [text for row in rows for text in row.texts]
        references = [row.references for row in rows for _ in row.texts]
        each = sentence_statistics(name, texts, references)
        starts = np.cumsum([0, *(len(row.texts) for row in rows[:-1])])
        return np.asarray(np.add.reduceat(each, starts, axis=0))
    try:
        statistics = np.array(found, dtype=np.float64)
        total = float(metric.corpus_score(statistics.sum(axis=0)))
    except (ValueError, TypeError, IndexError):
        total = np.nan
    if not np.isclose(total, known.value, rtol=1e-9, atol=1e-9):
        raise RunError(
            f"{results.directory}: the statistics of {name} in its predictions do not give the "
            f"score in results.json; write both anew by brim evaluate {results.directory}"
        )
    return statistics


def _all_names(results: Both) -> list[str]:
    """All scores of either, a return followed by that of cut texts where the regrets are known."""
    names = []
    for name in [key for side in results for key in side.scores]:
        names.append(name)
        if all(REGRETS.get(name) in side.scores for side in results):
            names.append(CUT_RETURNS[name])
    return names


def _number_column(name: str, results: Both, rows: BothWritten, length: int | None) -> Column | str:
    if reason := other_measure(name, results[0].facts, results[1].facts):
        return reason
    is_ratio = name in REGRETS.values()
    length = length if name in CUT_RETURNS.values() else None
    sides = []
    for side, written in zip(results, rows, strict=True):
        values = [_number(name, row, length) for row in written]
        if None in values:
            return f"{side.directory} does not have it of every example"
        sides.append(np.array(values, dtype=np.float64))
        if not np.isfinite(sides[-1]).all():
            return f"{side.directory} has one that is not finite"
    a, b = sides
    signature = f"agg:{'ratio' if is_ratio else 'mean'}|version:brim-{__version__}"
    if length is not None:
        signature += f"|first:{length}"
    if name != "length":
        same = np.array([_text(name, x) == _text(name, y) for x, y in zip(*rows, strict=True)])
        if name not in REGRETS and 2 * (_other_lengths(name, rows) & same).sum() > same.sum():
            return (
                "the same texts have other numbers of tokens in the two, so their tokenizers are "
                "not the same"
            )
        gaps = np.abs(a - b)[same, 0]
        if same.any() and np.median(gaps) > _ONE_TEACHER * (1 + np.median(np.abs(a[same, 0]))):
            return (
                "the same texts have other returns in the two (by a median of "
                f"{np.median(gaps):.3g}), so their teachers were not the same"
            )
        b = np.where(same[:, None], a, b)  # one text has one return, whatever it was batched with
    of_one_sample = RETURN_OF.get(name) == "expected_return"
    return Column(
        label=name.replace("_", " ") if length is None else cut_label(RETURN_OF[name], length),
        higher_is_better=None if name == "length" else not is_ratio,
        signatures=(signature, signature)
        if of_one_sample
        else (signature + _samples(rows[0]), signature + _samples(rows[1])),
        rows=np.arange(len(a)),
        pair=Pair(a, b, mean_of_sums),
        values_a=mean_of_sums(a),
        values_b=mean_of_sums(b),
    )


def _common_length(rows: BothWritten) -> int | None:
    """Of the texts of both; None where one does not know its lengths."""
    lengths = [[c.num_tokens or 0 for row in side for c in row.completions] for side in rows]
    if any(0 in side for side in lengths):
        return None
    return common_length(float(np.median(side)) for side in lengths)


def _number(name: str, row: Prediction, length: int | None) -> tuple[float, float] | None:
    """Of an example, its share of a sum and of what divides the sum."""
    of = RETURN_OF.get(name)
    value = {
        "return": row.teacher_return, "expected_return": row.sampled_return, None: row.num_tokens
    }[of]  # fmt: skip
    if of is None or name == of or value is None:
        return None if value is None else (value, 1.0)
    texts = row.regrets(of)
    if texts is None:
        return None
    if name == REGRETS[of]:
        return regret_and_length(texts)
    return None if length is None else (value + regret_behind(texts, length), 1.0)


def _other_lengths(name: str, rows: BothWritten) -> npt.NDArray[np.bool_]:
    """Of which examples the two texts have other numbers of tokens, by their regrets."""
    of = RETURN_OF[name]
    lengths = [[list(map(len, row.regrets(of) or ())) for row in side] for side in rows]
    return np.array([a != b for a, b in zip(*lengths, strict=True)])


def _text(name: str, row: Prediction) -> tuple[str, ...] | str | None:
    return row.texts if RETURN_OF[name] == "return" else row.sampled_text
