"""Your own data: a JSONL, CSV or TSV file, or a data set of Hugging Face's, with named columns.

    {"question": "Wat is de hoofdstad van Friesland?", "answer": "Leeuwarden"}

    train.jsonl  prompt_column=question  target_column=answer

Every row is checked before anything is trained: a bad one is an error that names its file and line,
or is left out and counted. The examples are then read from a memory-mapped copy, so that the data
may be larger than memory.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from brim.config.loading import config_hash
from brim.errors import ConfigError, DataError
from brim.examples import Example
from brim.seeding import derive_seed
from brim.support.numerals import REFERENCE_ANSWERS
from brim.tasks.base import MetricNames, Progress, Selected, Split, Task, prompt_text
from brim.tasks.rows import Columns, OnBadRow, RowError, Source, read_examples
from brim.tasks.sources import open_source
from brim.tasks.templates import Template

if TYPE_CHECKING:
    from brim.tasks.arrow import ArrowWriter

logger = logging.getLogger(__name__)

_FORMAT = 4  # of the cached files; another number makes them anew


class ReadTask(Task):
    """A task whose splits are read from the sources that its settings name.

    A validation or test split without a source is carved out of the training data: the prompts
    whose hash falls into a fixed interval. So it does not depend on the order of the rows, and the
    same prompt is never in two splits.
    """

    if TYPE_CHECKING:

        @property
        def on_bad_row(self) -> OnBadRow:
            """`error`, or `skip` to leave bad rows out and count them."""

    @abstractmethod
    def sources(self) -> dict[Split, str | None]:
        """Return what is read for each split; None for a split to carve, or for none."""

    @abstractmethod
    def columns(self) -> Columns:
        """Return which columns make an example."""

    @abstractmethod
    def fractions(self) -> dict[Split, float]:
        """Return the fraction of the prompts that is carved for a split, where it is."""

    @abstractmethod
    def open(self, text: str, split: Split) -> Source:
        """Return the source of this name."""

    def carved_by(self, example: Example) -> str:
        """Return the text whose hash is looked at."""
        return prompt_text(example)

    def num_rows(self, splits: tuple[Split, ...]) -> int | None:
        """Return how many rows there are to these splits, where they are published."""
        return None

    def load(
        self, split: Split, *, cache_dir: Path | None = None, on_progress: Progress | None = None
    ) -> Sequence[Example]:
        """Return the examples of a split; see `Task.load`."""
        home, text = self._home(split)
        if text is None:
            carve = "" if split == "train" else ", and there is no task.train to carve it out of"
            raise ConfigError(f"task.{split} is not set{carve}; name a file or data set")
        carved = self._carved(home)
        if split != home and split not in carved:
            raise ConfigError(
                f"task.{split} is not set and task.{split}_fraction is 0; set either of them"
            )
        source, splits = self.open(text, home), (home, *carved)

        write = partial(self._write, source, on_progress)
        examples: Sequence[Example]
        if cache_dir is None:
            parts: dict[Split, list[Example]] = {name: [] for name in splits}
            facts = write(parts)[split]
            examples = Selected(parts[split], range(len(parts[split])), **facts)
        else:
            # Imported here because it takes a tenth of a second that settings do not need.
            from brim.tasks.arrow import read_copy

            examples = read_copy(cache_dir, self._key(source, splits), splits, split, write)
        if not examples:
            raise DataError(
                f"{source.name}: too few rows to carve out {' and '.join(carved)}, for none is "
                f"left for {split}; name files of {'their' if len(carved) > 1 else 'its'} own in "
                f"{' and '.join(f'task.{name}' for name in carved)}"
            )
        return examples[: self.limit(split)]

    def find(self, split: Split, ids: Collection[str]) -> dict[str, str]:
        """Return where the rows with these ids were read, as `file:line`."""
        home, text = self._home(split)
        source, columns = self.open(text or "", home), self.columns()
        found = {}
        for number, row in source.rows(columns.used):
            with suppress(RowError):
                example = columns.example(row, default_id=f"{source.label}:{number}")
                if example.id in ids:
                    found[example.id] = source.where(number)
        return found

    def interval(self, example: Example) -> Split:
        """Return the split that would get an example, were all splits carved out of one source."""
        point = derive_seed(0, "carve", self.carved_by(example)) / 2**63
        for split, fraction in self.fractions().items():
            if point < fraction:
                return split
            point -= fraction
        return "train"

    def _home(self, split: Split) -> tuple[Split, str | None]:
        """The split whose source is read for this one, and that source."""
        sources = self.sources()
        home: Split = split if sources[split] else "train"
        return home, sources[home]

    def _carved(self, home: Split) -> dict[Split, float]:
        """The splits that are carved out of the source of this one, and their fractions."""
        sources = self.sources()
        return {
            split: fraction
            for split, fraction in self.fractions().items()
            if home == "train" and sources[split] is None and fraction > 0
        }

    def _key(self, source: Source, splits: Sequence[Split]) -> str:
        """The name of the copy: another one where anything that it depends on is."""
        columns = self.columns()
        return config_hash(
            {
                "format": _FORMAT,
                "source": source.identity(),
                "prompt": columns.template and columns.template.text,
                "columns": [columns.messages, columns.targets, columns.id],
                **({"teacher": columns.teacher} if columns.teacher else {}),
                "optional_target": columns.optional_target,
                "answers": sorted(REFERENCE_ANSWERS.keys() & columns.metrics),
                "on_bad_row": self.on_bad_row,
                "splits": splits,
                "fractions": self.fractions(),
            }
        )[:16]

    def _write(
        self,
        source: Source,
        on_progress: Progress | None,
        parts: Mapping[Split, ArrowWriter | list[Example]],
    ) -> dict[Split, dict[str, Any]]:
        """Read a source once and append the examples of each split; returns what is known of it."""
        home, *carved = parts
        fractions = self.fractions()
        skipped: Counter[str] = Counter()
        for example in read_examples(
            source,
            self.columns(),
            on_bad_row=self.on_bad_row,
            skipped=skipped,
            on_progress=on_progress,
        ):
            split = self.interval(example) if carved else home
            parts[split if split in carved else home].append(example)
        if skipped:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in skipped.most_common())
            logger.warning("%s: left out %d bad rows: %s", source.name, skipped.total(), reasons)
        for split in carved:
            count, fraction = len(parts[split]), fractions[split]
            logger.warning(
                "task.%s is not set: %d row%s of %s (%g %% of its prompts, by hash) kept for it",
                *(split, count, "s" * (count != 1), source.name, 100 * fraction),
            )
        count = sum(map(len, parts.values())) + skipped.total()
        known = self.num_rows(tuple(parts)) or count
        # A file with less than half of it is a sample, and meant to be one.
        if count != known and 2 * count > known:
            logger.warning(
                "%s: %d rows, where the published data has %d: another version of it?",
                *(source.name, count, known),
            )
        facts = {"source": source.name, "skipped": dict(skipped)}
        return {
            split: {**facts, **({"carved": fractions[split]} if split in carved else {})}
            for split in parts
        }


class Files(ReadTask):
    """Settings of a task on the user's own data.

    A source is a path (.jsonl, .json, .ndjson, .csv, .tsv, each also with .gz), a folder that
    `datasets` wrote or can read, or the id of a data set on the hub; the latter two may name a
    split behind a `#`, as in `org/name#train`, and otherwise have the split that is asked for.
    """

    name: Literal["files"] = "files"
    """A JSONL, CSV or TSV file, or a data set of Hugging Face's."""
    train: str | None = None
    """File (.jsonl, .csv, .tsv, also .gz), folder of `datasets`, or hub id: `org/name#split`."""
    validation: str | None = None
    """Likewise; null to carve it out of the training data."""
    test: str | None = None
    """Likewise."""
    prompt_column: str = "prompt"
    """Column whose text is the prompt."""
    prompt: str | None = None
    """Template of the prompt with any columns: `Translate to Dutch: {en}`."""
    messages_column: str | None = None
    """Column with a chat instead: a list of `{role, content}`."""
    target_column: str | tuple[str, ...] | None = "target"
    """Column with the reference or a list of them, or several columns; null for prompts alone."""
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
    metrics: MetricNames = ("chrf", "bleu", "rougeL", "exact_match")
    """What is measured; the first one picks the checkpoint."""

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ConfigError(
                "task.validation_fraction and task.test_fraction leave nothing to train on"
            )
        self._template()
        return self

    def sources(self) -> dict[Split, str | None]:
        """See `ReadTask.sources`."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def columns(self) -> Columns:
        """See `ReadTask.columns`."""
        targets = self.target_column
        return Columns(
            template=self._template(),
            messages=self.messages_column,
            targets=(targets,) if isinstance(targets, str) else targets or (),
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
        config, revision = self.dataset_config, self.dataset_revision
        return open_source(text, split, config=config, revision=revision)

    def _template(self) -> Template | None:
        """The prompt template, None for a chat; settings that exclude each other are refused."""
        named = self.prompt_column != "prompt"
        if self.messages_column:
            if named or self.prompt is not None:
                other = "prompt_column" if named else "prompt"
                raise ConfigError(f"task.messages_column and task.{other} exclude each other")
            return None
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
