"""Summaries: the description of a software package -> its one-line synopsis (Debian).

    Zutils is a collection of utilities for dealing with any combination of compressed and
    non-compressed files transparently. Currently the supported compressors are gzip, bzip2, lzip,
    xz, and zstd.

    utilities for dealing with compressed files transparently

Written by people; the synopsis mostly takes words of the description. Packages that are built from
the same source never fall into different splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from brim.tasks.base import BundledSettings, Progress, Split
from brim.tasks.bundled import read_table
from brim.tasks.templates import Template
from brim.types import Example


class Synopsis:
    """11,640 packages to train on, 520 to validate, 780 to test.

    Args:
        prompt: template; `{source}` is the description.
        max_examples: keep the first so many examples of a split.

    Raises:
        ConfigError: the template cannot be used.
    """

    name = "synopsis"
    metrics: tuple[str, ...] = ("rougeL", "rouge1", "rouge2")

    def __init__(
        self, *, prompt: str = "{source}", max_examples: Mapping[Split, int] | None = None
    ) -> None:
        self.template = Template(prompt)
        self.template.check(["source"])
        self.max_examples = dict(max_examples or {})

    def load(self, split: Split) -> Sequence[Example]:
        """The examples of a split; a package's name is its id."""
        rows = read_table("synopsis", split)[: self.max_examples.get(split)]
        return [
            Example(package, self.template.render({"source": description}), (synopsis,))
            for package, description, synopsis in rows
        ]


class SynopsisConfig(BundledSettings):
    """Settings of the summary task."""

    name: Literal["synopsis"] = "synopsis"
    """Package description to one line."""

    def build(
        self, *, cache_dir: Path | None = None, on_progress: Progress | None = None
    ) -> Synopsis:
        """The task; it reads no files of the user's."""
        return Synopsis(prompt=self.prompt, max_examples=self.max_examples)
