"""Teacher outputs: what a teacher writes for the training prompts, and examples that have it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from accelerate import PartialState

from brim.errors import RunError
from brim.examples import Example, Target
from brim.models import Decoding, Teacher, read_text
from brim.models.encoding import Encoder
from brim.support.json_lines import JsonLines
from brim.support.progress import Meter
from brim.training.evaluation import predict_blocks
from brim.training.predictions import EvaluationSettings, Prediction

logger = logging.getLogger(__name__)


def write_completions(
    model: Teacher,
    examples: Sequence[Example],
    path: Path,
    decoding: Decoding,
    *,
    max_prompt_tokens: int | None,
    meter: Meter,
) -> None:
    """Decode `examples` into a JSONL file, resuming where a stop left it.

    A row has `id`, `text`, and what the student learns: `token_ids`, and whether they are
    `truncated`. The text does not say them: another split into tokens can spell it, bytes of half
    a character cannot be spelled at all, and it does not show whether it ended.
    """
    state, file = PartialState(), JsonLines(path, recorded=True)
    settings = EvaluationSettings(decoding, max_prompt_tokens=max_prompt_tokens)
    block = settings.block * state.num_processes
    if state.is_main_process:
        damage = file.repair()
        if damage is not None:
            logger.warning("%s %s; writing all completions again", path, damage)
        # The rows of an unfinished block are decoded together again, to round as without the stop.
        offsets = file.offsets()
        file.cut(int(offsets[(len(offsets) - 1) // block * block]))
    state.wait_for_everyone()
    done = len(file.offsets()) - 1
    meter.advance(done)
    for part in predict_blocks(model, examples, settings, first=done // block):
        if state.is_main_process:
            file.append(*(_completion(row) for row in part.predictions))
        meter.advance(len(part.predictions))
    state.wait_for_everyone()


def _completion(row: Prediction) -> dict[str, Any]:
    [written] = row.completions
    return {
        "id": row.id,
        "text": written.text,
        "token_ids": written.token_ids,
        "truncated": written.truncated,
    }


class CompletedExamples(Sequence[Example]):
    """Examples whose one reference is what `write_completions` wrote for them.

    Only the position of each line is kept in memory.

    Args:
        examples: what was completed.
        path: the file.
        encoder: of a student of another tokenizer than the writer's: targets are the text in its
            tokens, with an end unless the writer was cut; None for the tokens as written.

    Raises:
        RunError: the file's lines are not those of the examples.
    """

    def __init__(
        self, examples: Sequence[Example], path: Path, encoder: Encoder | None = None
    ) -> None:
        self._examples, self._encoder = examples, encoder
        self._file = JsonLines(path)
        self._offsets = self._file.offsets()
        if len(self._offsets) - 1 != len(examples):
            raise RunError(
                f"{path}: {len(self._offsets) - 1} completions for {len(examples)} examples; "
                "delete the stage's folder to write them anew"
            )

    def __len__(self) -> int:
        return len(self._examples)

    def count_unspelled(self) -> int:
        """Return how many texts another encoder than the writer's cannot spell."""
        if self._encoder is None:
            return 0
        texts = (str(self._file.row_at(int(offset))["text"]) for offset in self._offsets[:-1])
        return sum(
            reading.unspelled > 0
            for text in texts
            for reading in read_text(self._encoder, [text], [True])
        )

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        example = self._examples[index]
        row = self._file.row_at(int(self._offsets[range(len(self))[index]]))
        if row["id"] != example.id:
            raise RunError(
                f"{self._file.path}:{index + 1}: holds {row['id']!r} where {example.id!r} is "
                "expected; delete the stage's folder to write it anew"
            )
        ids, text, truncated = row["token_ids"], row["text"], row["truncated"]
        if self._encoder is not None:
            [reading] = read_text(self._encoder, [text], [not truncated], [example])
            ids = reading.ids
        return replace(example, references=(text,), target=Target(tuple(ids), truncated))
