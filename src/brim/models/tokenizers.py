"""What a model's tokenizer says about the head's rows, and whether two tokenizers are the same."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from brim.errors import ModelError

if TYPE_CHECKING:
    from brim.models.language_model import LanguageModel

# Padding is no part of a text: a pair may differ in its pad token, and in whether there is one.
_SPECIAL_TOKENS = ("eos_token", "bos_token", "unk_token")

# Parts of tokenizer.json that say nothing about how a text is read.
_IGNORED_PARTS = ("version", "truncation", "padding")

_CHOOSE = "choose a pair of one model family, or build the student from the teacher's tokenizer"


def rows_without_token(
    tokenizer: PreTrainedTokenizerBase, num_rows: int, excluded: Collection[int] = ()
) -> tuple[int, list[int]]:
    """Which rows of a head have no token, or an excluded one.

    Returns:
        The number of rows up to the last one in use, and those before it that are not.

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
    ids.difference_update(excluded)
    used = max(ids) + 1
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

    The sizes of the models' heads play no role, nor do chat templates and pad tokens, also one that
    was added to a single one of the two tokenizers.

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
    problem = _difference(teacher.tokenizer, student.tokenizer)
    if problem is not None:
        raise ModelError(f"teacher and student have different tokenizers: {problem}")


def share_vocabulary(teacher: LanguageModel, student: LanguageModel) -> None:
    """Have teacher and student read text as the same token ids and write the same tokens.

    What one of them never writes (`LanguageModel.rules`), neither of them writes from here on: it
    would have no Q-value, or no probability. So it is with a padding token that one of them lacks.

    Raises:
        ModelError: as `check_same_tokenizer`, or one of them excludes the token that ends a text of
            the other.
    """
    check_same_tokenizer(teacher, student)
    pads = _added_pads(teacher.tokenizer, student.tokenizer)
    shared = teacher.rules.excluded | student.rules.excluded | pads
    for model in (teacher, student):
        model.exclude(shared, unshared=pads)


def _difference(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> str | None:
    """The first difference in vocabulary, special tokens or rules, and how to mend it."""
    pads = _added_pads(teacher, student)
    copy = "copy the teacher's tokenizer files over the student's"
    ours, theirs = (_tokens_by_id(tokenizer) for tokenizer in (teacher, student))
    differing = [i for i in sorted(ours.keys() | theirs.keys()) if ours.get(i) != theirs.get(i)]
    differing = [i for i in differing if i not in pads]
    if differing:
        first = differing[0]
        what = _contrast(f"token id {first}", ours.get(first), theirs.get(first))
        if any(i in ours and i in theirs for i in differing):
            return f"{what}; {_CHOOSE}"
        return (
            f"{what}; if they are a base model and its instruct version, {copy} (where its head "
            f"has fewer than {max(ours) + 1} rows, resize_token_embeddings first)"
        )
    special = [name for name in _SPECIAL_TOKENS if getattr(teacher, name) != getattr(student, name)]
    if special:
        tokens = [(name, getattr(teacher, name), getattr(student, name)) for name in special]
        what = ", ".join(_contrast(*token) for token in tokens)
        mend = ", ".join(f"{name} to {'null' if t is None else repr(t)}" for name, t, _ in tokens)
        return (
            f"{what}; if they are a base model and its instruct version, set {mend} in the "
            f"student's tokenizer_config.json, or {copy}"
        )
    parts = [definition(tokenizer, pads) for tokenizer in (teacher, student)]
    for part in sorted(parts[0].keys() & parts[1].keys()):
        if parts[0][part] != parts[1][part]:
            return f"the {part} part of tokenizer.json differs; {_CHOOSE}"
    return None


def _added_pads(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase
) -> frozenset[int]:
    """Ids at which the vocabularies differ by nothing but padding tokens."""
    ours, theirs = (_tokens_by_id(tokenizer) for tokenizer in (teacher, student))
    padding = [
        {None, t.pad_token} - {getattr(t, name) or "" for name in _SPECIAL_TOKENS}
        for t in (teacher, student)
    ]
    return frozenset(
        i
        for i in ours.keys() | theirs.keys()
        if ours.get(i) != theirs.get(i)
        if ours.get(i) in padding[0] and theirs.get(i) in padding[1]
    )


def _tokens_by_id(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {i: token for token, i in tokenizer.get_vocab().items()}


def has_target_mode(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's class reads targets by other rules than prompts (NLLB, mBART)."""
    own, general = (
        getattr(kind, "_switch_to_target_mode", None)
        for kind in (type(tokenizer), PreTrainedTokenizerBase)
    )
    return own is not general


def without_end(
    tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int]
) -> PreTrainedTokenizerBase:
    """The tokenizer itself, or a copy that appends no end token where its template appends one."""
    processor = getattr(getattr(tokenizer, "backend_tokenizer", None), "post_processor", None)
    if processor is None:
        return tokenizer
    before = processor.__getstate__()
    state = json.loads(before)
    for template in state.get("processors", [state]):
        if template["type"] == "TemplateProcessing":
            _drop_ends(template, frozenset(end_ids))
    if state == json.loads(before):
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    processor.__setstate__(json.dumps(state).encode())
    tokenizer.backend_tokenizer.post_processor = processor
    return tokenizer


def _drop_ends(template: dict[str, Any], end_ids: frozenset[int]) -> None:
    """Take the end tokens off what a template of tokenizer.json makes of a text, or of two."""
    tokens = template["special_tokens"]
    used = set()
    for pieces in (template["single"], template["pair"]):
        while "SpecialToken" in pieces[-1]:
            if not end_ids.intersection(tokens[pieces[-1]["SpecialToken"]["id"]]["ids"]):
                break
            pieces.pop()
        used |= {piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece}
    template["special_tokens"] = {name: token for name, token in tokens.items() if name in used}


def _contrast(what: str, ours: str | None, theirs: str | None) -> str:
    quoted = ["unset" if token is None else repr(token) for token in (ours, theirs)]
    return f"{what} is {quoted[0]} for the teacher and {quoted[1]} for the student"


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

    Args:
        part: or something inside it.
        acts: whether settings of `ByteLevel` change tokens; behind the model they do not.
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
