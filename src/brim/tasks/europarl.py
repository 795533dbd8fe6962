"""Europarl English-Dutch: a sentence of the European Parliament -> its translation (Koehn 2005).

    thank you for your reply .

    ik dank u voor dit antwoord .

The hub has version 8 of OPUS, in one piece. Table 4 of the paper (BRIM) counts 1,167,808 / 10,014 /
10,016 pairs of "the standard split", and no published split with these counts is known to us. So
the split is our own: the English sentences whose hash falls into two small intervals are kept for
validation and test, where these have no data of their own. The same sentence is never in two
splits, and the order does not matter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from brim.examples import Example
from brim.tasks.base import SPLITS, MetricNames
from brim.tasks.files import Reader
from brim.tasks.published import Publication, PublishedTask
from brim.tasks.rows import OnBadRow


class Europarl(PublishedTask):
    """Settings of the task on Europarl, English to Dutch."""

    published: ClassVar[Publication] = Publication(
        hub_id="Helsinki-NLP/europarl",
        config="en-nl",
        splits=("train",),
        names={
            "en": ("en", "translation.en", "source"),
            "nl": ("nl", "translation.nl", "target"),
            "id": ("id",),
        },
        num_rows={SPLITS: 2_027_447},
    )
    # Of 2,027,447 pairs about 12,000, so that there are surely the paper's 10,014 and 10,016.
    held_out: ClassVar[float] = 0.006

    name: Literal["europarl"] = "europarl"
    """English to Dutch."""
    path: str = published.hub_id
    """Folder with train, validation and test files (.jsonl, .csv, .tsv, also .gz), or hub id."""
    prompt: str = "translate English to Dutch: {en}"
    """Template of the prompt; `{en}` is the English sentence."""
    on_bad_row: OnBadRow = "skip"
    """Stop at the first bad row, or leave bad rows, such as empty sides, out and count them."""
    metrics: MetricNames = ("bleu", "chrf", "ter")
    """What is measured; the first one picks the checkpoint."""

    def reader(self) -> Reader:
        """Return what reads the splits: carved by the sentence, whatever the prompt's template."""
        return replace(super().reader(), carved_by=_sentence)


def _sentence(example: Example) -> str:
    return example.prompt[slice(*example.field)] if example.field else example.prompt
