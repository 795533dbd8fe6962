"""Tasks: one file each, a registry of classes, and the union of their settings."""

from typing import Annotated

from pydantic import Field

from brim.tasks.base import SPLITS, BundledSettings, Progress, Split, Task, TaskSettings, describe
from brim.tasks.cmudict import CMUdict, CMUdictConfig
from brim.tasks.files import Files, FilesConfig
from brim.tasks.synopsis import Synopsis, SynopsisConfig
from brim.tasks.wordproblems import WordProblems, WordProblemsConfig

TASKS: dict[str, type[Task]] = {
    "cmudict": CMUdict,
    "synopsis": Synopsis,
    "wordproblems": WordProblems,
    "files": Files,
}

TaskConfig = Annotated[
    CMUdictConfig | SynopsisConfig | WordProblemsConfig | FilesConfig, Field(discriminator="name")
]

__all__ = [
    "SPLITS",
    "TASKS",
    "BundledSettings",
    "CMUdict",
    "CMUdictConfig",
    "Files",
    "FilesConfig",
    "Progress",
    "Split",
    "Synopsis",
    "SynopsisConfig",
    "Task",
    "TaskConfig",
    "TaskSettings",
    "WordProblems",
    "WordProblemsConfig",
    "describe",
]
