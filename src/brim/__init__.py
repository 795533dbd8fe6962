"""Sequence knowledge distillation by reinforcement learning.

The public names are imported when first used, so that `import brim` and the command line do not
wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from brim._version import __version__

if TYPE_CHECKING:
    from brim.api import RunResult, evaluate, generate, train
    from brim.compare import compare
    from brim.errors import BrimError
    from brim.examples import Example
    from brim.models import LanguageModel, load_model
    from brim.plan import plan_recipe as plan
    from brim.report import write_reports as report
    from brim.returns import block_returns, induced_rewards, rewards_to_go
    from brim.training.callbacks import Callback, CallbackState
    from brim.types import ActionValues, Batch, Rollout

_HOMES = {
    "ActionValues": "brim.types",
    "Batch": "brim.types",
    "BrimError": "brim.errors",
    "Callback": "brim.training.callbacks",
    "CallbackState": "brim.training.callbacks",
    "Example": "brim.examples",
    "LanguageModel": "brim.models",
    "Rollout": "brim.types",
    "RunResult": "brim.api",
    "block_returns": "brim.returns",
    "evaluate": "brim.api",
    "generate": "brim.api",
    "induced_rewards": "brim.returns",
    "load_model": "brim.models",
    "rewards_to_go": "brim.returns",
    "train": "brim.api",
}
# Packages that can be called, each a command too.
_COMMANDS = ("compare", "plan", "report")

__all__ = [
    "ActionValues",
    "Batch",
    "BrimError",
    "Callback",
    "CallbackState",
    "Example",
    "LanguageModel",
    "Rollout",
    "RunResult",
    "__version__",
    "block_returns",
    "compare",
    "evaluate",
    "generate",
    "induced_rewards",
    "load_model",
    "plan",
    "report",
    "rewards_to_go",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _COMMANDS:
        return import_module(f"brim.{name}")
    raise AttributeError(f"module 'brim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
