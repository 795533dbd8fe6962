"""What a task is: three named splits of examples, and how completions are measured."""

from __future__ import annotations

import hashlib
import json
import logging
import lzma
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, get_args, overload

from pydantic import Field, field_validator

from brim.config.loading import Config
from brim.errors import DataError
from brim.examples import Example
from brim.tasks.templates import Template

logger = logging.getLogger(__name__)

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

MetricNames = Annotated[tuple[MetricName, ...], Field(min_length=1)]
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


class Selected(Sequence[Example]):
    """Some of a split's examples.

    Args:
        examples: the split.
        rows: the numbers of those that are in.
        provenance: what `describe` reports of them beside their number and hash.
    """

    def __init__(
        self, examples: Sequence[Example], rows: Sequence[int], provenance: Mapping[str, Any]
    ) -> None:
        self.provenance = dict(provenance)
        self._examples, self._rows = examples, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Selected: ...

    def __getitem__(self, index: int | slice) -> Example | Selected:
        if isinstance(index, slice):
            return Selected(self._examples, self._rows[index], self.provenance)
        return self._examples[self._rows[index]]


def without_rows(
    task: Task, split: Split, examples: Sequence[Example], unusable: Mapping[int, str]
) -> Sequence[Example]:
    """The examples of a split less those that no model can use, as `on_bad_row` says.

    Args:
        task: of the split.
        split: its name.
        examples: all of it.
        unusable: from the number of a row to why it cannot be used.

    Raises:
        DataError: there is one, and the task leaves none out; the text names its file and line.
            Or all of them cannot be used.
    """
    if not unusable:
        return examples
    first = min(unusable)
    text = f"{locate(task, split, [examples[first]])[0]}: {unusable[first]}"
    if getattr(task, "on_bad_row", "error") == "error":
        others = f" ({len(unusable) - 1:,} more rows of {split} cannot be used)"
        skip = ", or leave bad rows out with task.on_bad_row=skip" * hasattr(task, "on_bad_row")
        raise DataError(f"{text}{others if len(unusable) > 1 else ''}; mend the row{skip}")
    if len(unusable) == len(examples):
        raise DataError(f"all {len(examples):,} rows of {split} are bad, the first: {text}")
    logger.warning(
        "%s: left out %d of %d rows that cannot be used; the first: %s",
        *(split, len(unusable), len(examples), text),
    )
    provenance = dict(getattr(examples, "provenance", {}))
    provenance.pop("sha256", None)  # of all rows
    skipped = provenance.get("skipped", {})
    provenance["skipped"] = {**skipped, "cannot be used by the models": len(unusable)}
    rows = [row for row in range(len(examples)) if row not in unusable]
    return Selected(examples, rows, provenance)


def locate(task: Task, split: Split, examples: Sequence[Example]) -> list[str]:
    """What errors call rows of a split: `file:line` where they come from files, else their ids."""
    find = getattr(task, "find", None)
    places = find(split, {example.id for example in examples}) if find else {}
    return [places.get(example.id, f"example {example.id}") for example in examples]


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


def read_table(name: str, split: Split) -> list[list[str]]:
    """The rows of a bundled split, in an order that has nothing to do with their content.

    The files are sorted, which halves their size; the order here is that of a hash of the ids, so
    that the first rows are a fair sample.
    """
    file = resources.files("brim") / "data" / name / f"{split}.tsv.xz"
    text = lzma.decompress(file.read_bytes()).decode()
    rows = [line.split("\t") for line in text.removesuffix("\n").split("\n")]
    return sorted(rows, key=lambda row: hashlib.blake2b(row[0].encode(), digest_size=8).digest())


class BundledTask(ABC):
    """A task whose data is one table a split, in the package.

    Args:
        prompt: template; `{source}` is the row's text.
        max_examples: keep the first so many examples of a split.

    Raises:
        ConfigError: the template cannot be used.
    """

    name: str
    metrics: tuple[str, ...]

    def __init__(
        self, *, prompt: str = "{source}", max_examples: Mapping[Split, int] | None = None
    ) -> None:
        self.template = Template(prompt)
        self.template.check(["source"])
        self.max_examples = dict(max_examples or {})

    def load(self, split: Split) -> Sequence[Example]:
        """The examples of a split."""
        rows = map(self.read, read_table(self.name, split)[: self.max_examples.get(split)])
        return [self._example(*row) for row in rows]

    @abstractmethod
    def read(self, row: Sequence[str]) -> tuple[str, str, tuple[str, ...]]:
        """Id, source and references of a row."""

    def _example(self, example_id: str, source: str, references: tuple[str, ...]) -> Example:
        texts = {"source": source}
        prompt, field = self.template.render(texts), self.template.longest(texts)
        return Example(example_id, prompt, references, field=field)
