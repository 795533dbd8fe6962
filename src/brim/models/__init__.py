"""Students and teachers: loading, building, writing, and scoring text through one class.

The names are imported when first used: `brim.models.settings` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brim.models.actor_critic import ActorCritic
    from brim.models.adapters import add_adapters
    from brim.models.checks import (
        RowReport,
        check_same_tokenizer,
        inspect_rows,
        share_vocabulary,
    )
    from brim.models.features import Comparison, Features, RowFunction
    from brim.models.head_checks import hash_tensors
    from brim.models.language_model import LanguageModel
    from brim.models.layers import keep_layers
    from brim.models.loading import load_model
    from brim.models.modes import checkpoint_layers, evaluating, set_dropout, updating
    from brim.models.quantization import plain_tensors, q_drift, quantization_of
    from brim.models.scratch import build_model, train_tokenizer
    from brim.models.settings import (
        SOFTMAX,
        BeamSearch,
        Centering,
        Decoding,
        Distribution,
        Lora,
        Quantization,
    )
    from brim.models.vllm import VLLMEngine, check_vllm

_HOMES = {
    "actor_critic": ("ActorCritic",),
    "adapters": ("add_adapters",),
    "checks": ("RowReport", "check_same_tokenizer", "inspect_rows", "share_vocabulary"),
    "features": ("Comparison", "Features", "RowFunction"),
    "head_checks": ("hash_tensors",),
    "language_model": ("LanguageModel",),
    "layers": ("keep_layers",),
    "loading": ("load_model",),
    "modes": ("checkpoint_layers", "evaluating", "set_dropout", "updating"),
    "quantization": ("plain_tensors", "q_drift", "quantization_of"),
    "scratch": ("build_model", "train_tokenizer"),
    "settings": (
        "SOFTMAX",
        "BeamSearch",
        "Centering",
        "Decoding",
        "Distribution",
        "Lora",
        "Quantization",
    ),
    "vllm": ("VLLMEngine", "check_vllm"),
}

__all__ = [
    "SOFTMAX",
    "ActorCritic",
    "BeamSearch",
    "Centering",
    "Comparison",
    "Decoding",
    "Distribution",
    "Features",
    "LanguageModel",
    "Lora",
    "Quantization",
    "RowFunction",
    "RowReport",
    "VLLMEngine",
    "add_adapters",
    "build_model",
    "check_same_tokenizer",
    "check_vllm",
    "checkpoint_layers",
    "evaluating",
    "hash_tensors",
    "inspect_rows",
    "keep_layers",
    "load_model",
    "plain_tensors",
    "q_drift",
    "quantization_of",
    "set_dropout",
    "share_vocabulary",
    "train_tokenizer",
    "updating",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
