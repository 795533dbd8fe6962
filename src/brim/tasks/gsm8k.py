"""GSM8K: a word problem -> worked steps and the answer (Cobbe et al. 2021).

    Mark is 7 years older than Amy, who is 15. How old will Mark be in 5 years?

    Mark is 15 years + 7 years = <<15+7=22>>22 years old.
    In 5 years, he will be 22 years + 5 years = <<22+5=27>>27 years old.
    #### 27

The answer is the number after `####`: github.com/openai/grade-school-math, dataset.py. The
published training file has 7,473 problems and no validation split. The paper (BRIM) takes that of
Wang et al. (2024), 6,705 / 768 / 1,319, which `brim/data/gsm8k` rebuilds from the published files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any, ClassVar, Literal

from brim.errors import DataError
from brim.tasks.base import MetricNames, Split
from brim.tasks.cells import NumberedRow, RowError
from brim.tasks.published import Publication, PublishedTask
from brim.tasks.rows import Source

NUM_TRAIN_LINES = 7_473

_MARK = re.compile("<<[^>]*>>")


def validation_lines() -> frozenset[int]:
    """Return the lines, from 0, of the published training file that are the validation split."""
    file = resources.files("brim") / "data" / "gsm8k" / "validation_lines.txt"
    return frozenset(map(int, file.read_text(encoding="ascii").split()))


class GSM8K(PublishedTask):
    """Settings of the task on GSM8K.

    Where there is validation data, the splits are as they are given. Where there is none, train and
    test are the published files, in their order, and an id is as `gsm8k-train-42`, lines from 0.
    """

    published: ClassVar[Publication] = Publication(
        hub_id="openai/gsm8k",
        config="main",
        splits=("train", "test"),
        names={"question": ("question", "source"), "answer": ("answer", "target"), "id": ("id",)},
        num_rows={("train",): 6_705, ("validation",): 768, ("test",): 1_319},
    )

    name: Literal["gsm8k"] = "gsm8k"
    """Word problems with worked steps."""
    path: str = published.hub_id
    """Folder with train and test files (.jsonl, .csv, .tsv, also .gz), or hub id."""
    prompt: str = "{question}"
    """Template of the prompt; `{question}` is the problem."""
    metrics: MetricNames = ("gsm8k_accuracy", "answer_accuracy")
    """What is measured; the first one picks the checkpoint."""
    calculator_marks: bool = True
    """Whether targets keep the calculator's marks, `<<3*4=12>>`."""

    def sources(self) -> dict[Split, str | None]:
        """Return those of one published file for two splits, where they are not given."""
        sources = super().sources()
        return {**sources, "validation": sources["validation"] or sources["train"]}

    def open(self, text: str, split: Split) -> Source:
        """See `ReadTask.open`."""
        if super().sources()["validation"] is not None:
            return _Problems(super().open(text, split), None, marks=self.calculator_marks)
        source = super().open(text, "test" if split == "test" else "train")
        return _Problems(source, split, marks=self.calculator_marks)


class _Problems:
    """The problems of a source, or those of its lines that belong to a split.

    A `split` of None has all rows as they are; `marks` are the calculator's, which answers may
    keep.
    """

    def __init__(self, source: Source, split: Split | None, *, marks: bool) -> None:
        self.name, self.label = source.name, source.label
        self.columns, self.where, self.position = source.columns, source.where, source.position
        self._source, self._split, self._marks = source, split, marks

    def identity(self) -> list[Any]:
        """Return that of the source, which split is read, and whether marks are kept."""
        return [*self._source.identity(), self._split, self._marks]

    def rows(self, columns: Sequence[str]) -> Iterator[NumberedRow]:
        """Yield each row of the split; a DataError if it is one of lines, and of another file."""
        held_out = validation_lines() if self._split in ("train", "validation") else frozenset()
        file = "test" if self._split == "test" else "train"
        line = -1
        for line, (number, row) in enumerate(self._source.rows(columns)):
            if held_out and (line in held_out) != (self._split == "validation"):
                continue
            if isinstance(row, RowError):
                yield number, row
                continue
            problem = dict(row)
            if self._split and problem.get("id") is None:
                problem["id"] = f"gsm8k-{file}-{line}"
            answer = problem.get("answer")
            if not self._marks and isinstance(answer, str):
                problem["answer"] = _MARK.sub("", answer)
            yield number, problem
        if held_out and line + 1 != NUM_TRAIN_LINES:
            raise DataError(
                f"{self.name}: {line + 1} rows, and the split is of the published file with "
                f"{NUM_TRAIN_LINES:,}; name your validation data in task.validation"
            )
