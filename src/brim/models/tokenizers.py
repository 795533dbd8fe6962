"""What a model's tokenizer says about the head's rows, and by which rules it reads."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from brim.errors import ModelError

# Special tokens that models read and write themselves, other than a mask, which is in texts only.
_NEEDED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")

# Parts of tokenizer.json that say nothing about how a text is read.
_IGNORED_PARTS = ("version", "truncation", "padding")


def rows_without_token(
    tokenizer: PreTrainedTokenizerBase,
    num_rows: int,
    excluded: Collection[int] = (),
    possible: Collection[int] | None = None,
) -> tuple[int, list[int], frozenset[int]]:
    """Which rows of a head have no token, or an excluded one, and which tokens have no row.

    BART-large-CNN has no row for `<mask>`, and Gemma 3 of text none for images.

    Args:
        tokenizer: of the model.
        num_rows: of the head.
        excluded: tokens that are not written.
        possible: tokens that need no row; by default those that were added to the vocabulary, but
            for the special ones that a model itself reads or writes.

    Returns:
        The number of rows up to the last one in use, those before it that are not, and the tokens.

    Raises:
        ModelError: the tokenizer has another token for which the head has no row.
    """
    if possible is None:
        needed = {getattr(tokenizer, name) for name in _NEEDED}
        added = tokenizer.added_tokens_decoder.items()
        possible = [i for i, token in added if str(token) not in needed]
    ids = set(tokenizer.get_vocab().values())
    rowless = frozenset(i for i in ids if i >= num_rows)
    if missing := rowless.difference(possible):
        raise ModelError(
            f"the tokenizer has a token id {max(missing)} but the model's head has {num_rows} "
            "rows; use the tokenizer the model was trained with, or resize the model's embeddings"
        )
    ids -= rowless.union(excluded)
    used = max(ids) + 1
    return used, sorted(set(range(used)) - ids), rowless


def check_writable(
    token_ids: Tensor, tokenizer: PreTrainedTokenizerBase, num_rows: int, holes: Sequence[int]
) -> None:
    """Check that a model writes these tokens, (N,) int64; rows as of `rows_without_token`.

    Raises:
        ModelError: one of them is excluded.
    """
    unknown = token_ids >= num_rows
    if holes:
        unknown |= torch.isin(token_ids, torch.tensor(holes, device=token_ids.device))
    if unknown.any():
        token = int(token_ids[unknown][0])
        raise ModelError(
            f"a completion holds token {token} ({tokenizer.convert_ids_to_tokens(token)}),"
            " which this model never writes; brim.models.share_vocabulary has two models "
            "exclude the same tokens"
        )


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that end a completion, the tokenizer's own first (the one appended to targets).

    Raises:
        ModelError: neither the tokenizer nor the model's generation settings name one.
    """
    settings = getattr(model, "generation_config", None) or model.config
    listed = settings.eos_token_id
    listed = listed if isinstance(listed, list) else [listed]
    ids = tuple(dict.fromkeys(i for i in (tokenizer.eos_token_id, *listed) if i is not None))
    if not ids:
        raise ModelError(
            "the tokenizer has no end-of-sequence token, so no completion could end; "
            "set eos_token in its tokenizer_config.json"
        )
    return ids


def has_target_mode(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's class reads targets by other rules than prompts (NLLB, mBART)."""
    own, general = (
        getattr(kind, "_switch_to_target_mode", None)
        for kind in (type(tokenizer), PreTrainedTokenizerBase)
    )
    return own is not general


def without_end(
    tokenizer: PreTrainedTokenizerBase, eos_token_ids: Collection[int]
) -> PreTrainedTokenizerBase:
    """The tokenizer itself, or a copy that appends no end token where its template appends one."""
    processor = getattr(getattr(tokenizer, "backend_tokenizer", None), "post_processor", None)
    if processor is None:
        return tokenizer
    before = processor.__getstate__()
    state = json.loads(before)
    for template in state.get("processors", [state]):
        if template["type"] == "TemplateProcessing":
            _drop_ends(template, frozenset(eos_token_ids))
    if state == json.loads(before):
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    processor.__setstate__(json.dumps(state).encode())
    tokenizer.backend_tokenizer.post_processor = processor
    return tokenizer


def _drop_ends(template: dict[str, Any], eos_token_ids: frozenset[int]) -> None:
    """Take the end tokens off what a template of tokenizer.json makes of a text, or of two."""
    tokens = template["special_tokens"]
    used = set()
    for pieces in (template["single"], template["pair"]):
        while "SpecialToken" in pieces[-1]:
            if not eos_token_ids.intersection(tokens[pieces[-1]["SpecialToken"]["id"]]["ids"]):
                break
            pieces.pop()
        used |= {piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece}
    template["special_tokens"] = {name: token for name, token in tokens.items() if name in used}


def definition(
    tokenizer: PreTrainedTokenizerBase, ignored_ids: Collection[int] = ()
) -> dict[str, Any]:
    """The parts of tokenizer.json that say how text is read; empty where there is no such file."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}
    parts = json.loads(backend.to_str())
    model = parts.pop("model")
    ignored = {tokenizer.convert_ids_to_tokens(i) for i in ignored_ids}
    parts["added_tokens"] = [t for t in parts["added_tokens"] if t["content"] not in ignored]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {t: i for t, i in model["vocab"].items() if t not in ignored}
    parts = {
        key: _without_offsets(value, acts=key not in ("decoder", "post_processor"))
        for key, value in parts.items()
        if key not in _IGNORED_PARTS
    }
    return parts | {f"model.{key}": value for key, value in model.items()}


def _without_offsets(part: Any, *, acts: bool) -> Any:
    """A part of tokenizer.json without what only says where in the text its tokens are.

    `acts` says whether settings of `ByteLevel` change tokens; behind the model they do not.
    """
    if isinstance(part, list) and part and isinstance(part[0], dict):
        return [_without_offsets(value, acts=acts) for value in part]
    if not isinstance(part, dict) or "type" not in part:
        return part
    if part["type"] == "ByteLevel" and not acts:
        return {"type": "ByteLevel"}
    return {
        key: _without_offsets(value, acts=acts)
        for key, value in part.items()
        if key != "trim_offsets"
    }
