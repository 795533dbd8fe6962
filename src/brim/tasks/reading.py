"""Tasks whose splits are read from files and data sets, and kept as memory-mapped copies."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from brim.config.loading import config_hash
from brim.errors import ConfigError, DataError
from brim.examples import Example
from brim.seeding import derive_seed
from brim.support.numerals import REFERENCE_ANSWERS
from brim.tasks.base import Progress, Selected, Split, Task, prompt_text
from brim.tasks.cells import RowError
from brim.tasks.mixing import Weighted, WeightedSource
from brim.tasks.rows import Columns, OnBadRow, Source, read_examples

if TYPE_CHECKING:
    from brim.tasks.arrow import ArrowWriter

logger = logging.getLogger(__name__)

_FORMAT = 4  # of the cached files; another number makes them anew

Sources = str | tuple[WeightedSource, ...] | None
"""What a split is read from: one source, several with weights, or nothing."""


COUNTED_BYTES = 2**30
"""Larger files are not read for a plan: it would take minutes."""


class Part(Protocol):
    """What examples of a split are appended to."""

    def append(self, example: Example, /) -> None:
        """Take one."""

    def __len__(self) -> int: ...


class _Tally:
    """Counts examples, and keeps none."""

    def __init__(self) -> None:
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, example: Example) -> None:
        self._count += 1


class Opened(NamedTuple):
    """A source, what the ids of its rows begin with where there are several, and its weight."""

    source: Source
    prefix: str
    weight: float


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
    def sources(self) -> Mapping[Split, Sources]:
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

    def num_needed(self, split: Split) -> int | None:
        """Return after how many examples of a split its source is read no further; None for all."""
        return None

    def load(
        self, split: Split, *, cache_dir: Path | None = None, on_progress: Progress | None = None
    ) -> Sequence[Example]:
        """Return the examples of a split; see `Task.load`."""
        home, named = self._home(split)
        if not named:
            carve = "" if split == "train" else ", and there is no task.train to carve it out of"
            raise ConfigError(f"task.{split} is not set{carve}; name a file or data set")
        carved = self._carved(home)
        if split != home and split not in carved:
            raise ConfigError(
                f"task.{split} is not set and task.{split}_fraction is 0; set either of them"
            )
        sources, splits = self._open(home, named), (home, *carved)
        names = ", ".join(opened.source.name for opened in sources)

        write = partial(self._write, sources, on_progress)
        examples: Sequence[Example]
        if cache_dir is None:
            parts: dict[Split, list[Example]] = {name: [] for name in splits}
            facts = write(parts)[split]
            examples = Selected(parts[split], range(len(parts[split])), **facts)
        else:
            # Imported here because it takes a tenth of a second that settings do not need.
            from brim.tasks.arrow import read_copy

            examples = read_copy(cache_dir, self._key(sources, splits), splits, split, write)
        if split == home and any(opened.weight != 1 for opened in sources):
            examples = _weighted(examples, sources)
        if not examples:
            raise DataError(
                f"{names}: too few rows to carve out {' and '.join(carved)}, for none is "
                f"left for {split}; name files of {'their' if len(carved) > 1 else 'its'} own in "
                f"{' and '.join(f'task.{name}' for name in carved)}"
            )
        return examples[: self.limit(split)]

    def count(self, split: Split) -> int | None:
        """Return how many examples a split has, less bad rows; files are read, and none is kept.

        None where a source is no file of this machine, or larger than `COUNTED_BYTES`.

        Raises:
            DataError: a file cannot be read.
            ConfigError: the settings do not fit the data.
        """
        home, named = self._home(split)
        files = [Path(part.path).expanduser() for part in named]
        if not files or not all(path.is_file() for path in files):
            return None
        if sum(path.stat().st_size for path in files) > COUNTED_BYTES:
            return None
        sources, carved = self._open(home, named), self._carved(home)
        parts = {name: _Tally() for name in (home, *carved)}
        counts, _ = self._read(sources, parts, "skip")
        found = len(parts[split])
        if split == home:
            weights = [opened.weight for opened in sources]
            numbers = [fact["num_examples"] for fact in counts[split]]
            found = len(Weighted((), list(zip(numbers, weights, strict=True))))
        return min(found, self.limit(split) or found)

    def find(self, split: Split, ids: Collection[str]) -> dict[str, str]:
        """Return where the rows with these ids were read, as `file:line`."""
        home, named = self._home(split)
        columns, carved = self.columns(), self._carved(home)
        splits, split_of = (home, *carved), self._split_of(home, carved)
        found: dict[str, str] = {}
        for source, prefix, _ in self._open(home, named):
            for number, row in source.rows(columns.used(splits)):
                with suppress(RowError):
                    default_id = f"{prefix or source.label + ':'}{number}"
                    _, examples = columns.examples(row, default_id, split_of, prefix)
                    found |= {e.id: source.where(number) for e in examples if e.id in ids}
        return found

    def interval(self, example: Example) -> Split:
        """Return the split that would get an example, were all splits carved out of one source."""
        point = derive_seed(0, "carve", self.carved_by(example)) / 2**63
        for split, fraction in self.fractions().items():
            if point < fraction:
                return split
            point -= fraction
        return "train"

    def _home(self, split: Split) -> tuple[Split, tuple[WeightedSource, ...]]:
        """The split whose sources are read for this one, and these sources."""
        sources = self.sources()
        if split not in sources:
            raise ConfigError(f"there is no split {split}; there are {', '.join(sources)}")
        home: Split = split if sources[split] else "train"
        named = sources[home]
        return home, (WeightedSource(path=named),) if isinstance(named, str) else named or ()

    def _open(self, home: Split, named: Sequence[WeightedSource]) -> list[Opened]:
        """The sources of a split; of several, ids begin with what tells them apart."""
        sources = [self.open(part.path, home) for part in named]
        labels = Counter(source.label for source in sources)
        prefixes = [
            source.label if labels[source.label] == 1 else source.name for source in sources
        ]
        return [
            Opened(source, f"{prefix}:" if len(named) > 1 else "", part.weight)
            for source, prefix, part in zip(sources, prefixes, named, strict=True)
        ]

    def _split_of(self, home: Split, carved: Collection[Split]) -> Callable[[Example], Split]:
        """What tells to which split a row of a source belongs."""

        def split_of(example: Example) -> Split:
            split = self.interval(example) if carved else home
            return split if split in carved else home

        return split_of

    def _carved(self, home: Split) -> dict[Split, float]:
        """The splits that are carved out of the source of this one, and their fractions."""
        sources = self.sources()
        return {
            split: fraction
            for split, fraction in self.fractions().items()
            if home == "train" and sources.get(split, split) is None and fraction > 0
        }

    def _key(self, sources: Sequence[Opened], splits: Sequence[Split]) -> str:
        """The name of the copy: another one where anything that it depends on is."""
        columns = self.columns()
        identities = [[opened.prefix, *opened.source.identity()] for opened in sources]
        later = {  # than the first copies, whose names are what they were
            "teacher": columns.teacher,
            "references": {**columns.references},
            "turns": None if columns.turns == "last" else columns.turns,
            "tools": columns.tools,
            "needed": self.num_needed(splits[0]) if _is_plain(sources) else None,
        }
        return config_hash(
            {
                "format": _FORMAT,
                "source": identities[0][1:] if len(sources) == 1 else identities,
                "prompt": columns.template and columns.template.text,
                "columns": [columns.messages, columns.targets, columns.id],
                **{key: value for key, value in later.items() if value},
                "optional_target": columns.optional_target,
                "answers": sorted(REFERENCE_ANSWERS.keys() & columns.metrics),
                "on_bad_row": self.on_bad_row,
                "splits": splits,
                "fractions": self.fractions(),
            }
        )[:16]

    def _read(
        self,
        sources: Sequence[Opened],
        parts: Mapping[Split, Part],
        on_bad_row: OnBadRow,
        on_progress: Progress | None = None,
    ) -> tuple[dict[Split, list[dict[str, Any]]], Counter[str]]:
        """Read sources once and append the examples of each split.

        Returns:
            By split, how many examples each source has of it; and bad rows by reason.
        """
        home, *carved = parts
        split_of = self._split_of(home, carved)
        needed = self.num_needed(home) if _is_plain(sources) else None
        skipped: Counter[str] = Counter()
        seen: set[bytes] = set()
        counts: dict[Split, list[dict[str, Any]]] = {split: [] for split in parts}
        for source, prefix, _ in sources:
            before = {split: len(part) for split, part in parts.items()}
            found = read_examples(
                source,
                self.columns(),
                on_bad_row=on_bad_row,
                skipped=skipped,
                splits=tuple(parts),
                split_of=split_of,
                prefix=prefix,
                seen=seen,
                on_progress=on_progress,
            )
            for split, example in found:
                parts[split].append(example)
                if len(parts[home]) == needed:
                    break
            for split, part in parts.items():
                count = len(part) - before[split]
                counts[split].append({"source": source.name, "num_examples": count})
        return counts, skipped

    def _write(
        self,
        sources: Sequence[Opened],
        on_progress: Progress | None,
        parts: Mapping[Split, ArrowWriter | list[Example]],
    ) -> dict[Split, dict[str, Any]]:
        """Read sources once and append the examples of each split; returns what is known of it."""
        _, *carved = parts
        fractions, name = self.fractions(), ", ".join(opened.source.name for opened in sources)
        counts, skipped = self._read(sources, parts, self.on_bad_row, on_progress)
        if skipped:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in skipped.most_common())
            logger.warning("%s: left out %d bad rows: %s", name, skipped.total(), reasons)
        for split in carved:
            count, fraction = len(parts[split]), fractions[split]
            logger.warning(
                "task.%s is not set: %d row%s of %s (%g %% of its prompts, by hash) kept for it",
                *(split, count, "s" * (count != 1), name, 100 * fraction),
            )
        count = sum(map(len, parts.values())) + skipped.total()
        known = self.num_rows(tuple(parts)) or count
        # A file with less than half of it is a sample, and meant to be one.
        if count != known and 2 * count > known:
            logger.warning(
                "%s: %d rows, where the published data has %d: another version of it?",
                *(name, count, known),
            )
        facts = {"source": name, "skipped": dict(skipped)}
        return {
            split: {
                **facts,
                **({"sources": counts[split]} if len(sources) > 1 else {}),
                **({"carved": fractions[split]} if split in carved else {}),
            }
            for split in parts
        }


def _is_plain(sources: Sequence[Opened]) -> bool:
    """Whether the first rows that are read are the first rows of the split."""
    return len(sources) == 1 and sources[0].weight == 1


def _weighted(examples: Sequence[Example], sources: Sequence[Opened]) -> Weighted:
    """The rows of these sources as often as their weights say."""
    alone = [{"source": sources[0].source.name, "num_examples": len(examples)}]
    known = getattr(examples, "provenance", {}).get("sources", alone)
    facts = [{**fact, "weight": o.weight} for fact, o in zip(known, sources, strict=True)]
    parts = [(fact["num_examples"], fact["weight"]) for fact in facts]
    weighted = Weighted(examples, parts, sources=facts)
    if not weighted:
        names = ", ".join(opened.source.name for opened in sources)
        raise DataError(f"{names}: no row is left of so few at this weight; raise it")
    return weighted
