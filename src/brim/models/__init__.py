"""Students and teachers: loading, building, writing, and judging text through one class."""

from brim.models.decoding import Decoding
from brim.models.head import Centering
from brim.models.language_model import LanguageModel
from brim.models.layers import keep_layers
from brim.models.loading import load_model
from brim.models.scratch import build_model
from brim.models.tokenizer_training import train_tokenizer
from brim.models.tokenizers import check_same_tokenizer

__all__ = [
    "Centering",
    "Decoding",
    "LanguageModel",
    "build_model",
    "check_same_tokenizer",
    "keep_layers",
    "load_model",
    "train_tokenizer",
]
