"""Stages: pieces of a run that are made once, kept on disk and used again.

A stage's folder is named by a hash of everything that it depends on: changed inputs make a new
folder, unchanged ones find the finished work. `done.json` is written last.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from accelerate import PartialState
from filelock import FileLock, Timeout

from brim._version import __version__
from brim.config import config_hash
from brim.errors import RunError
from brim.files import atomic_write_json, disk_errors
from brim.models import Decoding, LanguageModel, hash_tensors, plain_tensors
from brim.predictions import BLOCK, predict
from brim.progress import Meter
from brim.types import Example, Target

logger = logging.getLogger(__name__)

# What is kept of a prediction of a teacher.
_ROW = ("id", "text", "token_ids", "truncated")


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
            with disk_errors(stage.directory):
                stage.directory.mkdir(parents=True, exist_ok=True)
                atomic_write_json(stage.directory / "inputs.json", inputs)
        PartialState().wait_for_everyone()
        return stage

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder while the block runs: runs that share stages wait for each other."""
        if not PartialState().is_main_process:
            PartialState().wait_for_everyone()
            yield
            return
        lock = FileLock(self.directory / ".lock")
        with disk_errors(self.directory):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                logger.warning("%s: another run is making it; waiting", self.directory)
                lock.acquire()
        try:
            PartialState().wait_for_everyone()
            yield
        finally:
            lock.release()

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
    """Hash of a model's configuration, of what it may write, and of every byte of its weights."""
    weights = plain_tensors(model.model.state_dict())
    rules = (sorted(model.rules.excluded), model.rules.forced_start, model.rules.forces_end)
    return hash_tensors(weights, also=f"{model.model.config.to_json_string()}{rules}")


def write_completions(
    model: LanguageModel,
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
    state = PartialState()
    block = BLOCK * state.num_processes
    if state.is_main_process:
        _keep_whole_blocks(path, block)
    state.wait_for_everyone()
    done = len(_line_offsets(path))
    meter.advance(done)
    for start in range(done, len(examples), block):
        predictions, _ = predict(
            model,
            [examples[i] for i in range(start, min(start + block, len(examples)))],
            decoding,
            max_prompt_tokens=max_prompt_tokens,
        )
        if state.is_main_process:
            rows = ({name: getattr(row, name) for name in _ROW} for row in predictions)
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            with disk_errors(path), path.open("ab") as file:
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
        meter.advance(len(predictions))
    state.wait_for_everyone()


class CompletedExamples(Sequence[Example]):
    """Examples whose one reference is what `write_completions` wrote for them.

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
        row = json.loads(_line_at(self._path, int(self._offsets[index])))
        if row["id"] != example.id:
            raise RunError(
                f"{self._path}:{index + 1}: holds {row['id']!r} where {example.id!r} is expected; "
                "delete the stage's folder to write it anew"
            )
        target = Target(tuple(row["token_ids"]), row["truncated"])
        return replace(example, references=(row["text"],), target=target)


def _line_offsets(path: Path) -> np.ndarray:
    if not path.exists():
        return np.zeros(0, dtype=np.int64)
    with path.open("rb") as file:
        lengths = [len(line) for line in file if line.endswith(b"\n")]
    return np.concatenate([[0], np.cumsum(lengths[:-1])]).astype(np.int64)[: len(lengths)]


def _keep_whole_blocks(path: Path, block: int) -> None:
    """Cut off what a stop left of an unfinished block of lines.

    The same rows are then decoded together as without the stop, and round alike.
    """
    offsets = _line_offsets(path)
    kept = len(offsets) // block * block
    if kept < len(offsets):
        with disk_errors(path), path.open("rb+") as file:
            file.truncate(int(offsets[kept]))
    elif path.exists():
        end = int(offsets[-1]) + len(_line_at(path, int(offsets[-1]))) if kept else 0
        with disk_errors(path), path.open("rb+") as file:
            file.truncate(end)  # half a line may follow the last whole one


def _line_at(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.readline()
