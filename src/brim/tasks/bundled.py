"""Data that is part of the package: xz-compressed tables, `id <tab> text [<tab> text ...]`."""

from __future__ import annotations

import hashlib
import lzma
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import resources

from brim.tasks.base import Split
from brim.tasks.templates import Template
from brim.types import Example


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
