"""What a model writes for the examples of a split, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from brim.errors import DataError, NonFiniteError
from brim.metrics import sentence_statistics
from brim.models import Decoding, LanguageModel
from brim.returns import rewards_to_go
from brim.seeding import derive_seed
from brim.types import Batch, Example, Rollout

# Completions that are written and judged together, in passes of what their tokens allow.
BLOCK = 512


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion of a prompt.

    Attributes:
        text: without special tokens.
        num_tokens: actions, EOS included.
        truncated: cut at the length limit.
        teacher_return: `G_1` (Eq 10) in the teacher's logits, if it was asked.
        token_ids: the actions.
    """

    text: str
    num_tokens: int
    truncated: bool
    teacher_return: float | None
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model wrote for one example.

    Attributes:
        id, prompt, references: of the example.
        text, num_tokens, truncated, teacher_return, token_ids: of its completion, the first one
            where several were sampled; see `Completion`.
        sampled_text, sampled_return: a sample of the policy and its return, if it was drawn beside.
        statistics: of each metric the additive statistics, summed over the example's completions;
            empty without references.
        samples: all completions of an example that was answered by sampling.
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
    token_ids: tuple[int, ...] = ()
    statistics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    samples: tuple[Completion, ...] = ()

    @property
    def completions(self) -> tuple[Completion, ...]:
        """All that was written to be scored."""
        return self.samples or (
            Completion(
                text=self.text,
                num_tokens=self.num_tokens,
                truncated=self.truncated,
                teacher_return=self.teacher_return,
                token_ids=self.token_ids,
            ),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `samples` only where there are any."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        samples = values.pop("samples")
        return values | ({"samples": [asdict(sample) for sample in samples]} if samples else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Prediction:
        """What `as_dict` was made of, also after a way through JSON."""
        samples = tuple(
            Completion(**{**sample, "token_ids": tuple(sample["token_ids"])})
            for sample in values.get("samples", ())
        )
        statistics = {name: tuple(row) for name, row in values["statistics"].items()}
        changed = {"references": tuple(values["references"]), "statistics": statistics}
        tokens = tuple(values["token_ids"])
        return cls(**{**values, **changed, "token_ids": tokens, "samples": samples})


@dataclass(frozen=True, slots=True)
class Block:
    """Adjacent examples of a split, answered together.

    Attributes:
        predictions: one an example, in order.
        num_truncated_prompts: how many prompts were cut.
    """

    predictions: tuple[Prediction, ...]
    num_truncated_prompts: int


@dataclass(frozen=True, slots=True)
class Procedure:
    """How a split is answered and measured: all that its predictions depend on but the models.

    Attributes:
        decoding: how the text that is scored is written.
        num_samples: completions an example; more than one only of sampled text.
        sampling: how a sample of the policy is written beside it, for the expected return.
        metrics: names in `METRICS`.
        max_prompt_tokens: longer prompts are cut.
        seed: of the sampling; a completion depends on it, on its example's position and on its own
            number only.
    """

    decoding: Decoding
    num_samples: int = 1
    sampling: Decoding | None = None
    metrics: tuple[str, ...] = ()
    max_prompt_tokens: int | None = None
    seed: int = 0

    @property
    def block(self) -> int:
        """Examples that a process answers together."""
        return max(1, BLOCK // self.num_samples)


def predict(
    model: LanguageModel,
    examples: Sequence[Example],
    decoding: Decoding,
    *,
    max_prompt_tokens: int | None = None,
) -> tuple[list[Prediction], int]:
    """Decode `examples`, shared out over the processes.

    Returns:
        One prediction an example, in order and on every process, and the number of cut prompts.
    """
    procedure = Procedure(decoding, max_prompt_tokens=max_prompt_tokens)
    blocks = list(predict_blocks(model, examples, procedure))
    predictions = [prediction for block in blocks for prediction in block.predictions]
    return predictions, sum(block.num_truncated_prompts for block in blocks)


def predict_blocks(
    model: LanguageModel,
    examples: Sequence[Example],
    procedure: Procedure,
    *,
    teacher: LanguageModel | None = None,
    first: int = 0,
) -> Iterator[Block]:
    """Answer `examples` block by block, each shared out over the processes.

    Args:
        model: the writer.
        examples: prompts; references are carried along.
        procedure: how to write.
        teacher: where given, asked for the return of each completion.
        first: blocks to leave out, for they are known.

    Yields:
        The blocks in order, on every process.

    Raises:
        DataError: a reference is not what a metric can compare with.
        NonFiniteError: the teacher's return of a completion is no finite number.
    """
    state, size = PartialState(), procedure.block
    mine = range(state.process_index, len(examples), state.num_processes)
    # As many blocks on every process: models whose weights they share are asked in step.
    for start in range(first * size, math.ceil(len(examples) / state.num_processes), size):
        rows = mine[start : start + size]
        batch = model.encode(
            [examples[i] for i in rows or range(1)],
            max_tokens=procedure.max_prompt_tokens,
            seeds=[derive_seed(procedure.seed, "predict", i) for i in rows or range(1)],
        )
        answers = _answer(model, batch, procedure, teacher)
        found = list(zip(rows, answers, strict=True)) if rows else []
        num_cut = batch.num_truncated_prompts if rows else 0
        if state.num_processes > 1:
            found = sorted(gather_object(found), key=lambda item: item[0])
            num_cut = sum(gather_object([num_cut]))
        predictions = [prediction for _, prediction in found]
        # After all have met, so that all of them stop at what is wrong.
        if teacher is not None:
            _check_finite(predictions)
        yield Block(_with_statistics(predictions, procedure.metrics), num_cut)


def _answer(
    model: LanguageModel, batch: Batch, procedure: Procedure, teacher: LanguageModel | None
) -> list[Prediction]:
    number = procedure.num_samples
    written = _complete(model, batch.repeat(number), procedure.decoding, teacher)
    beside: list[Completion | None] = [None] * len(batch)
    if procedure.sampling is not None and teacher is not None:
        beside = [*_complete(model, batch, procedure.sampling, teacher)]
    predictions = []
    for i, (example, sample) in enumerate(zip(batch.examples, beside, strict=True)):
        completions = tuple(written[i * number : (i + 1) * number])
        predictions.append(
            Prediction(
                id=example.id,
                prompt=example.text,
                references=example.references,
                text=completions[0].text,
                num_tokens=completions[0].num_tokens,
                truncated=completions[0].truncated,
                teacher_return=completions[0].teacher_return,
                sampled_text=None if sample is None else sample.text,
                sampled_return=None if sample is None else sample.teacher_return,
                token_ids=completions[0].token_ids,
                samples=completions if procedure.decoding.strategy == "sampling" else (),
            )
        )
    return predictions


def _complete(
    model: LanguageModel, batch: Batch, decoding: Decoding, teacher: LanguageModel | None
) -> list[Completion]:
    rollout = model.generate(batch, decoding)
    returns: list[Any] = [None] * len(batch) if teacher is None else _returns(teacher, rollout)
    return [
        Completion(text, length, truncated, value, tuple(ids[:length]))
        for text, length, truncated, value, ids in zip(
            model.decode(rollout),
            rollout.lengths.tolist(),
            rollout.truncated.tolist(),
            returns,
            rollout.completion_ids.tolist(),
            strict=True,
        )
    ]


def _returns(teacher: LanguageModel, rollout: Rollout) -> list[float]:
    values = teacher.map(rollout, teacher.action_values)
    returns: list[float] = rewards_to_go(values.q_taken, values.q_max, rollout.mask)[:, 0].tolist()
    return returns


def _check_finite(predictions: Sequence[Prediction]) -> None:
    for prediction in predictions:
        values = [completion.teacher_return for completion in prediction.completions]
        if prediction.sampled_text is not None:
            values.append(prediction.sampled_return)
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
