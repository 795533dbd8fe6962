"""What a task is: three named splits of examples, and how completions are measured."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, get_args

from pydantic import Field, field_validator

from brim.config import Config
from brim.tasks.templates import Template
from brim.types import Example

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

Progress = Callable[[str, int, int], None]
"""Told what is being read, how much of it is done and how much there is."""

MetricName = Literal[
    "rouge1",
    "rouge2",
    "rougeL",
    "rougeLsum",
    "bleu",
    "chrf",
    "ter",
    "exact_match",
    "answer_accuracy",
    "gsm8k_accuracy",
]
"""The keys of `brim.metrics.METRICS`, for settings to be checked before any data is read."""

PositiveInt = Annotated[int, Field(ge=1)]


class Task(Protocol):
    """A task; a new one is one file with a class like this and its settings.

    Attributes:
        name: the key in `TASKS`.
        metrics: names in `METRICS`; the first one picks the best checkpoint.
    """

    name: str
    metrics: tuple[str, ...]

    def load(self, split: Split) -> Sequence[Example]:
        """The examples of a split: random access, slices, the same ones at every call.

        Raises:
            DataError: the data is missing, empty or holds a bad row.
            ConfigError: the settings do not fit the data.
        """
        ...


class TaskSettings(Config):
    """Settings that every task has; a subclass adds `name: Literal[...]` and its own."""

    max_train_examples: PositiveInt | None = None
    """Keep only the first so many training examples."""
    max_validation_examples: PositiveInt | None = None
    """Keep only the first so many validation examples."""
    max_test_examples: PositiveInt | None = None
    """Keep only the first so many test examples."""

    @property
    def max_examples(self) -> dict[Split, int]:
        """The limits that are set, by split: the `max_examples` of the task classes."""
        limits = {split: getattr(self, f"max_{split}_examples") for split in SPLITS}
        return {split: limit for split, limit in limits.items() if limit is not None}

    @abstractmethod
    def build(self, *, cache_dir: Path | None = None, on_progress: Progress | None = None) -> Task:
        """The task; a task that needs no reading of files has no use for the arguments.

        Args:
            cache_dir: where what was made of the user's files is kept; None for memory.
            on_progress: told how far the reading is.
        """


class BundledSettings(TaskSettings):
    """Settings of a task whose data is part of the package: each row has one text, `source`."""

    prompt: str = "{source}"
    """Prompt template, as in `summarize: {source}`."""

    @field_validator("prompt")
    @classmethod
    def _usable(cls, prompt: str) -> str:
        Template(prompt).check(["source"])
        return prompt


def example_digest(examples: Iterable[Example]) -> str:
    """SHA-256, in hexadecimal, of all that the examples hold, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example_bytes(example))
    return digest.hexdigest()


def example_bytes(example: Example) -> bytes:
    """All that an example holds, as one line: equal bytes for equal examples only."""
    messages = [dict(message) for message in example.messages]
    row: list[Any] = [example.id, example.prompt, example.references, messages]
    # Only these are cut inside: the hash of all other data is what it was before anything was.
    if example.field or messages:
        row.append(example.field)
    return _ENCODER.encode(row).encode() + b"\n"


_ENCODER = json.JSONEncoder(sort_keys=True)


def describe(examples: Sequence[Example]) -> dict[str, Any]:
    """What results and manifests say of a split.

    `num_examples`, `sha256` (of all they hold, in order) and, where they come from the user's
    files, `source`, `skipped` (bad rows by reason) and `carved` (the fraction of the source's
    prompts, where the split is a part of the training data that was kept apart).
    """
    described = {"num_examples": len(examples), **getattr(examples, "provenance", {})}
    if "sha256" not in described:
        described["sha256"] = example_digest(examples)
    return described
