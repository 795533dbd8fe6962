"""What a model's tokenizer says about the head's rows, and whether two tokenizers are the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from brim.errors import ModelError

if TYPE_CHECKING:
    from brim.models.language_model import LanguageModel

# Padding is no part of a text: a pair may differ in its pad token.
_SPECIAL_TOKENS = ("eos_token", "bos_token", "unk_token")

# Parts of tokenizer.json that say nothing about how a text is read.
_IGNORED_PARTS = ("version", "truncation", "padding")


def rows_without_token(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> tuple[int, list[int]]:
    """Which rows of a head have no token.

    Returns:
        The number of rows up to the last one with a token, and those before it that have none.

    Raises:
        ModelError: the tokenizer has a token for which the head has no row.
    """
    ids = set(tokenizer.get_vocab().values())
    used = max(ids) + 1
    if used > num_rows:
        raise ModelError(
            f"the tokenizer has a token id {used - 1} but the model's head has {num_rows} rows; "
            "use the tokenizer the model was trained with, or resize the model's embeddings"
        )
    return used, sorted(set(range(used)) - ids)


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


def check_same_tokenizer(teacher: LanguageModel, student: LanguageModel) -> None:
    """Refuse a pair that does not read text as the same token ids; compared by content.

    The sizes of the models' heads play no role, nor do pad tokens and chat templates.

    Raises:
        ModelError: names the first difference; or one model is an encoder-decoder and the other is
            not, so that they lay out prompts differently.
    """
    kinds = [
        "encoder-decoder" if m.is_encoder_decoder else "decoder-only" for m in (teacher, student)
    ]
    if kinds[0] != kinds[1]:
        raise ModelError(
            f"the teacher is {kinds[0]} and the student {kinds[1]}; choose two models of one kind"
        )
    difference = _difference(teacher.tokenizer, student.tokenizer)
    if difference:
        raise ModelError(
            f"teacher and student have different tokenizers: {difference}; "
            "choose a pair of one model family, or build the student from the teacher's tokenizer"
        )


def _difference(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> str | None:
    """The first difference in vocabulary, special tokens or rules, as a clause."""
    token_at = [{i: token for token, i in t.get_vocab().items()} for t in (teacher, student)]
    for i in sorted(token_at[0].keys() | token_at[1].keys()):
        if token_at[0].get(i) != token_at[1].get(i):
            return _contrast(f"token id {i}", token_at[0].get(i), token_at[1].get(i))
    for name in _SPECIAL_TOKENS:
        if getattr(teacher, name) != getattr(student, name):
            return _contrast(name, getattr(teacher, name), getattr(student, name))
    ours, theirs = _definition(teacher), _definition(student)
    for part in sorted(ours.keys() & theirs.keys()):
        if ours[part] != theirs[part]:
            return f"the {part} part of tokenizer.json differs"
    return None


def _contrast(what: str, ours: str | None, theirs: str | None) -> str:
    quoted = ["unset" if token is None else repr(token) for token in (ours, theirs)]
    return f"{what} is {quoted[0]} for the teacher and {quoted[1]} for the student"


def _definition(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The parts of tokenizer.json; empty for a tokenizer that is not backed by one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}
    parts = json.loads(backend.to_str())
    model = parts.pop("model")
    parts |= {f"model.{key}": value for key, value in model.items()}
    return {key: value for key, value in parts.items() if key not in _IGNORED_PARTS}
