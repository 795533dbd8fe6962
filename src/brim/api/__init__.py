"""The commands of a run from Python: settings, rows and models in, what a run came to out."""

from brim.api.commands import evaluate, generate, train
from brim.api.result import RunResult

__all__ = ["RunResult", "evaluate", "generate", "train"]
