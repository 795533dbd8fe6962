"""Two systems on the same examples: scores, differences, and the texts where they differ most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brim.compare.columns import Column, read_columns
from brim.compare.measures import different_decodings
from brim.errors import ConfigError, RunError
from brim.metrics import (
    Pair,
    Score,
    WinTieLoss,
    approximate_randomization,
    paired_bootstrap,
    win_tie_loss,
)
from brim.metrics.regrets import RETURN_OF
from brim.runs.directory import RunDirectory
from brim.support.printing import Printed
from brim.training.predictions import Prediction


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """A metric of A and of B.

    Attributes:
        a, b: the scores of the two; their intervals come from the same resamples.
        difference: score of A minus score of B.
        low, high: the paired bootstrap interval of the difference.
        detectable: the difference that a test on such examples sees with 80 % power.
        bootstrap_p: two-sided p-value of the paired bootstrap.
        randomization_p: two-sided p-value of approximate randomization.
        sentences: on how many A is better, as good, and worse, with the p-value of a sign test.
        higher_is_better: None of `length`, where more is neither; there the longer one "wins".
    """

    a: Score
    b: Score
    difference: float
    low: float | None
    high: float | None
    detectable: float | None
    bootstrap_p: float
    randomization_p: float
    sentences: WinTieLoss
    higher_is_better: bool | None


@dataclass(frozen=True, slots=True)
class Sentence:
    """One example with both texts.

    Attributes:
        id, prompt, references: of the example.
        a, b: what the systems wrote, the first of several samples.
        scores_a, scores_b: by metric, of this example alone.
    """

    id: str
    prompt: str
    references: tuple[str, ...]
    a: str
    b: str
    scores_a: Mapping[str, float]
    scores_b: Mapping[str, float]


@dataclass(frozen=True, slots=True, repr=False)
class Comparison(Printed):
    """A and B compared on the same examples.

    Attributes:
        a, b: the directories.
        split: of the data.
        num_examples: in the split.
        num_same: for how many of them both wrote the same text.
        metrics: by name; the first one orders the sentences.
        better_a, better_b: the sentences where A (B) is most ahead by the first metric; further
            metrics decide where it is even.
        left_out: by name, why a score of `results.json` is not among the metrics.
        decodings: of A and B, where the texts were decoded differently.
        stopped_at: of `a` and of `b` whose training had not ended, how far it was.
        seed, num_resamples, confidence: of intervals and p-values.
        text: as `brim compare` prints it; "" of `compare_runs` and `compare_seeds`.
    """

    a: str
    b: str
    split: str
    num_examples: int
    num_same: int
    metrics: Mapping[str, MetricComparison]
    better_a: tuple[Sentence, ...]
    better_b: tuple[Sentence, ...]
    left_out: Mapping[str, str]
    decodings: tuple[str, str] | None
    stopped_at: Mapping[str, str]
    seed: int
    num_resamples: int
    confidence: float
    text: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        found = asdict(self)
        del found["text"]
        return found


def compare_runs(
    a: Path,
    b: Path,
    *,
    split: str = "test",
    metrics: Sequence[str] | None = None,
    num_resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
    num_sentences: int = 10,
    cut: int | None = None,
) -> Comparison:
    """Compare what two systems wrote for the same examples.

    Args:
        a: a run directory, a stage, or what `brim evaluate --out` wrote.
        b: another one.
        split: of the data, evaluated in both.
        metrics: keys of `METRICS`, `return`, `expected_return`, what goes with these
            (`brim.metrics.regrets`) and `length`, the one that orders the sentences first; None for
            all that the two `results.json` have.
        num_resamples: of the bootstrap, and trials of the randomization.
        seed: of both.
        confidence: coverage of the intervals.
        num_sentences: to show in each direction, at most.
        cut: length at which the returns of cut texts are compared; by default the smaller of the
            two median lengths.

    Raises:
        ConfigError: an unknown metric, or a number out of bounds.
        RunError: a directory or file is missing or damaged, or the two are not of the same
            examples.
    """
    if num_sentences < 0:
        raise ConfigError(f"num_sentences is {num_sentences}: it must be at least 0")
    ours, theirs = RunDirectory(a), RunDirectory(b)
    results = ours.results(split), theirs.results(split)
    rows = (
        list(ours.predictions(split, count=results[0].num_examples)),
        list(theirs.predictions(split, count=results[1].num_examples)),
    )
    _check_same_examples(ours.predictions_path(split), theirs.predictions_path(split), *rows)
    columns, left_out = read_columns(results, rows, metrics, cut)
    compared = _compare(columns, seed, num_resamples, confidence)
    ahead = np.stack([column.ahead(len(rows[0])) for column in columns.values()])
    return Comparison(
        a=str(a),
        b=str(b),
        split=split,
        num_examples=len(rows[0]),
        num_same=sum(x.texts == y.texts for x, y in zip(*rows, strict=True)),
        metrics=compared,
        better_a=_sentences(rows, columns, _most(ahead, num_sentences)),
        better_b=_sentences(rows, columns, _most(-ahead, num_sentences)),
        left_out=left_out,
        decodings=different_decodings(*results),
        stopped_at={
            side: stop
            for side, found in zip("ab", results, strict=True)
            if (stop := found.stopped_at) is not None
        },
        seed=seed,
        num_resamples=num_resamples,
        confidence=confidence,
    )


def _check_same_examples(
    path_a: Path, path_b: Path, rows_a: Sequence[Prediction], rows_b: Sequence[Prediction]
) -> None:
    advice = "evaluate both on the same data"
    for number, (x, y) in enumerate(zip(rows_a, rows_b, strict=False), start=1):
        where = f"{path_b}:{number}: another example than in {path_a}"
        if x.id != y.id:
            raise RunError(f"{where}: id {y.id!r} for {x.id!r}; {advice}")
        if x.prompt != y.prompt:
            raise RunError(f"{where}: another prompt of {x.id!r}; {advice}")
        if x.references != y.references:
            raise RunError(f"{where}: other references of {x.id!r}; {advice}")
    if len(rows_a) != len(rows_b):
        raise RunError(
            f"{path_b}: {len(rows_b):,} examples, and {len(rows_a):,} in {path_a}; {advice}"
        )


def _compare(
    columns: Mapping[str, Column], seed: int, num_resamples: int, confidence: float
) -> dict[str, MetricComparison]:
    """Examples without references have returns and no scores: a bootstrap for each number."""
    compared: dict[str, MetricComparison] = {}
    for size in {len(column.rows) for column in columns.values()}:
        pairs: dict[str, Pair] = {
            name: column.pair for name, column in columns.items() if len(column.rows) == size
        }
        tests = paired_bootstrap(
            pairs, seed=seed, num_resamples=num_resamples, confidence=confidence
        )
        p_values = approximate_randomization(pairs, seed=seed, num_trials=num_resamples)
        for name, test in tests.items():
            column = columns[name]
            compared[name] = MetricComparison(
                a=column.score("a", test.interval_a, confidence),
                b=column.score("b", test.interval_b, confidence),
                difference=test.difference,
                low=test.low,
                high=test.high,
                detectable=test.detectable,
                bootstrap_p=test.p_value,
                randomization_p=p_values[name],
                sentences=win_tie_loss(
                    column.values_a,
                    column.values_b,
                    higher_is_better=column.higher_is_better is not False,
                ),
                higher_is_better=column.higher_is_better,
            )
    return {name: compared[name] for name in columns}


def _most(ahead: npt.NDArray[np.float64], count: int) -> list[int]:
    """(M, N) how far ahead by metric -> the rows most ahead by the first; later ones break ties."""
    order = np.lexsort(-ahead[::-1])
    return [int(row) for row in order if ahead[0, row] > 0][:count]


def _sentences(
    rows: tuple[Sequence[Prediction], Sequence[Prediction]],
    columns: Mapping[str, Column],
    chosen: Sequence[int],
) -> tuple[Sentence, ...]:
    sampled = RETURN_OF.get(next(iter(columns))) == "expected_return"
    sentences = []
    for i in chosen:
        x, y = rows[0][i], rows[1][i]
        found = {
            name: int(np.searchsorted(column.rows, i))
            for name, column in columns.items()
            if i in column.rows
        }
        sentences.append(
            Sentence(
                id=x.id,
                prompt=x.prompt,
                references=x.references,
                a=x.sampled_text if sampled and x.sampled_text is not None else x.text,
                b=y.sampled_text if sampled and y.sampled_text is not None else y.text,
                scores_a={name: float(columns[name].values_a[k]) for name, k in found.items()},
                scores_b={name: float(columns[name].values_b[k]) for name, k in found.items()},
            )
        )
    return tuple(sentences)
