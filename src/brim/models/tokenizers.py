"""What a model's tokenizer says about the head's rows, and whether two tokenizers are the same."""

from __future__ import annotations

import json
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from brim.errors import ModelError

_SPECIAL_TOKENS = ("eos_token", "pad_token", "bos_token", "unk_token")

# Parts of a tokenizer's definition that change with every call, not with what it is.
_CALL_STATE = ("truncation", "padding")


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
            f"the tokenizer has a token with id {used - 1} but the model's head has {num_rows} rows; "
            "use the tokenizer the model was trained with, or resize the model's embeddings"
        )
    return used, sorted(set(range(used)) - ids)


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that end a completion, the tokenizer's own first (the one appended to targets).

    Raises:
        ModelError: neither the tokenizer nor the model's generation settings name one.
    """
    listed = model.generation_config.eos_token_id
    listed = listed if isinstance(listed, list) else [listed]
    ids = tuple(dict.fromkeys(i for i in (tokenizer.eos_token_id, *listed) if i is not None))
    if not ids:
        raise ModelError(
            "the tokenizer has no end-of-sequence token, so no completion could end; "
            "set eos_token in its tokenizer_config.json"
        )
    return ids


def check_same_tokenizer(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase
) -> None:
    """Refuse a pair that does not read text as the same token ids; compared by content.

    The sizes of the models' heads play no role, nor do chat templates.

    Raises:
        ModelError: names the first difference.
    """
    difference = (
        _vocabulary_difference(teacher, student)
        or _special_token_difference(teacher, student)
        or _pipeline_difference(teacher, student)
    )
    if difference:
        raise ModelError(
            f"teacher and student have different tokenizers: {difference}; "
            "choose a pair of one model family, or build the student from the teacher's tokenizer"
        )


def _vocabulary_difference(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase
) -> str | None:
    tokens_of_teacher = {i: token for token, i in teacher.get_vocab().items()}
    tokens_of_student = {i: token for token, i in student.get_vocab().items()}
    for i in sorted(tokens_of_teacher.keys() | tokens_of_student.keys()):
        ours, theirs = tokens_of_teacher.get(i), tokens_of_student.get(i)
        if ours != theirs:
            return f"token id {i} is {_quote(ours)} for the teacher and {_quote(theirs)} for the student"
    return None


def _special_token_difference(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase
) -> str | None:
    for name in _SPECIAL_TOKENS:
        ours, theirs = getattr(teacher, name), getattr(student, name)
        if ours != theirs:
            return f"{name} is {_quote(ours)} for the teacher and {_quote(theirs)} for the student"
    return None


def _pipeline_difference(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase
) -> str | None:
    """The first part of the two definitions that differs, such as `normalizer` or `model.merges`."""
    ours, theirs = _definition(teacher), _definition(student)
    for part in sorted(ours.keys() & theirs.keys()):
        if ours[part] != theirs[part]:
            return f"the {part} part of tokenizer.json differs"
    return None


def _definition(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The parts of tokenizer.json; empty for a tokenizer that is not backed by one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}
    parts = json.loads(backend.to_str())
    model = parts.pop("model")
    parts |= {f"model.{key}": value for key, value in model.items()}
    return {key: value for key, value in parts.items() if key not in _CALL_STATE}


def _quote(token: str | None) -> str:
    return "unset" if token is None else repr(token)
