"""Tasks: a class for each, its settings and what reads its data in one, and the union of them."""

from typing import Annotated

from pydantic import Field

from brim.tasks.base import (
    SPLITS,
    Split,
    Task,
    describe,
    locate,
    warn_of_overlap,
    without_rows,
)
from brim.tasks.bundled import CMUdict, Synopsis
from brim.tasks.files import Files
from brim.tasks.gsm8k import GSM8K
from brim.tasks.published import Europarl, XSum
from brim.tasks.reading import ReadTask
from brim.tasks.wordproblems import WordProblems

AnyTask = Annotated[
    CMUdict | Synopsis | WordProblems | XSum | Europarl | GSM8K | Files,
    Field(discriminator="name"),
]

__all__ = [
    "GSM8K",
    "SPLITS",
    "AnyTask",
    "CMUdict",
    "Europarl",
    "Files",
    "ReadTask",
    "Split",
    "Synopsis",
    "Task",
    "WordProblems",
    "XSum",
    "describe",
    "locate",
    "warn_of_overlap",
    "without_rows",
]
