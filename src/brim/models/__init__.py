"""Students and teachers: loading, building, writing, and judging text through one class."""

from brim.models.actor_critic import ActorCritic
from brim.models.adapters import add_adapters, check_adapters
from brim.models.decoding import Decoding
from brim.models.features import Comparison, Reading, RowFunction
from brim.models.head import SOFTMAX, Centering, Distribution
from brim.models.head_checks import hash_tensors
from brim.models.language_model import LanguageModel, evaluating
from brim.models.layers import keep_layers
from brim.models.loading import load_model
from brim.models.modes import check_checkpointing, checkpoint_layers, set_dropout, updating
from brim.models.quantization import Quantization, plain_tensors, q_drift, quantization_of
from brim.models.row_checks import RowReport, inspect_rows
from brim.models.scratch import Description, build_model, check_description, train_tokenizer
from brim.models.vllm import VLLMEngine, check_vllm
from brim.models.vocabulary import check_same_tokenizer, share_vocabulary

__all__ = [
    "SOFTMAX",
    "ActorCritic",
    "Centering",
    "Comparison",
    "Decoding",
    "Description",
    "Distribution",
    "LanguageModel",
    "Quantization",
    "Reading",
    "RowFunction",
    "RowReport",
    "VLLMEngine",
    "add_adapters",
    "build_model",
    "check_adapters",
    "check_checkpointing",
    "check_description",
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
