"""Decode a split and score it: the task's metrics, and the teacher's return of each text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypedDict

from accelerate import PartialState
from accelerate.utils import gather_object

from brim.errors import DataError, NonFiniteError
from brim.metrics import Score, mean_score, score
from brim.models import Decoding, LanguageModel
from brim.returns import rewards_to_go
from brim.seeding import derive_seed
from brim.types import Example, Rollout

Advance = Callable[[int], None]

# Examples that are encoded, decoded and judged together, in passes of what their tokens allow.
BLOCK = 512


class Interval(TypedDict):
    """Arguments of every score's bootstrap interval."""

    seed: int
    num_resamples: int
    confidence: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model wrote for one example.

    Attributes:
        id, prompt, references: of the example.
        text: the completion without special tokens.
        num_tokens: actions, EOS included.
        truncated: cut at the length limit.
        teacher_return: `G_1` (Eq 10) of the completion in the teacher's logits, if it was asked.
        sampled_text, sampled_return: a sample of the policy and its return, if it was drawn.
    """

    id: str
    prompt: str
    references: tuple[str, ...]
    text: str
    num_tokens: int
    truncated: bool
    teacher_return: float | None = None
    sampled_text: str | None = None
    sampled_return: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """Scores of a split and the predictions they were computed from."""

    scores: dict[str, Score]
    predictions: list[Prediction]
    num_truncated_prompts: int


def predict(
    model: LanguageModel,
    examples: Sequence[Example],
    decoding: Decoding,
    *,
    teacher: LanguageModel | None = None,
    max_prompt_tokens: int | None = None,
    seed: int = 0,
    advance: Advance = lambda rows: None,
) -> tuple[list[Prediction], int]:
    """Decode `examples`, shared out over the processes.

    Args:
        model: the writer.
        examples: prompts; references are carried along.
        decoding: how to write; a row's sampled text depends on `seed` and its position only.
        teacher: where given, asked for the return of each completion.
        max_prompt_tokens: longer prompts are cut.
        seed: of the sampling.
        advance: called with the number of rows done.

    Returns:
        One prediction an example, in order and on every process, and the number of cut prompts.
    """
    state = PartialState()
    mine = range(state.process_index, len(examples), state.num_processes)
    predictions: list[tuple[int, Prediction]] = []
    num_truncated_prompts = 0
    # As many blocks on every process: models whose weights they share are asked in step.
    for start in range(0, math.ceil(len(examples) / state.num_processes), BLOCK):
        rows = mine[start : start + BLOCK]
        nothing = not rows
        rows = rows or range(1)
        batch = model.encode(
            [examples[i] for i in rows],
            max_tokens=max_prompt_tokens,
            seeds=[derive_seed(seed, "predict", i) for i in rows],
        )
        rollout = model.generate(batch, decoding)
        returns = _teacher_returns(teacher, rollout)
        if nothing:
            continue
        num_truncated_prompts += batch.num_truncated_prompts
        texts = model.decode(rollout)
        lengths, truncated = rollout.lengths.tolist(), rollout.truncated.tolist()
        for i, row in enumerate(rows):
            example = batch.examples[i]
            predictions.append(
                (
                    row,
                    Prediction(
                        id=example.id,
                        prompt=example.text,
                        references=example.references,
                        text=texts[i],
                        num_tokens=lengths[i],
                        truncated=truncated[i],
                        teacher_return=returns[i] if returns else None,
                    ),
                )
            )
        advance(len(rows) * state.num_processes)
    if state.num_processes > 1:
        predictions = sorted(gather_object(predictions), key=lambda item: item[0])
        num_truncated_prompts = sum(gather_object([num_truncated_prompts]))
    return [prediction for _, prediction in predictions], num_truncated_prompts


def evaluate(
    model: LanguageModel,
    examples: Sequence[Example],
    decoding: Decoding,
    metrics: Sequence[str],
    *,
    teacher: LanguageModel | None = None,
    sampling: Decoding | None = None,
    max_prompt_tokens: int | None = None,
    seed: int = 0,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    advance: Advance = lambda rows: None,
) -> Evaluation:
    """Decode `examples` and score them by `metrics`, by length, and by a teacher's return.

    Examples without references count for length and return only.

    With a teacher there is `return` among the scores: the mean over the examples of Eq 10 of the
    decoded text, on the teacher's plain logits, so that it compares students of one teacher
    whatever they were trained with. With `sampling` too there is `expected_return`: the same of
    text that is sampled, the policy's own, which is what reinforcement learning maximises (Eq 3).

    Raises:
        DataError: there are no examples.
    """
    if not examples:
        raise DataError("nothing to evaluate: the split is empty; name a split with examples")
    predictions, num_truncated_prompts = predict(
        model,
        examples,
        decoding,
        teacher=teacher,
        max_prompt_tokens=max_prompt_tokens,
        seed=seed,
        advance=advance,
    )
    interval = Interval(seed=seed, num_resamples=num_resamples, confidence=confidence)
    scores: dict[str, Score] = {}
    answered = [prediction for prediction in predictions if prediction.references]
    if answered:
        texts = [prediction.text for prediction in answered]
        references = [prediction.references for prediction in answered]
        scores = score(metrics, texts, references, **interval)
    if teacher is not None:
        returns = _finite([prediction.teacher_return for prediction in predictions], predictions)
        scores["return"] = mean_score("return", returns, **interval)
        if sampling is not None:
            sampled, _ = predict(
                model,
                examples,
                sampling,
                teacher=teacher,
                max_prompt_tokens=max_prompt_tokens,
                seed=seed,
            )
            predictions = [
                replace(prediction, sampled_text=sample.text, sampled_return=sample.teacher_return)
                for prediction, sample in zip(predictions, sampled, strict=True)
            ]
            returns = _finite([p.sampled_return for p in predictions], predictions)
            scores["expected_return"] = mean_score("expected return", returns, **interval)
    lengths = [prediction.num_tokens for prediction in predictions]
    scores["length"] = mean_score("length", lengths, **interval)
    return Evaluation(scores, predictions, num_truncated_prompts)


def _finite(returns: list[float | None], predictions: list[Prediction]) -> list[float]:
    for value, prediction in zip(returns, predictions, strict=True):
        if value is None or not math.isfinite(value):
            raise NonFiniteError(
                f"example {prediction.id}: the teacher's return of what was written for it is "
                f"{value}; check the teacher's weights and dtype, or that example"
            )
    return [value for value in returns if value is not None]


def _teacher_returns(teacher: LanguageModel | None, rollout: Rollout) -> list[float]:
    if teacher is None:
        return []
    values = teacher.map(rollout, teacher.action_values)
    returns: list[float] = rewards_to_go(values.taken, values.best, rollout.mask)[:, 0].tolist()
    return returns
