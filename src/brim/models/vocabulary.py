"""Whether two models read text as the same token ids, and which tokens both of them write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from brim.errors import ModelError
from brim.models.tokenizers import definition

if TYPE_CHECKING:
    from brim.models.language_model import LanguageModel

# Padding is no part of a text: a pair may differ in its pad token, and in whether there is one.
_SPECIAL_TOKENS = ("eos_token", "bos_token", "unk_token")


_CHOOSE = "choose a pair of one model family, or build the student from the teacher's tokenizer"


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


def _contrast(what: str, ours: str | None, theirs: str | None) -> str:
    quoted = ["unset" if token is None else repr(token) for token in (ours, theirs)]
    return f"{what} is {quoted[0]} for the teacher and {quoted[1]} for the student"
