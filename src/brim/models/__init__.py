"""Students and teachers: loading, building, writing, and scoring text through one class.

The names are imported when first used, for `brim.models.settings` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brim.models.actor_critic import ActorCritic as ActorCritic
    from brim.models.adapters import add_adapters as add_adapters
    from brim.models.alignment import AlignedTeacher as AlignedTeacher
    from brim.models.alignment import read_text as read_text
    from brim.models.boundaries import SpaceBoundaries as SpaceBoundaries
    from brim.models.checks import RowReport as RowReport
    from brim.models.checks import check_same_tokenizer as check_same_tokenizer
    from brim.models.checks import inspect_rows as inspect_rows
    from brim.models.checks import same_tokenizer as same_tokenizer
    from brim.models.checks import share_vocabulary as share_vocabulary
    from brim.models.encoding import Encoder as Encoder
    from brim.models.features import Comparison as Comparison
    from brim.models.features import Features as Features
    from brim.models.features import RowFunction as RowFunction
    from brim.models.head_checks import hash_tensors as hash_tensors
    from brim.models.language_model import LanguageModel as LanguageModel
    from brim.models.layers import keep_layers as keep_layers
    from brim.models.loading import load_encoder as load_encoder
    from brim.models.loading import load_model as load_model
    from brim.models.modes import checkpoint_layers as checkpoint_layers
    from brim.models.modes import evaluating as evaluating
    from brim.models.modes import set_dropout as set_dropout
    from brim.models.modes import updating as updating
    from brim.models.quantization import plain_tensors as plain_tensors
    from brim.models.quantization import q_drift as q_drift
    from brim.models.quantization import quantization_of as quantization_of
    from brim.models.scratch import build_model as build_model
    from brim.models.scratch import train_tokenizer as train_tokenizer
    from brim.models.server import ServerTeacher as ServerTeacher
    from brim.models.settings import SOFTMAX as SOFTMAX
    from brim.models.settings import BeamSearch as BeamSearch
    from brim.models.settings import Centering as Centering
    from brim.models.settings import Decoding as Decoding
    from brim.models.settings import Distribution as Distribution
    from brim.models.settings import Lora as Lora
    from brim.models.settings import Quantization as Quantization
    from brim.models.several import AveragedTeacher as AveragedTeacher
    from brim.models.several import TeacherOfEach as TeacherOfEach
    from brim.models.teacher import Teacher as Teacher
    from brim.models.teacher import whole as whole
    from brim.models.vllm import VLLMEngine as VLLMEngine
    from brim.models.vllm import check_vllm as check_vllm

_HOMES = {
    "actor_critic": ("ActorCritic",),
    "adapters": ("add_adapters",),
    "alignment": ("AlignedTeacher", "read_text"),
    "boundaries": ("SpaceBoundaries",),
    "checks": (
        "RowReport",
        "check_same_tokenizer",
        "inspect_rows",
        "same_tokenizer",
        "share_vocabulary",
    ),
    "encoding": ("Encoder",),
    "features": ("Comparison", "Features", "RowFunction"),
    "head_checks": ("hash_tensors",),
    "language_model": ("LanguageModel",),
    "layers": ("keep_layers",),
    "loading": ("load_encoder", "load_model"),
    "modes": ("checkpoint_layers", "evaluating", "set_dropout", "updating"),
    "quantization": ("plain_tensors", "q_drift", "quantization_of"),
    "scratch": ("build_model", "train_tokenizer"),
    "server": ("ServerTeacher",),
    "settings": (
        "SOFTMAX",
        "BeamSearch",
        "Centering",
        "Decoding",
        "Distribution",
        "Lora",
        "Quantization",
    ),
    "several": ("AveragedTeacher", "TeacherOfEach"),
    "teacher": ("Teacher", "whole"),
    "vllm": ("VLLMEngine", "check_vllm"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(name for names in _HOMES.values() for name in names)
