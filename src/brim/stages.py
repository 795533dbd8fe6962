"""Stages: pieces of a run that are made once, kept on disk and used again.

A stage's folder is named by a hash of everything that it depends on: changed inputs make a new
folder, unchanged ones find the finished work. `done.json` is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from accelerate import PartialState

from brim._version import __version__
from brim.config import config_hash
from brim.errors import RunError
from brim.evaluation import predict
from brim.files import atomic_write_json
from brim.models import Decoding, LanguageModel
from brim.progress import Meter
from brim.types import Example


@dataclass(frozen=True, slots=True)
class Stage:
    """A folder that holds the finished or unfinished work of a stage.

    Attributes:
        directory: `{root}/{name}-{hash of the inputs}`.
        inputs: everything the work depends on, as plain values; kept in `inputs.json`.
    """

    directory: Path
    inputs: Mapping[str, Any]

    @classmethod
    def open(cls, root: Path, name: str, inputs: Mapping[str, Any]) -> Stage:
        """The stage of these inputs, its folder made if need be."""
        inputs = {"brim": __version__, **inputs}
        stage = cls(root / f"{name}-{config_hash(inputs)[:12]}", inputs)
        if PartialState().is_main_process and not stage.finished:
            stage.directory.mkdir(parents=True, exist_ok=True)
            atomic_write_json(stage.directory / "inputs.json", inputs)
        PartialState().wait_for_everyone()
        return stage

    @property
    def finished(self) -> bool:
        """Whether the work is complete."""
        return (self.directory / "done.json").exists()

    @property
    def fingerprint(self) -> str:
        """Stands for what the stage makes, in the inputs of later ones."""
        return self.directory.name

    def finish(self, **facts: Any) -> None:
        """Mark the work as complete."""
        if PartialState().is_main_process:
            atomic_write_json(self.directory / "done.json", facts)
        PartialState().wait_for_everyone()


def fingerprint_model(model: LanguageModel) -> str:
    """Hash of a model's configuration and of every byte of its weights."""
    digest = hashlib.blake2b(model.model.config.to_json_string().encode(), digest_size=16)
    for name, tensor in sorted(model.model.state_dict().items()):
        digest.update(name.encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(memoryview(raw.numpy()))
    return digest.hexdigest()


def write_completions(
    model: LanguageModel,
    examples: Sequence[Example],
    path: Path,
    decoding: Decoding,
    *,
    max_prompt_tokens: int | None,
    meter: Meter,
) -> None:
    """Decode `examples` into a JSONL file of `id` and `text`, going on where a stop left it."""
    state = PartialState()
    done = _drop_torn_line(path) if state.is_main_process else 0
    state.wait_for_everyone()
    if not state.is_main_process:
        done = _count_lines(path)
    meter.advance(done)
    block = decoding.batch_size * state.num_processes
    for start in range(done, len(examples), block):
        predictions, _ = predict(
            model,
            [examples[i] for i in range(start, min(start + block, len(examples)))],
            decoding,
            max_prompt_tokens=max_prompt_tokens,
        )
        if state.is_main_process:
            with path.open("a", encoding="utf-8") as file:
                for prediction in predictions:
                    row = {"id": prediction.id, "text": prediction.text}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        meter.advance(len(predictions))
    state.wait_for_everyone()


class CompletedExamples(Sequence[Example]):
    """Examples whose one reference is the text that `write_completions` wrote for them.

    Only the position of each line is kept in memory.

    Raises:
        RunError: the file's lines are not those of the examples.
    """

    def __init__(self, examples: Sequence[Example], path: Path) -> None:
        self._examples = examples
        self._path = path
        self._offsets = _line_offsets(path)
        if len(self._offsets) != len(examples):
            raise RunError(
                f"{path}: {len(self._offsets)} completions for {len(examples)} examples; "
                "delete the stage's folder to write them anew"
            )

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        example = self._examples[index]
        with self._path.open("rb") as file:
            file.seek(int(self._offsets[index]))
            row = json.loads(file.readline())
        if row["id"] != example.id:
            raise RunError(
                f"{self._path}:{index + 1}: holds {row['id']!r} where {example.id!r} is expected; "
                "delete the stage's folder to write it anew"
            )
        return replace(example, references=(row["text"],))


def _line_offsets(path: Path) -> np.ndarray:
    if not path.exists():
        return np.zeros(0, dtype=np.int64)
    with path.open("rb") as file:
        lengths = [len(line) for line in file if line.endswith(b"\n")]
    return np.concatenate([[0], np.cumsum(lengths[:-1])]).astype(np.int64)[: len(lengths)]


def _count_lines(path: Path) -> int:
    return len(_line_offsets(path))


def _drop_torn_line(path: Path) -> int:
    """Cut off a line that a kill left unfinished; the number of whole lines."""
    if not path.exists():
        return 0
    content_length = 0
    count = 0
    with path.open("rb+") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            content_length += len(line)
            count += 1
        file.truncate(content_length)
    return count
