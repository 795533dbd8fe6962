"""Summaries: the description of a software package -> its one-line synopsis (Debian).

    Zutils is a collection of utilities for dealing with any combination of compressed and
    non-compressed files transparently. Currently the supported compressors are gzip, bzip2, lzip,
    xz, and zstd.

    utilities for dealing with compressed files transparently

Written by people; the synopsis mostly takes words of the description. Packages that are built from
the same source never fall into different splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from brim.tasks.base import BundledSettings, BundledTask, Progress


class Synopsis(BundledTask):
    """11,640 packages to train on, 520 to validate, 780 to test; `{source}` is the description."""

    name = "synopsis"
    metrics: tuple[str, ...] = ("rougeL", "rouge1", "rouge2")

    def read(self, row: Sequence[str]) -> tuple[str, str, tuple[str, ...]]:
        """A package's name is its id."""
        package, description, synopsis = row
        return package, description, (synopsis,)


class SynopsisConfig(BundledSettings):
    """Settings of the summary task."""

    name: Literal["synopsis"] = "synopsis"
    """Package description to one line."""

    def build(
        self, *, cache_dir: Path | None = None, on_progress: Progress | None = None
    ) -> Synopsis:
        """The task; it reads no files of the user's."""
        return Synopsis(prompt=self.prompt, max_examples=self.max_examples)
