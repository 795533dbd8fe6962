"""Pronunciation: the letters of an English word -> its phonemes, with stress (CMUdict).

    p o s t m a s t e r
    P OW1 S T M AE2 S T ER0   |   P OW1 S M AE2 S T ER0

Symbols are separated by spaces: 26 letters, 69 phonemes. Further pronunciations are further
references. Exact match is what this field calls word accuracy; TER on phonemes is its phoneme error
rate (with shifts). Forms of a word (-s, -ed, -ing, -er, -ly) are mostly kept in one split: 5 % of
the words to test have another form among those to train on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from brim.tasks.base import BundledSettings, BundledTask, Progress


class CMUdict(BundledTask):
    """112,730 words to train on, 1,735 to validate, 2,901 to test.

    `{source}` is the word's letters with spaces between them.
    """

    name = "cmudict"
    metrics: tuple[str, ...] = ("exact_match", "ter", "bleu")

    def read(self, row: Sequence[str]) -> tuple[str, str, tuple[str, ...]]:
        """A word is its own id."""
        word, *pronunciations = row
        return word, " ".join(word), tuple(pronunciations)


class CMUdictConfig(BundledSettings):
    """Settings of the pronunciation task."""

    name: Literal["cmudict"] = "cmudict"
    """Letters to phonemes."""

    def build(
        self, *, cache_dir: Path | None = None, on_progress: Progress | None = None
    ) -> CMUdict:
        """The task; it reads no files of the user's."""
        return CMUdict(prompt=self.prompt, max_examples=self.max_examples)
