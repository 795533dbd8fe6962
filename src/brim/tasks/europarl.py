"""Europarl English-Dutch: a sentence of the European Parliament -> its translation (Koehn 2005).

    thank you for your reply .

    ik dank u voor dit antwoord .

The hub has version 8 of OPUS, in one piece. Table 4 of the paper (BRIM) counts 1,167,808 / 10,014 /
10,016 pairs of "the standard split", and no published split with these counts is known to us. So
the split is our own: the English sentences whose hash falls into two small intervals are kept for
validation and test. The same sentence is never in two splits, and the order does not matter.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from brim.examples import Example
from brim.tasks.base import SPLITS, MetricNames, Progress, Split
from brim.tasks.published import Publication, PublishedSettings, PublishedTask

HELD_OUT = 0.006
"""Of 2,027,447 pairs about 12,000, so that there are surely the paper's 10,014 and 10,016."""


class Europarl(PublishedTask):
    """Columns `en` and `nl`, the hub's `translation` with these keys, or `source` and `target`.

    Where there is no validation or test data, it is carved out of the training data as above.
    """

    name = "europarl"
    published = Publication(
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

    def _interval(self, example: Example) -> Split:
        """By the sentence alone, so that the split is the same whatever the prompt's template."""
        return super()._interval(replace(example, prompt=self._sentence(example.prompt)))

    def _sentence(self, prompt: str) -> str:
        """The sentence in a prompt, of which the template tells where it stands and how often."""
        assert self.columns.template is not None
        frame, marked = (self.columns.template.render({"en": text}) for text in ("", "\0"))
        size = (len(prompt) - len(frame)) // (len(marked) - len(frame))
        return prompt[marked.index("\0") :][:size]


class EuroparlConfig(PublishedSettings):
    """Settings of the task on Europarl, English to Dutch."""

    name: Literal["europarl"] = "europarl"
    """English to Dutch."""
    path: str = Europarl.published.hub_id
    """Folder with train, validation and test files (.jsonl, .csv, .tsv, also .gz), or hub id."""
    prompt: str = "translate English to Dutch: {en}"
    """Template of the prompt; `{en}` is the English sentence."""
    on_bad_row: Literal["error", "skip"] = "skip"
    """Stop at the first bad row, or leave bad rows, such as empty sides, out and count them."""
    metrics: MetricNames = ("bleu", "chrf", "ter")
    """What is measured; the first one picks the checkpoint."""

    def build(
        self, *, cache_dir: Path | None = None, on_progress: Progress | None = None
    ) -> Europarl:
        """The task; see `TaskSettings.build` for the arguments."""
        return Europarl(
            **self.arguments,
            validation_fraction=HELD_OUT,
            test_fraction=HELD_OUT,
            cache_dir=cache_dir,
            on_progress=on_progress,
        )
