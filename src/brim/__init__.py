"""Sequence knowledge distillation by reinforcement learning.

The public names are imported when first used, so that `import brim` and the command line do not
wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from brim._version import __version__

if TYPE_CHECKING:
    from brim.errors import BrimError
    from brim.examples import Example
    from brim.models import LanguageModel, load_model
    from brim.returns import block_returns, induced_rewards, rewards_to_go
    from brim.types import ActionValues, Batch, Rollout

_HOMES = {
    "ActionValues": "brim.types",
    "Batch": "brim.types",
    "BrimError": "brim.errors",
    "Example": "brim.examples",
    "LanguageModel": "brim.models",
    "Rollout": "brim.types",
    "block_returns": "brim.returns",
    "induced_rewards": "brim.returns",
    "load_model": "brim.models",
    "rewards_to_go": "brim.returns",
}

__all__ = [
    "ActionValues",
    "Batch",
    "BrimError",
    "Example",
    "LanguageModel",
    "Rollout",
    "__version__",
    "block_returns",
    "induced_rewards",
    "load_model",
    "rewards_to_go",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'brim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
