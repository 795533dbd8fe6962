"""Students and teachers: loading, writing, and judging text through one class."""

from brim.models.decoding import Decoding
from brim.models.head import Centering
from brim.models.language_model import LanguageModel
from brim.models.loading import load_model
from brim.models.tokenizers import check_same_tokenizer

__all__ = ["Centering", "Decoding", "LanguageModel", "check_same_tokenizer", "load_model"]
