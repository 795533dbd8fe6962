"""Your own data: a file of rows, or a data set of Hugging Face's, with named columns.

    {"question": "Wat is de hoofdstad van Friesland?", "answer": "Leeuwarden"}

    train.jsonl  prompt_column=question  target_column=answer

Every row is checked before anything is trained: a bad one is an error that names its file and line,
or is left out and counted. The examples are then read from a memory-mapped copy, so that the data
may be larger than memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from brim.config.loading import Config
from brim.errors import ConfigError
from brim.tasks.base import MetricNames, Split, kind_of
from brim.tasks.chats import Turns
from brim.tasks.mixing import WeightedSource
from brim.tasks.reading import ReadTask, Sources
from brim.tasks.rows import Columns, OnBadRow, Source
from brim.tasks.sources import open_source
from brim.tasks.templates import Template

Names = str | tuple[str, ...] | None

_NAME = re.compile(r"[A-Za-z0-9_-]+")


class ReferenceColumns(Config):
    """What evaluation compares with in each split."""

    validation: Names = None
    """Column, or columns; null for `target_column`."""
    test: Names = None
    """Likewise."""


class Files(ReadTask):
    """Settings of a task on the user's own data.

    A source is a path (.jsonl, .json, .ndjson, .csv, .tsv, each also with .gz or .zst, or
    .parquet), a folder that `datasets` wrote or can read, or the id of a data set on the hub; the
    latter two may name a split behind a `#`, as in `org/name#train`, and otherwise have the split
    that is asked for.
    """

    name: Literal["files"] = "files"
    """A JSON, CSV, TSV or Parquet file, or a data set of Hugging Face's."""
    train: str | tuple[str | WeightedSource, ...] | None = None
    """File (.jsonl, .json, .csv, .tsv, also .gz or .zst; .parquet), folder of `datasets`, or hub
    id: `org/name#split`; or a list of several, each of them that or `{path: …, weight: 2}`."""
    validation: str | None = None
    """Likewise; null to carve it out of the training data."""
    test: str | dict[str, str] | None = None
    """Likewise; or several test sets by name, `{news: news.jsonl, wiki: wiki.jsonl}`, each with
    results of its own."""
    prompt_column: str = "prompt"
    """Column whose text is the prompt."""
    prompt: str | None = None
    """Template of the prompt with any columns: `Translate to Dutch: {en}`."""
    messages_column: str | None = None
    """Column with a chat, a list of `{role, content}`, in place of `prompt_column` and `prompt`,
    which then have no effect."""
    tools_column: str | None = None
    """Column with the tools that a chat's assistant may call, for the chat template: a list of
    objects, or that as JSON text."""
    turns: Turns = "last"
    """Of a chat, learn its last message, or make an example of each of the assistant's: `all`."""
    target_column: str | tuple[str, ...] | None = "target"
    """Column with the reference or a list of them, or several columns; null for prompts alone.
    A chat without it has its last message, if that is the assistant's."""
    reference_column: Names | ReferenceColumns = None
    """Column, or columns, that validation and test compare with in place of `target_column`, or
    `{validation: …, test: …}`; null for `target_column`."""
    optional_target: bool = False
    """Allow rows without a target: reinforcement learning can use them."""
    id_column: str | None = None
    """Column with a row's id; null to call rows after their file and line."""
    teacher_column: str | None = None
    """Column with the name of the teacher that scores the row, where `teacher` is a list; null to
    average their Q-values."""
    on_bad_row: OnBadRow = "error"
    """Stop at the first bad row, or leave bad rows out and count them."""
    validation_fraction: float = Field(0.05, ge=0, lt=1)
    """Fraction of the training prompts that is kept for validation, where that is not set."""
    test_fraction: float = Field(0.05, ge=0, lt=1)
    """Likewise for the test."""
    dataset_config: str | None = None
    """Configuration of a hub data set."""
    dataset_revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    streaming: bool = False
    """Read a hub data set or a folder as it comes, without a download before; where a split has a
    limit (`max_train_examples`, …), no further than to that."""
    metrics: MetricNames = ("chrf", "bleu", "rougeL", "exact_match")
    """What is measured; the first one picks the checkpoint."""

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ConfigError(
                "task.validation_fraction and task.test_fraction leave nothing to train on"
            )
        self._template()
        if not self.messages_column and (self.turns == "all" or self.tools_column):
            name = "tools_column" if self.tools_column else "turns"
            raise ConfigError(f"task.{name}: is of chats; set task.messages_column")
        if self.turns == "all" and self.reference_column is not None:
            raise ConfigError("task.turns=all and task.reference_column exclude each other")
        return self

    @field_validator("train")
    @classmethod
    def _named_once(cls, train: str | tuple[str | WeightedSource, ...] | None) -> object:
        if isinstance(train, str) and train[:1] + train[-1:] in ("[]", "{}"):  # of an override
            raise ValueError("must be a name, or a list of names and of {path: …, weight: …}")
        if isinstance(train, tuple):
            paths = [part if isinstance(part, str) else part.path for part in train]
            if not paths:
                raise ValueError("names no source")
            for path in paths:
                if paths.count(path) > 1:
                    raise ValueError(f"names {path} twice; give it a weight of 2")
        return train

    @field_validator("test")
    @classmethod
    def _test_sets(cls, test: str | dict[str, str] | None) -> object:
        if not isinstance(test, dict):
            return test
        if not test:
            raise ValueError("names no test set")
        for name in test:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} cannot be the name of a test set, which files are called after: "
                    "letters, digits, - and _ can"
                )
        paths = list(test.values())
        for path in paths:
            if paths.count(path) > 1:
                raise ValueError(f"names {path} twice; leave one of them out")
        return test

    def sources(self) -> Mapping[Split, Sources]:
        """See `ReadTask.sources`."""
        train: Sources
        if self.train is None or isinstance(self.train, str):
            train = self.train
        else:
            train = tuple(
                WeightedSource(path=part) if isinstance(part, str) else part for part in self.train
            )
        tests: dict[Split, Sources] = {"test": None}
        if self.test is not None:
            tests = (
                {"test": self.test}
                if isinstance(self.test, str)
                else {f"test.{name}": path for name, path in self.test.items()}
            )
        return {"train": train, "validation": self.validation, **tests}

    def splits(self) -> tuple[Split, ...]:
        """See `Task.splits`."""
        return tuple(self.sources())

    def columns(self) -> Columns:
        """See `ReadTask.columns`."""
        names = self.reference_column
        if not isinstance(names, ReferenceColumns):
            names = ReferenceColumns(validation=names, test=names)
        tests = dict.fromkeys(self.splits()[2:], names.test)
        references: dict[Split, Names] = {"validation": names.validation, **tests}
        return Columns(
            template=self._template(),
            messages=self.messages_column,
            targets=_listed(self.target_column),
            references={split: _listed(of) for split, of in references.items() if of},
            turns=self.turns,
            tools=self.tools_column,
            optional_target=self.optional_target,
            id=self.id_column,
            metrics=self.metrics,
            teacher=self.teacher_column,
        )

    def fractions(self) -> dict[Split, float]:
        """See `ReadTask.fractions`."""
        return {"validation": self.validation_fraction, "test": self.test_fraction}

    def open(self, text: str, split: Split) -> Source:
        """See `ReadTask.open`."""
        return open_source(
            text,
            kind_of(split),
            config=self.dataset_config,
            revision=self.dataset_revision,
            streaming=self.streaming,
        )

    def num_needed(self, split: Split) -> int | None:
        """See `ReadTask.num_needed`."""
        return self.limit(split) if self.streaming else None

    def _template(self) -> Template | None:
        """The prompt template, None for a chat; settings that exclude each other are refused."""
        if self.messages_column:
            return None
        named = self.prompt_column != "prompt"
        if self.prompt is None:
            return Template("{" + self.prompt_column + "}")
        template = Template(self.prompt)
        if named and self.prompt_column not in template.fields:
            raise ConfigError(
                f"task.prompt_column={self.prompt_column} is not in the template "
                f"task.prompt={self.prompt!r}; write {{{self.prompt_column}}} in it, or leave "
                "prompt_column out"
            )
        return template


def _listed(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names or ()
