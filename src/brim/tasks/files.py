"""Your own data: a JSONL, CSV or TSV file, or a data set of Hugging Face's, with named columns.

    {"question": "Wat is de hoofdstad van Friesland?", "answer": "Leeuwarden"}

    train.jsonl  prompt_column=question  target_column=answer

Every row is checked before anything is trained: a bad one is an error that names its file and line,
or is left out and counted. The examples are then read from a memory-mapped copy, so that the data
may be larger than memory.
"""

from __future__ import annotations

import json
import logging
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from brim.config.loading import config_hash
from brim.errors import ConfigError, DataError
from brim.examples import Example
from brim.seeding import derive_seed
from brim.support.files import atomic_open, disk_errors, read_json
from brim.support.numerals import REFERENCE_ANSWERS
from brim.support.seals import find_damage, seal
from brim.tasks.arrow import ArrowExamples, ArrowWriter
from brim.tasks.base import SPLITS, MetricName, MetricNames, Progress, Split, TaskSettings
from brim.tasks.rows import Columns, RowError, Source, read_examples
from brim.tasks.sources import open_source
from brim.tasks.templates import Template

logger = logging.getLogger(__name__)

DEFAULT_METRICS: tuple[MetricName, ...] = ("chrf", "bleu", "rougeL", "exact_match")

_FORMAT = 4  # of the cached files; another number makes them anew


class Files:
    """Splits read from the user's data.

    A source is a path (.jsonl, .json, .ndjson, .csv, .tsv, each also with .gz), a folder that
    `datasets` wrote or can read, or the id of a data set on the hub; the latter two may name a
    split behind a `#`, as in `org/name#train`, and otherwise have the split that is asked for.

    A validation or test split that is not given is carved out of the training data: the prompts
    whose hash falls into a fixed interval. So it does not depend on the order of the rows, and
    the same prompt is never in two splits. Where a split has a source of its own, a warning says
    how many of its prompts are training prompts too, when both are read.

    Args:
        train: source of the training split.
        validation: source of the validation split.
        test: source of the test split.
        prompt_column: column whose text is the prompt.
        prompt: template of the prompt with any columns, as in `Translate to Dutch: {en}`; None for
            the prompt column as it is.
        messages_column: column with a chat instead, a list of `{role, content}`.
        target_column: column with the reference, text or a list of texts; or several columns, of
            which a row may leave some empty: its first reference is the training target; or None,
            for prompts alone. A chat whose last message is the assistant's then has that as its
            reference.
        optional_target: rows without a target are allowed: reinforcement learning can use them.
        id_column: column with a row's id; by default it is called after its file and line.
        on_bad_row: `error`, or `skip` to leave bad rows out and count them.
        validation_fraction: fraction of the prompts that is carved, where it is.
        test_fraction: likewise.
        dataset_config: configuration of a hub data set.
        dataset_revision: branch, tag or commit of a hub data set.
        metrics: names of metrics, the first of which picks the checkpoint.
        max_examples: keep the first so many examples of a split.
        cache_dir: where the memory-mapped copy is kept, and found again while the source and the
            settings stay the same; None to keep it in memory.
        on_progress: told how far the reading is.

    Raises:
        ConfigError: settings that contradict each other, or a broken template.
    """

    name = "files"

    def __init__(
        self,
        *,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        prompt_column: str = "prompt",
        prompt: str | None = None,
        messages_column: str | None = None,
        target_column: str | Sequence[str] | None = "target",
        optional_target: bool = False,
        id_column: str | None = None,
        on_bad_row: Literal["error", "skip"] = "error",
        validation_fraction: float = 0.05,
        test_fraction: float = 0.05,
        dataset_config: str | None = None,
        dataset_revision: str | None = None,
        metrics: Sequence[str] = DEFAULT_METRICS,
        max_examples: Mapping[Split, int] | None = None,
        cache_dir: Path | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        if validation_fraction + test_fraction >= 1:
            raise ConfigError(
                "task.validation_fraction and task.test_fraction leave nothing to train on"
            )
        targets = (target_column,) if isinstance(target_column, str) else target_column
        self.sources: dict[Split, str | None]
        self.sources = {"train": train, "validation": validation, "test": test}
        self.columns = Columns(
            template=_template(prompt_column, prompt, messages_column),
            messages=messages_column,
            targets=tuple(targets or ()),
            optional_target=optional_target,
            id=id_column,
            metrics=tuple(metrics),
        )
        self.on_bad_row = on_bad_row
        self.fractions: dict[Split, float]
        self.fractions = {"validation": validation_fraction, "test": test_fraction}
        self.dataset_config = dataset_config
        self.dataset_revision = dataset_revision
        self.metrics = tuple(metrics)
        self.max_examples = dict(max_examples or {})
        self.cache_dir = cache_dir
        self.on_progress = on_progress
        self._prompts: dict[Split, array[int]] = {}  # 8 bytes of the hash of each prompt
        self._sound: set[str] = set()  # manifests whose files were compared

    def load(self, split: Split) -> Sequence[Example]:
        """The examples of a split, memory-mapped where there is a `cache_dir`.

        Raises:
            ConfigError: the split is not set, or the source has not the columns.
            DataError: no such source, a bad row, or not a single good one.
            RunError: the copy cannot be written.
        """
        home: Split = split if self.sources[split] else "train"
        text = self.sources[home]
        if text is None:
            carve = "" if split == "train" else ", and there is no task.train to carve it out of"
            raise ConfigError(f"task.{split} is not set{carve}; name a file or data set")
        carved = self._carved(home)
        if split != home and split not in carved:
            raise ConfigError(
                f"task.{split} is not set and task.{split}_fraction is 0; set either of them"
            )
        source = self._open(text, home)
        examples = self._read(source, (home, *carved))[split]
        if not examples:
            raise DataError(
                f"{source.name}: too few rows to carve out {' and '.join(carved)}, for none is "
                f"left for {split}; name files of {'their' if len(carved) > 1 else 'its'} own in "
                f"{' and '.join(f'task.{name}' for name in carved)}"
            )
        return examples[: self.max_examples.get(split)]

    def find(self, split: Split, ids: Collection[str]) -> dict[str, str]:
        """Where the rows with these ids were read, as `file:line`; the source is read again."""
        home: Split = split if self.sources[split] else "train"
        text = self.sources[home]
        assert text is not None, "the split was loaded"
        source, found = self._open(text, home), {}
        for number, row in source.rows(self.columns.used):
            with suppress(RowError):
                if not isinstance(row, RowError):
                    example = self.columns.example(row, default_id=f"{source.label}:{number}")
                    if example.id in ids:
                        found[example.id] = source.where(number)
        return found

    def _open(self, text: str, split: Split) -> Source:
        return open_source(text, split, config=self.dataset_config, revision=self.dataset_revision)

    def _carved(self, home: Split) -> dict[Split, float]:
        """The splits that are carved out of the source of this one, and their fractions."""
        return {
            split: fraction
            for split, fraction in self.fractions.items()
            if home == "train" and self.sources[split] is None and fraction > 0
        }

    def _read(self, source: Source, splits: Sequence[Split]) -> dict[Split, ArrowExamples]:
        """Each of the splits that come from a source: from the cache, or read anew."""
        if self.cache_dir is None:
            buffers = {split: pa.BufferOutputStream() for split in splits}
            report = self._write(source, buffers)
            return {
                split: ArrowExamples(buffer.getvalue(), report[split])
                for split, buffer in buffers.items()
            }
        key = config_hash(
            {
                "format": _FORMAT,
                "source": source.identity(),
                "prompt": self.columns.template and self.columns.template.text,
                "columns": [self.columns.messages, self.columns.targets, self.columns.id],
                "optional_target": self.columns.optional_target,
                "answers": sorted(REFERENCE_ANSWERS.keys() & self.metrics),
                "on_bad_row": self.on_bad_row,
                "splits": splits,
                "fractions": self.fractions,
            }
        )[:16]
        paths = {split: self.cache_dir / f"{key}.{split}.arrow" for split in splits}
        manifest = f"{key}.json"  # written last: what it names is whole
        damage = self._damage(manifest, paths)
        if damage is not None:
            if (self.cache_dir / manifest).exists():
                logger.warning("%s: %s; reading %s again", self.cache_dir, damage, source.name)
            with _new_folder(self.cache_dir):
                with ExitStack() as files:
                    sinks = {
                        split: files.enter_context(atomic_open(path))
                        for split, path in paths.items()
                    }
                    report = self._write(source, sinks)
                names = [path.name for path in paths.values()]
                seal(self.cache_dir, {"splits": report}, files=names, manifest=manifest)
        self._sound.add(manifest)
        report = read_json(self.cache_dir / manifest)["splits"]
        return {split: ArrowExamples(path, report[split]) for split, path in paths.items()}

    def _damage(self, manifest: str, paths: Mapping[Split, Path]) -> str | None:
        """What of the copy is not as it was written; None where it has been found whole before.

        All of it is compared before any of it is mapped: a damaged file can end the process.
        """
        assert self.cache_dir is not None
        if manifest in self._sound and all(path.exists() for path in paths.values()):
            return None
        damage = find_damage(self.cache_dir, manifest=manifest)
        if damage is None:
            known = read_json(self.cache_dir / manifest)
            names = {path.name for path in paths.values()}
            if known["files"].keys() != names or known.get("splits", {}).keys() != paths.keys():
                damage = f"{manifest} is of something else"
        return damage

    def _write(self, source: Source, sinks: Mapping[Split, Any]) -> dict[Split, dict[str, Any]]:
        """Read a source once and write the examples of each split; returns their provenance."""
        home, *carved = sinks
        writers = {split: ArrowWriter(sink) for split, sink in sinks.items()}
        prompts = {split: array("q") for split in sinks}
        skipped: Counter[str] = Counter()
        for example in read_examples(
            source,
            self.columns,
            on_bad_row=self.on_bad_row,
            skipped=skipped,
            on_progress=self.on_progress,
        ):
            split = self._interval(example) if carved else home
            split = split if split in carved else home
            writers[split].add(example)
            prompts[split].append(_prompt_key(example))
        for writer in writers.values():
            writer.close()
        if skipped:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in skipped.most_common())
            logger.warning("%s: left out %d bad rows: %s", source.name, skipped.total(), reasons)
        for split in carved:
            count, fraction = writers[split].num_examples, self.fractions[split]
            logger.warning(
                "task.%s is not set: %d row%s of %s (%g %% of its prompts, by hash) kept for it",
                *(split, count, "s" * (count != 1), source.name, 100 * fraction),
            )
        self._warn_of_overlap(prompts)
        common = {"source": source.name, "skipped": dict(skipped)}
        return {
            split: {
                **common,
                **({"carved": self.fractions[split]} if split in carved else {}),
                "sha256": writer.sha256,
            }
            for split, writer in writers.items()
        }

    def _warn_of_overlap(self, read: Mapping[Split, array[int]]) -> None:
        """Say once how many prompts of a split with a source of its own are training prompts."""
        new = read.keys() - self._prompts.keys()
        self._prompts.update(read)
        for split in SPLITS[1:]:
            pair = {"train", split}
            if self.sources[split] and pair & new and pair <= self._prompts.keys():
                train, own = (
                    np.unique(self._prompts[name][: self.max_examples.get(name)])
                    for name in ("train", split)
                )
                if common := len(np.intersect1d(train, own, assume_unique=True)):
                    logger.warning(
                        "%d of the %d different prompts of task.%s (%s) are in the training split "
                        "too: its scores are partly of what was trained on",
                        *(common, len(own), split, self.sources[split]),
                    )

    def _interval(self, example: Example) -> Split:
        """The split that would get a prompt, were all splits carved out of one source."""
        point = _prompt_key(example) / 2**63
        for split, fraction in self.fractions.items():
            if point < fraction:
                return split
            point -= fraction
        return "train"


def _prompt_key(example: Example) -> int:
    """63 bits of the hash of a prompt, by which it is carved."""
    prompt = example.prompt or json.dumps([dict(message) for message in example.messages])
    return derive_seed(0, "carve", prompt)


def _template(
    prompt_column: str, prompt: str | None, messages_column: str | None
) -> Template | None:
    """The prompt template, None for a chat; settings that exclude each other are refused."""
    named = prompt_column != "prompt"
    if messages_column:
        if named or prompt is not None:
            other = "prompt_column" if named else "prompt"
            raise ConfigError(f"task.messages_column and task.{other} exclude each other")
        return None
    if prompt is None:
        return Template("{" + prompt_column + "}")
    template = Template(prompt)
    if named and prompt_column not in template.fields:
        raise ConfigError(
            f"task.prompt_column={prompt_column} is not in the template task.prompt={prompt!r}; "
            f"write {{{prompt_column}}} in it, or leave prompt_column out"
        )
    return template


@contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """A folder with its parents for the block; those that were made for it go if it fails."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise


class FilesConfig(TaskSettings):
    """Settings of a task on the user's own data."""

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
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at the first bad row, or leave bad rows out and count them."""
    validation_fraction: float = Field(0.05, ge=0, lt=1)
    """Fraction of the training prompts that is kept for validation, where that is not set."""
    test_fraction: float = Field(0.05, ge=0, lt=1)
    """Likewise for the test."""
    dataset_config: str | None = None
    """Configuration of a hub data set."""
    dataset_revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    metrics: MetricNames = DEFAULT_METRICS
    """What is measured; the first one picks the checkpoint."""

    @model_validator(mode="after")
    def _usable(self) -> Self:
        self.build()
        return self

    def build(self, *, cache_dir: Path | None = None, on_progress: Progress | None = None) -> Files:
        """The task; see `TaskSettings.build` for the arguments."""
        limits = {f"max_{split}_examples" for split in SPLITS}
        return Files(
            **self.model_dump(exclude={"name", *limits}),
            max_examples=self.max_examples,
            cache_dir=cache_dir,
            on_progress=on_progress,
        )
