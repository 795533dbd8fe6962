"""Decode a split and score it: the task's metrics, and the teacher's return of each text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object

from brim.errors import ConfigError, DataError, NonFiniteError
from brim.examples import Example
from brim.metrics import Score, mean_score, score_statistics, sentence_statistics
from brim.metrics.regrets import REGRETS, Texts, mean_regrets, regret_and_length
from brim.models import Decoding, Teacher
from brim.returns import rewards_to_go
from brim.seeding import derive_seed
from brim.training.partial import PartialResults
from brim.training.predictions import Block, Completion, EvaluationSettings, Prediction
from brim.types import Batch, Rollout

Advance = Callable[[int], None]

REGRET_DECIMALS = 4  # of a regret in a file


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
        predictions: one an example, in order; none where partial results keep them.
        num_truncated_prompts: prompts that were cut.
        num_truncated_completions: completions that met the length limit.
        mean_regrets: by `return` and `expected_return`, the mean regret at each position.
    """

    scores: dict[str, Score]
    predictions: list[Prediction]
    num_truncated_prompts: int
    num_truncated_completions: int = 0
    mean_regrets: Mapping[str, list[float]] = field(default_factory=dict)

    def score_of(self, metric: str) -> Score:
        """Return the score that picks a checkpoint.

        Raises:
            ConfigError: the teacher's numbers do not say it.
        """
        if metric not in self.scores:
            raise ConfigError(
                f"evaluation.metric: {metric} is not known with this teacher, which gives no best "
                f"value of a state; choose one of {', '.join(self.scores)}"
            )
        return self.scores[metric]


def evaluate(
    model: Teacher,
    examples: Sequence[Example],
    settings: EvaluationSettings,
    *,
    teacher: Teacher | None = None,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    partial: PartialResults | None = None,
    advance: Advance = lambda rows: None,
) -> Evaluation:
    """Decode `examples` and score them by metrics, by length, and by a teacher's return.

    Examples without references count for length and return only. Of several samples an example the
    statistics are summed: scores are over all texts, and intervals over the examples, whose
    samples are not independent of each other.

    With a teacher there is `return` among the scores: the mean over the examples of Eq 10 of the
    decoded text, on the teacher's plain logits, so that it compares students of one teacher
    whatever they were trained with (on log-probabilities, and with another signature, where a
    server gives no more). With `settings.sampling` too there is `expected_return`: the same of text
    that is sampled, the policy's own, which is what reinforcement learning maximizes (Eq 3). With
    each goes its regret per token, a ratio of sums, on which the length has no say.

    Args:
        model: the writer.
        examples: prompts and references.
        settings: how to write, and what to measure.
        teacher: scores the text.
        num_resamples: bootstrap resamples of an interval.
        confidence: coverage of an interval.
        partial: opened; its blocks are not written again, and new ones are put into it.
        advance: called with the number of examples done.

    Raises:
        DataError: there are no examples, or a reference is not what a metric can compare with.
        NonFiniteError: the teacher's return of a completion is no finite number.
    """
    if not examples:
        raise DataError("nothing to evaluate: the split is empty; name a split with examples")
    columns, first = _Columns(), 0
    kept: list[Prediction] = []
    for block in partial.blocks() if partial else ():
        columns.add(block)
        advance(len(block.predictions))
        first += 1
    for block in predict_blocks(model, examples, settings, teacher=teacher, first=first):
        columns.add(block)
        if partial is None:
            kept += block.predictions
        else:
            partial.append(block)
        advance(len(block.predictions))
    interval = Interval(seed=settings.seed, num_resamples=num_resamples, confidence=confidence)
    scores = _scores(columns, settings, [e.references for e in examples], interval)
    centering = "none" if teacher is None else teacher.returns_centering
    for name in {"return", "expected_return"} & scores.keys() if centering != "none" else ():
        # Of other numbers than plain logits: not to be compared with theirs.
        signature = f"{scores[name].signature}|centering:{centering}"
        scores[name] = replace(scores[name], signature=signature)
    return Evaluation(
        scores,
        kept,
        columns.num_truncated_prompts,
        columns.num_truncated_completions,
        {name: mean_regrets(texts) for name, texts in columns.regrets.items()},
    )


@dataclass
class _Columns:
    """What the scores are computed from, example by example."""

    statistics: list[list[Sequence[float]]] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    sampled_returns: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    every_length: list[int] = field(default_factory=list)
    regrets: dict[str, list[Texts]] = field(default_factory=dict)
    num_truncated_prompts: int = 0
    num_truncated_completions: int = 0

    def add(self, block: Block) -> None:
        self.num_truncated_prompts += block.num_truncated_prompts
        for row in block.predictions:
            if row.statistics:
                self.statistics.append([*row.statistics.values()])
            if row.teacher_return is not None:
                self.returns.append(row.teacher_return)
            if row.sampled_return is not None:
                self.sampled_returns.append(row.sampled_return)
            self.lengths.append(row.num_tokens or 0.0)
            self.every_length += [completion.num_tokens or 0 for completion in row.completions]
            for name in REGRETS:
                if texts := row.regrets(name):
                    self.regrets.setdefault(name, []).append(texts)
            self.num_truncated_completions += sum(bool(c.truncated) for c in row.completions)


def _scores(
    columns: _Columns,
    settings: EvaluationSettings,
    references: Sequence[tuple[str, ...]],
    interval: Interval,
) -> dict[str, Score]:
    scores = {}
    answered = [group for group in references if group]
    for name, rows in zip(settings.metrics, zip(*columns.statistics, strict=True), strict=False):
        scores[name] = score_statistics(name, np.array(rows, np.float64), answered, **interval)
    if columns.returns:
        scores["return"] = mean_score("return", columns.returns, **interval)
    if columns.sampled_returns:
        expected = mean_score("expected return", columns.sampled_returns, **interval)
        scores["expected_return"] = expected
    for name, key in REGRETS.items():
        if texts := columns.regrets.get(name):
            sums, lengths = zip(*map(regret_and_length, texts), strict=True)
            scores[key] = mean_score(
                key.replace("_", " "), sums, weights=lengths, higher_is_better=False, **interval
            )
    length = mean_score("length", columns.lengths, **interval)
    scores["length"] = replace(length, details={"median": float(np.median(columns.every_length))})
    if settings.num_samples > 1:
        number = f"|samples:{settings.num_samples}"
        of_one_sample = {"expected_return", REGRETS["expected_return"]}
        for name in scores.keys() - of_one_sample:
            scores[name] = replace(scores[name], signature=scores[name].signature + number)
    return scores


def predict_blocks(
    model: Teacher,
    examples: Sequence[Example],
    settings: EvaluationSettings,
    *,
    teacher: Teacher | None = None,
    first: int = 0,
) -> Iterator[Block]:
    """Answer `examples` block by block, each shared out over the processes.

    Args:
        model: the writer.
        examples: prompts; references are carried along.
        settings: how to write.
        teacher: where given, scores each completion by its return.
        first: blocks to leave out, for they are known.

    Yields:
        The blocks in order, on every process.

    Raises:
        DataError: a reference is not what a metric can compare with.
        NonFiniteError: the teacher's return of a completion is no finite number.
    """
    state, size = PartialState(), settings.block
    mine = range(state.process_index, len(examples), state.num_processes)
    # As many blocks on every process: models whose weights they share are called in step.
    for start in range(first * size, math.ceil(len(examples) / state.num_processes), size):
        rows = mine[start : start + size]
        batch = model.encode(
            [examples[i] for i in rows or range(1)],
            max_tokens=settings.max_prompt_tokens,
            seeds=[derive_seed(settings.seed, "predict", i) for i in rows or range(1)],
        )
        answers = _answer(model, batch, settings, teacher)
        found = list(zip(rows, answers, strict=True)) if rows else []
        num_cut = batch.num_truncated_prompts if rows else 0
        if state.num_processes > 1:
            found = sorted(gather_object(found), key=lambda item: item[0])
            num_cut = sum(gather_object([num_cut]))
        predictions = [prediction for _, prediction in found]
        # After all have met, so that all of them stop at what is wrong.
        if teacher is not None:
            _check_finite(predictions)
        yield Block(_with_statistics(predictions, settings.metrics), num_cut)


def _answer(
    model: Teacher,
    batch: Batch,
    settings: EvaluationSettings,
    teacher: Teacher | None,
) -> list[Prediction]:
    number = settings.num_samples
    written = _complete(model, batch.repeat(number), settings.decoding, teacher)
    beside: list[Completion | None] = [None] * len(batch)
    if settings.sampling is not None and teacher is not None:
        beside = [*_complete(model, batch, settings.sampling, teacher)]
    return [
        Prediction(
            id=example.id,
            prompt=example.text,
            references=example.references,
            completions=tuple(written[i * number : (i + 1) * number]),
            sampled_text=None if sample is None else sample.text,
            sampled_return=None if sample is None else sample.teacher_return,
            sampled_regrets=None if sample is None else sample.regrets,
            sampled=settings.decoding.strategy == "sampling",
        )
        for i, (example, sample) in enumerate(zip(batch.examples, beside, strict=True))
    ]


def _complete(
    model: Teacher, batch: Batch, decoding: Decoding, teacher: Teacher | None
) -> list[Completion]:
    rollout = model.generate(batch, decoding)
    scored: list[Any] = [(None, None)] * len(batch)
    if teacher is not None:
        scored = _returns_and_regrets(teacher, rollout)
    return [
        Completion(text, length, truncated, value, tuple(ids[:length]), regrets)
        for text, length, truncated, (value, regrets), ids in zip(
            model.decode(rollout),
            rollout.lengths.tolist(),
            rollout.truncated.tolist(),
            scored,
            rollout.completion_ids.tolist(),
            strict=True,
        )
    ]


def _returns_and_regrets(
    teacher: Teacher, rollout: Rollout
) -> list[tuple[float, tuple[float, ...]]]:
    centering = teacher.returns_centering
    values = teacher.map(rollout, lambda part: teacher.action_values(part, centering=centering))
    returns = rewards_to_go(values.q_taken, values.q_max, rollout.mask)[:, 0].tolist()
    rows = zip((values.q_max - values.q_taken).tolist(), rollout.lengths.tolist(), strict=True)
    regrets = [tuple(round(d, REGRET_DECIMALS) for d in row[:length]) for row, length in rows]
    return list(zip(returns, regrets, strict=True))


def _check_finite(predictions: Sequence[Prediction]) -> None:
    for prediction in predictions:
        values = [completion.teacher_return for completion in prediction.completions]
        if prediction.sampled_text is not None:
            values.append(prediction.sampled_return)
        # The best value of the first state is in its regret, and in no return.
        values += [regrets[0] for name in REGRETS for regrets in prediction.regrets(name) or ()]
        for value in values:
            if value is None or not math.isfinite(value):
                raise NonFiniteError(
                    f"example {prediction.id}: the teacher's return of what was written for it is "
                    f"not finite ({value}); check the teacher's weights and dtype, or that example"
                )


def _with_statistics(
    predictions: Sequence[Prediction], metrics: Sequence[str]
) -> tuple[Prediction, ...]:
    """The predictions with their statistics, summed over the completions of an example."""
    answered = [prediction for prediction in predictions if prediction.references]
    if not answered or not metrics:
        return tuple(predictions)
    texts = [completion.text for row in answered for completion in row.completions]
    references = [row.references for row in answered for _ in row.completions]
    columns = []
    for name in metrics:
        try:
            each = sentence_statistics(name, texts, references)
        except DataError:
            _blame(name, answered)
            raise
        columns.append(each.reshape(len(answered), -1, each.shape[1]).sum(axis=1).tolist())
    rows = iter(zip(*columns, strict=True))
    return tuple(
        replace(row, statistics=dict(zip(metrics, map(tuple, next(rows)), strict=True)))
        if row.references
        else row
        for row in predictions
    )


def _blame(name: str, answered: Sequence[Prediction]) -> None:
    """Say of which example the references are wrong: metrics know them by position only."""
    for row in answered:
        try:
            sentence_statistics(name, [row.text], [row.references])
        except DataError as error:
            raise DataError(f"example {row.id} (here example 0): {error}") from None
