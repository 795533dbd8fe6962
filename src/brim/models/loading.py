"""Loading a model by name or path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from brim.errors import ModelError
from brim.models.language_model import LanguageModel
from brim.models.tying import check_stored_head

DTYPES: dict[str, torch.dtype | str] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": "auto",
}


def load_model(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a model and its tokenizer from a directory or the Hugging Face hub.

    The weights must be safetensors, all of them present; the output head in memory is compared
    with the one in the file.

    Args:
        name_or_path: a directory in `save_pretrained` layout, or a hub id.
        revision: branch, tag or commit on the hub.
        dtype: of the weights: `float32`, `bfloat16`, `float16`, or `auto` for the file's own.
        device: where the weights go.
        trust_remote_code: run Python code that the model brings along.

    Raises:
        ModelError: the model cannot be found or read, or is not a language model with a head.
    """
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    name = str(name_or_path)
    if not Path(name).is_dir() and _looks_like_path(name):
        raise ModelError(f"{name}: no such directory; give a model directory or a hub id")
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        model, tokenizer, missing = _read(name, DTYPES[dtype], options)
        directory = Path(cached_file(name, "config.json", revision=revision)).parent
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(f"cannot load the model {name!r}: {_first_line(error)}") from error
    if missing:
        raise ModelError(
            f"cannot load the model {name!r}: {len(missing)} of its weights are not in the file, "
            f"such as {min(missing)}; choose a checkpoint of a whole language model"
        )
    check_stored_head(model, directory)
    return LanguageModel(model.to(device), tokenizer)


def _read(
    name: str, dtype: torch.dtype | str, options: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, set[str]]:
    """Model in evaluation mode, tokenizer, and the names of weights that the file lacks."""
    config = AutoConfig.from_pretrained(name, **options)
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model, info = auto_class.from_pretrained(
        name, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
    )
    return model, _read_tokenizer(name, options), set(info["missing_keys"])


def _read_tokenizer(name: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    declared = get_tokenizer_config(name, **options).get("tokenizer_class")
    # AutoTokenizer rebuilds the tokenizer of some families (Qwen2) from its vocabulary by the
    # family's own rules. One that declares the general class is the whole of its tokenizer.json.
    general = declared in ("TokenizersBackend", "PreTrainedTokenizerFast")
    loader = PreTrainedTokenizerFast if general else AutoTokenizer
    return loader.from_pretrained(name, **options)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
