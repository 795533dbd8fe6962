"""Pronunciation: the letters of an English word -> its phonemes, with stress (CMUdict).

    p o s t m a s t e r
    P OW1 S T M AE2 S T ER0   |   P OW1 S M AE2 S T ER0

Symbols are separated by spaces: 26 letters, 69 phonemes. Further pronunciations are further
references. Exact match is what this field calls word accuracy; TER on phonemes is its phoneme error
rate (with shifts). Forms of a word (-s, -ed, -ing, -er, -ly) are mostly kept in one split: 5 % of
the words to test have another form among those to train on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from brim.tasks.base import BundledSettings, Progress, Split
from brim.tasks.bundled import read_table
from brim.tasks.templates import Template
from brim.types import Example


class CMUdict:
    """112,730 words to train on, 1,735 to validate, 2,901 to test.

    Args:
        prompt: template; `{source}` is the word's letters with spaces between them.
        max_examples: keep the first so many examples of a split.

    Raises:
        ConfigError: the template cannot be used.
    """

    name = "cmudict"
    metrics: tuple[str, ...] = ("exact_match", "ter", "bleu")

    def __init__(
        self, *, prompt: str = "{source}", max_examples: Mapping[Split, int] | None = None
    ) -> None:
        self.template = Template(prompt)
        self.template.check(["source"])
        self.max_examples = dict(max_examples or {})

    def load(self, split: Split) -> Sequence[Example]:
        """The examples of a split; a word is its own id."""
        rows = read_table("cmudict", split)[: self.max_examples.get(split)]
        return [
            Example(word, self.template.render({"source": " ".join(word)}), tuple(pronunciations))
            for word, *pronunciations in rows
        ]


class CMUdictConfig(BundledSettings):
    """Settings of the pronunciation task."""

    name: Literal["cmudict"] = "cmudict"
    """Letters to phonemes."""

    def build(
        self, *, cache_dir: Path | None = None, on_progress: Progress | None = None
    ) -> CMUdict:
        """The task; it reads no files of the user's."""
        return CMUdict(prompt=self.prompt, max_examples=self.max_examples)
