"""What a run came to, as a script or a notebook reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brim.metrics import Score
from brim.models import LanguageModel, load_model
from brim.report import Report, write_reports
from brim.runs.directory import RunDirectory, curve_of
from brim.support.printing import Printed
from brim.training.predictions import Prediction


@dataclass(frozen=True, repr=False)
class RunResult(Printed):
    """What a run, or an evaluation of one, came to; prints as the table of the command line.

    Attributes:
        directory: that holds it.
        split: of the data.
        scores: by name, each with its interval.
        facts: all that `results.json` has of the split, such as `best_step`, or `stopped` where the
            training ended early.
        text: the table.
    """

    directory: Path
    split: str
    scores: Mapping[str, Score]
    facts: Mapping[str, Any]
    text: str

    @property
    def best(self) -> Path:
        """The folder of the best checkpoint, in the layout of `save_pretrained`."""
        return self.directory / "best"

    @property
    def run(self) -> RunDirectory:
        """The reader of the directory: settings, manifest, results of other splits."""
        return RunDirectory(self.directory)

    def log(self) -> list[dict[str, Any]]:
        """Return the rows of `metrics.jsonl`: a `step` and the metrics of it or its evaluation."""
        return self.run.log("metrics.jsonl")

    def curve(self, key: str) -> list[tuple[int, float]]:
        """Return (step, value) of a metric, such as `train/loss` or `eval/bleu`."""
        return curve_of(self.log(), key)

    def predictions(self) -> Iterator[Prediction]:
        """Yield what was written for each example of the split."""
        return self.run.predictions(self.split)

    def load(self, **options: Any) -> LanguageModel:
        """Load the student of the best checkpoint; options are those of `load_model`.

        Raises:
            RunError: there is none, as in a folder of an evaluation, or it is damaged.
        """
        self.run.check_best()
        return load_model(self.best, **options)

    def report(self, out: str | Path, **options: Any) -> Report:
        """Write a report on the run into a folder; options are those of `write_reports`."""
        return write_reports([self.directory], out, **options)
