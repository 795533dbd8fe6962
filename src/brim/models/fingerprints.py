"""Fingerprints: by what a run knows a model, wherever its files are."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from brim.models.head_checks import hash_tensors
from brim.models.language_model import LanguageModel
from brim.models.quantization import plain_tensors


def fingerprint_model(model: LanguageModel) -> str:
    """SHA-256 of a model: its weights' every byte, its configuration, rules and tokenizer."""
    config = json.loads(model.model.config.to_json_string())
    config.pop("transformers_version", None)
    rules = [sorted(model.rules.excluded), model.rules.forced_start, model.rules.forces_end]
    also = json.dumps([config, rules, _describe_tokenizer(model.tokenizer)], sort_keys=True)
    weights = plain_tensors(model.model.state_dict())
    return hash_tensors(weights, also=also, into=hashlib.sha256())


def _describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """All that decides about a tokenizer's ids, but for what is set at each call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    rules = {key: value for key, value in rules.items() if key not in ("truncation", "padding")}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return [rules, special, tokenizer.chat_template]


def describe_model(model: LanguageModel) -> dict[str, str]:
    """What a manifest says of a model: `sha256`, its fingerprint, and the `commit` on the hub."""
    commit = getattr(model.model.config, "_commit_hash", None)
    return {"sha256": fingerprint_model(model), **({"commit": commit} if commit else {})}
