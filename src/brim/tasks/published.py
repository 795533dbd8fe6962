"""Published data sets: on the Hugging Face hub, or the same rows in files of one's own."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from brim.errors import DataError
from brim.examples import Example
from brim.tasks.arrow import ArrowExamples
from brim.tasks.base import SPLITS, MetricNames, Progress, Split, TaskSettings
from brim.tasks.files import Files
from brim.tasks.rows import Row, RowError, Source
from brim.tasks.sources import find_file, open_source

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publication:
    """Where a data set is on the hub, and what is known of it.

    Attributes:
        hub_id: its id.
        names: what the prompt's, the target's and the id's column may be called, best first.
        num_rows: how many rows it has for the splits that come from one source.
        config: its configuration.
        revision: its branch.
        splits: the splits that it has.
    """

    hub_id: str
    names: Mapping[str, tuple[str, ...]]
    num_rows: Mapping[tuple[Split, ...], int]
    config: str | None = None
    revision: str | None = None
    splits: tuple[Split, ...] = SPLITS


class PublishedTask(Files):
    """A task of `Files` whose columns and splits are known.

    Args:
        path: a folder with train, validation and test files (.jsonl, .csv, .tsv, each also with
            .gz); or a folder or id of a data set of `datasets`.
        prompt: template of the prompt; it has one field, the task's.
        train: source of the training split, in place of the one of `path`.
        validation: likewise.
        test: likewise.
        on_bad_row: `error`, or `skip` to leave bad rows out and count them.
        dataset_config: configuration of the data set; by default what fits the task's own.
        dataset_revision: branch, tag or commit of the data set, likewise.
        metrics: names of metrics, the first of which picks the checkpoint.
        max_examples: keep the first so many examples of a split.
        validation_fraction: where no validation data is known, it is this part of the training
            data's prompts, chosen by hash; 0 if it is known.
        test_fraction: likewise.
        cache_dir: where the memory-mapped copy is kept; None to keep it in memory.
        on_progress: told how far the reading is.

    Raises:
        ConfigError: a template without the task's field, or with another one.
    """

    published: Publication

    def __init__(
        self,
        *,
        path: str,
        prompt: str,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        on_bad_row: Literal["error", "skip"] = "error",
        dataset_config: str | None = None,
        dataset_revision: str | None = None,
        metrics: Sequence[str],
        max_examples: Mapping[Split, int] | None = None,
        validation_fraction: float = 0.0,
        test_fraction: float = 0.0,
        cache_dir: Path | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        field, target, row_id = self.published.names
        super().__init__(
            prompt=prompt,
            target_column=target,
            id_column=row_id,
            on_bad_row=on_bad_row,
            validation_fraction=validation_fraction,
            test_fraction=test_fraction,
            dataset_config=dataset_config,
            dataset_revision=dataset_revision,
            metrics=metrics,
            max_examples=max_examples,
            cache_dir=cache_dir,
            on_progress=on_progress,
        )
        if self.columns.template:
            self.columns.template.check([field])
        self.columns = replace(self.columns, optional_id=True)
        self.path = path
        self.given: dict[Split, str | None]
        self.given = {"train": train, "validation": validation, "test": test}

    def load(self, split: Split) -> Sequence[Example]:
        """The examples of a split, memory-mapped where there is a `cache_dir`.

        Raises:
            ConfigError: the data has not the columns.
            DataError: no such data, a bad row, or not a single good one.
            RunError: the copy cannot be written.
        """
        self.sources = self._find()
        if self.sources[split] is None and not (self.sources["train"] and self.fractions[split]):
            raise DataError(
                f"{self.path}: no {split}.jsonl, nor .csv or .tsv, nor with .gz; "
                f"put it there, or name it in task.{split}"
            )
        return super().load(split)

    def _find(self) -> dict[Split, str | None]:
        """The source of each split: as it is given, or else what `path` has."""
        folder = Path(self.path).expanduser()
        files = {split: find_file(folder, split) for split in SPLITS}
        found: dict[Split, str] = {split: str(file) for split, file in files.items() if file}
        if not found:
            found = {split: f"{self.path}#{split}" for split in self.published.splits}
        return {split: self.given[split] or found.get(split) for split in SPLITS}

    def _open(self, text: str, split: Split) -> Source:
        published = self.published
        own = text.partition("#")[0] == published.hub_id
        try:
            source = open_source(
                text,
                split,
                config=self.dataset_config or (published.config if own else None),
                revision=self.dataset_revision or (published.revision if own else None),
            )
        except DataError as error:
            hint = "; without the hub, name a folder with its files in task.path" if own else ""
            raise DataError(f"{error}{hint}") from error
        return NamedColumns(source, published.names)

    def _read(self, source: Source, splits: Sequence[Split]) -> dict[Split, ArrowExamples]:
        parts = super()._read(source, splits)
        skipped = parts[splits[0]].provenance["skipped"]
        count = sum(map(len, parts.values())) + sum(skipped.values())
        known = self.published.num_rows.get(tuple(splits), count)
        # A file with less than half of it is a sample, and meant to be one.
        if count != known and 2 * count > known:
            logger.warning(
                "%s: %d rows, where the published data has %d: another version of it?",
                *(source.name, count, known),
            )
        return parts


class NamedColumns:
    """A source whose columns may go by several names (`brim.tasks.rows.Source`).

    Args:
        source: the source.
        names: what each column may be called, best first; `a.b` is the key `b` of an object `a`.
    """

    def __init__(self, source: Source, names: Mapping[str, Sequence[str]]) -> None:
        self.name, self.label = source.name, source.label
        self.where, self.position = source.where, source.position
        self._source, self._names = source, names

    def identity(self) -> list[Any]:
        """That of the source, and the names."""
        return [*self._source.identity(), {name: list(of) for name, of in self._names.items()}]

    def columns(self) -> tuple[str, ...] | None:
        """The source's own, and the names that they go by here."""
        known = self._source.columns()
        if known is None:
            return None
        found = [name for name, of in self._names.items() if any(_head(a) in known for a in of)]
        return tuple(dict.fromkeys((*known, *found)))

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Row | RowError]]:
        """Each row with its number, with all that it has and under the names of here."""
        own = [_head(alias) for name in columns for alias in self._names.get(name, (name,))]
        for number, row in self._source.rows(own):
            yield number, row if isinstance(row, RowError) else self._named(row)

    def _named(self, row: Row) -> Row:
        named = dict(row)
        for name, aliases in self._names.items():
            for alias in aliases:
                head, _, key = alias.partition(".")
                value = row.get(head)
                holder = value if key else row
                if isinstance(holder, Mapping) and (key or head) in holder:
                    named[name] = holder[key or head]
                    break
        return named


def _head(alias: str) -> str:
    return alias.partition(".")[0]


class PublishedSettings(TaskSettings):
    """Settings of a published data set; a subclass adds `name` and the defaults that are None."""

    path: str
    """Folder with train, validation and test files (.jsonl, .csv, .tsv, also .gz), or hub id."""
    train: str | None = None
    """File or data set (`org/name#split`) to train on, in place of the one of `path`."""
    validation: str | None = None
    """Likewise."""
    test: str | None = None
    """Likewise."""
    prompt: str
    """Template of the prompt."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at the first bad row, or leave bad rows out and count them."""
    dataset_config: str | None = None
    """Configuration of the data set; null for what the default of `path` needs."""
    dataset_revision: str | None = None
    """Branch, tag or commit of the data set; null for what the default of `path` needs."""
    metrics: MetricNames
    """What is measured; the first one picks the checkpoint."""

    @model_validator(mode="after")
    def _usable(self) -> Self:
        self.build()
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """The settings as the task's class takes them."""
        limits = {f"max_{split}_examples" for split in SPLITS}
        return {
            **self.model_dump(exclude={"name", *limits}),
            "max_examples": self.max_examples,
        }

    @abstractmethod
    def build(
        self, *, cache_dir: Path | None = None, on_progress: Progress | None = None
    ) -> PublishedTask:
        """The task; see `TaskSettings.build` for the arguments."""
