"""What a task is: settings that read three named splits of examples, and how text is measured."""

from __future__ import annotations

import hashlib
import json
import logging
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, overload

from pydantic import Field

from brim.config.loading import Config
from brim.errors import DataError
from brim.examples import Example

logger = logging.getLogger(__name__)

Split = str
"""`train`, `validation`, `test`; of a task with several test sets `test.NAME` in its place."""
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

Progress = Callable[[str, int, int], None]
"""Called with what is being read, how much of it is done and how much there is."""

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


class Task(Config):
    """A task: its settings, and all that is done with them, for it has no state.

    A new one is a class like this with settings of its own, among them `name: Literal["…"]`, by
    which a recipe chooses it. Its `metrics` are names in `METRICS`, the first of which picks the
    checkpoint: a field where recipes may choose, a `ClassVar` where not.
    """

    max_train_examples: PositiveInt | None = None
    """Keep only the first so many training examples."""
    max_validation_examples: PositiveInt | None = None
    """Keep only the first so many validation examples."""
    max_test_examples: PositiveInt | None = None
    """Keep only the first so many test examples."""

    if TYPE_CHECKING:  # true fields would have to be settings, of every task

        @property
        def name(self) -> str:
            """The task's key in recipes."""

        @property
        def metrics(self) -> tuple[str, ...]:
            """What is measured."""

    @abstractmethod
    def load(
        self, split: Split, *, cache_dir: Path | None = None, on_progress: Progress | None = None
    ) -> Sequence[Example]:
        """Return the examples of a split: random access, slices, the same ones at every call.

        Args:
            split: which one.
            cache_dir: where a memory-mapped copy of the user's files is kept; None for memory.
            on_progress: called as files of the user's are read.

        Raises:
            DataError: the data is missing, empty or holds a bad row.
            ConfigError: the settings do not fit the data.
            RunError: the copy cannot be written.
        """

    def find(self, split: Split, ids: Collection[str]) -> dict[str, str]:
        """Return where rows of a split were read, as `file:line` by id; empty for bundled data."""
        return {}

    def splits(self) -> tuple[Split, ...]:
        """Return the splits: `train`, `validation`, and `test` or several test sets."""
        return SPLITS

    def limit(self, split: Split) -> int | None:
        """Return how many examples of a split are kept at most."""
        limit: int | None = getattr(self, f"max_{kind_of(split)}_examples")
        return limit


def kind_of(split: Split) -> str:
    """Return `test` for each of several test sets, any other split as it is."""
    return split.partition(".")[0]


class Rows(Sequence[Example]):
    """Examples of a split by number; a slice is `Selected`, that of all of them itself."""

    provenance: dict[str, Any]

    @abstractmethod
    def row(self, number: int) -> Example:
        """Return one of them; numbers are from 0."""

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: int | slice) -> Example | Rows:
        rows = range(len(self))
        if isinstance(index, slice):
            return self if rows[index] == rows else Selected(self, rows[index])
        return self.row(rows[index])

    def __iter__(self) -> Iterator[Example]:
        # The mixin's own stops at IndexError, and would hide one of ours.
        return map(self.row, range(len(self)))


class Selected(Rows):
    """These rows of a split, and `facts` for `describe` beside those of the split but its hash."""

    def __init__(self, examples: Sequence[Example], rows: Sequence[int], **facts: Any) -> None:
        self.provenance = {**getattr(examples, "provenance", {}), **facts}
        self.provenance.pop("sha256", None)  # of all rows
        self._examples, self._rows = examples, rows

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int) -> Example:
        """See `Rows.row`."""
        return self._examples[self._rows[number]]


def without_rows(
    task: Task, split: Split, examples: Sequence[Example], unusable: Mapping[int, str]
) -> Sequence[Example]:
    """Return the examples of a split less those that no model can use, as `on_bad_row` says.

    `unusable` has the numbers of these rows, and why.

    Raises:
        DataError: there is one, and the task leaves none out; the text names its file and line.
            Or all of them cannot be used.
    """
    if not unusable:
        return examples
    first = min(unusable)
    text = f"{locate(task, split, [examples[first]])[0]}: {unusable[first]}"
    on_bad_row = getattr(task, "on_bad_row", None)
    if on_bad_row != "skip":
        others = f" ({len(unusable) - 1:,} more rows of {split} cannot be used)"
        skip = ", or leave bad rows out with task.on_bad_row=skip" if on_bad_row else ""
        raise DataError(f"{text}{others if len(unusable) > 1 else ''}; mend the row{skip}")
    if len(unusable) == len(examples):
        raise DataError(f"all {len(examples):,} rows of {split} are bad, the first: {text}")
    logger.warning(
        "%s: left out %d of %d rows that cannot be used; the first: %s",
        *(split, len(unusable), len(examples), text),
    )
    skipped = {**describe(examples).get("skipped", {})}
    skipped["cannot be used by the models"] = len(unusable)
    return Selected(
        examples, [row for row in range(len(examples)) if row not in unusable], skipped=skipped
    )


def locate(task: Task, split: Split, examples: Sequence[Example]) -> list[str]:
    """Return what errors call rows of a split: `file:line` where it is known, else their ids."""
    places = task.find(split, {example.id for example in examples})
    return [places.get(example.id, f"example {example.id}") for example in examples]


def warn_of_overlap(splits: Mapping[Split, Sequence[Example]], latest: Split) -> None:
    """Warn where prompts of a split with a source of its own are training prompts too.

    `latest` is the last split that was loaded; the pairs without it were compared before.
    """
    for split in [name for name in splits if name != "train"]:
        facts = getattr(splits.get(split), "provenance", {})
        if latest not in ("train", split) or "train" not in splits or "source" not in facts:
            continue
        if "carved" in facts:  # no prompt is in two parts of one source
            continue
        own = {prompt_text(example) for example in splits[split]}
        if common := len(own.intersection(map(prompt_text, splits["train"]))):
            logger.warning(
                "%d of the %d different prompts of task.%s (%s) are in the training split too: "
                "its scores are partly of what was trained on",
                *(common, len(own), split, facts["source"]),
            )


def prompt_text(example: Example) -> str:
    """Return all of a prompt as one text, a chat as JSON."""
    return example.prompt or json.dumps([dict(message) for message in example.messages])


def example_digest(examples: Iterable[Example]) -> str:
    """Return the SHA-256, in hexadecimal, of all that the examples hold, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example_bytes(example))
    return digest.hexdigest()


def example_bytes(example: Example) -> bytes:
    """Return all that an example holds, as one line: equal bytes for equal examples only."""
    messages = [dict(message) for message in example.messages]
    row: list[Any] = [example.id, example.prompt, example.references, messages]
    # Only these are cut inside: the hash of all other data is what it was before anything was.
    if example.field or messages:
        row.append(example.field)
    if example.teacher is not None:
        row.append({"teacher": example.teacher})
    if example.tools:
        row.append({"tools": example.tools})
    return _ENCODER.encode(row).encode() + b"\n"


_ENCODER = json.JSONEncoder(sort_keys=True)


def describe(examples: Sequence[Example]) -> dict[str, Any]:
    """Return what results and manifests say of a split.

    `num_examples`, `sha256` (of all they hold, in order) and, where they come from the user's
    files, `source`, `skipped` (bad rows by reason), `sources` (where there are several or weights:
    the name, rows and weight of each) and `carved` (the fraction of the source's prompts, where the
    split is a part of the training data that was kept apart).
    """
    described = {"num_examples": len(examples), **getattr(examples, "provenance", {})}
    if "sha256" not in described:
        described["sha256"] = example_digest(examples)
    return described
