"""Decode a split and score it: the task's metrics, and the teacher's return of each text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

import numpy as np

from brim.errors import DataError
from brim.metrics import Score, mean_score, score_statistics
from brim.models import LanguageModel
from brim.training.journal import Journal
from brim.training.predictions import Block, Prediction, Procedure, predict_blocks
from brim.types import Example

Advance = Callable[[int], None]


class Interval(TypedDict):
    """Arguments of every score's bootstrap interval."""

    seed: int
    num_resamples: int
    confidence: float


@dataclass(frozen=True)
class Evaluation:
    """Scores of a split and the predictions they were computed from.

    Attributes:
        scores: by name.
        predictions: one an example, in order; none where a journal keeps them.
        num_truncated_prompts: prompts that were cut.
        num_truncated_completions: completions that met the length limit.
    """

    scores: dict[str, Score]
    predictions: list[Prediction]
    num_truncated_prompts: int
    num_truncated_completions: int = 0


def evaluate(
    model: LanguageModel,
    examples: Sequence[Example],
    procedure: Procedure,
    *,
    teacher: LanguageModel | None = None,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    journal: Journal | None = None,
    advance: Advance = lambda rows: None,
) -> Evaluation:
    """Decode `examples` and score them by metrics, by length, and by a teacher's return.

    Examples without references count for length and return only. Of several samples an example the
    statistics are summed: scores are over all texts, and intervals over the examples, whose
    samples are not independent of each other.

    With a teacher there is `return` among the scores: the mean over the examples of Eq 10 of the
    decoded text, on the teacher's plain logits, so that it compares students of one teacher
    whatever they were trained with. With `procedure.sampling` too there is `expected_return`: the
    same of text that is sampled, the policy's own, which is what reinforcement learning maximises
    (Eq 3).

    Args:
        model: the writer.
        examples: prompts and references.
        procedure: how to write, and what to measure.
        teacher: judges the text.
        num_resamples: bootstrap resamples of an interval.
        confidence: coverage of an interval.
        journal: opened; its blocks are not written again, and new ones are put into it.
        advance: called with the number of examples done.

    Raises:
        DataError: there are no examples, or a reference is not what a metric can compare with.
        NonFiniteError: the teacher's return of a completion is no finite number.
    """
    if not examples:
        raise DataError("nothing to evaluate: the split is empty; name a split with examples")
    columns, first = _Columns(), 0
    kept: list[Prediction] = []
    for block in journal.blocks() if journal else ():
        columns.add(block)
        advance(len(block.predictions))
        first += 1
    for block in predict_blocks(model, examples, procedure, teacher=teacher, first=first):
        columns.add(block)
        if journal is None:
            kept += block.predictions
        else:
            journal.append(block)
        advance(len(block.predictions))
    interval = Interval(seed=procedure.seed, num_resamples=num_resamples, confidence=confidence)
    scores = _scores(columns, procedure, [e.references for e in examples], interval)
    return Evaluation(
        scores, kept, columns.num_truncated_prompts, columns.num_truncated_completions
    )


@dataclass
class _Columns:
    """What the scores are computed from, example by example."""

    statistics: list[list[tuple[float, ...]]] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    sampled_returns: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    num_truncated_prompts: int = 0
    num_truncated_completions: int = 0

    def add(self, block: Block) -> None:
        self.num_truncated_prompts += block.num_truncated_prompts
        for row in block.predictions:
            completions = row.completions
            if row.statistics:
                self.statistics.append(list(row.statistics.values()))
            if row.teacher_return is not None:
                returns = [c.teacher_return for c in completions if c.teacher_return is not None]
                self.returns.append(sum(returns) / len(returns))
            if row.sampled_return is not None:
                self.sampled_returns.append(row.sampled_return)
            self.lengths.append(sum(c.num_tokens for c in completions) / len(completions))
            self.num_truncated_completions += sum(c.truncated for c in completions)


def _scores(
    columns: _Columns,
    procedure: Procedure,
    references: Sequence[tuple[str, ...]],
    interval: Interval,
) -> dict[str, Score]:
    scores = {}
    answered = [group for group in references if group]
    for name, rows in zip(procedure.metrics, zip(*columns.statistics, strict=True), strict=False):
        scores[name] = score_statistics(name, np.array(rows, np.float64), answered, **interval)
    if columns.returns:
        scores["return"] = mean_score("return", columns.returns, **interval)
    if columns.sampled_returns:
        expected = mean_score("expected return", columns.sampled_returns, **interval)
        scores["expected_return"] = expected
    scores["length"] = mean_score("length", columns.lengths, **interval)
    if procedure.num_samples > 1:
        number = f"|samples:{procedure.num_samples}"
        for name in scores.keys() - {"expected_return"}:  # which is of one sample
            scores[name] = replace(scores[name], signature=scores[name].signature + number)
    return scores
