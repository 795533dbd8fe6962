"""Tasks: one file each, a registry of classes, and the union of their settings."""

from typing import Annotated

from pydantic import Field

from brim.tasks.base import (
    SPLITS,
    BundledSettings,
    Progress,
    Split,
    Task,
    TaskSettings,
    describe,
    locate,
    without_rows,
)
from brim.tasks.cmudict import CMUdict, CMUdictConfig
from brim.tasks.europarl import Europarl, EuroparlConfig
from brim.tasks.files import Files, FilesConfig
from brim.tasks.gsm8k import GSM8K, GSM8KConfig
from brim.tasks.published import PublishedSettings
from brim.tasks.synopsis import Synopsis, SynopsisConfig
from brim.tasks.wordproblems import WordProblems, WordProblemsConfig
from brim.tasks.xsum import XSum, XSumConfig

TASKS: dict[str, type[Task]] = {
    "cmudict": CMUdict,
    "synopsis": Synopsis,
    "wordproblems": WordProblems,
    "xsum": XSum,
    "europarl": Europarl,
    "gsm8k": GSM8K,
    "files": Files,
}

TaskConfig = Annotated[
    CMUdictConfig
    | SynopsisConfig
    | WordProblemsConfig
    | XSumConfig
    | EuroparlConfig
    | GSM8KConfig
    | FilesConfig,
    Field(discriminator="name"),
]

__all__ = [
    "GSM8K",
    "SPLITS",
    "TASKS",
    "BundledSettings",
    "CMUdict",
    "CMUdictConfig",
    "Europarl",
    "EuroparlConfig",
    "Files",
    "FilesConfig",
    "GSM8KConfig",
    "Progress",
    "PublishedSettings",
    "Split",
    "Synopsis",
    "SynopsisConfig",
    "Task",
    "TaskConfig",
    "TaskSettings",
    "WordProblems",
    "WordProblemsConfig",
    "XSum",
    "XSumConfig",
    "describe",
    "locate",
    "without_rows",
]
