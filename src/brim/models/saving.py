"""Folders that every version of transformers reads as the same model and tokenizer.

transformers 5 forgets some of what older versions read from a saved folder, and rebuilds some
tokenizers by the rules of their class instead of those of their file. What `save_pretrained` wrote
is corrected here, in JSON.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from brim.models.adapters import has_adapters, merged_state_dict, save_adapters
from brim.models.generation_settings import followed_settings, settings_aside
from brim.models.head_checks import check_stored_head, head_is_shared, head_name
from brim.models.tokenizers import definition, has_target_mode

# Where `tokenizer_class` alone would not keep AutoTokenizer from a rebuild: it goes by the model's
# type (qwen2), but not in a folder that names a class under this key. Older versions ignore the
# key, as there is no code to trust.
_AS_IN_THE_FILE = {"AutoTokenizer": ["PreTrainedTokenizerFast", "PreTrainedTokenizerFast"]}

# Of tokenizer_config.json: what transformers 5 notes of how a tokenizer was loaded.
_NOTES = ("backend", "is_local", "local_files_only", "model_specific_special_tokens")


def save_folder(
    directory: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    state_dict: Mapping[str, Tensor] | None,
    *,
    resumable: bool,
    scaled: bool,
    eos_token_ids: Sequence[int],
    unused_rows: Collection[int],
) -> None:
    """Write model and tokenizer for plain `from_pretrained` and `generate` of transformers 4 and 5.

    Args:
        directory: made if need be.
        model: a language model with a head.
        tokenizer: of the model.
        state_dict: the weights of `model`, where it holds others or only a part of them.
        resumable: also write the adapters as they are; `state_dict` has them merged.
        scaled: whether the decoder's output is scaled before the head, as in the first T5.
        eos_token_ids: tokens that end a text.
        unused_rows: of the head, which have no token.

    Raises:
        ModelError: the head in the file is not the one in memory.
    """
    adapted = has_adapters(model)
    if adapted:
        state_dict = merged_state_dict(model)
    # In families like T5, which keep `model_dim`, transformers 4 lets one key say both.
    t5_like, shared = hasattr(model, "model_dim"), head_is_shared(model)
    tied = shared and (scaled or not t5_like)
    options = {} if state_dict is None else {"state_dict": dict(state_dict)}  # it is emptied
    # A file that claims no ties must hold what is shared under each of its names.
    names = ([head_name(model)] if shared else []) if t5_like else [*model.all_tied_weights_keys]
    if names and not tied:
        weights = options.setdefault("state_dict", model.state_dict())
        weights |= {name: weights[name].clone() for name in names}
    # Some settings that come with models are refused when saved.
    with settings_aside(model):
        model.save_pretrained(directory, **options)
    with _edited(directory / "config.json") as config:
        config["tie_word_embeddings"] = tied
        config |= _older_rope(config.get("rope_parameters"))
        if "num_decoder_layers" in config:  # by which transformers 5 sizes no cache of a T5
            config["decoder_layers"] = config["num_decoder_layers"]
    with _edited(directory / "generation_config.json") as settings:
        # With what is not followed, `generate` would write other text than was trained.
        settings |= followed_settings(model)
        settings["eos_token_id"] = (
            eos_token_ids[0] if len(eos_token_ids) == 1 else list(eos_token_ids)
        )
        if unused_rows:
            suppressed = {*(settings.get("suppress_tokens") or ()), *unused_rows}
            settings["suppress_tokens"] = sorted(suppressed)
    _save_tokenizer(tokenizer, directory)
    check_stored_head(model, directory, state_dict)
    if adapted and resumable:
        save_adapters(model, directory)


def _older_rope(rope: Mapping[str, Any] | None) -> dict[str, Any]:
    """The rotary embedding in the keys of transformers 4; empty where the two differ too much."""
    if not isinstance(rope, dict) or not isinstance(rope.get("rope_type"), str):
        return {}
    scaling = dict(rope)
    plain = {k: scaling.pop(k) for k in ("rope_theta", "partial_rotary_factor") if k in rope}
    return plain if rope["rope_type"] == "default" else {**plain, "rope_scaling": scaling}


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    tokenizer.save_pretrained(directory)
    file = directory / "tokenizer_config.json"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    with _edited(file) as config:
        for key in _NOTES:
            config.pop(key, None)
        if isinstance(config.get("extra_special_tokens"), list):  # transformers 4 wants a mapping
            config["additional_special_tokens"] = config.pop("extra_special_tokens")
        if config.get("auto_map") == _AS_IN_THE_FILE:
            del config["auto_map"]
        if backend is None or has_target_mode(tokenizer) or "auto_map" in config:
            return  # what the class adds to the file, or has in its place, is needed
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        # What other classes need not say:
        config["model_input_names"] = list(tokenizer.model_input_names)
        config["padding_side"] = tokenizer.padding_side
        splitter = backend.pre_tokenizer
        config["add_prefix_space"] = bool(getattr(splitter, "add_prefix_space", False))
    if not _reads_the_same(directory, tokenizer):
        with _edited(file) as config:
            config["auto_map"] = _AS_IN_THE_FILE


def _reads_the_same(directory: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether plain AutoTokenizer makes this tokenizer of the folder."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        plain = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception:  # rules that do not fit the file fail in many ways
        return False
    finally:
        logger.setLevel(level)
    return definition(plain) == definition(tokenizer)


@contextmanager
def _edited(file: Path) -> Iterator[dict[str, Any]]:
    """The settings in a JSON file, if there is one, written when the block ends."""
    text = file.read_text(encoding="utf-8") if file.exists() else "{}"
    settings: dict[str, Any] = json.loads(text)
    yield settings
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8")
