"""Tasks whose data is part of the package: one table a split.

cmudict: the letters of an English word to its phonemes, with stress (CMUdict).

    p o s t m a s t e r
    P OW1 S T M AE2 S T ER0   |   P OW1 S M AE2 S T ER0

Symbols are separated by spaces: 26 letters, 69 phonemes. Further pronunciations are further
references. Exact match is what this field calls word accuracy; TER on phonemes is its phoneme error
rate (with shifts). Forms of a word (-s, -ed, -ing, -er, -ly) are mostly kept in one split: 5 % of
the words to test have another form among those to train on.

synopsis: the description of a software package to its one-line synopsis (Debian).

    Zutils is a collection of utilities for dealing with any combination of compressed and
    non-compressed files transparently. Currently the supported compressors are gzip, bzip2, lzip,
    xz, and zstd.

    utilities for dealing with compressed files transparently

Written by people; the synopsis mostly takes words of the description. Packages that are built from
the same source never fall into different splits.
"""

from __future__ import annotations

import hashlib
import lzma
from abc import abstractmethod
from collections.abc import Sequence
from importlib import resources
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from brim.examples import Example
from brim.tasks.base import Split, Task
from brim.tasks.templates import Template


class BundledTask(Task):
    """A task of which each row has one text, `source`."""

    prompt: str = "{source}"
    """Prompt template, as in `summarize: {source}`."""

    @field_validator("prompt")
    @classmethod
    def _usable(cls, prompt: str) -> str:
        Template(prompt).check(["source"])
        return prompt

    def load(self, split: Split, **_: Any) -> Sequence[Example]:
        """Return the examples of a split; it reads no files of the user's."""
        template, examples = Template(self.prompt), []
        for row in _read_table(self.name, split)[: self.limit(split)]:
            example_id, source, references = self.read(row)
            texts = {"source": source}
            prompt, field = template.render(texts), template.longest(texts)
            examples.append(Example(example_id, prompt, references, field=field))
        return examples

    @abstractmethod
    def read(self, row: Sequence[str]) -> tuple[str, str, tuple[str, ...]]:
        """Return id, source and references of a row."""


class CMUdict(BundledTask):
    """Pronunciation: 112,730 words to train on, 1,735 to validate, 2,901 to test.

    `{source}` is the word's letters with spaces between them.
    """

    name: Literal["cmudict"] = "cmudict"
    """Letters to phonemes."""
    metrics: ClassVar[tuple[str, ...]] = ("exact_match", "ter", "bleu")

    def read(self, row: Sequence[str]) -> tuple[str, str, tuple[str, ...]]:
        """A word is its own id."""
        word, *pronunciations = row
        return word, " ".join(word), tuple(pronunciations)


class Synopsis(BundledTask):
    """Summaries: 11,640 packages to train on, 520 to validate, 780 to test.

    `{source}` is the description.
    """

    name: Literal["synopsis"] = "synopsis"
    """Package description to one line."""
    metrics: ClassVar[tuple[str, ...]] = ("rougeL", "rouge1", "rouge2")

    def read(self, row: Sequence[str]) -> tuple[str, str, tuple[str, ...]]:
        """A package's name is its id."""
        package, description, synopsis = row
        return package, description, (synopsis,)


def _read_table(name: str, split: Split) -> list[list[str]]:
    """The rows of a split, in an order that has nothing to do with their content.

    The files are sorted, which halves their size; the order here is that of a hash of the ids, so
    that the first rows are a fair sample.
    """
    file = resources.files("brim") / "data" / name / f"{split}.tsv.xz"
    text = lzma.decompress(file.read_bytes()).decode()
    rows = [line.split("\t") for line in text.removesuffix("\n").split("\n")]
    return sorted(rows, key=lambda row: hashlib.blake2b(row[0].encode(), digest_size=8).digest())
